from __future__ import annotations

import pytest

from annbatch import DatasetCollection
from annbatch.storage.far import fetch
from benchmarks.far.server import RangeServer
from tests.cells import full_cells, write

N_OBS = 300


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Cells in every format, and a collection of three datasets with several shards each."""
    folder = tmp_path_factory.mktemp("far")
    files = [write(full_cells(N_OBS, 40, seed=i, prefix=f"{i}_"), folder / f"cells_{i}.h5ad") for i in range(2)]
    for fmt in ("gzip", "zarr2", "zarr3"):
        write(full_cells(N_OBS, 40, seed=0, prefix="0_"), folder / fmt, fmt)
    DatasetCollection(folder / "cells.zarr").add_adatas(
        files, dataset_size=200, n_obs_per_chunk=4, shard_size=64, progress=False
    )
    return folder


@pytest.fixture
def server(folder):
    with RangeServer(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetch, "LONGEST_PAUSE_S", 0.05)
