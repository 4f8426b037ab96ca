"""Chunks at the edge of an HDF5 dataset that were written without its filters, as H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS asks for."""

from __future__ import annotations

import ctypes
import struct
import sys

import h5py
import numpy as np
import pytest

from annbatch import storage
from annbatch.collection.verify import verify
from annbatch.storage.chunks.hdf5_table import edges_are_bare, hdf5_table
from annbatch.storage.hdf5_headers import edges_are_unfiltered
from benchmarks.far.server import RangeServer
from tests.cells import as_array, cells, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the engine reads no files there")

DONT_FILTER_PARTIAL_CHUNKS = 2
FILTERS = {
    "shuffle": lambda settings: settings.set_shuffle(),
    "gzip": lambda settings: settings.set_deflate(1),
    "both": lambda settings: (settings.set_shuffle(), settings.set_deflate(1)),
    "fletcher32": lambda settings: settings.set_fletcher32(),
}


def rewrite(group, name, values, filters, chunks, *, bare=True, **kind):
    """Put values in place of a dataset of an AnnData, in chunks; h5py has no call for this setting, its libhdf5 has."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(chunks)
    FILTERS[filters](settings)
    if bare:
        try:
            call = ctypes.CDLL(h5py.h5p.__file__).H5Pset_chunk_opts
        except (OSError, AttributeError):
            pytest.skip("the functions of h5py's libhdf5 cannot be called here")
        call.argtypes = [ctypes.c_int64, ctypes.c_uint]
        assert call(settings.id, DONT_FILTER_PARTIAL_CHUNKS) == 0
    attributes = dict(group[name].attrs) if name in group else {}
    group.pop(name, None)
    space = h5py.h5s.create_simple(values.shape, kind.get("maxshape", values.shape))
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(values.dtype), space, settings)
    group[name][...] = values
    group[name].attrs.update(attributes)


def rows_of(path):
    source = storage.open_matrix(storage.open_group(path)["X"])
    rows = np.arange(source.n_obs)
    [found] = storage.read_dense([storage.Part(source, rows, rows)], np.array([0, len(rows)]), n_var=source.shape[1])
    return as_array(found)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_dense_rows_at_the_edge_are_those_written(filters, libver, tmp_path):
    adata = cells(25, 7)
    adata.X = np.random.default_rng(0).normal(size=(25, 7)).astype("float32")
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+", libver=libver) as file:
        rewrite(file, "X", adata.X, filters, (10, 4))
    np.testing.assert_array_equal(rows_of(path), adata.X)
    with h5py.File(path) as file:
        table = hdf5_table(file["X"])
        # Rows 20 to 29, and columns 4 to 7.
        assert [bool(mask) for mask in table.mask] == [False, True, False, True, True, True]
    assert "a.h5ad/X" in verify(path, progress=False).without_checksums
    pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
    pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")
    with RangeServer(tmp_path) as server:
        np.testing.assert_array_equal(rows_of(f"{server.url}/a.h5ad"), adata.X)


@pytest.mark.parametrize("filters", FILTERS)
def test_values_of_a_sparse_matrix_at_the_edge_are_those_written(filters, tmp_path):
    adata = cells(60, 12)
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices", "indptr"):
            rewrite(file["X"], name, file[f"X/{name}"][:], filters, (32,), maxshape=(h5py.h5s.UNLIMITED,))
    np.testing.assert_array_equal(rows_of(path), adata.X.toarray())


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(("shape", "bare"), [((20, 8), True), ((25, 7), False)])
def test_chunks_with_filters_are_taken_so(libver, shape, bare, tmp_path):
    """The setting says nothing where every chunk is full; and without it edges are filtered as all others."""
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        rewrite(file, "X", values, "shuffle", (10, 4), bare=bare)
    with h5py.File(tmp_path / "a.h5") as file:
        assert hdf5_table(file["X"]).mask is None
        assert edges_are_bare(file["X"]) is False


def test_where_it_cannot_be_told_hdf5_reads(tmp_path):
    """Addresses of four bytes, which nobody writes: the headers are not understood."""
    values = np.random.default_rng(0).normal(size=(25, 7)).astype("float32")
    settings = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    settings.set_sizes(4, 4)
    h5py.h5f.create(str(tmp_path / "a.h5").encode(), h5py.h5f.ACC_TRUNC, settings).close()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        rewrite(file, "X", values, "shuffle", (10, 4), bare=False)
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with h5py.File(tmp_path / "a.h5") as file:
        assert edges_are_bare(file["X"]) is None
        assert hdf5_table(file["X"]) is None
    np.testing.assert_array_equal(rows_of(tmp_path / "a.h5"), values)


@pytest.mark.parametrize("maxshape", [(16, None), (100, None), (None, 16), (None, None)])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_rows_of_datasets_that_may_grow_are_those_written(libver, maxshape, tmp_path):
    """HDF5 tells the places of chunks wrongly where the second axis alone may grow."""
    values = np.zeros((16, 16), "float32")
    values[8:, :8] = np.random.default_rng(0).normal(size=(8, 8))  # other chunks are not stored
    with h5py.File(tmp_path / "a.h5ad", "w", libver=libver) as file:
        file.create_dataset("X", values.shape, values.dtype, chunks=(8, 8), maxshape=maxshape)[8:, :8] = values[8:, :8]
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    np.testing.assert_array_equal(rows_of(tmp_path / "a.h5ad"), values)
    with h5py.File(tmp_path / "a.h5ad") as file:
        by_hdf5 = libver == "latest" and maxshape[0] is not None
        assert (hdf5_table(file["X"]) is None) == by_hdf5


def test_a_header_that_leads_back_into_itself_ends(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        rewrite(file, "X", np.zeros((25, 7), "float32"), "shuffle", (10, 4), bare=False)
    data = (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        address = h5py.h5g.get_objinfo(file["X"].id, b".").objno[0]
        # An old header, all of whose messages say that it goes on where it begins.
        again = struct.pack("<HHB3xQQ", 0x10, 16, 0, address, 4096)
        circle = struct.pack("<BxHIII", 1, 1, 1, 24, 0) + again * 100
        hostile = data[:address] + circle + data[address + len(circle) :]
        assert edges_are_unfiltered(file["X"], lambda start, n: hostile[start : start + n]) is None
        assert edges_are_unfiltered(file["X"], lambda start, n: data[start : start + n]) is False
