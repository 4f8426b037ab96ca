"""A build in a process that is going to be killed, with workers that are not.

    python orphan_caller.py PLACE KIND INPUT...      KIND: fork, forkserver, spawn, dask

Says "task" when a task begins, and "done", and then waits to be killed. Every task takes a while, as those of real inputs do.
"""

import importlib
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from annbatch import DatasetCollection
from annbatch.collection.building import assemble, deal

# Seconds that a worker waits at each of its steps: before it reads a block, writes one, writes a piece of a dataset.
PAUSE = float(os.environ.get("ANNBATCH_TEST_PAUSE", "0.05"))


def options():
    """Of the build, which its repetition must share."""
    return {"groupby": "cell_type", "dataset_size": 60, "max_memory": "80MB", "progress": False}


class Slow:
    """A task with pauses: before its function, and before and after the writing in it."""

    def __init__(self, module, task, writing):
        self.module, self.task, self.writing = f"annbatch.collection.building.{module}", task, writing

    def __call__(self, task):
        module = importlib.import_module(self.module)
        # In a forked worker this object stands where the function was.
        function = getattr(module, f"original_{self.task}", None) or getattr(module, self.task)
        writing = getattr(module, self.writing)

        def paused(*args, **kwargs):
            time.sleep(PAUSE)
            result = writing(*args, **kwargs)
            time.sleep(PAUSE)
            return result

        setattr(module, self.writing, paused)
        try:
            os.write(1, b"task\n")
            time.sleep(PAUSE)
            return function(task)
        finally:
            setattr(module, self.writing, writing)


def main(place, kind, inputs):
    """Build with workers of a kind."""
    deal.original_deal, assemble.original_assemble = deal.deal, assemble.assemble
    deal.deal = Slow("deal", "deal", "write_spill")
    assemble.assemble = Slow("assemble", "assemble", "write_dataset")
    if kind == "dask":
        import distributed

        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        executor = distributed.Client(cluster).get_executor()
    else:
        executor = ProcessPoolExecutor(2, mp_context=get_context(kind))
    DatasetCollection(place).add_adatas(inputs, executor=executor, rng=np.random.default_rng(3), **options())
    os.write(1, b"done\n")
    # Whoever is late to kill this finds it, and its workers, all the same.
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [Path(path) for path in sys.argv[3:]])
