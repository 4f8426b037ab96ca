"""RandomSampler and SequentialSampler."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from annbatch import RandomSampler, SequentialSampler

from .checks import batches_of, check_pass, plain, rows_of


@st.composite
def geometries(draw):
    """(chunk_size, preload_nchunks, batch_size) that fit each other, in every relation of chunk to batch."""
    chunk_size, preload = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    window = chunk_size * preload
    return chunk_size, preload, draw(st.sampled_from([b for b in range(1, window + 1) if window % b == 0]))


@st.composite
def masks(draw, n_obs):
    start = draw(st.integers(0, n_obs - 1))
    return slice(start, draw(st.one_of(st.none(), st.integers(start + 1, n_obs))))


@given(st.data(), geometries(), st.integers(1, 80), st.booleans(), st.integers(0, 2**32))
def test_every_row_once_in_every_geometry(data, geometry, n_obs, drop_last, seed):
    mask = data.draw(masks(n_obs))
    start, stop = mask.start, n_obs if mask.stop is None else mask.stop
    num_samples = data.draw(st.one_of(st.none(), st.integers(1, stop - start)))
    n_rows = stop - start if num_samples is None else num_samples
    arguments = {"num_samples": num_samples, "drop_last": drop_last, "mask": mask}
    for sampler in (
        SequentialSampler(*geometry, **arguments),
        RandomSampler(*geometry, rng=np.random.default_rng(seed), **arguments),
    ):
        batches = check_pass(sampler, n_obs, n_rows=n_rows, drop_last=drop_last)
        rows = np.concatenate(batches) if batches else np.empty(0, dtype=int)
        assert len(np.unique(rows)) == len(rows)
        if isinstance(sampler, SequentialSampler):
            assert rows.tolist() == list(range(start, start + len(rows)))
        elif num_samples is None and not drop_last:
            assert sorted(rows.tolist()) == list(range(start, stop))


@given(st.data(), geometries(), st.integers(1, 80), st.integers(1, 200), st.booleans(), st.integers(0, 2**32))
def test_with_replacement_the_number_of_samples_is_exact(data, geometry, n_obs, num_samples, drop_last, seed):
    mask = data.draw(masks(n_obs))
    sampler = RandomSampler(
        *geometry,
        replacement=True,
        num_samples=num_samples,
        drop_last=drop_last,
        mask=mask,
        rng=np.random.default_rng(seed),
    )
    start, stop = mask.start, n_obs if mask.stop is None else mask.stop
    if min(geometry[0], num_samples) > stop - start:
        with pytest.raises(ValueError, match="chunk_size must be <="):
            sampler.sample(n_obs)
        return
    check_pass(sampler, n_obs, n_rows=num_samples, drop_last=drop_last)


def test_sequential_by_hand():
    sampler = SequentialSampler(4, 2, 2, mask=slice(3, 14))
    assert plain(sampler.sample(20)) == [
        ([(3, 7), (7, 11)], [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ([(11, 14)], [[0, 1], [2]]),
    ]


def test_chunks_are_aligned_to_the_mask_and_the_short_one_comes_last():
    sampler = RandomSampler(10, 2, 5, mask=slice(3, 98), rng=np.random.default_rng(0))
    for _ in range(20):
        chunks = [part for request in sampler.sample(100) for part in request["requests"]]
        assert sorted(part.start for part in chunks) == list(range(3, 98, 10))
        assert {part.stop - part.start for part in chunks[:-1]} == {10}
        assert chunks[-1] == slice(93, 98)


def test_single_rows_come_as_an_array():
    # One slice object per row took 10 s and 1.6 GB before the first batch at 10 million rows.
    for sampler in (RandomSampler(1, 8, 4), SequentialSampler(1, 8, 4)):
        request = next(sampler.sample(100))
        assert request["requests"].dtype == np.int64
        assert request["requests"].shape == (8,)


def test_the_order_for_one_seed_is_pinned():
    # Breaking this changes everybody's training runs: it is a breaking change, and the change note must say so.
    sampler = RandomSampler(4, 2, 4, rng=np.random.default_rng(42))
    assert plain(sampler.sample(18)) == PINNED_FIRST_PASS
    assert plain(sampler.sample(18)) == PINNED_SECOND_PASS
    single = RandomSampler(1, 6, 6, rng=np.random.default_rng(42))
    assert plain(single.sample(8)) == PINNED_SINGLE_ROWS
    # Computed, where the others come from a table.
    many = RandomSampler(1, 4, 4, rng=np.random.default_rng(42))
    assert plain([next(many.sample(10**9))]) == PINNED_OF_A_BILLION


PINNED_FIRST_PASS = [
    ([(8, 12), (12, 16)], [[0, 7, 5, 6], [3, 1, 4, 2]]),
    ([(0, 4), (4, 8)], [[7, 2, 0, 4], [5, 1, 3, 6]]),
    ([(16, 18)], [[1, 0]]),
]
PINNED_SECOND_PASS = [
    ([(8, 12), (0, 4)], [[6, 4, 0, 3], [7, 1, 2, 5]]),
    ([(4, 8), (12, 16)], [[4, 7, 5, 2], [3, 6, 1, 0]]),
    ([(16, 18)], [[1, 0]]),
]
PINNED_SINGLE_ROWS = [([7, 0, 5, 1, 6, 3], [[2, 5, 0, 3, 4, 1]]), ([4, 2], [[0, 1]])]
PINNED_OF_A_BILLION = [([969946046, 967550428, 612639744, 501409222], [[2, 3, 0, 1]])]


def test_all_orders_of_chunks_occur_equally_often():
    # 4 chunks: 24 orders, 4,800 passes. The statistic must stay below the point that a fair sampler exceeds with p = 1e-6.
    sampler = RandomSampler(2, 4, 8, rng=np.random.default_rng(1))
    counts = dict.fromkeys(itertools.permutations(range(0, 8, 2)), 0)
    for _ in range(4800):
        counts[tuple(part.start for part in next(sampler.sample(8))["requests"])] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6


def test_every_row_is_equally_likely_at_every_place_of_a_pass():
    # 12 rows x 12 places, 3,000 passes of single rows in two load requests, p = 1e-6.
    counts = np.zeros((12, 12))
    sampler = RandomSampler(1, 6, 3, rng=np.random.default_rng(2))
    for _ in range(3000):
        counts[np.arange(12), np.concatenate(batches_of(sampler.sample(12)))] += 1
    statistic = ((counts - 250) ** 2 / 250).sum()
    assert stats.chi2.sf(statistic, 11 * 11) > 1e-6


def test_rows_are_shuffled_over_the_whole_load_request():
    # Place of every row of a request of 16 rows, 2,000 passes, p = 1e-6.
    counts = np.zeros((16, 16))
    sampler = RandomSampler(4, 4, 4, rng=np.random.default_rng(3))
    for _ in range(2000):
        counts[np.arange(16), np.concatenate(next(sampler.sample(16))["splits"])] += 1
    assert stats.chi2.sf(((counts - 125) ** 2 / 125).sum(), 15 * 15) > 1e-6


def test_with_replacement_every_chunk_start_is_equally_likely():
    # 41 starts in rows 10..60 with chunks of 10, 20,000 chunks, p = 1e-6.
    sampler = RandomSampler(
        10, 100, 10, replacement=True, num_samples=200_000, mask=slice(10, 60), rng=np.random.default_rng(4)
    )
    starts = np.concatenate([[part.start for part in request["requests"]] for request in sampler.sample(100)])
    assert len(starts) == 20_000
    counts = np.bincount(starts, minlength=51)[10:]
    assert len(counts) == 41
    assert stats.chisquare(counts).pvalue > 1e-6


def test_with_replacement_defaults_to_as_many_rows_as_the_range_holds():
    sampler = RandomSampler(4, 2, 4, replacement=True, mask=slice(5, 18))
    assert sampler.n_batches(20) == 4
    check_pass(sampler, 20, n_rows=13, drop_last=False)


@pytest.mark.parametrize("n_obs", [1, 5, 9, 10, 11, 19, 20, 21, 200])
@pytest.mark.parametrize("drop_last", [False, True])
def test_no_empty_split_at_any_length(n_obs, drop_last):
    # scverse/annbatch #132 (an empty split with drop_last) and #144 (a wrong len)
    for kind in (RandomSampler, SequentialSampler):
        check_pass(kind(5, 4, 10, drop_last=drop_last), n_obs, n_rows=n_obs, drop_last=drop_last)


@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0, 4, 4), ValueError, "chunk_size must be >= 1, got 0"),
        ((4, 0, 4), ValueError, "preload_nchunks must be >= 1, got 0"),
        ((4, 4, -1), ValueError, "batch_size must be >= 1, got -1"),
        ((4.0, 4, 4), TypeError, "chunk_size must be an integer, got 4.0"),
        ((4, True, 4), TypeError, "preload_nchunks must be an integer, got True"),
        ((4, 4, "4"), TypeError, "batch_size must be an integer, got '4'"),
        ((4, 4, 3), ValueError, r"multiple of batch_size .* got 4 \* 4 = 16 and batch_size 3"),
        ((4, 4, 32), ValueError, r"at least batch_size, got 4 \* 4 = 16 and batch_size 32"),
    ],
)
def test_bad_geometry_is_refused(kind, arguments, error, match):
    with pytest.raises(error, match=match):
        kind(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be >= 1, got 0"),
        ({"num_samples": 2.5}, TypeError, "num_samples must be an integer, got 2.5"),
        ({"drop_last": 1}, TypeError, "drop_last must be True or False, got 1"),
        ({"replacement": None}, TypeError, "replacement must be True or False, got None"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        RandomSampler(4, 4, 4, **arguments)


@pytest.mark.parametrize(
    ("sampler", "n_obs", "match"),
    [
        (RandomSampler(2, 2, 2, num_samples=11), 10, "num_samples must be <= the 10 rows of the range, got 11"),
        (SequentialSampler(2, 2, 2, num_samples=5, mask=slice(3, 7)), 10, "num_samples must be <= the 4 rows"),
        (RandomSampler(11, 2, 2, num_samples=11, replacement=True), 10, "chunk_size must be <= the 10 rows"),
        (RandomSampler(2, 2, 2), 0, "n_obs must be >= 1, got 0"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(sampler, n_obs, match):
    with pytest.raises(ValueError, match=match):
        sampler.validate(n_obs)
    with pytest.raises(ValueError, match=match):
        sampler.sample(n_obs)


def test_a_range_smaller_than_a_chunk_works():
    for kind in (RandomSampler, SequentialSampler):
        assert sorted(np.concatenate(batches_of(kind(100, 2, 50).sample(7))).tolist()) == list(range(7))


def test_the_rng_may_be_taken_away():
    sampler = RandomSampler(2, 2, 2)
    sampler.rng = None
    assert len(list(sampler.sample(20))) == 5
    assert sampler.state_dict()["rng"] is not None


@pytest.mark.slow
def test_a_hundred_million_rows_start_quickly_in_little_memory():
    # A fresh process, so that the peak is this pass's own. The limits are the contract's, for any machine; a sampler
    # that makes one Python object per row needs over ten times as much of both.
    code = """
        import resource, time
        from annbatch import RandomSampler
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        request = next(RandomSampler(1, 4096, 256).sample(100_000_000))
        assert len(request["requests"]) == 4096
        print(time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 5
    assert mebibytes < 1500


def test_more_chunks_than_can_be_are_refused_before_the_first_request():
    with pytest.raises(ValueError, match="at most 2\\*\\*62 chunks, got .*; use a larger chunk_size"):
        RandomSampler(1, 4096, 256).sample(2**62 + 1)


def test_a_subclass_may_bring_its_own_sample():
    class Even(RandomSampler):
        def _sample(self, n_obs):
            yield {"requests": np.arange(0, n_obs, 2)}

    assert sorted(np.concatenate(batches_of(Even(1, 4, 2).sample(7))).tolist()) == [0, 2, 4, 6]
    assert not Even(1, 4, 2).worker_aware
    assert RandomSampler(1, 4, 2).worker_aware


def test_requests_of_any_length_repeat_nothing_at_scale():
    sampler = RandomSampler(1, 4096, 256, rng=np.random.default_rng(5))
    rows = np.concatenate([rows_of(request) for request in sampler.sample(300_000)])
    assert len(rows) == 300_000
    assert len(np.unique(rows)) == 300_000
    # Far from sorted: Spearman's rank correlation of 300,000 random pairs stays within 0.01 with p > 1 - 1e-7.
    assert abs(stats.spearmanr(np.arange(300_000), rows).statistic) < 0.01
