"""The kernels give the same numbers as their plain twins."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import _rle
from tests.reference import rle as reference

CODE_DTYPES = [np.int8, np.int16, np.int32, np.int64]


KEY = np.array([3, 2**63 + 5], dtype=np.uint64)


@st.composite
def streams(draw):
    """(key, number, kind): words of all sizes."""
    word = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
    return np.array([draw(word), draw(word)], dtype=np.uint64), draw(word), draw(word)


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


@given(codes_and_window())
def test_counting_and_indexing_equal_their_twins(case):
    codes, start, stop = case
    assert _rle.count_runs(codes, start, stop) == reference.count_runs(codes, start, stop)
    ours, theirs = np.full((2, 7), -7)
    wrong = _rle.count_codes(codes, start, stop, ours)
    assert wrong == reference.count_codes(codes, start, stop, theirs)
    if wrong:
        return
    np.testing.assert_array_equal(ours, theirs)
    offset = np.append(0, np.cumsum(ours))
    for dtype in (np.uint32, np.uint64):
        a, b = np.zeros((2, stop - start), dtype=dtype)
        _rle.index_rows(codes, start, stop, offset, ours, a)
        reference.index_rows(codes, start, stop, offset, theirs, b)
        np.testing.assert_array_equal(a, b)


def test_a_code_that_is_too_large_is_seen():
    assert _rle.count_codes(np.array([0, 1, 9, 2], dtype=np.int8), 0, 4, np.zeros(3, dtype=np.int64)) == 9
    assert _rle.count_codes(np.array([0, 1, 9, 2], dtype=np.int8), 0, 2, np.zeros(3, dtype=np.int64)) == 0


@given(streams())
def test_random_words_are_those_of_numpys_philox(stream):
    """An integer below 2**63 is a word without its last bit."""
    drawn = np.zeros(11, dtype=np.int64)
    _rle.draw_integers(*stream, 2**63, drawn)
    words = reference.Words(*stream)
    np.testing.assert_array_equal(drawn, [words.next() >> 1 for _ in drawn])


@given(
    streams(),
    st.one_of(st.integers(1, 1000), st.integers(2**31 - 2, 2**33), st.integers(2**62, 2**63), st.just(2**63)),
)
def test_draw_integers_equals_its_twin(stream, n):
    ours, theirs = np.zeros((2, 20), dtype=np.int64)
    _rle.draw_integers(*stream, n, ours)
    reference.draw_integers(*stream, n, theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert (ours >= 0).all()
    assert (ours < n).all()


@given(streams(), st.one_of(st.integers(0, 60), st.integers(0, 700)), st.integers(1, 700), st.booleans())
def test_shuffle_segments_equals_its_twin(stream, n, segment, wide):
    ours, theirs = np.zeros((2, n), dtype=np.int64 if wide else np.int32)
    _rle.shuffle_segments(*stream, segment, ours)
    reference.shuffle_segments(*stream, segment, theirs)
    np.testing.assert_array_equal(ours, theirs)
    for first in range(0, n, segment):
        piece = slice(first, min(first + segment, n))
        np.testing.assert_array_equal(np.sort(ours[piece]), np.arange(piece.start, piece.stop))


@pytest.mark.parametrize("n", [2**11 + 3, 2**14 + 2, 2**19 + 1])
def test_shuffle_segments_equals_its_twin_where_a_word_gives_fewer_integers(n):
    ours, theirs = np.zeros((2, n), dtype=np.int32)
    _rle.shuffle_segments(KEY, 1, 2, n, ours)
    if n > 2**14 + 2:
        # The twin takes a second for these: that it is a permutation must do.
        np.testing.assert_array_equal(np.sort(ours), np.arange(n))
        return
    reference.shuffle_segments(KEY, 1, 2, n, theirs)
    np.testing.assert_array_equal(ours, theirs)


@given(st.integers(1, 5000), st.integers(0, 2**32), st.sampled_from([2, 4, 8]), st.data())
def test_permute_equals_its_twin_and_is_a_permutation(n, seed, n_rounds, data):
    keys = np.random.default_rng(seed).integers(2**64, size=n_rounds, dtype=np.uint64)
    n_left = data.draw(st.integers(1, 80))
    n_right = -(-n // n_left)
    whole = np.zeros(n, dtype=np.int64)
    _rle.permute(keys, n, n_left, n_right, 0, whole)
    np.testing.assert_array_equal(np.sort(whole), np.arange(n))
    first = data.draw(st.integers(0, n))
    ours, theirs = np.zeros((2, data.draw(st.integers(0, min(n - first, 150)))), dtype=np.int64)
    _rle.permute(keys, n, n_left, n_right, first, ours)
    reference.permute(keys, n, n_left, n_right, first, theirs)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, whole[first : first + len(ours)])


@given(st.integers(2**30, 2**62), st.integers(0, 2**32), st.integers(1, 5000))
def test_permute_equals_its_twin_on_huge_ranges(n, seed, factor):
    keys = np.random.default_rng(seed).integers(2**64, size=8, dtype=np.uint64)
    n_left = math.isqrt(n - 1) + 1
    n_right = -(-n // n_left)
    first = n * factor // 5001
    ours, theirs = np.zeros((2, 70), dtype=np.int64)
    _rle.permute(keys, n, n_left, n_right, first, ours)
    reference.permute(keys, n, n_left, n_right, first, theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert len(set(ours.tolist())) == 70
    assert (ours >= 0).all()
    assert (ours < n).all()


@given(streams(), codes_and_window(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 30))
def test_draws_of_chunks_equal_their_twins(stream, case, chunk_size, group_chunks, n_chunks):
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
    groups, twins = np.zeros((2, -(-n_chunks // group_chunks)), dtype=np.int64)
    _rle.draw_groups(*stream, weights, drawable, groups)
    reference.draw_groups(*stream, weights, drawable, twins)
    np.testing.assert_array_equal(groups, twins)
    a, b = np.zeros((2, n_chunks), dtype=np.int64)
    _rle.draw_run_chunks(*stream, groups, group_chunks, offset, run_start, cumulative, a)
    reference.draw_run_chunks(*stream, groups, group_chunks, offset, run_start, cumulative, b)
    np.testing.assert_array_equal(a, b)
    for i, first in enumerate(a.tolist()):
        assert (codes[first : first + chunk_size] == groups[i // group_chunks]).all()
    # The same draws from an index of rows.
    index = np.zeros(stop - start, dtype=np.uint32)
    row_offset = np.append(0, np.cumsum(rows))
    reference.index_rows(codes, start, stop, row_offset, rows.copy(), index)
    for kernel, out in ((_rle.draw_index_rows, a), (reference.draw_index_rows, b)):
        kernel(*stream, groups, group_chunks, row_offset[:-1], rows, index, out)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(codes[a], groups[np.arange(n_chunks) // group_chunks])


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=5), st.integers(2, 9), st.data())
def test_chunk_slices_equal_their_twin(starts, chunk_size, data):
    starts = np.array(starts)
    skip = data.draw(st.integers(0, chunk_size - 1))
    shortest = 1 if len(starts) == 1 else chunk_size - skip + (len(starts) - 2) * chunk_size + 1
    n_rows = data.draw(st.integers(shortest, len(starts) * chunk_size - skip))
    slices = _rle.chunk_slices(starts, chunk_size, skip, n_rows)
    assert slices == reference.chunk_slices(starts, chunk_size, skip, n_rows)
    assert all(type(part.start) is int for part in slices)


@pytest.mark.skipif(os.environ.get("ANNBATCH_CYTHON_DEBUG") != "1", reason="needs the debug build: make test-debug")
def test_the_debug_build_checks_bounds():
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(IndexError):
        _rle.group_runs(
            one, np.array([5]), 1, 1, np.zeros(2, dtype=np.int64), one, np.zeros(2, dtype=np.int64), one, one
        )


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


@pytest.mark.parametrize("key", [None, np.zeros(2), np.zeros(2, dtype=np.int32)])
def test_a_draw_refuses_what_is_no_key(key):
    with pytest.raises((ValueError, TypeError)):
        _rle.shuffle_segments(key, 0, 0, 1, np.zeros(3, dtype=np.int64))
