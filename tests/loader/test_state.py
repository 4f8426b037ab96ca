"""Resuming: the next batch after a restore is the very next batch."""

from __future__ import annotations

import copy
import json
import time

import numpy as np
import pytest

from annbatch import ClassSampler, Loader, RandomSampler, SequentialSampler, WeightedClassSampler, storage
from annbatch.abc import Sampler
from tests.cells import full_cells

from .loaders import contents, small_loader

ADATA = full_cells(50)


class Custom(Sampler):
    """Requests of uneven sizes, whose splits the base class makes."""

    batch_size = 4
    shuffle = True

    def __init__(self, rng):
        self.rng = rng

    def n_batches(self, n_obs):
        return 7

    def _sample(self, n_obs):
        for size in (3, 12, 9):
            yield {"requests": self.rng.integers(0, n_obs, size)}


SAMPLERS = {
    "random": lambda rng: RandomSampler(4, 3, 6, rng=rng),
    "with replacement": lambda rng: RandomSampler(4, 3, 6, replacement=True, num_samples=40, rng=rng),
    "sequential": lambda rng: SequentialSampler(4, 3, 6),
    "one request": lambda rng: RandomSampler(50, 1, 5, rng=rng),
    "class": lambda rng: ClassSampler(1, 12, 6, classes=ADATA.obs["label"].array, num_samples=50, rng=rng),
    "weighted": lambda rng: WeightedClassSampler(1, 12, 6, classes=ADATA.obs["label"].array, num_samples=50, rng=rng),
    "custom": Custom,
}


@pytest.fixture(params=SAMPLERS)
def make_loader(request):
    def make(seed=5, **kwargs):
        sampler = SAMPLERS[request.param](np.random.default_rng(seed))
        return small_loader(batch_sampler=sampler, **kwargs).add_adata(ADATA)

    return make


def saved(loader):
    return json.loads(json.dumps(loader.state_dict()))


@pytest.mark.parametrize(("prefetch_before", "prefetch"), [(0, 3), (1, 0), (4, 1)])
def test_resume_at_every_batch_of_two_passes(make_loader, prefetch_before, prefetch):
    original = make_loader(prefetch=prefetch_before)
    states, batches = [(0, saved(original))], []
    for _ in range(2):
        for batch in original:
            batches.append(contents(batch))
            states.append((len(batches), saved(original)))
        # After the end of a pass the state is that of the pass to come.
        states.append((len(batches), saved(original)))

    for n_done, state in states:
        loader = make_loader(seed=99, prefetch=prefetch)
        loader.load_state_dict(state)
        assert saved(loader) == state
        # A state that was taken at the last batch, before the end of the pass, leaves nothing of that pass.
        rest = [contents(batch) for _ in range(3) for batch in loader]
        assert rest[: len(batches) - n_done] == batches[n_done:]


def test_state_at_the_last_batch_leaves_an_empty_rest_and_after_the_end_a_whole_pass(make_loader):
    original = make_loader()
    for _ in original:
        at_last_batch = saved(original)
    for state, expected in ((at_last_batch, 0), (saved(original), len(original))):
        loader = make_loader()
        loader.load_state_dict(state)
        assert len(list(loader)) == expected
        assert len(list(loader)) == len(original)


def test_a_second_resume_in_one_pass(make_loader):
    # https://github.com/huggingface/datasets/issues/7447: the second resume misaligned, and passes were shortened.
    expected = [contents(batch) for batch in make_loader()]
    got, state = [], None
    while len(got) < len(expected):
        loader = make_loader(seed=len(got) + 10) if got else make_loader()
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        got += [contents(next(batches)) for _ in range(min(2, len(expected) - len(got)))]
        state = saved(loader)
        batches.close()
    assert got == expected


def test_state_is_that_of_the_consumer_not_of_the_read_ahead():
    near, far = (small_loader(prefetch=prefetch).add_adata(ADATA) for prefetch in (0, 4))
    for first, second in zip(near, far, strict=True):
        time.sleep(0.002)
        assert first["index"].tolist() == second["index"].tolist()
        assert saved(near) == saved(far)


def test_state_after_leaving_early_is_that_of_the_last_batch_that_was_handed_out():
    loader = small_loader(shuffle=True).add_adata(ADATA)
    for number, _ in enumerate(loader):
        if number == 3:
            state = saved(loader)
            break
    assert saved(loader) == state


def test_what_was_yielded_is_not_read_again(monkeypatch):
    loader = small_loader(prefetch=0).add_adata(ADATA)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = saved(loader)

    rows, read_csr = [], storage.read_csr

    def noted(parts, *args, **kwargs):
        rows.extend(row for part in parts for row in part.rows.tolist())
        return read_csr(parts, *args, **kwargs)

    monkeypatch.setattr(storage, "read_csr", noted)
    resumed = small_loader(prefetch=0).add_adata(ADATA)
    resumed.load_state_dict(state)
    assert next(iter(resumed))["index"].tolist() == list(range(18, 24))
    assert rows == list(range(18, 24))


def test_of_several_passes_the_last_one_counts():
    loader = small_loader().add_adata(ADATA)
    first, second = iter(loader), iter(loader)
    next(second)
    state = saved(loader)
    next(first)
    next(first)
    assert saved(loader) == state


def test_state_is_small():
    adata = full_cells(2000)
    loader = small_loader(shuffle=True).add_adatas([adata] * 20)
    batches = iter(loader)
    next(batches)
    assert len(json.dumps(loader.state_dict())) < 2000


def test_replaced_sampler_starts_afresh():
    loader = small_loader().add_adata(ADATA)
    batches = iter(loader)
    next(batches)
    other = copy.copy(loader)
    other._batch_sampler = SequentialSampler(5, 2, 10)
    assert other.state_dict()["n_batches_done_of_request"] == 0
    assert next(iter(other))["index"].tolist() == list(range(10))


def test_state_that_does_not_fit_says_so():
    loader = small_loader().add_adata(ADATA)
    batches = iter(loader)
    next(batches)
    state = saved(loader)

    with pytest.raises(RuntimeError, match="a state must not be loaded while a pass is open"):
        loader.load_state_dict(state)
    batches.close()
    for other, message in (
        (
            small_loader().add_adata(full_cells(49)),
            "state belongs to other data: it was taken with .*50.* this loader has .*49",
        ),
        (small_loader().add_adatas([full_cells(20), full_cells(30)]), "state belongs to other data"),
        (Loader(batch_size=6, chunk_size=6).add_adata(ADATA), "state belongs to another sampler: here"),
        (small_loader(shuffle=True).add_adata(ADATA), "state belongs to another sampler"),
    ):
        before = saved(other)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert saved(other) == before
    fits = small_loader().add_adata(ADATA)
    for broken, error, message in (
        (None, TypeError, "state must be a dict made by state_dict, got NoneType"),
        ({}, ValueError, "version 1, got version None"),
        (state | {"version": 2}, ValueError, "version 1, got version 2"),
        (state | {"n_batches_done_of_request": -1}, ValueError, "n_batches_done_of_request=-1"),
        (state | {"n_batches_done_of_request": "2"}, ValueError, "n_batches_done_of_request='2'"),
        (state | {"sampler": None}, ValueError, "state must be a dict made by state_dict"),
        (state | {"sampler": {"version": 1}}, ValueError, "made by annbatch 0.4, whose order of rows"),
    ):
        with pytest.raises(error, match=message):
            fits.load_state_dict(broken)
    fits.load_state_dict(state | {"n_batches_done_of_request": 7})
    with pytest.raises(ValueError, match="7 batches of a load request are done, but it has 2"):
        list(fits)


def test_a_state_beyond_the_end_of_its_pass_is_refused(make_loader):
    loader = make_loader()
    batches = iter(loader)
    next(batches)
    state = saved(loader)
    batches.close()
    n_requests = len(list(make_loader().batch_sampler.sample(50)))
    state["sampler"]["request"] = n_requests
    resumed = make_loader()
    resumed.load_state_dict(state | {"n_batches_done_of_request": 0})
    assert list(resumed) == []
    resumed.load_state_dict(state | {"n_batches_done_of_request": 1})
    with pytest.raises(ValueError, match="1 batches of a load request are done, but the pass has none left"):
        list(resumed)
    state["sampler"]["request"] = n_requests + 1
    resumed.load_state_dict(state)
    with pytest.raises(
        ValueError, match=f"{n_requests + 1} load requests of a pass are done, but it has {n_requests};"
    ):
        list(resumed)


@pytest.mark.parametrize("dense", [False, True])
def test_a_state_of_the_same_files_in_another_order_is_refused(dense):
    """Both have 50 rows: only what is in them tells them apart."""
    one, two = (full_cells(50, seed=seed, prefix=f"{seed}_", dense=dense) for seed in (0, 1))
    state = saved(small_loader().add_adatas([one, two]))
    small_loader().add_adatas([one, two]).load_state_dict(state)
    with pytest.raises(ValueError, match="state belongs to other data"):
        small_loader().add_adatas([two, one]).load_state_dict(state)
