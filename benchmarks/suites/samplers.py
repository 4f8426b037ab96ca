"""Samplers by themselves: run table, mask, first request, whole passes, memory.

Codes come in every width that pandas uses (the number of classes decides it) and in few long or many short runs. A mask is
"smallest" (one chunk: as little as a window can cost), "half", or "all but one row" (as much as it can cost).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from annbatch.samplers import (
    ClassSampler,
    DistributedSampler,
    MatchedSampler,
    RandomSampler,
    SequentialSampler,
    WeightedClassSampler,
)

from .sizes import levels, size

N_OBS = size(20_000_000, 100_000)
N_RUNS = {"few": 200, "many": N_OBS // 267}
N_CLASSES = {"int8": 100, "int16": 1_000, "int32": 40_000}
SHORTEST_RUN = 64
CHUNKED = {"chunk_size": 64, "preload_nchunks": 64, "batch_size": 256}
SINGLE = {"chunk_size": 1, "preload_nchunks": 4096, "batch_size": 256}


def classes_in_runs(n_obs: int, n_runs: int, n_classes: int) -> pd.Categorical:
    """Runs of random lengths of at least SHORTEST_RUN; neighbours differ in class."""
    rng = np.random.default_rng(0)
    spare = n_obs - n_runs * SHORTEST_RUN
    cuts = np.sort(rng.integers(0, spare, n_runs - 1))
    lengths = np.diff(cuts, prepend=0, append=spare) + SHORTEST_RUN
    codes = np.cumsum(rng.integers(1, n_classes, n_runs)) % n_classes
    return pd.Categorical.from_codes(np.repeat(codes, lengths), [f"type_{i}" for i in range(n_classes)])


def class_sampler(classes: pd.Categorical, layout: dict[str, int], num_samples: int) -> ClassSampler:
    return ClassSampler(**layout, classes=classes, num_samples=num_samples, rng=np.random.default_rng(0))


def drain(sampler: object, n_obs: int) -> None:
    for request in sampler.sample(n_obs):
        for split in request["splits"]:
            len(split)


def first_request(sampler: object, n_obs: int) -> None:
    passing = sampler.sample(n_obs)
    next(passing)
    passing.close()


class RunTable:
    """ClassSampler: what depends on the codes."""

    param_names = ("codes", "runs")
    params = (list(N_CLASSES), levels(list(N_RUNS)))

    def setup(self, codes: str, runs: str) -> None:
        self.classes = classes_in_runs(N_OBS, N_RUNS[runs], N_CLASSES[codes])
        if self.classes.codes.dtype != codes:
            msg = f"codes must be {codes}, got {self.classes.codes.dtype}"
            raise ValueError(msg)

    def time_build(self, codes: str, runs: str) -> None:
        class_sampler(self.classes, CHUNKED, N_OBS)

    def peakmem_build(self, codes: str, runs: str) -> None:
        class_sampler(self.classes, CHUNKED, N_OBS)

    def time_first_request(self, codes: str, runs: str) -> None:
        first_request(class_sampler(self.classes, CHUNKED, N_OBS), N_OBS)


class Mask:
    """ClassSampler: assigning a window that was not seen before."""

    param_names = ("mask", "runs")
    params = (["smallest", "half", "all but one row"], levels(list(N_RUNS)))
    number = 1  # the same window again would be free

    def setup(self, mask: str, runs: str) -> None:
        classes = classes_in_runs(N_OBS, N_RUNS[runs], N_CLASSES["int8"])
        self.sampler = class_sampler(classes, CHUNKED, N_OBS)
        codes = np.asarray(classes.codes)
        middle = N_OBS // 2
        half = middle + int(np.flatnonzero(np.diff(codes[middle:]))[0]) + 1  # where a run ends: none may be cut short
        self.window = slice(0, {"smallest": SHORTEST_RUN, "half": half, "all but one row": N_OBS - 1}[mask])

    def time_assign(self, mask: str, runs: str) -> None:
        self.sampler.mask = self.window


class ClassPass:
    """Class-based samplers: whole passes, class by batch and class by chunk."""

    param_names = ("sampler", "layout")
    params = (["ClassSampler", "WeightedClassSampler"], ["64 x 64", "1 x 4096"])

    def setup(self, sampler: str, layout: str) -> None:
        kind = {"ClassSampler": ClassSampler, "WeightedClassSampler": WeightedClassSampler}[sampler]
        sizes, num_samples = (CHUNKED, N_OBS // 4) if layout == "64 x 64" else (SINGLE, N_OBS // 20)
        classes = classes_in_runs(N_OBS, N_RUNS["many"], N_CLASSES["int8"])
        self.sampler = kind(**sizes, classes=classes, num_samples=num_samples, rng=np.random.default_rng(0))

    def time_pass(self, sampler: str, layout: str) -> None:
        drain(self.sampler, N_OBS)

    def peakmem_pass(self, sampler: str, layout: str) -> None:
        drain(self.sampler, N_OBS)


class ScatteredClasses:
    """ClassSampler over shuffled rows, chunks of one row: the index of rows."""

    param_names = ("n_obs",)
    params = (levels([N_OBS // 10, N_OBS]),)

    def setup(self, n_obs: int) -> None:
        codes = np.random.default_rng(0).integers(0, 100, n_obs, dtype=np.int8)
        self.classes = pd.Categorical.from_codes(codes, [f"type_{i}" for i in range(100)])
        self.sampler = class_sampler(self.classes, SINGLE, n_obs)
        self.sampler.mask = slice(1, n_obs)

    def time_first_request(self, n_obs: int) -> None:
        first_request(class_sampler(self.classes, SINGLE, n_obs), n_obs)

    def peakmem_first_request(self, n_obs: int) -> None:
        first_request(class_sampler(self.classes, SINGLE, n_obs), n_obs)

    def time_mask(self, n_obs: int) -> None:
        self.sampler.mask = slice(0, n_obs // 2)
        self.sampler.mask = slice(n_obs // 2, n_obs)


class MatchedPass:
    """MatchedSampler: build, and whole passes with as many controls as treated rows."""

    param_names = ("layout",)
    params = (["64 x 64", "1 x 4096"],)

    def setup(self, layout: str) -> None:
        # In each of 20 contexts 50 classes of 1,000 rows, the first of which are the controls.
        n_rows = max(N_OBS // 20_000, SHORTEST_RUN)
        labels = [f"drug_{i}" for i in range(50)]
        self.classes = pd.Categorical.from_codes(np.tile(np.repeat(np.arange(50), n_rows), 20), labels)
        self.contexts = pd.Categorical.from_codes(
            np.repeat(np.arange(20), 50 * n_rows), [f"line_{i}" for i in range(20)]
        )
        self.sizes = CHUNKED if layout == "64 x 64" else SINGLE
        self.sampler = self.make()

    def make(self) -> MatchedSampler:
        return MatchedSampler(
            **self.sizes,
            classes=self.classes,
            controls="drug_0",
            contexts=self.contexts,
            num_samples=len(self.classes),
            rng=np.random.default_rng(0),
        )

    def time_build(self, layout: str) -> None:
        self.make()

    def time_pass(self, layout: str) -> None:
        drain(self.sampler, len(self.classes))

    def peakmem_pass(self, layout: str) -> None:
        drain(self.sampler, len(self.classes))


class RangePass:
    """RandomSampler and SequentialSampler: first request and whole passes over all rows."""

    param_names = ("sampler", "layout")
    params = (
        ["RandomSampler", "with replacement", "SequentialSampler", "a rank of four"],
        levels(["1 x 4096", "64 x 64"]),
    )

    def setup(self, sampler: str, layout: str) -> None:
        sizes = CHUNKED if layout == "64 x 64" else SINGLE
        self.n_obs = N_OBS if layout == "64 x 64" else N_OBS // 10
        rng = np.random.default_rng(0)
        if sampler == "SequentialSampler":
            self.sampler = SequentialSampler(**sizes)
        elif sampler == "with replacement":
            self.sampler = RandomSampler(**sizes, replacement=True, num_samples=self.n_obs, rng=rng)
        else:
            self.sampler = RandomSampler(**sizes, rng=rng)
        if sampler == "a rank of four":
            self.sampler = DistributedSampler(self.sampler, dist_info=lambda: (1, 4))

    def time_first_request(self, sampler: str, layout: str) -> None:
        first_request(self.sampler, self.n_obs)

    def time_pass(self, sampler: str, layout: str) -> None:
        drain(self.sampler, self.n_obs)

    def peakmem_pass(self, sampler: str, layout: str) -> None:
        drain(self.sampler, self.n_obs)


class FirstRequest:
    """RandomSampler: no request of a pass over any number of rows may cost more than another."""

    param_names = ("n_obs", "request")
    params = (levels([N_OBS, 1_000_000_000]), ["first", "middle", "last"])

    def setup(self, n_obs: int, request: str) -> None:
        self.sampler = RandomSampler(**SINGLE, rng=np.random.default_rng(0))
        last = -(-n_obs // SINGLE["preload_nchunks"]) - 1
        number = {"first": 0, "middle": last // 2, "last": last}[request]
        self.state = {**self.sampler.state_dict(), "n_obs": n_obs, "request": number}

    def request(self, n_obs: int) -> None:
        self.sampler.load_state_dict(self.state)
        first_request(self.sampler, n_obs)

    def time_single_rows(self, n_obs: int, request: str) -> None:
        self.request(n_obs)

    def peakmem_single_rows(self, n_obs: int, request: str) -> None:
        self.request(n_obs)
