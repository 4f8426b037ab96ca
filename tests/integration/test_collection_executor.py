"""The same rows, one for one, wherever the work is done."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from annbatch import DatasetCollection
from tests.collection_data import cells, read_all, write

OPTIONS = {"groupby": "cell_type", "dataset_size": 60, "progress": False, "max_memory": "80MB"}


@pytest.fixture
def inputs(tmp_path):
    return [
        write(tmp_path, name, cells(50, seed=i, prefix=f"p{i}"))
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
