"""Stores behind a real S3 protocol: a server in this process, read through fsspec."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Loader, storage
from tests.cells import csr_attrs, csr_parts, random_csr

pytest.importorskip("s3fs", reason="s3fs, the S3 client of fsspec, is not installed")
server = pytest.importorskip("moto.server", reason="moto[server], a local S3 server, is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # moto's and botocore's own

MATRIX = random_csr(400, 40, seed=0)


@pytest.fixture(scope="module")
def options():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir("bucket")
    yield options
    running.stop()


@pytest.fixture
def group(options):
    """X, with shards, in a bucket."""
    url = "s3://bucket/a.zarr"
    group = zarr.open_group(url, mode="w", storage_options=options).create_group("X")
    group.attrs.update(csr_attrs(MATRIX))
    for name, array in csr_parts(MATRIX).items():
        group.create_array(name, data=array, chunks=(100,), shards=(1000,))
    return zarr.open_group(url, mode="r", storage_options=options)["X"]


@pytest.mark.parametrize("prefetch", [0, 1])
def test_batches_are_those_of_memory(group, prefetch):
    def batches(data):
        rng = np.random.default_rng(0)
        loader = Loader(chunk_size=5, preload_nchunks=20, batch_size=50, shuffle=True, rng=rng, prefetch=prefetch)
        return [batch["X"] for batch in loader.add_dataset(data)]

    remote, local = batches(group), batches(MATRIX)
    assert len(remote) == 8
    assert (sp.vstack(remote) != sp.vstack(local)).nnz == 0


@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_damage_is_an_error_and_not_zeros(group, options, damage):
    import s3fs

    source = storage.open_matrix(group)
    source.row_pointers  # noqa: B018
    files, root = s3fs.S3FileSystem(**options), "bucket/a.zarr/X/data"
    if damage == "empty":
        files.pipe_file(f"{root}/c/0", b"")
    else:
        files.rm(root, recursive=True)
    rows = np.arange(400)
    with pytest.raises(storage.CorruptDataError, match="X/data.*(is empty|checksum|moved or removed)"):
        storage.read_csr([storage.Part(source, rows, rows)], np.array([0, 400]), n_var=40)
