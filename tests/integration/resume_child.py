"""A process of tests/integration/test_resume.py: does whole passes and keeps the state after every batch, or goes on from each."""

from __future__ import annotations

import hashlib
import pickle
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from annbatch import (
    ClassSampler,
    DistributedSampler,
    Loader,
    MatchedSampler,
    RandomSampler,
    SequentialSampler,
    WeightedClassSampler,
)

N_OBS = 72
CLASSES = pd.Categorical(np.arange(N_OBS) // 4 % 3)
CONTEXTS = pd.Categorical(np.arange(N_OBS) // 12 % 2)


def rng(number):
    return np.random.default_rng(number)


SAMPLERS = {
    "random": lambda seed: RandomSampler(4, 3, 6, rng=rng(seed)),
    "with replacement": lambda seed: RandomSampler(4, 3, 6, replacement=True, num_samples=50, rng=rng(seed)),
    "sequential": lambda seed: SequentialSampler(4, 3, 6),
    "class": lambda seed: ClassSampler(4, 3, 6, classes=CLASSES, num_samples=50, rng=rng(seed)),
    "weighted class": lambda seed: WeightedClassSampler(4, 3, 6, classes=CLASSES, num_samples=50, rng=rng(seed)),
    "matched": lambda seed: MatchedSampler(
        4, 3, 6, classes=CLASSES, controls=0, contexts=CONTEXTS, num_samples=50, rng=rng(seed)
    ),
}
SAMPLERS |= {
    f"{name}, shared out": lambda seed, make=make: DistributedSampler(make(seed), dist_info=lambda: (1, 2))
    for name, make in SAMPLERS.items()
}


def digest(batch):
    """All bytes of a batch as one word, which travels between processes."""
    parts = (batch["X"].data, batch["X"].indices, batch["X"].indptr, batch["index"])
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def passes_of(path, name, seed, n_workers):
    """What is iterated: the loader itself, or a DataLoader with workers."""
    sampler = SAMPLERS[name](seed)
    loader = Loader(batch_sampler=sampler, return_index=True, obs_columns=[], transform=digest).add_paths([path])
    if not n_workers:
        return loader
    from torchdata.stateful_dataloader import StatefulDataLoader

    # CPython 3.11 may wait for ever in a process that was forked at the moment when a thread of its parent ended.
    for thread in threading.enumerate():
        if thread.name == "annbatch-read-ahead":
            thread.join(timeout=5)
    return StatefulDataLoader(loader, batch_size=None, num_workers=n_workers, multiprocessing_context="fork")


def whole(path, name, n_workers):
    """The batches of two passes, and the state after each of the first."""
    original = passes_of(path, name, 0, n_workers)
    states, batches = [], []
    for batch in original:
        batches.append(batch)
        states.append(pickle.dumps(original.state_dict()))
    return states, batches, list(original)


def check(path, name, n_workers, states, batches, following):
    """Go on from every state."""
    for n_done, state in enumerate(states, 1):
        resumed = passes_of(path, name, 99, n_workers)
        resumed.load_state_dict(pickle.loads(state))
        assert list(resumed) == batches[n_done:], (name, n_done)
        if not n_workers:
            assert list(resumed) == following, (name, n_done)


def main(what, path, n_workers, file):
    warnings.simplefilter("ignore")  # what torchdata says about torch
    torch.manual_seed(0)
    if what == "save":
        passes = {name: whole(path, name, n_workers) for name in SAMPLERS}
        assert len({str(each) for each in passes.values()}) == len(passes)
        Path(file).write_bytes(pickle.dumps(passes))
        return
    n_states = 0
    for name, passes in pickle.loads(Path(file).read_bytes()).items():
        check(path, name, n_workers, *passes)
        n_states += len(passes[0])
    print(n_states)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
