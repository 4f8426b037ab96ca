"""How often opening has to wait for an answer before it can ask on, and what it does not read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from annbatch import DatasetCollection, Loader
from benchmarks.far.server import RangeServer
from tests.cells import cells, full_cells, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")


def rounds(folder: Path, act: Callable[[str], object], at_most: int) -> int:
    """Return how often `act`, given a URL, waits for answers before it can ask on.

    The server takes a silence for waiting. Where the system does not say that the client is silent because it is busy, what
    looks like too many rounds is counted again with longer silences.
    """
    for hold in (0.3, 1.0, 3.0):
        with RangeServer(folder, hold=hold) as server:
            act(server.url)
            found = server.n_rounds
        if found <= at_most:
            break
    return found


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    write(full_cells(40, 10, seed=0), folder / "a.h5ad")
    DatasetCollection(folder / "cells.zarr").add_adatas([folder / "a.h5ad"], dataset_size=5, progress=False)
    return folder


def test_eight_datasets_take_three_round_trips(eight):
    def act(url):
        loader = Loader(layers=["twice"], obsm=["pca"], max_requests=1000).use_collection(f"{url}/cells.zarr")
        assert len(loader._table.lengths) == 8

    assert rounds(eight, act, 3) <= 3


def test_a_collection_without_consolidated_metadata_takes_few_too(eight, tmp_path):
    """Those of earlier versions, and of other programs."""
    shutil.copytree(eight / "cells.zarr", tmp_path / "cells.zarr")
    root = tmp_path / "cells.zarr/zarr.json"
    metadata = json.loads(root.read_text())
    del metadata["consolidated_metadata"]
    root.write_text(json.dumps(metadata))

    def act(url):
        loader = Loader(max_requests=2000).use_collection(f"{url}/cells.zarr")
        assert len(loader._table.lengths) == 8

    assert rounds(tmp_path, act, 5) <= 5


def test_several_files_are_opened_together(tmp_path):
    for number in range(5):
        write(cells(20, seed=number), tmp_path / f"{number}.h5ad")
    assert rounds(tmp_path, lambda url: Loader().add_paths([f"{url}/{number}.h5ad" for number in range(5)]), 2) <= 2


@pytest.mark.parametrize("columns", [[], ["label"]])
def test_columns_that_nobody_asked_for_are_not_read(columns, eight):
    with RangeServer(eight) as server:
        Loader(obs_columns=columns).use_collection(f"{server.url}/cells.zarr")
        read = {path.split("/obs/")[1].split("/")[0] for _, path, _ in server.requests if "/obs/" in path}
    assert read - {"_index", "zarr.json"} == set(columns)


def test_a_collection_that_grew_shows_all(tmp_path):
    write(cells(30, seed=0, prefix="a"), tmp_path / "a.h5ad")
    write(cells(20, seed=1, prefix="b"), tmp_path / "b.h5ad")
    with RangeServer(tmp_path) as server:
        for name, n_obs in (("a", 30), ("b", 50)):
            DatasetCollection(tmp_path / "cells.zarr").add_adatas([tmp_path / f"{name}.h5ad"], progress=False)
            loader = Loader(batch_size=10, chunk_size=10, preload_nchunks=1).use_collection(f"{server.url}/cells.zarr")
            assert loader.n_obs == n_obs
            assert sum(batch["X"].shape[0] for batch in loader) == n_obs
    # zarr-python sees the same.
    import zarr

    assert sorted(zarr.open_group(tmp_path / "cells.zarr", mode="r")) == ["dataset_0", "dataset_1"]
    assert np.ndim(zarr.open_group(tmp_path / "cells.zarr", mode="r")["dataset_1/X/data"][:]) == 1
