"""Builds that are killed, in child processes of one process that has imported everything and started no thread.

    python crash_child.py FOLDER step            killed before the k-th change of a name, for every k
    python crash_child.py FOLDER random N        killed after a random time, N times

Prints one JSON line per kill: what was found afterwards, by a process that knows nothing of the one that died.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

import annbatch
from annbatch import DatasetCollection

FOLDER = Path(sys.argv[1])
INPUTS = [FOLDER / "a.h5ad", FOLDER / "b.h5ad"]
OPTIONS = {"dataset_size": 60, "max_memory": "70MB", "progress": False}


def build(place):
    DatasetCollection(place).add_adatas(INPUTS, rng=np.random.default_rng(3), if_exists="skip", **OPTIONS)


def kill_before(k):
    """The k-th rename, replace or unlink is the end of this process (those of zarr-python in an unfinished dataset do not count)."""
    left = k

    def wrap(function):
        def call(path, *args, **kwargs):
            nonlocal left
            left -= path.parent.name == "drafts" or "drafts" not in path.parts
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(path, *args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink"):
        setattr(Path, name, wrap(getattr(Path, name)))


def in_child(function):
    """Run in a child; returns its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as error:  # noqa: BLE001
            print(repr(error), getattr(error, "__notes__", ""), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def look(place):
    """Rows that a reader sees; every dataset can be read by anndata."""
    collection = DatasetCollection(place)
    names = list(collection.obs().index)
    for group in collection:
        assert ad.io.read_elem(group).shape[1] == 12
    return {"rows": len(names), "distinct": len(set(names)), "datasets": collection.names}


def aftermath(place):
    """What is there after the kill, what the same call then says, and what is there after it."""
    seen = look(place)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        build(place)
    return {"seen": seen, "said": [str(w.message) for w in said if w.category is UserWarning], "final": look(place)}


def one(kind, number, start):
    place = FOLDER / f"{kind}-{number}.zarr"
    if start is not None:
        shutil.copytree(start, place)
    found = {"number": number}
    pid = in_child(lambda: (kill_before(number) if kind == "step" else None, build(place)))
    if kind == "random":
        time.sleep(random.uniform(0, 1.2))
        os.kill(pid, signal.SIGKILL)
    found["status"] = status_of(pid)
    report = FOLDER / "report.json"
    assert status_of(in_child(lambda: report.write_text(json.dumps(aftermath(place))))) == 0, found
    found |= json.loads(report.read_text())
    found["left"] = sorted(p.name for p in place.iterdir() if not p.name.startswith("dataset_"))
    print(json.dumps(found), flush=True)
    shutil.rmtree(place)
    return found["status"]


if __name__ == "__main__":
    assert annbatch.__file__
    start = FOLDER / "start.zarr"
    for begin in (None, start):
        if sys.argv[2] == "step":
            k = 1
            while one("step", k, begin) != 0:
                k += 1
        else:
            random.seed(0)
            for k in range(int(sys.argv[3])):
                one("random", k, begin)
