"""An S3 server of this machine, from the URL to the batch."""

from __future__ import annotations

import numpy as np
import pytest

from annbatch import Loader, MappedCollection, storage
from annbatch.storage.far import fetch

from .test_same_batches import SETTINGS, check, loader_at

s3fs = pytest.importorskip("s3fs", reason="s3fs, the S3 client of fsspec, is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server], a local S3 server, is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # moto's and botocore's own


@pytest.fixture(scope="module")
def options(folder):
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    files = s3fs.S3FileSystem(**options)
    files.mkdir("cells")
    for name in ("cells.zarr", "zarr2.zarr"):
        files.put(str(folder / name), f"cells/{name}", recursive=True)
    files.put(str(folder / "cells_0.h5ad"), "cells/cells_0.h5ad")
    yield options
    running.stop()


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad", "zarr2.zarr"])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_as_read_from_disk(name, prefetch, options, folder):
    far, local = loader_at(f"s3://cells/{name}", storage_options=options, prefetch=prefetch), loader_at(folder / name)
    for _ in range(2):
        check(far, local)


def test_all_settings(options, folder, tmp_path):
    given = {"dense": True, "layers": ["twice"], "cache": tmp_path, "max_requests": 8, "max_in_flight": "1MB"}
    far = loader_at("s3://cells/cells.zarr", storage_options=options, **given)
    local = loader_at(folder / "cells.zarr", dense=True, layers=["twice"])
    for _ in range(2):
        before = fetch.counts["requests"]
        check(far, local)
    assert fetch.counts["requests"] == before


def test_mapped_collection(options, folder):
    far = MappedCollection(["s3://cells/cells_0.h5ad"], obs_keys=["label"], storage_options=options)
    local = MappedCollection([folder / "cells_0.h5ad"], obs_keys=["label"])
    np.testing.assert_array_equal(far[7]["X"], local[7]["X"])
    assert far[7]["label"] == local[7]["label"]


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_an_object_that_was_replaced_is_damage(name, options):
    files = s3fs.S3FileSystem(**options)
    files.copy(f"cells/{name}", f"cells/copy_{name}", recursive=name.endswith("zarr"))
    far = loader_at(f"s3://cells/copy_{name}", storage_options=options)
    list(far)
    for path in [f"cells/copy_{name}"] if name.endswith("h5ad") else files.find(f"cells/copy_{name}"):
        if path.endswith("h5ad") or "/c/" in path:
            files.pipe_file(path, files.cat_file(path)[::-1])
    with pytest.raises(storage.CorruptDataError, match="changed or replaced after it was opened"):
        list(far)


def test_credentials_that_do_not_do(options, monkeypatch):
    async def refuse(*_args, **_kwargs):
        msg = "The AWS Access Key Id you provided does not exist in our records."
        raise PermissionError(msg)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
    monkeypatch.setattr(s3fs.S3FileSystem, "_info", refuse)
    for name in ("cells.zarr", "cells_0.h5ad"):
        with pytest.raises(PermissionError, match="does not exist in our records"):
            Loader(storage_options=options, **SETTINGS).add_paths([f"s3://cells/{name}"])


def test_what_is_not_there(options):
    for name in ("nothing.zarr", "nothing.h5ad"):
        with pytest.raises(FileNotFoundError, match=name):
            Loader(storage_options=options).add_paths([f"s3://cells/{name}"])
