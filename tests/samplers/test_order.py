"""The order of chunks: a permutation that is computed, at least as good as one that was drawn.

All seeds are fixed. Every statistic must have a p-value above `LIMIT`: a fair shuffle fails one such test in a million.
"""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from annbatch import RandomSampler, _rle
from annbatch.samplers._order import _N_ROUNDS, _TABLE_BELOW, ShuffledChunks
from annbatch.samplers._streams import PassStreams

LIMIT = 1e-6
# Around powers of two and four, where the table ends, and where the halves are of one size and of two.
SMALL = [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65]
LARGE = [_TABLE_BELOW - 1, _TABLE_BELOW, _TABLE_BELOW + 1, 2**15 - 1, 2**15 + 1, 2**16, 2**16 + 1, 20_000]


def order(n, *entropy):
    return ShuffledChunks(n, PassStreams(entropy, ())).between(0, n)


def orders(n, n_orders, seed=0):
    """Successive passes of one sampler: their seeds are what a generator gives."""
    seeds = np.random.default_rng(seed).integers(2**64, dtype=np.uint64, size=n_orders).tolist()
    return np.stack([order(n, pass_seed) for pass_seed in seeds])


def table_pvalue(table):
    """Of a table of counts whose rows and columns all have the same sum."""
    expected = table.sum() / table.size
    statistic = ((table - expected) ** 2 / expected).sum()
    return stats.chi2.sf(statistic, (table.shape[0] - 1) * (table.shape[1] - 1))


def n_inversions(numbers):
    """Pairs in the wrong order, counted by merging sorted blocks of 1, 2, 4, ... numbers."""
    n_pairs, size = 0, 1
    place = np.arange(len(numbers))
    while size < len(numbers):
        block, is_right = place // (2 * size), place // size % 2
        by_value = np.argsort(block * len(numbers) + numbers)
        block, is_right = block[by_value], is_right[by_value]
        n_left = np.bincount(block, weights=1 - is_right)
        n_smaller = np.cumsum(1 - is_right) - np.append(0, np.cumsum(n_left)[:-1])[block]
        n_pairs += int((is_right * (n_left[block] - n_smaller)).sum())
        size *= 2
    return n_pairs


@pytest.mark.parametrize("n", [0, 1, *SMALL, *LARGE, 1_000_003])
def test_every_chunk_comes_once(n):
    for seed in range(3):
        assert np.array_equal(np.sort(order(n, seed)), np.arange(n))


@pytest.mark.parametrize("n", [16, _TABLE_BELOW + 3, 10**9, 2**40 + 1, 2**62])
def test_any_stretch_is_that_of_the_whole(n):
    chunks = ShuffledChunks(n, PassStreams((1,), ()))
    for first in (0, n // 3, n - 5):
        stretch = chunks.between(first, first + 5)
        assert [int(chunks.between(place, place + 1)[0]) for place in range(first, first + 5)] == stretch.tolist()
        assert len(set(stretch.tolist())) == 5
        assert stretch.min() >= 0
        assert stretch.max() < n


def test_the_short_chunk_is_last():
    for n in (3, _TABLE_BELOW + 3):
        chunks = ShuffledChunks(n, PassStreams((1,), ()))
        assert chunks.between(n, n + 1).tolist() == [n]
        assert chunks.between(n - 2, n + 1)[-1] == n


@pytest.mark.parametrize("n", SMALL)
def test_every_chunk_is_as_likely_at_every_place(n):
    drawn = orders(n, 60 * n)
    table = np.stack([np.bincount(drawn[:, place], minlength=n) for place in range(n)])
    assert table_pvalue(table) > LIMIT


@pytest.mark.parametrize("n", LARGE)
@pytest.mark.parametrize("seed", [0, 1])
def test_places_and_chunks_have_nothing_to_do_with_each_other(n, seed):
    """Over successive passes: 64 stretches of places, at random and at the edges, against 64 stretches of chunks."""
    drawn = orders(n, 40, seed)
    rows = np.broadcast_to(np.arange(n) * 64 // n, drawn.shape)
    table = np.zeros((64, 64))
    np.add.at(table, (rows.ravel(), (drawn * 64 // n).ravel()), 1)
    # Rows and columns have the same sums in every pass, so 63 x 63 cells are free.
    expected = np.outer(np.bincount(rows[0]), np.bincount(rows[0])) * len(drawn) / n
    statistic = ((table - expected) ** 2 / expected).sum()
    assert min(stats.chi2.sf(statistic, 63 * 63), stats.chi2.cdf(statistic, 63 * 63)) > LIMIT / 2


@pytest.mark.parametrize("n", [_TABLE_BELOW, _TABLE_BELOW + 1, 2**16 + 1])
def test_neighbouring_places_hold_unrelated_chunks(n):
    """Pairs of places 1, 2, and as many apart as a half has numbers: 32 x 32 stretches of chunks, 30 passes."""
    drawn = orders(n, 30)
    n_left = math.isqrt(n - 1) + 1
    for apart in (1, 2, n_left - 1, n_left, -(-n // n_left)):
        pairs = np.zeros((32, 32))
        first, second = drawn[:, :-apart] * 32 // n, drawn[:, apart:] * 32 // n
        np.add.at(pairs, (first.ravel(), second.ravel()), 1)
        expected = pairs.sum() / 1024
        statistic = ((pairs - expected) ** 2 / expected).sum()
        assert stats.chi2.sf(statistic, 31 * 31) > LIMIT, apart
        # Chunks that were neighbours and are still: one pair a pass, by Poisson's law.
        n_still = int((drawn[:, apart:] - drawn[:, :-apart] == apart).sum())
        assert stats.poisson(30).sf(n_still - 1) > LIMIT
        assert stats.poisson(30).cdf(n_still) > LIMIT


@pytest.mark.parametrize(
    ("n", "n_passes"),
    [(33, 400), (65, 400), (257, 400), (_TABLE_BELOW + 1, 40), pytest.param(20_000, 400, marks=pytest.mark.slow)],
)
def test_displacement_inversions_and_fixed_points_are_those_of_random_permutations(n, n_passes):
    """Means and variances of a random permutation are known; both must agree, and the shape be normal."""
    drawn = orders(n, n_passes)
    displacement = np.abs(drawn - np.arange(n)).sum(axis=1)
    mean, variance = (n * n - 1) / 3, (n + 1) * (2 * n * n + 7) / 45  # Diaconis and Graham 1977
    scores = {"displacement": (displacement - mean) / math.sqrt(variance)}
    mean, variance = n * (n - 1) / 4, n * (n - 1) * (2 * n + 5) / 72
    scores["inversions"] = (np.array([n_inversions(numbers) for numbers in drawn]) - mean) / math.sqrt(variance)
    for name, z in scores.items():
        total = (z**2).sum()
        assert 2 * min(stats.chi2.sf(total, n_passes), stats.chi2.cdf(total, n_passes)) > LIMIT, name
        assert 2 * stats.norm.sf(abs(z.sum()) / math.sqrt(n_passes)) > LIMIT, name
        assert n < 200 or stats.kstest(z, "norm").pvalue > LIMIT, name
    n_fixed = int((drawn == np.arange(n)).sum())
    assert min(stats.poisson(n_passes).sf(n_fixed - 1), stats.poisson(n_passes).cdf(n_fixed)) > LIMIT


@pytest.mark.parametrize("n", [7, 64, _TABLE_BELOW + 1, 10**9])
def test_a_place_over_passes_and_over_neighbouring_seeds(n):
    """3,000 passes, and 3,000 seeds 0, 1, 2, ...: 20 bins of chunks at five places, and the steps between successive ones."""
    passes = np.random.default_rng(5).integers(2**64, dtype=np.uint64, size=3000).tolist()
    n_bins = min(n, 20)
    edges = np.linspace(0, n, n_bins + 1).astype(np.int64)
    for seeds in (passes, range(3000)):
        made = [ShuffledChunks(n, PassStreams((seed,), ())) for seed in seeds]
        for place in (0, 1, n // 2, n - 2, n - 1):
            numbers = np.array([int(chunks.between(place, place + 1)[0]) for chunks in made])
            bins = np.searchsorted(edges, numbers, side="right") - 1
            expected = np.diff(edges) * 3000 / n
            assert stats.chisquare(np.bincount(bins, minlength=n_bins), expected).pvalue > LIMIT
            table = np.zeros((n_bins, n_bins))
            np.add.at(table, (bins[:-1], bins[1:]), 1)
            outer = np.outer(expected, expected)
            outer *= table.sum() / outer.sum()
            assert stats.chi2.sf(((table - outer) ** 2 / outer).sum(), (n_bins - 1) ** 2) > LIMIT


@pytest.mark.parametrize("n", [_TABLE_BELOW + 1, 20_000])
def test_why_there_are_that_many_rounds(n):
    """Half as many are too few, as these statistics see; so there is room to what they do not see any more."""

    def pvalue(n_rounds):
        # Neighbours that stay neighbours: one a pass, by Poisson's law.
        rng, n_left = np.random.default_rng(0), math.isqrt(n - 1) + 1
        numbers, n_still = np.empty(n, dtype=np.int64), 0
        for _ in range(500):
            keys = rng.integers(2**64, size=n_rounds, dtype=np.uint64)
            _rle.permute(keys, n, n_left, -(-n // n_left), 0, numbers)
            n_still += int((np.diff(numbers) == 1).sum())
        return 2 * min(stats.poisson(500).sf(n_still - 1), stats.poisson(500).cdf(n_still))

    assert _N_ROUNDS == 8
    assert pvalue(2) < 1e-12
    assert pvalue(4) < LIMIT
    assert pvalue(6) > LIMIT
    assert pvalue(8) > LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_orders_of_few_chunks_come_as_often(n):
    counts = np.unique(orders(n, 400 * math.factorial(n)), axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts).pvalue > LIMIT


def test_a_pass_over_a_billion_rows_costs_the_same_anywhere():
    """First request, one in the middle, the last: each in 5 ms of processor time and 1 MB, the best of twenty."""
    n_obs, window = 10**9, 4096
    sampler = RandomSampler(1, window, 256, rng=np.random.default_rng(0))
    sampler.sample(n_obs)
    state = sampler.state_dict()
    n_requests = -(-n_obs // window)
    for request in (0, n_requests // 2, n_requests - 1):
        best = math.inf
        for _ in range(20):
            started = time.thread_time()
            sampler.load_state_dict({**state, "request": request})
            rows = next(sampler.sample(n_obs))["requests"]
            best = min(best, time.thread_time() - started)
        assert len(rows) == min(window, n_obs - request * window)
        assert best < 5e-3
        tracemalloc.start()
        sampler.load_state_dict({**state, "request": request})
        next(sampler.sample(n_obs))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6
