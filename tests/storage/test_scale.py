"""Totals, normalising and logarithm while rows are read: the results of scanpy, whatever the store and the columns."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import storage
from annbatch.storage import Scale
from tests.reference.rows import scaled_rows

from .stores import csr_attrs, csr_parts, random_csr
from .test_direct import Stored
from .test_reading import parts_of, requests

SCALES = [None, Scale(1e4, log1p=True), Scale(1e4), Scale(log1p=True), Scale(0.5, log1p=True)]
CLOSE = {"rtol": 1e-6, "atol": 0}


def check_scaled(sources, matrices, request, scale, dtype=None, **options):
    """See that CSR batches (of sparse sources), dense batches and totals are those of the NumPy twin."""
    chosen, edges, maps, n_var = request
    parts = parts_of(sources, chosen, maps)
    scaled, totals = zip(*(scaled_rows(m, scale) for m in matrices), strict=True)
    options = {"n_var": n_var, "dtype": dtype, "scale": scale, **options}
    expected_totals = np.array([totals[source][row] for source, row in chosen], np.float32)
    readers = [storage.read_dense, *([storage.read_csr] if sp.issparse(matrices[0]) else [])]
    out_dtype = np.dtype(dtype or "float32") if scale else None
    for read in readers:
        for own_totals in (None, np.full(len(chosen), np.nan, np.float32)):
            batches = read(parts, edges, totals=own_totals, **options)
            for batch, low, high in zip(batches, edges[:-1], edges[1:], strict=True):
                dense = batch if isinstance(batch, np.ndarray) else batch.to_scipy().toarray()
                assert out_dtype is None or dense.dtype == out_dtype
                for k in range(high - low):
                    source, row = chosen[low + k]
                    new = np.arange(n_var) if maps[source] is None else maps[source]
                    whole = np.zeros(n_var)
                    whole[new[new >= 0]] = scaled[source][row][new >= 0]
                    np.testing.assert_allclose(dense[k], whole, **CLOSE)
            if own_totals is not None:
                np.testing.assert_array_equal(own_totals, expected_totals)


@pytest.mark.parametrize("scale", SCALES)
@given(data=st.data())
@settings(max_examples=20)
def test_rows_in_memory_are_scaled(scale, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int64", "uint8", "uint16", "bool"]))
    n_var = data.draw(st.integers(1, 40))
    matrices = [random_csr(rng, data.draw(st.integers(0, 20)), n_var, dtype=dtype) for _ in range(2)]
    if data.draw(st.booleans()):
        matrices = [m.toarray() for m in matrices]
    direct, threads = data.draw(st.booleans()), data.draw(st.sampled_from([1, 3]))
    sources = [storage.open_matrix(m, direct=direct) for m in matrices]
    out_dtype = data.draw(st.sampled_from([None, "float32", "float64"]))
    check_scaled(sources, matrices, data.draw(requests(matrices)), scale, out_dtype, num_threads=threads)


@pytest.mark.parametrize("kind", ["h5-contiguous", "h5-gzip", "zarr3-blosc-lz4", "shards-zstd"])
@given(data=st.data())
@settings(max_examples=15)
def test_rows_that_chunks_cut_are_scaled_as_a_whole_in_both_ways_of_reading(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "uint16", "uint8", "int32"]))
    n_var, n_obs = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 30))
    matrix = random_csr(rng, n_obs, n_var, data.draw(st.sampled_from([0.1, 0.6])), dtype)
    if matrix.dtype.kind == "f":
        # The order in which such values are added up shows in the last bits of their total.
        matrix.data *= rng.random(len(matrix.data)).astype(dtype)
    scale = data.draw(st.sampled_from(SCALES))
    request = data.draw(requests([matrix]))
    chunks, per_shard = (data.draw(st.integers(1, 100)),), (data.draw(st.integers(1, 4)),)
    with Stored(csr_parts(matrix), csr_attrs(matrix), kind, chunks, per_shard) as group:
        found = []
        for direct, threads in ((True, 1), (True, 3), (False, 3)):
            source = storage.open_matrix(group, direct=direct)
            check_scaled([source], [matrix], request, scale, num_threads=threads)
            chosen, edges, maps, width = request
            totals = np.empty(len(chosen), np.float32)
            parts = parts_of([source], chosen, maps)
            options = {"n_var": width, "num_threads": threads, "scale": scale}
            blocks = storage.read_csr(parts, edges, totals=totals, **options)
            batches = storage.read_dense(parts, edges, **options)
            found.append([totals.tobytes(), *(b.data.tobytes() for b in blocks), *(b.tobytes() for b in batches)])
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["h5-contiguous", "h5-gzip", "zarr3-blosc-lz4", "shards-zstd"])
@given(data=st.data())
@settings(max_examples=10)
def test_stored_dense_rows_are_scaled(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "uint8"]))
    shape = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 30))
    matrix = rng.poisson(0.5, shape).astype(dtype)
    request = data.draw(requests([matrix]))
    chunks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    with Stored({"dense": matrix}, {}, kind, chunks, (2, 2)) as group:
        for direct in (True, False):
            source = storage.open_matrix(group["dense"], direct=direct)
            check_scaled([source], [matrix], request, data.draw(st.sampled_from(SCALES)), num_threads=3)
