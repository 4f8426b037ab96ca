"""How well batches are mixed, against answers worked out by hand and by counting all draws."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from annbatch.commands.quality import ShuffleQuality, ideal_entropy, ideal_gap, rows_of_batches, shuffle_quality
from annbatch.samplers import ClassSampler, RandomSampler


def test_batches_of_one_class_have_no_entropy_and_mixed_ones_have_more():
    codes = [0, 0, 1, 1]
    assert shuffle_quality([[0, 1], [2, 3]], codes, 4).entropy == 0
    # Two of four rows, two of each class: of the six draws four have both classes, log 2 each.
    assert shuffle_quality([[0, 2], [1, 3]], codes, 4).entropy == pytest.approx(6 / 4)
    assert shuffle_quality([[0, 2], [1, 3], [0, 1]], codes, 4).entropy == pytest.approx(1.0)


def test_distances_are_those_of_neighbours_in_the_order_of_the_data():
    # Of 7 rows, 3 in order 6, 0, 4: distances 4 and 2, median 3.
    assert shuffle_quality([[6, 0, 4]], None, 7) == ShuffleQuality(None, 3 / ideal_gap(7, 3))
    assert shuffle_quality([[0, 1, 2]], None, 7).gap == 1 / ideal_gap(7, 3)


@pytest.mark.parametrize(("n_rows", "n"), [(7, 3), (9, 2), (8, 7), (10, 5)])
def test_the_ideal_is_that_of_all_draws(n_rows, n):
    codes = np.array([0, 0, 0, 1, 2, 2, 2, 2, 1, 0])[:n_rows]
    draws = list(combinations(range(n_rows), n))
    gaps = np.concatenate([np.diff(draw) for draw in draws])
    # The smallest distance that at least half of the neighbours lie within.
    assert ideal_gap(n_rows, n) == np.sort(gaps)[(len(gaps) - 1) // 2]
    found = 0.0
    for draw in draws:
        shares = np.bincount(codes[list(draw)]) / n
        found -= sum(share * np.log(share) for share in shares if share) / len(draws)
    assert ideal_entropy(np.bincount(codes), n) == pytest.approx(found)


def test_everything_at_once_is_the_ideal():
    assert shuffle_quality([np.arange(50)], np.arange(50) % 7, 50) == (pytest.approx(1.0), 1.0)


def test_what_cannot_be_compared_is_none():
    assert shuffle_quality([[3]], [0, 0, 1, 1], 4) == (None, None)
    assert shuffle_quality([[3, 2]], [5, 5, 5, 5], 4).entropy is None
    assert shuffle_quality([], [0, 1], 2) == (None, None)
    assert shuffle_quality([[]], [0, 1], 2) == (None, None)


def test_missing_labels_are_a_class():
    codes = np.array([-1, -1, 0, 0], dtype=np.int8)
    assert shuffle_quality([[0, 1]], codes, 4).entropy == 0
    assert shuffle_quality([[0, 2]], codes, 4).entropy > 1


def test_single_rows_are_ideal_and_chunks_of_sorted_rows_are_not():
    codes = np.repeat(np.arange(20), 500)
    found = {}
    for chunk_size, preload_nchunks in ((1, 2048), (32, 64), (512, 4)):
        sampler = RandomSampler(chunk_size, preload_nchunks, 1024, rng=np.random.default_rng(0))
        found[chunk_size] = shuffle_quality(rows_of_batches(sampler.sample(len(codes)), len(codes)), codes, len(codes))
    assert found[1].entropy == pytest.approx(1, abs=0.01)
    assert found[1].gap == pytest.approx(1, abs=0.15)
    assert found[1].entropy > found[32].entropy > found[512].entropy
    assert found[32].gap < 0.5


def test_rows_of_batches_are_those_that_a_loader_would_read():
    sampler = ClassSampler(
        4, 4, 8, classes=pd.Categorical(np.repeat([0, 1], 64)), num_samples=64, rng=np.random.default_rng(0)
    )
    batches = list(rows_of_batches(sampler.sample(128), 128))
    assert [len(batch) for batch in batches] == [8] * 8
    assert all(len(set(batch // 64)) == 1 for batch in batches)


def test_a_hundred_million_rows_take_no_time():
    assert 16_000 < ideal_gap(10**8, 4096) < 18_000
    assert ideal_entropy(np.full(1000, 10**5), 4096) < np.log(1000)
