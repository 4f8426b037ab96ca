"""DistributedSampler: ranks are simulated with a function that returns (rank, world_size)."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import ClassSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedClassSampler

from .checks import batches_of, plain
from .test_base import Custom

CLASSES = pd.Categorical(np.repeat(list("abcd"), 100))


def random(seed=0, **kwargs):
    return RandomSampler(5, 4, 10, rng=np.random.default_rng(seed), **kwargs)


def classes(seed=0, kind=ClassSampler, **kwargs):
    arguments = {"classes": CLASSES, "num_samples": 403, **kwargs}
    return kind(5, 4, 10, rng=np.random.default_rng(seed), **arguments)


def ranks(sampler, world_size, **kwargs):
    return [
        DistributedSampler(sampler, dist_info=lambda rank=rank: (rank, world_size), **kwargs)
        for rank in range(world_size)
    ]


def passes(samplers, n_obs):
    return [batches_of(sampler.sample(n_obs)) for sampler in samplers]


@given(
    st.integers(1, 7),
    st.integers(7, 300),
    st.booleans(),
    st.booleans(),
    st.sampled_from([RandomSampler, SequentialSampler]),
    st.integers(0, 20),
)
def test_every_row_is_visited_and_every_rank_does_the_same_number_of_batches(
    world_size, n_obs, drop_last, equal, kind, start
):
    # Unequal counts hang collective operations; rows that no rank visits in any pass are lost to the training.
    mask = slice(start, None) if n_obs - start >= world_size else slice(0, None)
    samplers = ranks(kind(3, 4, 6, drop_last=drop_last, mask=mask), world_size, enforce_equal_batches=equal)
    seen = set()
    for _ in range(2):
        shards = passes(samplers, n_obs)
        rows = [row for shard in shards for batch in shard for row in batch.tolist()]
        assert len(set(rows)) == len(rows), "ranks must not overlap"
        seen.update(rows)
        counts = [len(shard) for shard in shards]
        assert counts == [sampler.n_batches(n_obs) for sampler in samplers]
        if equal:
            assert len(set(counts)) == 1
            if not drop_last:
                assert len(rows) > n_obs - mask.start - world_size
    if not drop_last:
        assert seen == set(range(mask.start, n_obs))


def test_rows_are_left_out_only_when_they_cannot_be_shared_out():
    # 2 ranks, batches of 10: 43 rows give 3 batches each (22 and 21 rows); 41 would give 3 and 2.
    assert sum(len(b) for shard in passes(ranks(random(), 2), 43) for b in shard) == 43
    samplers = ranks(random(), 2)
    even, odd = ({row for shard in passes(samplers, 41) for b in shard for row in b.tolist()} for _ in range(2))
    assert set(range(41)) - even == {40}
    assert set(range(41)) - odd == {0}


def test_without_equal_batches_every_row_is_visited_in_every_pass():
    samplers = ranks(random(), 2, enforce_equal_batches=False)
    shards = passes(samplers, 41)
    assert sorted(row for shard in shards for b in shard for row in b.tolist()) == list(range(41))
    assert [len(shard) for shard in shards] == [3, 2]


def test_a_rank_reads_one_contiguous_piece_of_the_masked_range():
    for rank, shard in enumerate(passes(ranks(random(mask=slice(100, 300)), 4), 1000)):
        rows = np.sort(np.concatenate(shard))
        assert rows.tolist() == list(range(100 + 50 * rank, 150 + 50 * rank))


@pytest.mark.parametrize("kind", [ClassSampler, WeightedClassSampler])
def test_class_samplers_see_every_class_on_every_rank_and_share_the_samples(kind):
    # On class-sorted data a rank that got a range of rows would only ever see its own classes.
    samplers = ranks(classes(kind=kind), 4)
    for sampler, shard in zip(samplers, passes(samplers, 400), strict=True):
        rows = np.concatenate(shard)
        assert len(rows) == 100
        assert sampler.n_batches(400) == len(shard) == 10
        assert set(CLASSES[rows]) == set("abcd")


def test_without_equal_batches_the_samples_add_up():
    shards = passes(ranks(classes(), 4, enforce_equal_batches=False), 400)
    assert [sum(map(len, shard)) for shard in shards] == [101, 101, 101, 100]


def test_num_samples_of_a_range_sampler_is_shared_too():
    for replacement in (False, True):
        shards = passes(ranks(random(num_samples=90, replacement=replacement), 3), 300)
        assert [sum(map(len, shard)) for shard in shards] == [30, 30, 30]


@pytest.mark.parametrize("make", [classes, lambda seed=0: random(seed, replacement=True, num_samples=300)])
def test_ranks_draw_from_independent_streams_also_with_one_seed(make):
    firsts = [tuple(shard[0].tolist()) for shard in passes(ranks(make(), 6), 400)]
    assert len(set(firsts)) == 6


def test_ranks_and_seeds_that_add_up_alike_share_no_stream():
    # A stream seeded with seed + rank would make (seed 0, rank 1) and (seed 1, rank 0) the same.
    streams = {
        tuple(np.concatenate(shard).tolist()) for seed in range(4) for shard in passes(ranks(classes(seed), 4), 400)
    }
    assert len(streams) == 16


def test_the_wrapped_sampler_is_a_copy():
    # A wrapper once moved the mask of the sampler the caller still held.
    inner = random()
    state = inner.rng.bit_generator.state
    sampler = DistributedSampler(inner, dist_info=lambda: (1, 2))
    list(sampler.sample(100))
    assert inner.mask == slice(0, None)
    assert inner.rng.bit_generator.state == state
    inner.mask = slice(0, 3)
    assert sampler.mask == slice(0, None)
    assert sampler.n_batches(100) == 5


def test_n_batches_is_right_before_during_and_after_a_pass():
    sampler = ranks(random(), 2)[1]
    counts = [sampler.n_batches(103)]
    requests = sampler.sample(103)
    next(requests)
    counts.append(sampler.n_batches(103))
    n_batches = 2 + sum(len(request["splits"]) for request in requests)
    counts.append(sampler.n_batches(103))
    assert counts == [n_batches] * 3 == [5 + 1] * 3


def test_setting_the_mask_moves_the_range_that_is_shared():
    sampler = ranks(random(), 2)[1]
    sampler.mask = slice(20, 60)
    assert sampler.mask == slice(20, 60)
    requests = sampler.sample(100)
    assert sorted(np.concatenate(batches_of(requests)).tolist()) == list(range(40, 60))
    requests = sampler.sample(100)
    with pytest.raises(RuntimeError, match="while a pass is open"):
        sampler.mask = slice(0, 10)
    assert sampler.mask == slice(20, 60)


@pytest.mark.parametrize(
    "make", [random, classes, lambda: SequentialSampler(5, 4, 10), lambda: random(num_samples=123)]
)
def test_resume_at_every_request_of_two_passes(make):
    def rank():
        return DistributedSampler(make(), dist_info=lambda: (1, 3))

    expected = rank()
    tails = [plain(expected.sample(400)) for _ in range(3)]
    sampler = rank()
    for number in range(2):
        requests = sampler.sample(400)
        for k in range(len(tails[number]) + 1):
            resumed = rank()
            resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
            assert plain(resumed.sample(400)) == tails[number][k:]
            assert plain(resumed.sample(400)) == tails[number + 1]
            next(requests, None)


def test_a_state_of_another_rank_is_refused():
    first, second = ranks(random(), 2)
    with pytest.raises(ValueError, match="here rank=1; in the state rank=0"):
        second.load_state_dict(first.state_dict())


def test_a_custom_sampler_gets_its_share_through_its_mask():
    class Range(Custom):
        def n_batches(self, n_obs):
            return 1

        def _sample(self, n_obs):
            yield {"requests": [slice(self.mask.start, self.mask.stop)]}

    inner = Range(batch_size=100)
    rows = [np.sort(shard[0]).tolist() for shard in passes(ranks(inner, 3), 60)]
    assert rows == [list(range(20)), list(range(20, 40)), list(range(40, 60))]


def test_properties_come_from_the_wrapped_sampler():
    sampler = ranks(random(), 2)[0]
    assert (sampler.batch_size, sampler.shuffle, sampler.rank, sampler.world_size) == (10, True, 0, 2)
    rng = np.random.default_rng(5)
    sampler.rng = rng
    assert sampler.rng is rng
    assert "rank=0, world_size=2" in repr(sampler)


@pytest.mark.parametrize(
    ("dist_info", "error", "match"),
    [
        (lambda: (2, 2), ValueError, "rank must be < world_size, got rank 2 and world_size 2"),
        (lambda: (-1, 2), ValueError, "rank must be >= 0, got -1"),
        (lambda: (0, 0), ValueError, "world_size must be >= 1, got 0"),
        (lambda: 3, TypeError, r"must return \(rank, world_size\), got 3"),
        ("mpi", ValueError, "dist_info must be 'torch', 'jax' or a function .* got 'mpi'"),
        (None, TypeError, "dist_info must be 'torch', 'jax' or a function"),
    ],
)
def test_bad_dist_info_is_refused(dist_info, error, match):
    with pytest.raises(error, match=match):
        DistributedSampler(random(), dist_info=dist_info)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="sampler must be an annbatch.abc.Sampler, got int"):
        DistributedSampler(3, dist_info=lambda: (0, 1))
    with pytest.raises(TypeError, match="enforce_equal_batches must be True or False, got 1"):
        DistributedSampler(random(), dist_info=lambda: (0, 1), enforce_equal_batches=1)
    with pytest.raises(ValueError, match="num_samples must be at least world_size=4, got 3"):
        DistributedSampler(classes(num_samples=3), dist_info=lambda: (0, 4))
    with pytest.raises(ValueError, match="one row per rank, got 3 rows for world_size 4"):
        DistributedSampler(random(), dist_info=lambda: (0, 4)).sample(3)


def test_torch_must_be_initialised():
    pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(RuntimeError, match="init_process_group"):
        DistributedSampler(random(), dist_info="torch")
