"""The kernels give the same numbers as their plain twins, and leave the bit generator in the same state."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import _rle
from tests.reference import rle as reference

CODE_DTYPES = [np.int8, np.int16, np.int32, np.int64]


def same_state(a, b):
    return a.state == b.state


@st.composite
def codes_and_window(draw):
    """Codes of every pandas width: empty, one row, one class, alternating, long runs, NA; read-only like pandas' own."""
    lengths = draw(st.lists(st.one_of(st.integers(1, 3), st.integers(1, 300)), max_size=12))
    labels = draw(st.lists(st.integers(-1, 6), min_size=len(lengths), max_size=len(lengths)))
    codes = np.repeat(np.array(labels, dtype=draw(st.sampled_from(CODE_DTYPES))), lengths)
    codes.flags.writeable = False
    start = draw(st.integers(0, len(codes)))
    return codes, start, draw(st.integers(start, len(codes)))


@given(codes_and_window(), st.integers(1, 20))
def test_find_runs_equals_its_twin(case, capacity):
    codes, start, stop = case
    ours, theirs = np.full((2, capacity), -7), np.full((2, capacity), -7)
    found = _rle.find_runs(codes, start, stop, ours[0], ours[1])
    assert found == reference.find_runs(codes, start, stop, theirs[0], theirs[1])
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", CODE_DTYPES)
@pytest.mark.parametrize("edge", range(60, 132, 7))
def test_find_runs_sees_an_edge_at_every_place_of_a_wide_step(dtype, edge):
    codes = np.r_[np.zeros(edge), np.ones(200 - edge)].astype(dtype)
    out = np.zeros((2, 5), dtype=np.int64)
    assert _rle.find_runs(codes, 3, 200, out[0], out[1]) == (2, 200)
    assert out[:, :2].tolist() == [[3, edge], [0, 1]]


@given(codes_and_window(), st.integers(1, 40))
def test_group_runs_equals_its_twin(case, chunk_size):
    codes, start, stop = case
    codes = np.where(codes < 0, 0, codes)
    runs = np.zeros((2, 20), dtype=np.int64)
    n_runs, _ = reference.find_runs(codes, start, stop, runs[0], runs[1])
    results = []
    for group_runs in (_rle.group_runs, reference.group_runs):
        outputs = [np.full(n, -7) for n in (8, n_runs, n_runs + 1, 7, 7)]
        group_runs(runs[0, :n_runs], runs[1, :n_runs], stop, chunk_size, *outputs)
        results.append(outputs)
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_group_runs_by_hand():
    # rows 10..20: aaa b aaaa bbb, chunks of 2
    run_start, run_code = np.array([10, 13, 14, 18]), np.array([0, 1, 0, 1])
    offset, start, cumulative, rows, short = (np.zeros(n, dtype=np.int64) for n in (4, 4, 5, 3, 3))
    _rle.group_runs(run_start, run_code, 21, 2, offset, start, cumulative, rows, short)
    assert offset.tolist() == [0, 2, 4, 4]
    assert start.tolist() == [10, 14, 13, 18]
    assert cumulative.tolist() == [0, 2, 5, 5, 7]
    assert rows.tolist() == [7, 4, 0]
    assert short.tolist() == [0, 1, 0]


@given(
    st.integers(0, 2**32),
    st.one_of(st.integers(1, 1000), st.integers(2**31 - 2, 2**33), st.integers(1, 2**63 - 1)),
    st.sampled_from([np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]),
)
def test_draw_integers_equals_numpy(seed, n, kind):
    ours, theirs = kind(seed), kind(seed)
    a, b = np.zeros(20, dtype=np.int64), np.zeros(20, dtype=np.int64)
    _rle.draw_integers(ours, n, a)
    reference.draw_integers(theirs, n, b)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_equal(ours.state, theirs.state)


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 70))
def test_shuffle_segments_equals_its_twin(seed, n, segment):
    ours, theirs = np.random.PCG64(seed), np.random.PCG64(seed)
    a, b = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    _rle.shuffle_segments(ours, segment, a)
    reference.shuffle_segments(theirs, segment, b)
    np.testing.assert_array_equal(a, b)
    assert same_state(ours, theirs)
    for first in range(0, n, segment):
        piece = slice(first, min(first + segment, n))
        np.testing.assert_array_equal(np.sort(a[piece]), np.arange(piece.start, piece.stop))


@given(st.integers(0, 2**32), st.integers(0, 50), st.data(), st.sampled_from([np.uint32, np.uint64]))
def test_draw_chunks_equals_its_twin_and_draws_a_permutation(seed, n_chunks, data, dtype):
    ours, theirs = np.random.PCG64(seed), np.random.PCG64(seed)
    table, twin_table = np.zeros(n_chunks, dtype=dtype), np.zeros(n_chunks, dtype=dtype)
    drawn = []
    while len(drawn) < n_chunks:
        n = data.draw(st.integers(1, n_chunks - len(drawn)))
        a, b = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        _rle.draw_chunks(ours, table, len(drawn), a)
        reference.draw_chunks(theirs, twin_table, len(drawn), b)
        np.testing.assert_array_equal(a, b)
        drawn.extend(a.tolist())
        np.testing.assert_array_equal(table[len(drawn) :], twin_table[len(drawn) :])
    assert same_state(ours, theirs)
    assert sorted(drawn) == list(range(n_chunks))


@given(st.integers(0, 2**32), codes_and_window(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 30))
def test_draw_class_chunks_equals_its_twin(seed, case, chunk_size, group_chunks, n_chunks):
    codes, start, stop = case
    codes = np.where(codes < 0, 0, codes)
    runs = np.zeros((2, 20), dtype=np.int64)
    n_runs, _ = reference.find_runs(codes, start, stop, runs[0], runs[1])
    offset, run_start, cumulative, rows, short = (np.zeros(n, dtype=np.int64) for n in (8, n_runs, n_runs + 1, 7, 7))
    reference.group_runs(
        runs[0, :n_runs], runs[1, :n_runs], stop, chunk_size, offset, run_start, cumulative, rows, short
    )
    drawable = np.flatnonzero((rows > 0) & (short == 0))
    if len(drawable) == 0:
        return
    weights = np.cumsum(np.arange(1.0, len(drawable) + 1))
    weights /= weights[-1]
    ours, theirs = np.random.PCG64(seed), np.random.PCG64(seed)
    a, b = np.zeros(n_chunks, dtype=np.int64), np.zeros(n_chunks, dtype=np.int64)
    _rle.draw_class_chunks(ours, weights, drawable, offset, run_start, cumulative, group_chunks, a)
    reference.draw_class_chunks(theirs, weights, drawable, offset, run_start, cumulative, group_chunks, b)
    np.testing.assert_array_equal(a, b)
    assert same_state(ours, theirs)
    for group in range(0, n_chunks, group_chunks):
        classes = {tuple(set(codes[first : first + chunk_size].tolist())) for first in a[group : group + group_chunks]}
        assert len(classes) == 1
        assert len(classes.pop()) == 1


@pytest.mark.skipif(os.environ.get("ANNBATCH_CYTHON_DEBUG") != "1", reason="needs the debug build: make test-debug")
def test_the_debug_build_checks_bounds():
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(IndexError):
        _rle.group_runs(
            one, np.array([5]), 1, 1, np.zeros(2, dtype=np.int64), one, np.zeros(2, dtype=np.int64), one, one
        )


def test_c_types_are_what_numpy_calls_them():
    for name, n_bytes in _rle.code_dtype_names().items():
        assert np.dtype(name).itemsize == n_bytes


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, 0, 1, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)), TypeError),
        ((np.zeros(3), 0, 1, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)), TypeError),
        ((np.zeros(3, dtype=np.int8), 0, 1, None, np.zeros(1, dtype=np.int64)), TypeError),
        ((np.zeros(3, dtype=np.int8), 0, 1, np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int64)), ValueError),
        (
            (np.zeros((3, 3), dtype=np.int8), 0, 1, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)),
            (TypeError, ValueError),
        ),
    ],
)
def test_kernels_refuse_nonsense(arguments, error):
    with pytest.raises(error):
        _rle.find_runs(*arguments)


def test_a_draw_refuses_what_is_no_bit_generator():
    with pytest.raises((AttributeError, ValueError, TypeError)):
        _rle.shuffle_segments(object(), 1, np.zeros(3, dtype=np.int64))


def test_draws_in_threads_wait_for_each_other():
    # Two threads on one bit generator must together take the numbers that one thread would.
    from concurrent.futures import ThreadPoolExecutor

    bit_generator, n = np.random.PCG64(5), 20_000
    outs = [np.zeros(n, dtype=np.int64) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda out: _rle.draw_integers(bit_generator, 2**40, out), outs))
    serial = np.zeros(4 * n, dtype=np.int64)
    _rle.draw_integers(np.random.PCG64(5), 2**40, serial)
    np.testing.assert_array_equal(np.sort(np.concatenate(outs)), np.sort(serial))
