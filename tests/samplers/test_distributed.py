"""DistributedSampler: ranks are simulated with a function that returns (rank, world_size)."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import ClassSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedClassSampler
from annbatch.abc import Sampler

from .checks import batches_of, plain
from .test_base import Custom, custom

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
    st.booleans(),
)
def test_every_row_is_visited_and_every_rank_does_the_same_number_of_batches(
    world_size, n_obs, drop_last, equal, kind, start, reshuffle
):
    # Unequal counts hang collective operations; rows that no rank visits in any pass are lost to the training.
    mask = slice(start, None) if n_obs - start >= world_size else slice(0, None)
    sampler = kind(3, 4, 6, drop_last=drop_last, mask=mask, rng=np.random.default_rng(n_obs))
    samplers = ranks(sampler, world_size, enforce_equal_batches=equal, reshuffle=reshuffle)
    seen = set()
    # Rows that are left out are drawn: 12 passes make it certain enough that none is left out in all.
    for _ in range(12):
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
    for reshuffle in (True, False):
        assert sum(len(b) for shard in passes(ranks(random(), 2, reshuffle=reshuffle), 43) for b in shard) == 43
        samplers = ranks(random(), 2, reshuffle=reshuffle)
        left_out = [
            set(range(41)) - {row for shard in passes(samplers, 41) for b in shard for row in b.tolist()}
            for _ in range(8)
        ]
        assert {len(rows) for rows in left_out} == {1}
        assert len({*map(frozenset, left_out)}) > 4
        # In pieces it is always the longer one that must leave a row out.
        assert reshuffle or set.union(*left_out) <= set(range(21))


def test_in_order_the_ranks_take_turns_with_the_ends():
    samplers = ranks(SequentialSampler(5, 4, 10), 2)
    left_out = [
        set(range(41)) - {row for shard in passes(samplers, 41) for b in shard for row in b.tolist()} for _ in range(3)
    ]
    assert left_out == [{40}, {0}, {40}]


def test_ranks_see_other_rows_in_every_pass():
    samplers = ranks(random(), 3)
    epochs = [[frozenset(np.concatenate(shard).tolist()) for shard in passes(samplers, 300)] for _ in range(3)]
    for shares in epochs:
        assert sorted(row for rows in shares for row in rows) == list(range(300))
    assert len({rows for shares in epochs for rows in shares}) == 9
    kept = ranks(random(), 3, reshuffle=False)
    epochs = [[frozenset(np.concatenate(shard).tolist()) for shard in passes(kept, 300)] for _ in range(3)]
    assert epochs[0] == epochs[1] == epochs[2] == [frozenset(range(100 * r, 100 * r + 100)) for r in range(3)]


def test_the_ranks_of_a_pass_are_those_of_one_process_dealt_out():
    # 4 rounds of load requests, then the tail.
    alone = plain(DistributedSampler(random(), dist_info=lambda: (0, 1)).sample(200))
    shares = [plain(sampler.sample(200)) for sampler in ranks(random(), 2)]
    assert [shares[number % 2][number // 2] for number in range(8)] == alone[:8]


def test_without_equal_batches_every_row_is_visited_in_every_pass():
    samplers = ranks(random(), 2, enforce_equal_batches=False)
    shards = passes(samplers, 41)
    assert sorted(row for shard in shards for b in shard for row in b.tolist()) == list(range(41))
    assert [len(shard) for shard in shards] == [3, 2]


def test_a_rank_reads_one_contiguous_piece_of_the_masked_range():
    for rank, shard in enumerate(passes(ranks(random(mask=slice(100, 300)), 4, reshuffle=False), 1000)):
        rows = np.sort(np.concatenate(shard))
        assert rows.tolist() == list(range(100 + 50 * rank, 150 + 50 * rank))


@pytest.mark.parametrize("kind", [ClassSampler, WeightedClassSampler])
def test_class_samplers_see_every_class_on_every_rank_and_share_the_samples(kind):
    # On class-sorted data a rank that got a range of rows would only ever see its own classes.
    samplers = ranks(classes(kind=kind, num_samples=1603), 4)
    for sampler, shard in zip(samplers, passes(samplers, 400), strict=True):
        rows = np.concatenate(shard)
        assert len(rows) == 400
        assert sampler.n_batches(400) == len(shard) == 40
        assert set(CLASSES[rows]) == set("abcd")


def test_without_equal_batches_the_samples_add_up():
    shards = passes(ranks(classes(), 4, enforce_equal_batches=False), 400)
    assert [sum(map(len, shard)) for shard in shards] == [101, 101, 101, 100]


def test_num_samples_of_a_range_sampler_is_shared_too():
    for replacement in (False, True):
        shards = passes(ranks(random(num_samples=90, replacement=replacement), 3), 300)
        assert [sum(map(len, shard)) for shard in shards] == [30, 30, 30]


@pytest.mark.parametrize("n_obs", [30, 100])
def test_a_piece_is_drawn_from_with_replacement_as_often_as_asked_for(n_obs):
    sampler = random(num_samples=401, replacement=True)
    for equal, n_rows in ((True, [133, 133, 133]), (False, [134, 134, 133])):
        shared = ranks(sampler, 3, reshuffle=False, enforce_equal_batches=equal)
        shards = passes(shared, n_obs)
        assert [sum(map(len, shard)) for shard in shards] == n_rows
        assert [one.n_batches(n_obs) for one in shared] == [len(shard) for shard in shards]


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
    rows = np.concatenate(batches_of(requests))
    assert len(rows) == 20
    assert set(rows.tolist()) < set(range(20, 60))
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


SHARED = {
    "random": random,
    "sequential": lambda: SequentialSampler(5, 4, 10),
    "drop_last": lambda: random(drop_last=True),
    "some": lambda: random(num_samples=333),
    "replacement": lambda: random(num_samples=333, replacement=True),
    "single rows": lambda: RandomSampler(1, 20, 10, rng=np.random.default_rng(0)),
}


@pytest.mark.parametrize(
    ("make", "arguments"),
    [*((make, {}) for make in SHARED.values()), (random, {"reshuffle": False}), (classes, {})],
    ids=[*SHARED, "pieces", "classes"],
)
def test_every_rank_goes_on_from_the_state_of_rank_0(make, arguments):
    # Lightning saves that one alone.
    originals = ranks(make(), 3, **arguments)
    started = [sampler.sample(400) for sampler in originals]
    for requests in started:
        next(requests)
        next(requests)
    state = json.loads(json.dumps(originals[0].state_dict()))
    resumed = ranks(make(), 3, **arguments)
    for sampler in resumed:
        sampler.load_state_dict(state)
    assert [plain(sampler.sample(400)) for sampler in resumed] == [plain(requests) for requests in started]
    assert [plain(a.sample(400)) for a in resumed] == [plain(b.sample(400)) for b in originals]


def go_on(states, make, world_size, n_done, n_obs, **arguments):
    """Resume as other ranks from the state of rank 0, with `n_done` batches done of the load request that comes next."""
    samplers = ranks(make(), world_size, **arguments)
    for sampler in samplers:
        sampler.load_state_dict(json.loads(json.dumps(states)))
        assert sampler._batches_to_skip(n_done) == (0 if world_size != states["world_size"] else n_done)
    return samplers


@pytest.mark.parametrize("make", [make for name, make in SHARED.items() if name != "replacement"])
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 5), (4, 1), (1, 3)])
def test_other_ranks_go_on_at_the_same_place_of_the_pass(make, before, after):
    n_obs, n_requests, n_done = 400, 2, 1
    originals = ranks(make(), before)
    done = set()
    for sampler in originals:
        requests = sampler.sample(n_obs)
        for _ in range(n_requests):
            done.update(row for batch in batches_of([next(requests)]) for row in batch.tolist())
        state = sampler.state_dict()
        following = batches_of([next(requests, {"requests": np.array([], dtype=int), "splits": []})])
        done.update(row for batch in following[:n_done] for row in batch.tolist())
    samplers = go_on(state, make, after, n_done, n_obs)
    shards = passes(samplers, n_obs)
    rest = [row for shard in shards for batch in shard for row in batch.tolist()]
    assert len(set(rest)) == len(rest)
    assert not done & set(rest)
    n_rows = min(getattr(originals[0]._sampler, "num_samples", None) or n_obs, n_obs)
    n_left_out = before + after if not originals[0]._sampler.drop_last else 10 * (before + after)
    assert len(done) + len(rest) > n_rows - n_left_out
    assert len({len(shard) for shard in shards}) == 1
    # The next pass is that of ranks which shared from the beginning.
    fresh = ranks(make(), after)
    for sampler in fresh:
        sampler.set_epoch(1)
    assert [plain(a.sample(n_obs)) for a in samplers] == [plain(b.sample(n_obs)) for b in fresh]


def test_a_pass_may_change_hands_several_times():
    n_obs, seen = 600, []
    state = ranks(random(), 2, enforce_equal_batches=False)[0].state_dict()
    for world_size, n_requests in ((2, 3), (3, 2), (5, 1), (2, 2), (1, 99)):
        samplers = go_on(state, random, world_size, 0, n_obs, enforce_equal_batches=False)
        for sampler in samplers:
            requests = sampler.sample(n_obs)
            for _, request in zip(range(n_requests), requests, strict=False):
                seen += [row for batch in batches_of([request]) for row in batch.tolist()]
            if sampler.rank == 0:
                state = sampler.state_dict()
    assert sorted(seen) == list(range(600))


def test_the_middle_of_a_pass_that_ranks_do_not_share_is_not_gone_on_with_by_others():
    for make, arguments in ((classes, {}), (random, {"reshuffle": False})):
        sampler = ranks(make(), 2, **arguments)[0]
        next(sampler.sample(400))
        with pytest.raises(ValueError, match="do not share a pass with world_size=2, .* with world_size=3"):
            ranks(make(), 3, **arguments)[0].load_state_dict(sampler.state_dict())
        list(sampler.sample(400))
        other = ranks(make(), 3, **arguments)[0]
        other.load_state_dict(sampler.state_dict())
        list(other.sample(400))


def test_ranks_with_a_function_need_a_generator():
    # Each would draw a pass of its own: rows would come twice, and others never.
    with pytest.raises(ValueError, match=r"sampler must have an rng when dist_info is a function.*default_rng\(seed\)"):
        ranks(RandomSampler(5, 4, 10), 2)
    for sampler, arguments in (
        (RandomSampler(5, 4, 10), {"reshuffle": False}),
        (SequentialSampler(5, 4, 10), {}),
        (ClassSampler(5, 4, 10, classes=CLASSES, num_samples=403), {}),
    ):
        assert len(ranks(sampler, 2, **arguments)) == 2
    late = RandomSampler(5, 4, 10)
    late.rng = np.random.default_rng(0)
    assert len(ranks(late, 2)) == 2


def test_epochs_by_number_keep_ranks_together_when_one_starts_more_passes():
    ahead, steady = ranks(random(), 2)
    list(ahead.sample(200))
    ahead.sample(200)
    for sampler in (ahead, steady):
        sampler.set_epoch(1)
    rows = [row for shard in passes([ahead, steady], 200) for batch in shard for row in batch.tolist()]
    assert sorted(rows) == list(range(200))


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_count_their_own_passes(copier):
    sampler = ranks(random(), 2)[0]
    first = plain(sampler.sample(200))
    twin = copier(sampler)
    second = plain(twin.sample(200))
    assert second != first
    assert plain(sampler.sample(200)) == second


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


class Forwarding(Sampler):
    """Delegates everything, its mask and generator too, to a sampler inside."""

    def __init__(self, inner):
        self.inner = inner

    batch_size = property(lambda self: self.inner.batch_size)
    shuffle = property(lambda self: self.inner.shuffle)
    mask = property(lambda self: self.inner.mask, lambda self, mask: setattr(self.inner, "mask", mask))
    rng = property(lambda self: self.inner.rng, lambda self, rng: setattr(self.inner, "rng", rng))

    def validate(self, n_obs):
        self.inner.validate(n_obs)

    def n_batches(self, n_obs):
        return self.inner.n_batches(n_obs)

    def _sample(self, n_obs):
        yield from self.inner.sample(n_obs)


def test_counting_and_passing_never_shrink_the_range_of_a_sampler_that_forwards_its_mask():
    samplers = ranks(Forwarding(RandomSampler(1, 8, 4, rng=np.random.default_rng(0))), 2)
    for _ in range(3):
        assert [sampler.n_batches(100) for sampler in samplers] == [13, 13]
        shards = passes(samplers, 100)
        assert sorted(row for shard in shards for b in shard for row in b.tolist()) == list(range(100))


def test_resume_of_a_sampler_that_forwards_its_generator():
    def rank():
        return DistributedSampler(Forwarding(random()), dist_info=lambda: (1, 2))

    expected = rank()
    tails = [plain(expected.sample(200)) for _ in range(2)]
    sampler = rank()
    requests = sampler.sample(200)
    next(requests)
    resumed = rank()
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert plain(resumed.sample(200)) == tails[0][1:]
    assert plain(resumed.sample(200)) == tails[1]


def test_a_sampler_that_is_shared_out_is_not_shared_out_again():
    with pytest.raises(ValueError, match="must not be a DistributedSampler"):
        DistributedSampler(ranks(classes(), 2)[0], dist_info=lambda: (0, 2))


def test_a_sampler_that_holds_a_loaded_state_is_refused():
    inner = random()
    next(inner.sample(100))
    restored = random()
    restored.load_state_dict(inner.state_dict())
    with pytest.raises(ValueError, match="must not hold a state that was loaded"):
        DistributedSampler(restored, dist_info=lambda: (0, 2))


@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
def test_no_row_is_lost_for_good_when_as_many_samples_are_asked_for_as_there_are_rows(kind):
    samplers = ranks(kind(64, 4, 64, num_samples=1001, rng=np.random.default_rng(0)), 2)
    seen = {row for _ in range(4) for shard in passes(samplers, 1001) for b in shard for row in b.tolist()}
    assert seen == set(range(1001))


def test_the_first_rows_in_order_are_shared_out():
    shards = passes(ranks(SequentialSampler(5, 4, 10, num_samples=60), 3), 300)
    assert [np.concatenate(shard).tolist() for shard in shards] == [list(range(20 * r, 20 * r + 20)) for r in range(3)]


def test_ranks_of_a_custom_sampler_share_no_stream():
    class Half(Custom):
        def _sample(self, n_obs):
            rows = np.arange(self.mask.start, self.mask.stop)
            yield {"requests": self.rng.choice(rows, 10)}

    inner = Half()
    inner.rng = np.random.default_rng(0)
    first, second = (next(sampler.sample(100)) for sampler in ranks(inner, 2))
    assert (first["requests"] != second["requests"] - 50).any()
    assert np.concatenate(first["splits"]).tolist() != np.concatenate(second["splits"]).tolist()


def test_a_custom_sampler_that_ignores_its_mask_is_refused():
    # Every rank would yield the same rows.
    with pytest.raises(ValueError, match=r"must keep to its mask, slice\(30, 60"):
        list(DistributedSampler(custom(as_array=True), dist_info=lambda: (1, 2)).sample(60))


def test_what_a_custom_sampler_counts_is_kept_from_pass_to_pass():
    class Epochs(Custom):
        epoch = 0

        def _sample(self, n_obs):
            self.epoch += 1
            yield {"requests": [slice(self.mask.start, self.mask.start + self.epoch)]}

    sampler = ranks(Epochs(shuffle=False), 2)[1]
    assert [len(b) for _ in range(3) for b in batches_of(sampler.sample(60))] == [1, 2, 3]


def test_the_classes_are_not_copied():
    sampler = ranks(classes(), 2)[0]
    assert np.shares_memory(sampler._sampler.classes.codes, CLASSES.codes)


@pytest.mark.parametrize(
    ("dist_info", "error", "match"),
    [
        (lambda: (2, 2), ValueError, "rank must be < world_size, got rank 2 and world_size 2"),
        (lambda: (-1, 2), ValueError, "rank must be >= 0, got -1"),
        (lambda: (0, 0), ValueError, "world_size must be >= 1, got 0"),
        (lambda: 3, TypeError, r"must return \(rank, world_size\), got 3"),
        (np.array([0, 1]), TypeError, "dist_info must be 'torch', 'jax' or a function"),
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


def test_jax_must_be_initialised():
    # It would answer rank 0 of 1 on every machine of the job.
    pytest.importorskip("jax", reason="needs jax")
    with pytest.raises(RuntimeError, match="jax.distributed.initialize"):
        DistributedSampler(random(), dist_info="jax")
