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

from tests.cells import random_csr
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
    matrices = [random_csr(data.draw(st.integers(0, 20)), n_var, seed=rng, dtype=dtype) for _ in range(2)]
    if data.draw(st.booleans()):
        matrices = [m.toarray() for m in matrices]
    direct, threads = data.draw(st.booleans()), data.draw(st.sampled_from([1, 3]))
    sources = [storage.open_matrix(m, direct=direct) for m in matrices]
    out_dtype = data.draw(st.sampled_from([None, "float32", "float64"]))
    check_scaled(sources, matrices, data.draw(requests(matrices)), scale, out_dtype, num_threads=threads)
