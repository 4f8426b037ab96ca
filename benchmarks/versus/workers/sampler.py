"""Samplers on their own; the same lines for annbatch and its peer, which share these names and signatures."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pandas as pd
from stopwatch import parameters, report

from annbatch.samplers import ClassSampler, RandomSampler

N_CLASSES = 100  # int8 codes


def runs_of_classes(n_obs: int, n_runs: int, shortest: int) -> pd.Categorical:
    """Codes in ``n_runs`` runs of random length, none shorter than ``shortest``; neighbours differ in class."""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(n_obs - n_runs * shortest, n_runs - 1, replace=True))
    lengths = np.diff(np.concatenate([[0], cuts, [n_obs - n_runs * shortest]])) + shortest
    steps = rng.integers(1, N_CLASSES, n_runs)
    codes = np.repeat((np.cumsum(steps) % N_CLASSES).astype(np.int8), lengths)
    return pd.Categorical.from_codes(codes, [f"type_{i}" for i in range(N_CLASSES)])


def drain(sampler: Any, n_obs: int) -> int:
    """Walk through one pass; return the number of rows."""
    return sum(len(split) for request in sampler.sample(n_obs) for split in request["splits"])


def median_of(function: Any, times: int) -> float:
    """Median time of several calls, in seconds."""
    elapsed = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        elapsed.append(time.perf_counter() - start)
    return statistics.median(elapsed)


def main() -> None:
    given = parameters()
    n_obs, measure = given["n_obs"], given["measure"]
    if measure == "first_request":
        sampler = RandomSampler(1, 4096, 256, rng=np.random.default_rng(0))
        start = time.perf_counter()
        next(iter(sampler.sample(n_obs)))
        report(seconds=time.perf_counter() - start, rows=4096)
        return

    classes = runs_of_classes(n_obs, given["n_runs"], shortest=64)
    chunk_size, preload_nchunks = given["chunk_size"], given["preload_nchunks"]
    num_samples = given.get("num_samples", n_obs)

    def build() -> ClassSampler:
        return ClassSampler(
            chunk_size, preload_nchunks, 256, classes=classes, num_samples=num_samples, rng=np.random.default_rng(0)
        )

    if measure == "build":
        report(seconds=median_of(build, 5), rows=n_obs)
    elif measure == "mask":
        # Assigning the same window again is free on both sides, so each try gets a sampler of its own.
        fresh = iter([build() for _ in range(5)])

        def assign() -> None:
            next(fresh).mask = slice(n_obs // 4, n_obs // 4 + n_obs // 2)

        report(seconds=median_of(assign, 5), rows=n_obs // 2)
    else:
        sampler = build()
        drained = []
        seconds = median_of(lambda: drained.append(drain(sampler, n_obs)), 3)
        report(seconds=seconds, rows=drained[0])


if __name__ == "__main__":
    main()
