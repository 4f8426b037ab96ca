"""Samplers in DataLoader workers. Workers are simulated here; tests/integration runs real ones."""

from __future__ import annotations

import copy
import functools
import json
import operator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import annbatch.samplers._base
from annbatch import ClassSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedClassSampler
from annbatch._shared.workers import Worker

from .checks import batches_of, plain
from .test_base import custom


def as_worker(sampler, n_obs, worker):
    """What `sampler` yields in a process that is `worker`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annbatch.samplers._base, "current_worker", lambda: worker)
        return list(sampler.sample(n_obs))


def random(seed=0, **kwargs):
    return RandomSampler(3, 4, 6, rng=np.random.default_rng(seed), **kwargs)


@given(st.integers(1, 5), st.integers(1, 200), st.booleans(), st.booleans())
def test_workers_together_do_one_pass(n_workers, n_obs, drop_last, replacement):
    # Every worker has the same copy of the sampler, as after a fork.
    def make():
        return random(drop_last=drop_last, replacement=replacement and n_obs >= 3)

    parts = [as_worker(make(), n_obs, Worker(i, n_workers, 7)) for i in range(n_workers)]
    batches = [batch for part in parts for batch in batches_of(part)]
    assert len(batches) == make().n_batches(n_obs)
    rows = np.concatenate(batches) if batches else np.empty(0)
    assert len(rows) == (n_obs // 6 * 6 if drop_last else n_obs)
    if not (replacement and n_obs >= 3):
        assert len(np.unique(rows)) == len(rows)


def test_chunks_are_dealt_out_whole():
    parts = [as_worker(random(), 200, Worker(i, 3, 7)) for i in range(3)]
    chunks = [[part.start for request in part_requests for part in request["requests"]] for part_requests in parts]
    assert sorted(functools.reduce(operator.iadd, chunks, [])) == list(range(0, 200, 3))


def test_another_epoch_has_another_order():
    # A DataLoader starts its workers afresh every epoch, with the generator's state as it was.
    first, second = (as_worker(random(), 200, Worker(0, 2, seed)) for seed in (1, 2))
    assert plain(first) != plain(second)
    assert plain(first) == plain(as_worker(random(), 200, Worker(0, 2, 1)))


@given(
    st.integers(2, 5), st.integers(1, 120), st.booleans(), st.sampled_from([(3, 4, 6), (4, 3, 2), (1, 8, 4), (8, 1, 8)])
)
def test_sequential_batches_collected_in_turn_are_in_order(n_workers, n_obs, drop_last, geometry):
    # DataLoader takes one batch from each worker in turn, and passes over workers that are done.
    sampler = SequentialSampler(*geometry, drop_last=drop_last)
    queues = [batches_of(as_worker(sampler, n_obs, Worker(i, n_workers, 7))) for i in range(n_workers)]
    collected = []
    while any(queues):
        collected += [queue.pop(0) for queue in queues if queue]
    batch_size = geometry[2]
    n_rows = n_obs // batch_size * batch_size if drop_last else n_obs
    assert len(collected) == sampler.n_batches(n_obs)
    assert [row for batch in collected for row in batch.tolist()] == list(range(n_rows))


@pytest.mark.parametrize("kind", [ClassSampler, WeightedClassSampler])
def test_class_samplers_share_a_pass_out_too(kind):
    classes = pd.Categorical(np.repeat(["a", "b"], 50))
    sampler = kind(5, 4, 10, classes=classes, num_samples=207, rng=np.random.default_rng(0))
    alone = plain(as_worker(sampler, 100, Worker(0, 1, 7)))
    parts = [plain(as_worker(copy.deepcopy(sampler), 100, Worker(i, 3, 7))) for i in range(3)]
    # Each began from the generator as it was after the first pass, so it is compared with that one's second.
    second = plain(as_worker(sampler, 100, Worker(0, 1, 7)))
    assert [parts[number % 3][number // 3] for number in range(len(second))] == second != alone
    assert sum(len(split) for part in parts for _, splits in part for split in splits) == 207
    first, other = (plain(as_worker(copy.deepcopy(sampler), 100, Worker(0, 1, seed))) for seed in (1, 2))
    assert first != other


def test_a_custom_sampler_must_say_that_it_knows_of_workers():
    # It would otherwise yield all its rows in every worker.
    with pytest.raises(NotImplementedError, match="set worker_aware = True"):
        as_worker(custom(), 200, Worker(0, 2, 7))
    aware = custom()
    aware.worker_aware = True
    assert len(as_worker(aware, 200, Worker(0, 2, 7))) == 5


def test_workers_agree_on_a_pass_also_without_a_generator():
    def make():
        sampler = random()
        sampler.rng = None
        return sampler

    rows = [row for i in range(2) for b in batches_of(as_worker(make(), 90, Worker(i, 2, 7))) for row in b.tolist()]
    assert sorted(rows) == list(range(90))


def test_ranks_and_workers_together_visit_every_row_once():
    rows = []
    for rank in range(2):
        for i in range(3):
            sampler = DistributedSampler(random(), dist_info=lambda rank=rank: (rank, 2))
            # torch's seed of the epoch differs between ranks.
            batches = batches_of(as_worker(sampler, 200, Worker(i, 3, 7 + rank)))
            rows += [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(200))


@pytest.mark.parametrize(
    "make", [random, lambda: SequentialSampler(3, 4, 6), custom], ids=["random", "sequential", "custom"]
)
def test_resume_in_a_worker_of_a_later_process(make):
    # The seed of the epoch comes from the state, not from the new process.
    n_workers = 1 if make is custom else 3
    worker, later = Worker(0, n_workers, 7), Worker(0, n_workers, 8)
    expected = as_worker(make(), 200, worker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annbatch.samplers._base, "current_worker", lambda: worker)
        sampler = make()
        requests = sampler.sample(200)
        next(requests)
        state = json.loads(json.dumps(sampler.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    assert plain(as_worker(resumed, 200, later)) == plain(expected[1:])


def test_a_state_of_another_worker_is_refused():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annbatch.samplers._base, "current_worker", lambda: Worker(1, 3, 7))
        sampler = random()
        next(sampler.sample(200))
        state = sampler.state_dict()
    for worker in (Worker(0, 3, 7), Worker(1, 2, 7), None):
        resumed = random()
        resumed.load_state_dict(state)
        with pytest.raises(ValueError, match=r"taken with \(worker, workers\)=\(1, 3\), here it is"):
            as_worker(resumed, 200, worker)


def test_one_worker_sees_another_order_every_epoch_also_of_a_custom_sampler():
    # Of the rows that it draws itself, and of the splits that it gets.
    for arguments in ({}, {"as_array": True}):
        first, second, again = (as_worker(custom(**arguments), 200, Worker(0, 1, seed)) for seed in (1, 2, 1))
        assert [r["requests"] for r in first if isinstance(r["requests"], list)] != [
            r["requests"] for r in second if isinstance(r["requests"], list)
        ] or arguments
        assert plain(first) != plain(second)
        assert plain(first) == plain(again)


def ranks_with_workers(make, n_ranks=3):
    return [DistributedSampler(make(), dist_info=lambda rank=rank: (rank, n_ranks)) for rank in range(n_ranks)]


def forked(sampler):
    """Stand for the copy in a worker, which shares nothing with its parent but the numbers of the passes."""
    twin = copy.deepcopy(sampler)
    twin._numbers = sampler._numbers
    return twin


def epoch_of(samplers, n_obs, n_workers, seed):
    """An epoch of fresh workers of every rank."""
    return [
        [batches_of(as_worker(forked(sampler), n_obs, Worker(i, n_workers, seed + rank))) for i in range(n_workers)]
        for rank, sampler in enumerate(samplers)
    ]


def rows_in(nested):
    return [row for part in nested for row in (rows_in(part) if isinstance(part, list) else part.tolist())]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_fresh_workers_of_all_ranks_know_which_pass_they_share(n_workers):
    # Every epoch's workers begin with the same copy of the sampler, and nothing that they know of torch is the same everywhere.
    samplers = ranks_with_workers(lambda: RandomSampler(1, 4, 4, rng=np.random.default_rng(0)))
    epochs = [rows_in(epoch_of(samplers, 50, n_workers, seed)) for seed in range(6)]
    for rows in epochs:
        assert len(set(rows)) == len(rows) >= 48
    assert len({tuple(rows) for rows in epochs}) == 6
    assert set().union(*epochs) == set(range(50))
    # The parent goes on where its workers were, and they where it was.
    rows = rows_in([batches_of(sampler.sample(50)) for sampler in samplers])
    assert len(set(rows)) == len(rows) >= 48
    assert rows not in epochs
    for sampler in samplers:
        sampler.set_epoch(2)
    assert rows_in(epoch_of(samplers, 50, n_workers, 99)) == epochs[2]
    assert rows_in(epoch_of(samplers, 50, n_workers, 99)) == epochs[3]


def test_the_pass_after_one_that_workers_resumed():
    make = functools.partial(ranks_with_workers, random)
    original = make()
    epochs = [epoch_of(original, 200, 2, seed) for seed in range(3)]
    states = {}
    for rank, sampler in enumerate(make()):
        sampler.set_epoch(1)
        for i in range(2):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(annbatch.samplers._base, "current_worker", lambda i=i: Worker(i, 2, 50))
                worker = forked(sampler)
                next(worker.sample(200))
                states[rank, i] = json.loads(json.dumps(worker.state_dict()))
    resumed = make()
    for rank, sampler in enumerate(resumed):
        for i in range(2):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(annbatch.samplers._base, "current_worker", lambda i=i: Worker(i, 2, 60))
                worker = forked(sampler)
                worker.load_state_dict(states[rank, i])
                rest = batches_of(worker.sample(200))
            n_done = len(epochs[1][rank][i]) - len(rest)
            assert n_done == 2
            assert rows_in(rest) == rows_in(epochs[1][rank][i][n_done:])
    assert rows_in(epoch_of(resumed, 200, 2, 70)) == rows_in(epochs[2])


def test_a_worker_that_has_run_out_says_so():
    # StatefulDataLoader starts it again from this state: with that of the next pass it repeated rows.
    worker = Worker(2, 3, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annbatch.samplers._base, "current_worker", lambda: worker)
        sampler = random()
        batches = list(sampler.sample(40))
        assert len(batches) == 1
        resumed = random(seed=1)
        resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
        assert list(resumed.sample(40)) == []
        assert plain(resumed.sample(40)) == plain(sampler.sample(40))


def test_later_passes_of_a_persistent_worker_follow_the_original_after_a_resume():
    original, resumed = Worker(1, 2, 7), Worker(1, 2, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annbatch.samplers._base, "current_worker", lambda: original)
        sampler = random()
        requests = sampler.sample(200)
        next(requests)
        state = sampler.state_dict()
        list(requests)
        expected = [plain(sampler.sample(200)) for _ in range(2)]
        patch.setattr(annbatch.samplers._base, "current_worker", lambda: resumed)
        twin = random()
        twin.load_state_dict(state)
        list(twin.sample(200))
        assert [plain(twin.sample(200)) for _ in range(2)] == expected
