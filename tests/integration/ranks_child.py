"""One rank of tests/integration/test_ranks.py; run by torchrun with a folder to write to."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch.distributed as dist
from torch.utils.data import DataLoader

from annbatch import ClassSampler, DistributedSampler, Loader, RandomSampler, SequentialSampler

N_OBS = 203
CLASSES = pd.Categorical(np.arange(N_OBS) % 4)
# Without a seed: the ranks must agree on one by themselves.
SAMPLERS = {
    "random": lambda: RandomSampler(4, 3, 6),
    "drop_last": lambda: RandomSampler(4, 3, 6, drop_last=True),
    "sequential": lambda: SequentialSampler(4, 3, 6),
    "classes": lambda: ClassSampler(1, 12, 6, classes=CLASSES, num_samples=150),
}


def loader_of(sampler):
    return Loader(batch_sampler=sampler, return_index=True).add_dataset(np.arange(N_OBS)[:, None].astype("float32"))


def shared(name, **arguments):
    return loader_of(DistributedSampler(SAMPLERS[name](), dist_info="torch", **arguments))


def rows_of(batches):
    return [np.asarray(batch["index"]).tolist() for batch in batches]


def in_workers(loader, n_workers):
    if n_workers == 0:
        return loader
    # CPython 3.11 may wait for ever in a process that was forked at the moment when a thread of its parent ended.
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(timeout=5)
    return DataLoader(loader, batch_size=None, num_workers=n_workers, multiprocessing_context="fork")


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    result: dict[str, object] = {}
    for name in SAMPLERS:
        for n_workers in (0, 2):
            loader = shared(name)
            epochs = [rows_of(in_workers(loader, n_workers)) for _ in range(3)]
            result[f"{name} {n_workers}"] = {"epochs": epochs, "len": len(loader)}
    result["pieces"] = {"epochs": [rows_of(shared("random", reshuffle=False)) for _ in range(2)]}

    # Resume in the middle: with the rank's own state, and with that of rank 0.
    loader = shared("random")
    list(loader)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    own = json.loads(json.dumps(loader.state_dict()))
    rest, following = rows_of(batches), rows_of(loader)
    everybodys = [own]
    dist.broadcast_object_list(everybodys, src=0)
    for key, state in (("own", own), ("rank 0's", everybodys[0])):
        resumed = shared("random")
        resumed.load_state_dict(state)
        result[f"resume {key}"] = [rows_of(resumed), rows_of(resumed)] == [rest, following]

    # Resume what one rank more had begun: 5 batches of each are done.
    other: list[object] = [None, None]
    if rank == 0:
        done = []
        for number in range(world_size + 1):
            sampler = RandomSampler(4, 3, 6, rng=np.random.default_rng(7))
            loader = loader_of(DistributedSampler(sampler, dist_info=lambda number=number: (number, world_size + 1)))
            batches = iter(loader)
            for _ in range(5):
                done += rows_of([next(batches)])
            other = [loader.state_dict(), done]
            batches.close()
    dist.broadcast_object_list(other, src=0)
    resumed = shared("random")
    resumed.load_state_dict(other[0])
    result["resume another size"] = {"done": other[1], "rest": rows_of(resumed), "next": rows_of(resumed)}

    # Without a DistributedSampler.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lone = loader_of(RandomSampler(4, 3, 6))
        list(lone)
        list(lone)
    result["warnings"] = [str(warning.message) for warning in caught]
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
