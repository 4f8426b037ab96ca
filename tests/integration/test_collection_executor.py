"""The same rows, one for one, wherever the work is done."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from annbatch import DatasetCollection
from annbatch.collection.building.journal import BusyError
from tests.cells import cells, read_all, write

OPTIONS = {"groupby": "cell_type", "dataset_size": 60, "progress": False, "max_memory": "80MB"}


@pytest.fixture
def inputs(tmp_path):
    return [
        write(cells(50, seed=i, prefix=f"p{i}"), tmp_path / name)
        for i, name in enumerate(["a.h5ad", "b.zarr", "c.h5ad"])
    ]


def build(tmp_path, name, inputs, executor):
    collection = DatasetCollection(tmp_path / f"{name}.zarr")
    collection.add_adatas(inputs, rng=np.random.default_rng(8), executor=executor, **OPTIONS)
    return read_all(collection)


def check(tmp_path, inputs, executor):
    here, there = build(tmp_path, "here", inputs, None), build(tmp_path, "there", inputs, executor)
    assert list(here.obs_names) == list(there.obs_names)
    assert (here.X != there.X).nnz == 0
    assert (here.obs["cell_type"] == there.obs["cell_type"]).all()


def test_processes(tmp_path, inputs):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        check(tmp_path, inputs, executor)


def test_threads(tmp_path, inputs):
    with ThreadPoolExecutor(3) as executor:
        check(tmp_path, inputs, executor)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask(tmp_path, inputs):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is optional")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        check(tmp_path, inputs, client.get_executor())


def test_error_in_a_worker(tmp_path, inputs):
    inputs[0].unlink()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor, pytest.raises(FileNotFoundError, match="does not exist"):
        build(tmp_path, "there", inputs, executor)
    assert not (tmp_path / "there.zarr").exists()


class DiesOnce:
    """A task that ends its worker process the first time it is run, anywhere."""

    def __init__(self, mark, module):
        self.mark, self.module = mark, module

    def __call__(self, task):
        if not self.mark.exists():
            self.mark.write_text("")
            os._exit(1)
        return getattr(importlib.import_module(f"annbatch.collection.building.{self.module}"), self.module)(task)


@pytest.mark.parametrize("module", ["deal", "assemble"])
def test_a_worker_that_dies_and_a_new_executor(tmp_path, inputs, monkeypatch, module):
    spawn = multiprocessing.get_context("spawn")
    here = build(tmp_path, "here", inputs, None)
    with monkeypatch.context() as patch:
        patch.setattr(f"annbatch.collection.building.{module}.{module}", DiesOnce(tmp_path / "mark", module))
        with ProcessPoolExecutor(2, mp_context=spawn) as executor, pytest.raises(BrokenProcessPool) as caught:
            build(tmp_path, "there", inputs, executor)
    assert "the same call continues from there" in caught.value.__notes__[0]
    assert DatasetCollection(tmp_path / "there.zarr").is_empty
    with (
        ProcessPoolExecutor(2, mp_context=spawn) as executor,
        pytest.warns(UserWarning, match="continuing an interrupted call"),
    ):
        there = build(tmp_path, "there", inputs, executor)
    assert list(here.obs_names) == list(there.obs_names)
    assert (here.X != there.X).nnz == 0
    assert [p.name for p in (tmp_path / "there.zarr").iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_dask_worker_that_dies(tmp_path, inputs, monkeypatch):
    """Dask runs the task again elsewhere: tasks can be run twice."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is optional")
    here = build(tmp_path, "here", inputs, None)
    monkeypatch.setattr("annbatch.collection.building.deal.deal", DiesOnce(tmp_path / "mark", "deal"))
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = build(tmp_path, "there", inputs, client.get_executor())
    assert (tmp_path / "mark").exists()
    assert list(here.obs_names) == list(there.obs_names)
    assert (here.X != there.X).nnz == 0


def test_second_writer_after_the_first_was_killed(tmp_path, inputs):
    """A lock ends with its process, however it ended; while it lives the second writer is refused."""
    place = tmp_path / "c.zarr"
    code = (
        "import sys, time\nfrom annbatch.collection.building.journal import WorkFolder\nfrom pathlib import Path\n"
        "with WorkFolder(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(100)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match="is being written to by another process; wait until it is done"):
            DatasetCollection(place).add_adatas(inputs, progress=False)
        first.kill()
    DatasetCollection(place).add_adatas(inputs, progress=False)
    assert len(DatasetCollection(place).obs()) == 150
