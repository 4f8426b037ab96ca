"""What annbatch.abc.Sampler gives every sampler: validation, splits, the mask's protection, saving and restoring."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from annbatch import ClassSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedClassSampler
from annbatch.abc import Sampler

from .checks import batches_of, plain


class Custom(Sampler):
    """A user's sampler, which knows nothing of the base class's inner life: no super().__init__(), no splits."""

    def __init__(self, *, batch_size=4, shuffle=True, n_requests=5, as_array=False):
        self._size, self._shuffle, self.n_requests, self.as_array = batch_size, shuffle, n_requests, as_array
        self.closed = False

    @property
    def batch_size(self):
        return self._size

    @property
    def shuffle(self):
        return self._shuffle

    def n_batches(self, n_obs):
        return 3 * self.n_requests

    def validate(self, n_obs):
        if n_obs < 50:
            msg = f"n_obs must be >= 50, got {n_obs}"
            raise ValueError(msg)

    def _sample(self, n_obs):
        try:
            for _ in range(self.n_requests):
                first = int(self.rng.integers(0, n_obs - 10))
                yield {
                    "requests": np.arange(first, first + 10)
                    if self.as_array
                    else [slice(first, first + 4), slice(0, 6)]
                }
        finally:
            self.closed = True


def custom(seed=0, **kwargs):
    sampler = Custom(**kwargs)
    sampler.rng = np.random.default_rng(seed)
    return sampler


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_requests_without_splits_get_them(as_array, shuffle):
    sampler = custom(shuffle=shuffle, as_array=as_array)
    orders = []
    for request in sampler.sample(50):
        assert [len(split) for split in request["splits"]] == [4, 4, 2]
        orders.append(np.concatenate(request["splits"]).tolist())
        assert sorted(orders[-1]) == list(range(10))
    if shuffle:
        assert len({tuple(order) for order in orders}) == 5
    else:
        assert orders == [list(range(10))] * 5


def test_splits_of_a_custom_sampler_follow_its_rng():
    assert plain(custom(1).sample(50)) == plain(custom(1).sample(50))
    assert plain(custom(1).sample(50)) != plain(custom(2).sample(50))


def test_a_request_that_has_splits_keeps_them():
    class Given(Custom):
        def _sample(self, n_obs):
            yield {"requests": [slice(0, 3)], "splits": [np.array([2, 0])]}

    (request,) = Given().sample(50)
    assert request["splits"][0].tolist() == [2, 0]


@pytest.mark.parametrize("name", ["batch_size", "shuffle"])
def test_requests_without_splits_need_to_know_how_to_make_them(name):
    with pytest.raises(ValueError, match=f"{name} must not be None when load requests carry no splits"):
        next(custom(**{name: None}).sample(50))


def test_sample_validates_before_anything_is_drawn():
    sampler = custom()
    before = sampler.rng.bit_generator.state
    with pytest.raises(ValueError, match="n_obs must be >= 50, got 49"):
        sampler.sample(49)
    assert sampler.rng.bit_generator.state == before


def test_closing_the_pass_closes_the_generator():
    sampler = custom()
    requests = sampler.sample(50)
    next(requests)
    assert not sampler.closed
    requests.close()
    assert sampler.closed
    assert list(requests) == []


def test_n_iters_is_deprecated():
    with pytest.warns(FutureWarning, match="n_iters is deprecated, use n_batches"):
        assert SequentialSampler(2, 2, 2).n_iters(9) == 5


@pytest.mark.parametrize("missing", ["batch_size", "shuffle", "n_batches", "_sample"])
def test_what_an_extender_must_write(missing):
    members = {
        name: getattr(Custom, name) for name in ("batch_size", "shuffle", "n_batches", "_sample") if name != missing
    }
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (Sampler,), members)()


# -- mask and rng -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (slice(0, 10, 2), ValueError, r"step 1, got slice\(0, 10, 2\)"),
        (slice(10, 0, -1), ValueError, "step 1"),
        (slice(-3, 10), ValueError, r"start >= 0 .*slice\(-3, 10"),
        (slice(0, -3), ValueError, r"stop >= 0, got slice\(0, -3"),
        (slice(5, 5), ValueError, r"at least one row, got slice\(5, 5"),
        (slice(6, 5), ValueError, "at least one row"),
        (slice(0.0, 5), TypeError, "mask.start must be an integer, got 0.0"),
        (slice(False, 5), TypeError, "mask.start must be an integer"),
        ([0, 5], TypeError, r"mask must be a slice\(start, stop\), got \[0, 5\]"),
        (range(5), TypeError, "mask must be a slice"),
    ],
)
def test_bad_masks_are_refused_everywhere(mask, error, match):
    with pytest.raises(error, match=match):
        RandomSampler(2, 2, 2, mask=mask)
    sampler = RandomSampler(2, 2, 2, mask=slice(1, 7))
    with pytest.raises(error, match=match):
        sampler.mask = mask
    assert sampler.mask == slice(1, 7)


@pytest.mark.parametrize("mask", [slice(0, 11), slice(10, None), slice(10, 11)])
def test_a_mask_beyond_the_data_is_refused(mask):
    with pytest.raises(ValueError, match=r"within the 10 rows .*, got slice"):
        RandomSampler(2, 2, 2, mask=mask).sample(10)


def test_the_default_mask_is_everything():
    assert RandomSampler(2, 2, 2).mask == slice(0, None)
    assert RandomSampler(2, 2, 2, mask=slice(None, 5)).mask == slice(0, 5)
    assert RandomSampler(2, 2, 2, mask=slice(np.int64(2), np.uint8(5), 1)).mask == slice(2, 5)


def test_the_mask_cannot_move_while_a_pass_is_open():
    sampler = RandomSampler(2, 2, 2)
    requests = sampler.sample(20)
    next(requests)
    for kind in (RuntimeError, ValueError):  # which of them annbatch 0.3 raised, and what it is
        with pytest.raises(kind, match="while a pass is open"):
            sampler.mask = slice(0, 5)
    sampler.mask = slice(0, None)
    requests.close()
    sampler.mask = slice(0, 5)
    abandoned = sampler.sample(20)
    next(abandoned)
    del abandoned
    sampler.mask = slice(0, 6)
    assert len(list(sampler.sample(20))) == 2
    sampler.mask = slice(0, 7)


@pytest.mark.parametrize("rng", [True, "seed", 1.5, np.random.RandomState(0), [1]])
def test_an_rng_of_another_kind_is_refused(rng):
    with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
        RandomSampler(2, 2, 2, rng=rng)
    with pytest.raises(TypeError, match="rng must be a numpy.random.Generator"):
        RandomSampler(2, 2, 2).rng = rng


@pytest.mark.parametrize("seed", [0, 7, np.int64(7)])
def test_a_seed_works_with_a_warning_and_0_is_a_seed(seed):
    with pytest.warns(FutureWarning, match=r"numpy.random.default_rng") as record:
        sampler = RandomSampler(2, 2, 2, rng=seed)
    assert record[0].filename == __file__
    assert plain(sampler.sample(20)) == plain(RandomSampler(2, 2, 2, rng=np.random.default_rng(seed)).sample(20))


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"seed >= 0, got -1"):
        RandomSampler(2, 2, 2, rng=-1)


# -- reproducibility --------------------------------------------------------------------------------------------------


def seeded(seed=3, **kwargs):
    return RandomSampler(3, 4, 6, rng=np.random.default_rng(seed), **kwargs)


def test_a_pass_takes_one_seed_and_nothing_more():
    sampler = seeded()
    twin = np.random.default_rng(3)
    twin.integers(2**64, dtype=np.uint64)
    list(sampler.sample(100))
    assert sampler.rng.bit_generator.state == twin.bit_generator.state


@pytest.mark.parametrize("read", [0, 1, 3, None])
def test_the_second_pass_does_not_depend_on_how_far_the_first_was_read(read):
    expected, sampler = seeded(), seeded()
    list(expected.sample(100))
    first = sampler.sample(100)
    for _, _request in zip(range(100 if read is None else read), first, strict=False):
        pass
    assert plain(sampler.sample(100)) == plain(expected.sample(100))


def test_global_random_state_is_neither_used_nor_moved():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()  # noqa: NPY002
    np.testing.assert_equal(plain(seeded().sample(50)), plain(seeded().sample(50)))
    list(RandomSampler(3, 4, 6).sample(50))
    np.testing.assert_equal(np.random.get_state(), before)  # noqa: NPY002


def test_handed_out_requests_never_change():
    # https://github.com/scverse/annbatch 0.3.1: splits were views of a buffer that the next request shuffled.
    kept, seen = [], []
    for request in seeded().sample(200):
        kept.append(request)
        seen.extend(plain([request]))
    assert plain(kept) == seen


def test_a_caller_may_change_what_was_handed_out():
    untouched, sampler = seeded(), seeded()
    for request in sampler.sample(200):
        request["requests"].clear()
        for split in request["splits"]:
            split[:] = -1
    list(untouched.sample(200))
    assert plain(sampler.sample(200)) == plain(untouched.sample(200))


def test_neighbouring_seeds_and_requests_share_no_stream():
    firsts = [
        tuple(batches_of([request])[0].tolist())
        for seed in range(20)
        for request in RandomSampler(1, 64, 32, rng=np.random.default_rng(seed)).sample(2000)
    ]
    assert len(set(firsts)) == len(firsts)


# -- state ------------------------------------------------------------------------------------------------------------


def restored(state, make):
    sampler = make()
    sampler.load_state_dict(json.loads(json.dumps(state)))
    return sampler


MAKERS = {
    "random": seeded,
    "replacement": lambda: seeded(replacement=True, num_samples=95),
    "sequential": lambda: SequentialSampler(3, 4, 6),
    "single rows": lambda: RandomSampler(1, 12, 6, rng=np.random.default_rng(1), drop_last=True),
    "custom": custom,
    "mersenne twister": lambda: RandomSampler(3, 4, 6, rng=np.random.Generator(np.random.MT19937(3))),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_resume_at_every_request_of_two_passes(make):
    n_obs = 103
    original = make()
    expected = [plain(original.sample(n_obs)) for _ in range(3)]
    sampler = make()
    for number in range(2):
        requests = sampler.sample(n_obs)
        for k in range(len(expected[number]) + 1):
            resumed = restored(sampler.state_dict(), make)
            rest = plain(resumed.sample(n_obs))
            assert rest == expected[number][k:]
            assert plain(resumed.sample(n_obs)) == expected[number + 1]
            next(requests, None)


def test_a_resumed_pass_can_be_resumed_again():
    expected = plain(seeded().sample(100))
    first = seeded()
    requests = first.sample(100)
    next(requests)
    second = restored(first.state_dict(), seeded)
    requests = second.sample(100)
    next(requests)
    next(requests)
    third = restored(second.state_dict(), seeded)
    assert plain(third.sample(100)) == expected[3:]


def test_a_state_loaded_and_saved_again_is_the_same():
    sampler = seeded()
    requests = sampler.sample(100)
    next(requests)
    state = sampler.state_dict()
    assert restored(state, seeded).state_dict() == state


def test_a_finished_pass_is_followed_by_the_next():
    sampler = seeded()
    list(sampler.sample(100))
    expected = copy.deepcopy(sampler)
    assert plain(restored(sampler.state_dict(), seeded).sample(100)) == plain(expected.sample(100))


def test_restoring_does_not_move_a_generator_that_others_hold():
    shared = np.random.default_rng(9)
    sampler = RandomSampler(3, 4, 6, rng=shared)
    state = sampler.state_dict()
    before = shared.bit_generator.state
    sampler.load_state_dict(state)
    list(sampler.sample(50))
    assert shared.bit_generator.state == before


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RandomSampler(3, 4, 12), "here batch_size=12; in the state batch_size=6"),
        (lambda: RandomSampler(3, 4, 6, mask=slice(0, 9)), r"here mask=\[0, 9\]; in the state mask=\[0, None\]"),
        (lambda: SequentialSampler(3, 4, 6), "type='SequentialSampler'.*type='RandomSampler'"),
    ],
)
def test_a_state_of_another_sampler_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        restored(seeded().state_dict(), make)


def test_a_state_of_other_data_is_refused():
    sampler = seeded()
    next(sampler.sample(100))
    other = restored(sampler.state_dict(), seeded)
    with pytest.raises(ValueError, match="taken with n_obs=100, this data has n_obs=101"):
        other.sample(101)
    assert len(list(other.sample(100))) == 8


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 3}, "version 2, got 3"),
        ({"version": 1}, "made by annbatch 0.4, whose order of rows this version does not draw any more"),
        ({"world_size": 0}, "world_size must be >= 1, got 0"),
        ({"world_size": 2}, "must belong to 1 ranks, got 2"),
        ({"legs": [[1]]}, "made by state_dict"),
        ({"pass": "x"}, "made by state_dict"),
        ({"request": None}, "made by state_dict"),
        ({"worker": 3}, "made by state_dict"),
        ({"rng": {"bit_generator": "Nonesuch"}}, "name a numpy BitGenerator, got 'Nonesuch'"),
        ({"rng": {"bit_generator": "PCG64"}}, "no state of a PCG64"),
        ({"rng": []}, "got rng="),
        ({"rng": None}, "generator of a sampler that shuffles"),
        ({"rng": {"bit_generator": "BitGenerator"}}, "no state of a BitGenerator"),
        (
            {
                "rng": {
                    "bit_generator": "MT19937",
                    "state": {"key": {"uint": "uint32", "values": [0] * 624}, "pos": 10**6},
                }
            },
            r"a position in \[0, 624\]",
        ),
        ({"request": -2}, "request must be >= 0, got -2"),
        ({"request": 1.5}, "request must be an integer"),
        ({"request": 1}, "request=1 and legs=.* of a pass without n_obs"),
        ({"ahead": -1}, "ahead must be >= 0, got -1"),
        ({"pass": -1}, "pass must be >= 0"),
        ({"sampler": 7}, "another sampler: expected .*, got 7"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change, match):
    sampler = seeded()
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=match):
        sampler.load_state_dict({**before, **change})
    assert sampler.state_dict() == before


def test_an_epoch_that_was_set_behind_the_passes_is_kept_by_a_state():
    sampler = seeded()
    for _ in range(3):
        list(sampler.sample(100))
    next(sampler.sample(100))
    resumed = restored(sampler.state_dict(), seeded)
    rest = resumed.sample(100)
    resumed.set_epoch(1)  # the fourth pass counts as the second epoch
    assert resumed.state_dict()["ahead"] == -2
    assert plain(restored(resumed.state_dict(), seeded).sample(100)) == plain(rest)


def by_class(kind, **kwargs):
    return kind(3, 4, 6, classes=pd.Categorical(["a"] * 60 + ["b"] * 40), num_samples=100, rng=np.random.default_rng(0))


def shared_out(sampler):
    return DistributedSampler(sampler, dist_info=lambda: (0, 2))


PASSES = {
    "random": seeded,
    "replacement": lambda: seeded(replacement=True, num_samples=95),
    "sequential": lambda: SequentialSampler(3, 4, 6),
    "class": lambda: by_class(ClassSampler),
    "weighted class": lambda: by_class(WeightedClassSampler),
    "one's own": custom,
    "random, shared out": lambda: shared_out(seeded()),
    "sequential, shared out": lambda: shared_out(SequentialSampler(3, 4, 6)),
    "class, shared out": lambda: shared_out(by_class(ClassSampler)),
    "one's own, shared out": lambda: shared_out(KeepsToItsMask(3, 4, 6)),
}


class KeepsToItsMask(SequentialSampler):
    def _sample(self, n_obs):
        for row in range(self.mask.start, self.mask.stop):
            yield {"requests": [slice(row, row + 1)]}


@pytest.mark.parametrize("make", PASSES.values(), ids=PASSES)
def test_a_state_beyond_the_end_of_its_pass_is_refused(make):
    sampler = make()
    next(sampler.sample(100))
    state = sampler.state_dict()
    n_requests = 1 + len(list(restored(state, make).sample(100)))
    assert list(restored({**state, "request": n_requests}, make).sample(100)) == []
    beyond = restored({**state, "request": n_requests + 1}, make)
    with pytest.raises(
        ValueError, match=f"{n_requests + 1} load requests of a pass are done, but it has {n_requests}; "
    ):
        next(beyond.sample(100), None)


def test_ranks_that_did_more_than_they_had_to_are_refused():
    sampler = shared_out(seeded())
    next(sampler.sample(100))
    state = sampler.state_dict()

    def of_three():
        return DistributedSampler(seeded(), dist_info=lambda: (0, 3))

    assert list(restored({**state, "request": 5}, of_three).sample(100)) == []
    with pytest.raises(ValueError, match="6 load requests of a pass are done, but it has 5"):
        restored({**state, "request": 6}, of_three).sample(100)
    for leg, n_batches in ((2, 2, 3), 2), ((2, 5, 1), 0):
        with pytest.raises(ValueError, match=f"{leg[2]} batches of a load request are done, but it has {n_batches}"):
            restored({**state, "world_size": 3, "legs": [leg], "request": 0}, of_three).sample(100)


def test_a_state_must_be_a_dict():
    with pytest.raises(TypeError, match="state must be a dict"):
        seeded().load_state_dict("state")


@pytest.mark.parametrize("n_obs", [np.int64(100), np.uint16(100)])
def test_a_state_survives_json_whatever_kind_of_integer_was_given(n_obs):
    for sampler in (seeded(), SequentialSampler(3, 4, 6), custom(batch_size=np.int64(4), shuffle=np.bool_(True))):
        next(sampler.sample(n_obs))
        json.dumps(sampler.state_dict())


@pytest.mark.parametrize("make", [lambda: Custom(), lambda: RandomSampler(3, 4, 6)])
def test_a_state_taken_before_the_first_pass_of_a_sampler_without_generator(make):
    sampler = make()
    sampler.rng = None
    if isinstance(sampler, Custom):
        sampler._sample = lambda n_obs: iter([{"requests": [slice(0, 20)]}])
    twin = copy.deepcopy(make())
    twin.rng = None
    if isinstance(twin, Custom):
        twin._sample = sampler._sample
    twin.load_state_dict(sampler.state_dict())
    assert plain(twin.sample(100)) == plain(sampler.sample(100))


# -- epochs by number -------------------------------------------------------------------------------------------------


EPOCHS = {
    "random": seeded,
    "mersenne twister": lambda: RandomSampler(3, 4, 6, rng=np.random.Generator(np.random.MT19937(3))),
    "replacement": lambda: seeded(replacement=True, num_samples=95),
    "sequential": lambda: SequentialSampler(3, 4, 6),
}


@pytest.mark.parametrize("make", EPOCHS.values(), ids=EPOCHS)
def test_an_epoch_set_by_number_is_that_of_an_undisturbed_sampler(make):
    original = make()
    epochs = [plain(original.sample(100)) for _ in range(6)]
    sampler = make()
    for number in (0, 1, 4, 2, 5, 0):
        sampler.set_epoch(number)
        sampler.set_epoch(number)
        assert plain(sampler.sample(100)) == epochs[number]
    assert plain(sampler.sample(100)) == epochs[1]


@pytest.mark.parametrize("make", EPOCHS.values(), ids=EPOCHS)
def test_setting_every_epoch_changes_nothing(make):
    # As torch and Lightning do; the latter starts the first pass before it says its number.
    original, sampler = make(), make()
    requests = sampler.sample(100)
    for number in range(3):
        sampler.set_epoch(number)
        assert plain(requests) == plain(original.sample(100))
        sampler.set_epoch(number + 1)
        requests = sampler.sample(100)


def test_a_pass_that_nothing_was_asked_of_becomes_the_one_with_the_number_that_is_set():
    # Lightning resumes from a checkpoint of an epoch's end: it loads the state, starts the pass (which has nothing left), and
    # then says that the next epoch begins.
    original = seeded()
    epochs = [plain(original.sample(100)) for _ in range(3)]
    sampler = seeded()
    requests = sampler.sample(100)
    for _ in epochs[0]:
        next(requests)
    resumed = restored(sampler.state_dict(), seeded)
    again = resumed.sample(100)
    resumed.set_epoch(1)
    assert plain(again) == epochs[1]
    assert plain(resumed.sample(100)) == epochs[2]
    # In the middle of an epoch it says the number of the pass that is resumed.
    sampler = seeded()
    next(sampler.sample(100))
    resumed = restored(sampler.state_dict(), seeded)
    resumed.set_epoch(0)
    again = resumed.sample(100)
    resumed.set_epoch(0)
    assert plain(again) == epochs[0][1:]


@pytest.mark.parametrize("started", [False, True])
def test_the_rest_of_a_pass_that_was_loaded_comes_first_whatever_number_is_set(started):
    # Lightning counts an epoch that was cut short by max_steps as done, and still goes on in its middle.
    original = seeded()
    epochs = [plain(original.sample(100)) for _ in range(4)]
    sampler = seeded()
    next(sampler.sample(100))
    resumed = restored(sampler.state_dict(), seeded)
    rest = resumed.sample(100) if started else None
    resumed.set_epoch(1)
    assert plain(rest if started else resumed.sample(100)) == epochs[0][1:]
    for number in (1, 2):
        resumed.set_epoch(number + 1)
        assert plain(resumed.sample(100)) == epochs[number]
    again = restored(resumed.state_dict(), seeded)
    again.set_epoch(4)
    assert plain(again.sample(100)) == epochs[3]


def test_a_sampler_of_ones_own_has_an_order_for_every_epoch():
    orders = []
    for number in (0, 3, 1, 3):
        sampler = custom(as_array=True)
        sampler.set_epoch(number)
        orders.append(plain(sampler.sample(100)))
    assert orders[1] == orders[3]
    assert len({str(order) for order in orders}) == 3
    assert orders[0] == plain(custom(as_array=True).sample(100))


@pytest.mark.parametrize("epoch", [-1, 1.5, None, True])
def test_a_bad_epoch_is_refused(epoch):
    with pytest.raises((ValueError, TypeError), match="epoch must be"):
        seeded().set_epoch(epoch)


def test_a_generator_that_cannot_go_back_before_a_loaded_state_says_so():
    make = EPOCHS["mersenne twister"]
    sampler = make()
    sampler.set_epoch(3)
    resumed = restored(sampler.state_dict(), make)
    resumed.set_epoch(5)
    with pytest.raises(ValueError, match="epoch must be >= 3, got 2"):
        resumed.set_epoch(2)


def test_lightning_finds_set_epoch_and_a_subclass_may_keep_something_else_there():
    assert seeded().sampler.set_epoch(2) is None
    own = custom()
    own.sampler = "mine"
    assert own.sampler == "mine"


def test_a_sampler_that_was_changed_after_loading_is_refused():
    sampler = seeded()
    next(sampler.sample(100))
    moved = restored(sampler.state_dict(), seeded)
    moved.mask = slice(0, 50)
    with pytest.raises(ValueError, match="changed after load_state_dict: here mask"):
        moved.sample(100)
    reseeded = restored(sampler.state_dict(), seeded)
    reseeded.rng = np.random.default_rng(99)
    with pytest.raises(ValueError, match="rng was replaced or used after load_state_dict"):
        reseeded.sample(100)


def test_a_start_that_fails_can_be_tried_again():
    class Flaky(Custom):
        def _sample(self, n_obs):
            if self.closed is not None:
                self.closed = None
                msg = "not yet"
                raise OSError(msg)
            return iter([{"requests": [slice(0, 20)]}])

    flaky, steady = custom(), custom()
    flaky.__class__ = steady.__class__ = Flaky
    steady.closed = None
    with pytest.raises(OSError, match="not yet"):
        flaky.sample(100)
    assert plain(flaky.sample(100)) == plain(steady.sample(100))


def test_samplers_written_as_frozen_dataclasses_and_with_names_of_their_own():
    @dataclasses.dataclass(frozen=True)
    class Frozen(Sampler):
        batch_size: int = 4
        shuffle: bool = True

        def n_batches(self, n_obs):
            return 3

        def _sample(self, n_obs):
            yield {"requests": [slice(0, 10)]}

    sampler = Frozen()
    assert len(batches_of(sampler.sample(20))) == 3
    Frozen().load_state_dict(sampler.state_dict())

    own = custom()
    own._position = own._resume = own._n_passes = own._inner_state = "mine"
    next(own.sample(100))
    own.load_state_dict(own.state_dict())
    assert own._position == "mine"


def test_threads_may_share_a_pass():
    sampler = RandomSampler(1, 8, 8, rng=np.random.default_rng(0))
    shared = sampler.sample(20_000)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: list(shared), range(4)))
    rows = np.concatenate([row for part in parts for row in batches_of(part)])
    assert sorted(rows.tolist()) == list(range(20_000))


@pytest.mark.parametrize(
    ("requests", "error", "match"),
    [
        (slice(0, 3), TypeError, "requests must be a list of slices or an integer array, got slice"),
        ([0, 1], TypeError, "requests must be slices or an integer array, got a int"),
        (np.array([True, False]), TypeError, "requests must be a 1-d integer array, got 1-d bool"),
        ([slice(0, 105)], IndexError, r"requests must be in \[0, 100\), got numbers from 0 to 104"),
    ],
)
def test_requests_of_a_custom_sampler_are_checked(requests, error, match):
    sampler = custom()
    sampler._sample = lambda n_obs: iter([{"requests": requests}])
    with pytest.raises(error, match=match):
        next(sampler.sample(100))


def test_the_state_stays_small():
    sampler = RandomSampler(1, 4096, 256)
    requests = sampler.sample(10_000_000)
    for _ in range(5):
        next(requests)
    assert len(json.dumps(sampler.state_dict())) < 1000


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_and_pickles_go_on_by_themselves(copier):
    sampler = seeded()
    requests = sampler.sample(100)
    next(requests)
    twin = copier(sampler)
    state = twin.state_dict()
    next(requests)
    assert twin.state_dict() == state
    twin.mask = slice(0, 9)
    assert sampler.mask == slice(0, None)
