"""Callers that are killed while their workers live on, and the same call made again at once: every row exactly once.

Workers of a pool that was forked, of a fork server, spawned ones and those of dask go on with their task when whoever asked
for it is dead. Nothing that they do then may reach a collection.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from annbatch import DatasetCollection
from tests.cells import cells, read_all, write
from tests.integration.orphan_caller import options

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds orphans in /proc")
CALLER = Path(__file__).with_name("orphan_caller.py")
ROOT = Path(__file__).parents[2]
N_INPUTS, N_ROWS = 4, 50


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return [write(cells(N_ROWS, seed=i, prefix=f"p{i}"), folder / f"{i}.h5ad") for i in range(N_INPUTS)]


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    return contents(build(tmp_path_factory.mktemp("expected") / "c.zarr", inputs))


def build(place, inputs, executor=None):
    collection = DatasetCollection(place)
    return collection.add_adatas(inputs, rng=np.random.default_rng(3), executor=executor, **options())


def contents(collection):
    found = read_all(collection)
    return list(found.obs_names), found.X.toarray()


class Caller:
    """A process that builds, and what is left of it when it is killed."""

    def __init__(self, place, kind, inputs):
        self.process = subprocess.Popen(
            [sys.executable, str(CALLER), str(place), kind, *map(str, inputs)],
            stdout=subprocess.PIPE,
            stderr=sys.stderr if os.environ.get("SHOW") else subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # its orphans are found by it, whoever adopts them
        )

    def wait_for_tasks(self, n):
        """Wait until so many tasks have begun, or all is done."""
        assert self.process.stdout is not None
        while n and (line := self.process.stdout.readline()) != b"done\n":
            if not line:
                pytest.fail("the caller ended by itself")
            if line != b"task\n":
                continue  # dask talks
            n -= 1

    def kill(self):
        """Kill the caller alone."""
        self.process.kill()
        self.process.wait()

    def orphans(self):
        """Processes of its session that live on."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(stat.parent.name))
        return found

    def end(self):
        """Kill what is left."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        for pid in self.orphans():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def caller():
    """Make callers; all that they leave is killed in the end."""
    made = []

    def make(*args):
        made.append(Caller(*args))
        return made[-1]

    yield make
    for each in made:
        each.end()


def again(place, inputs, executor=None):
    """The same call, at once: as the first one may have finished it, or not begun."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*interrupted call")
        return build(place, inputs, executor)


def check_one(caller, place, kind, inputs, expected, *, n_tasks, delay, executor=None, before="nothing"):
    """The caller is killed some time after so many tasks have begun. Returns how many workers lived on.

    ``before``: what is there already, "nothing" or "rows"; or "deleted": all is deleted before the call is repeated.
    """
    old = []
    if before == "rows":
        old = list(DatasetCollection(place).add_adatas([cells(30, prefix="old")], progress=False).obs().index)
    first = caller(place, kind, inputs)
    first.wait_for_tasks(n_tasks)
    time.sleep(delay)
    first.kill()
    orphans = len(first.orphans())
    if before == "deleted":
        delete(place)
    found = contents(again(place, inputs, executor))
    assert found[0] == old + expected[0]
    assert found[1][len(old) :].tolist() == expected[1].tolist()
    time.sleep(0.5)  # what orphans still do must not reach it either
    assert contents(DatasetCollection(place))[0] == old + expected[0]
    first.end()
    return orphans


def delete(folder):
    """As rm -rf would; what workers write at the same moment makes it fail, for a moment."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{folder} does not go away")


@pytest.mark.parametrize(
    ("kind", "n_tasks", "before"), [("fork", 3, "rows"), ("forkserver", 6, "nothing"), ("spawn", 2, "deleted")]
)
def test_workers_that_outlive_their_caller(tmp_path, caller, inputs, expected, kind, n_tasks, before):
    orphans = check_one(caller, tmp_path / "c.zarr", kind, inputs, expected, n_tasks=n_tasks, delay=0.1, before=before)
    assert orphans  # or nothing was tested


N_TRIES = int(os.environ.get("ANNBATCH_TEST_TRIES", "100"))


@pytest.mark.slow
@pytest.mark.timeout(60 * N_TRIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_workers_that_outlive_their_caller_many_times(tmp_path, caller, inputs, expected, monkeypatch):
    """At random moments, with workers of every kind, repeated with and without workers."""
    monkeypatch.setenv("ANNBATCH_TEST_PAUSE", "0.3")
    rng = random.Random(0)
    kinds = ["fork", "forkserver", "spawn"] + ["dask"] * (importlib.util.find_spec("distributed") is not None)
    n_orphans = 0
    for i in range(N_TRIES):
        with ExitStack() as stack:
            pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
            executor = stack.enter_context(pool) if rng.random() < 0.3 else None
            how = {
                "kind": kinds[i % len(kinds)],
                "n_tasks": rng.randint(1, 8),
                "delay": rng.uniform(0, 1),
                "before": rng.choice(["nothing", "rows", "deleted"]),
            }
            begun = time.monotonic()
            place = tmp_path / f"{i}.zarr"
            n_orphans += bool(check_one(caller, place, inputs=inputs, expected=expected, executor=executor, **how))
            print(i, how, "pool" if executor else "here", f"{time.monotonic() - begun:.1f} s", flush=True)
        shutil.rmtree(place)
    assert n_orphans > N_TRIES // 2
