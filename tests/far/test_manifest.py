"""Objects that are not what they were when the dataset was written are found when they are first touched, far away too."""

from __future__ import annotations

import pickle
import shutil

import pytest

from annbatch import storage
from benchmarks.far.server import RangeServer

from .test_same_batches import check, loader_at

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder / "cells.zarr", tmp_path / "cells.zarr")
    return tmp_path


def shards(copy):
    return sorted(path for path in copy.glob("cells.zarr/dataset_1/X/data/c/*") if path.is_file())


def longer(path):
    """Another shard in its place: its index is right in itself."""
    data = path.read_bytes()
    path.write_bytes(b"\0" * 16 + data)


@pytest.mark.parametrize("travels", [False, True])
def test_a_shard_of_another_size(copy, travels):
    longer(shards(copy)[-1])
    with RangeServer(copy) as server:
        far = loader_at(f"{server.url}/cells.zarr")
        far = pickle.loads(pickle.dumps(far)) if travels else far
        with pytest.raises(
            storage.CorruptDataError, match=r"dataset_1/X/data/c/\d+ .*had \d+ bytes when it was written"
        ):
            list(far)


def test_a_shard_that_is_missing(copy):
    shards(copy)[0].unlink()
    with RangeServer(copy) as server, pytest.raises(storage.CorruptDataError, match="X/data/c/0 is missing; it had"):
        list(loader_at(f"{server.url}/cells.zarr"))


def test_what_is_as_it_was_is_read(copy, folder):
    with RangeServer(copy) as server:
        check(loader_at(f"{server.url}/cells.zarr"), loader_at(folder / "cells.zarr"))
