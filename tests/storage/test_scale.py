"""Totals, normalising and logarithm while rows are read: the results of scanpy, whatever the store and the columns."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import storage
from annbatch.storage import Scale
from annbatch.storage.reading import totals as totals_module
from annbatch.storage.reading.median import median_total
from tests.cells import csr_attrs, csr_parts, random_csr
from tests.reference.rows import scaled_rows

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
                np.testing.assert_allclose(own_totals, expected_totals, rtol=2e-7)


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


@pytest.mark.parametrize("kind", ["h5-contiguous", "h5-gzip", "zarr3-blosc-lz4", "shards-zstd"])
@given(data=st.data())
@settings(max_examples=15)
def test_rows_that_chunks_cut_are_scaled_as_a_whole_in_both_ways_of_reading(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "uint16", "uint8", "int32"]))
    n_var, n_obs = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 30))
    matrix = random_csr(n_obs, n_var, data.draw(st.sampled_from([0.1, 0.6])), seed=rng, dtype=dtype)
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


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "uint16", "float16", "bool", "int64"])
def test_totals_of_whole_sources_are_those_of_numpy(direct, dtype, monkeypatch):
    monkeypatch.setattr(totals_module, "_MAX_VALUES", 100)  # several rounds; some rows alone are more
    rng = np.random.default_rng(0)
    matrices = [random_csr(50, 300, density, seed=rng) for density in (0.01, 0.7)]
    arrays = [m.toarray().astype(dtype) for m in matrices]
    sparse = [sp.csr_matrix(a.astype("float32")) for a in arrays]
    for m in sparse:
        m.data = m.data.astype(dtype)
    expected = [a.astype(np.float64).sum(axis=1) for a in arrays]
    done = []
    for elems in (sparse, arrays):
        if dtype == "float16" and elems is sparse:
            continue  # scipy makes no such matrix
        sources = [storage.open_matrix(elem, direct=direct) for elem in elems]
        found = storage.row_totals(sources, progress=done.append)
        assert [t.dtype for t in found] == [np.float32, np.float32]
        np.testing.assert_array_equal(found, expected)
    assert sum(done) == (100 if dtype == "float16" else 200)
    assert storage.row_totals([]) == []


ODD_ROWS = {
    "counts above 1,023": [1, 2, 5000, 3] * 30,
    "fractions": np.linspace(0.1, 30, 100),
    "more values than are looked at together": np.arange(9000) % 7,
    "large numbers": [1e30, 3e36, 2.0] * 20,
    "minus zero": [-0.0, 1.0, 2.0] * 20,
    "nothing but zeros": np.zeros(50),
    "few values": [3, 1],
}


@pytest.mark.parametrize("name", ODD_ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_odd_rows_are_scaled(name, dtype):
    values = np.array(ODD_ROWS[name], np.float64)
    if dtype == "uint16" and (values % 1 != 0).any() | (values > 65535).any():
        pytest.skip("no counts")
    # A row of ones before it: what was left from another row must not matter.
    row = np.concatenate([values, np.ones(3)])
    matrix = sp.csr_matrix(np.stack([np.r_[values[::-1] * 0 + 1, np.ones(3)], row]).astype(dtype))
    matrix = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    request = [(0, 1), (0, 0), (0, 1)], np.array([0, 2, 3]), [None], matrix.shape[1]
    for scale in SCALES:
        for direct in (True, False):
            check_scaled([storage.open_matrix(matrix, direct=direct)], [matrix], request, scale)


def test_negative_values_and_what_is_no_number_come_out_as_numpy_has_them():
    data = np.array([-0.5, 3.0, np.inf, 1.0, np.nan, 2.0, -3.0, 0.5, 4.0, -4.0], np.float32)
    matrix = sp.csr_matrix((data, np.arange(10) % 2, np.arange(0, 11, 2)), shape=(5, 2))
    part = storage.Part(storage.open_matrix(matrix), np.arange(5), np.arange(5))
    for scale in SCALES[1:]:
        (block,) = storage.read_csr([part], np.array([0, 5]), n_var=2, scale=scale)
        with np.errstate(all="ignore"):
            expected, _ = scaled_rows(matrix, scale)
        np.testing.assert_allclose(block.to_scipy().toarray(), expected, rtol=1e-6)


def test_each_stored_value_of_a_repeated_column_is_scaled_for_itself():
    matrix = sp.csr_matrix((np.array([1, 3, 4], "float32"), [0, 0, 1], [0, 3]), shape=(1, 2))
    part = storage.Part(storage.open_matrix(matrix), np.zeros(1, int), np.zeros(1, int))
    scale, edges = Scale(16, log1p=True), np.array([0, 1])
    (block,) = storage.read_csr([part], edges, n_var=2, scale=scale)
    np.testing.assert_allclose(block.data, np.log1p([2, 6, 8]), rtol=1e-6)
    (batch,) = storage.read_dense([part], edges, scale=scale)
    np.testing.assert_allclose(batch, [[np.log1p(2) + np.log1p(6), np.log1p(8)]], rtol=1e-6)


def test_the_logarithm_of_a_value_does_not_depend_on_its_neighbours():
    # Wide registers take eight at a time; the same count must come out the same in every place, in every length of row.
    for n in (1, 7, 8, 17, 40):
        row = np.array([3.7] * n, np.float32)
        matrix = sp.csr_matrix(row[None])
        part = storage.Part(storage.open_matrix(matrix), np.zeros(1, int), np.zeros(1, int))
        (block,) = storage.read_csr([part], np.array([0, 1]), n_var=n, scale=Scale(log1p=True))
        assert len(set(block.data.tolist())) == 1


@pytest.mark.parametrize("direct", [True, False])
def test_float32_and_uint16_counts_give_the_same_bits(direct):
    counts = np.random.default_rng(0).poisson(1.5, (20, 500))
    found = []
    for dtype in ("float32", "uint16", "uint8", "int64"):
        matrix = sp.csr_matrix(counts.astype(dtype))
        part = storage.Part(storage.open_matrix(matrix, direct=direct), np.arange(20), np.arange(20))
        (block,) = storage.read_csr([part], np.array([0, 20]), n_var=500, scale=SCALES[1])
        found.append(block.data.tobytes())
    assert len(set(found)) == 1


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="target_sum must be greater than 0 and finite, got 0"):
        Scale(0)
    with pytest.raises(ValueError, match="got inf"):
        Scale(float("inf"))
    with pytest.raises(TypeError, match="target_sum must be a number or None, got 'median'"):
        Scale("median")
    matrix = sp.csr_matrix(np.eye(3, dtype="float32"))
    rows, edges = np.arange(3), np.array([0, 3])

    def read(elem=matrix, **options):
        source = storage.open_matrix(elem)
        part = storage.Part(source, rows, rows)
        return (
            storage.read_csr([part], edges, n_var=3, **options)
            if source.is_sparse
            else storage.read_dense([part], edges, **options)
        )

    with pytest.raises(ValueError, match="dtype must be float32 or float64 where values are scaled, got int32"):
        read(dtype="int32", scale=Scale(1e4))
    with pytest.raises(TypeError, match="must hold real numbers"):
        read(matrix.astype("complex64"), scale=Scale(1e4))
    with pytest.raises(TypeError, match="must hold real numbers"):
        storage.row_totals([storage.open_matrix(matrix.astype("complex64"))])
    with pytest.raises(ValueError, match="must have two dimensions"):
        read(np.zeros((3, 2, 2), "float32"), scale=Scale(1e4))
    with pytest.raises(ValueError, match=r"totals must be float32 of shape \(3,\), got float64 of shape \(3,\)"):
        read(totals=np.zeros(3))
    with pytest.raises(ValueError, match=r"got float32 of shape \(2,\)"):
        read(totals=np.zeros(2, "float32"))
    assert not Scale()
    (block,) = read(matrix.astype("int32"), scale=Scale())
    assert block.data.dtype == np.int32, "nothing is done to the values"


@pytest.mark.parametrize("totals", [[1.0, np.nan], [-3.0, -1.0], [1.0, np.inf, np.inf]])
def test_a_median_that_rows_cannot_be_scaled_to_is_refused_in_words(totals):
    with pytest.raises(ValueError, match='normalize_total="median" needs totals with a finite median > 0'):
        median_total([np.array(totals, dtype=np.float32)])
