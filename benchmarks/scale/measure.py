"""One measurement in a process of its own: ``python -m benchmarks.scale.measure WHAT PATH N_ROWS`` prints a line of JSON.

Memory is what the process has more than before (resident, and what of it is not mapped from files that other processes share),
after the same was done with a small store, so that libraries are loaded and their own memory is taken.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from annbatch import ClassSampler, Loader, MappedCollection, RandomSampler

from .stores import LABEL

__all__ = ["FACES", "SAMPLERS", "make", "memory", "workers_memory"]

FACES = ("labels", "all columns", "MappedCollection")
SAMPLERS = ("RandomSampler", "ClassSampler, sorted", "ClassSampler, shuffled")


def make(face: str, path: str, n_obs: int) -> Any:
    """Open a store, or make a sampler over so many rows."""
    if face == "MappedCollection":
        return MappedCollection([path], obs_keys=LABEL)
    if face in SAMPLERS:
        if face == "RandomSampler":
            return RandomSampler(chunk_size=1, preload_nchunks=4096, batch_size=64, rng=np.random.default_rng(0))
        codes = np.random.default_rng(0).integers(0, 30, n_obs, dtype=np.int8)
        if face.endswith("sorted"):
            codes.sort()
        classes = pd.Categorical.from_codes(codes, [f"type {number}" for number in range(30)])
        return classes, {"chunk_size": 1, "preload_nchunks": 4096, "batch_size": 64, "num_samples": n_obs}
    options: dict[str, Any] = {"obs_columns": [], "labels": [LABEL]} if face == "labels" else {}
    loader = Loader(chunk_size=32, preload_nchunks=8, batch_size=64, shuffle=True, **options)
    return loader.add_paths([path]) if path.endswith(".h5ad") else loader.use_collection(path)


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of memory of a process: ``own`` is its alone, ``shared_part`` its part (PSS) of what several have mapped."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    own = found["Private_Dirty"] + found["Private_Clean"]
    return {"resident": found["Rss"], "own": own, "pss": found["Pss"], "anonymous": found["Anonymous"]}


def _finished(face: str, made: Any, n_obs: int) -> Any:
    if face == "RandomSampler":
        next(iter(made.sample(n_obs)))
        return made
    if face in SAMPLERS:
        classes, options = made
        sampler = ClassSampler(classes=classes, rng=np.random.default_rng(0), **options)
        next(iter(sampler.sample(n_obs)))
        return sampler
    return made


def measure(face: str, small: str, path: str, n_obs: int) -> dict[str, float]:
    """Open a store (or start a pass of a sampler) and pickle what came of it."""
    _finished(face, make(face, small, 1000), 1000)
    pickle.dumps(make(face, small, 1000) if face not in SAMPLERS else None)
    made = make(face, path, n_obs) if face in SAMPLERS else None  # codes are the caller's
    before = memory()
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall, processor = time.perf_counter(), time.process_time()
    made = _finished(face, make(face, path, n_obs) if made is None else made, n_obs)
    result: dict[str, float] = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    after = memory()
    result["resident"] = max(0, after["resident"] - before["resident"])
    result["anonymous"] = max(0, after["anonymous"] - before["anonymous"])
    result["peak"] = max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak_before)
    wall = time.perf_counter()
    data = pickle.dumps(made)
    result |= {"pickle_seconds": time.perf_counter() - wall, "pickle_bytes": len(data)}
    return result


# -- workers


def _work(loader: Any, ready: Any, end: Any) -> None:
    loader._checked_table()  # noqa: SLF001 (what a worker does first)
    for matrix in loader._table.matrices.values():  # noqa: SLF001
        for source in matrix.sources:
            source.row_pointers.extents(np.arange(0, source.shape[0], 64))
    if loader._table.labels is not None:  # noqa: SLF001
        loader._table.labels.codes(LABEL).sum()  # noqa: SLF001
    ready.release()
    end.wait()


def workers_memory(method: str, face: str, path: str, n_workers: int = 8) -> dict[str, Any]:
    """Start workers that look at all that a loader holds per row; return the memory of each, in bytes."""
    context = get_context(method)
    ready, end = context.Semaphore(0), context.Event()
    loader = make(face, path, 0)
    wall = time.perf_counter()
    workers = [context.Process(target=_work, args=(loader, ready, end)) for _ in range(n_workers)]
    for worker in workers:
        worker.start()
    started = time.perf_counter() - wall
    for _ in workers:
        ready.acquire()
    found = [memory(worker.pid or 0) for worker in workers]
    end.set()
    for worker in workers:
        worker.join()
    return {"start_seconds": started, **{key: sum(each[key] for each in found) for key in found[0]}}


def main() -> None:
    what, small, path, n_obs = sys.argv[1:5]
    if what.startswith(("fork ", "spawn ")):
        method, _, face = what.partition(" ")
        print(json.dumps(workers_memory(method, face, path)))
    else:
        print(json.dumps(measure(what, small, path, int(n_obs))))


if __name__ == "__main__":
    main()
