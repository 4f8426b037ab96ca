"""read_csr and read_dense give exactly the rows that NumPy and scipy give."""

from __future__ import annotations

import pickle

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

from annbatch import storage
from tests.cells import csr_attrs, csr_parts, open_csr, random_csr, write_h5, write_zarr
from tests.reference.rows import csr_row, dense_rows


@st.composite
def requests(draw, matrices, *, renumber=True):
    """Rows of several matrices in random order with repeats, cut into random batches, with columns maps."""
    lengths = [m.shape[0] for m in matrices]
    pairs = [(i, r) for i, n in enumerate(lengths) for r in range(n)]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=40)) if pairs else []
    cuts = sorted(draw(st.lists(st.integers(0, len(chosen)), max_size=4)))
    edges = np.array([0, *cuts, len(chosen)])
    n_var = matrices[0].shape[1]
    kind = draw(st.sampled_from(["none", "increasing", "drop", "permute"])) if renumber else "none"
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    n_new = n_var if kind == "none" else n_var + 3
    maps = []
    for _ in matrices:
        new = np.sort(rng.permutation(n_new)[:n_var]).astype(np.int64)
        if kind == "permute":
            rng.shuffle(new)
        if kind in ("drop", "permute"):
            new[rng.random(n_var) < 0.4] = -1
        maps.append(None if kind == "none" else new)
    return chosen, edges, maps, n_new


def parts_of(sources, chosen, maps):
    parts = []
    for i, (source, new) in enumerate(zip(sources, maps, strict=True)):
        mine = [(row, dest) for dest, (s, row) in enumerate(chosen) if s == i]
        rows, dest = np.array(mine, np.int64).reshape(-1, 2).T
        parts.append(storage.Part(source, rows, dest, new))
    return parts


def check_csr(sources, matrices, request, **options):
    chosen, edges, maps, n_var = request
    blocks = storage.read_csr(parts_of(sources, chosen, maps), edges, n_var=n_var, **options)
    assert len(blocks) == len(edges) - 1
    for block, low, high in zip(blocks, edges[:-1], edges[1:], strict=True):
        assert block.shape == (high - low, n_var)
        assert block.indptr[0] == 0
        assert block.indptr[-1] == len(block.data) == len(block.indices)
        block.to_scipy().check_format()
        for k in range(high - low):
            source, row = chosen[low + k]
            columns, values = csr_row(matrices[source], row, maps[source])
            at = slice(block.indptr[k], block.indptr[k + 1])
            np.testing.assert_array_equal(block.indices[at], columns)
            np.testing.assert_array_equal(block.data[at], values)


def check_dense(sources, matrices, request, **options):
    chosen, edges, maps, n_var = request
    batches = storage.read_dense(parts_of(sources, chosen, maps), edges, n_var=n_var, **options)
    whole = dense_rows(matrices, maps, n_var)
    assert len(batches) == len(edges) - 1
    for batch, low, high in zip(batches, edges[:-1], edges[1:], strict=True):
        expected = [whole[source][row] for source, row in chosen[low:high]]
        np.testing.assert_array_equal(batch, np.array(expected).reshape(high - low, n_var))


@given(st.data())
def test_memory_csr_equals_scipy(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int64", "uint16", "bool", "complex64"]))
    index_dtype = data.draw(st.sampled_from(["int32", "int64"]))
    n_var = data.draw(st.integers(1, 30))
    matrices = [
        random_csr(data.draw(st.integers(0, 20)), n_var, seed=rng, dtype=dtype, index_dtype=index_dtype)
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    sources = [storage.open_matrix(m) for m in matrices]
    request = data.draw(requests(matrices))
    check_csr(sources, matrices, request)
    check_dense(sources, matrices, request)


@given(st.data())
def test_memory_dense_equals_numpy(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(["float32", "float64", "int8", "complex64", ">f4"]))
    n_var = data.draw(st.integers(1, 30))
    matrices = [rng.integers(0, 9, (data.draw(st.integers(0, 20)), n_var)).astype(dtype) for _ in range(2)]
    check_dense([storage.open_matrix(m) for m in matrices], matrices, data.draw(requests(matrices)))


def test_three_dimensional_rows_keep_their_shape():
    array = np.arange(5 * 3 * 2, dtype="int32").reshape(5, 3, 2)
    source = storage.open_matrix(array)
    (batch,) = storage.read_dense([storage.Part(source, np.array([4, 0, 4]), np.array([2, 0, 1]))], np.array([0, 3]))
    np.testing.assert_array_equal(batch, array[[0, 4, 4]])


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("shape", [(10, 0), (10, 0, 3)])
def test_rows_without_columns_are_read(shape, direct, tmp_path):
    # As an obsm of a tool that kept no component.
    array = np.zeros(shape, "float32")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = array
    stored = zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(4,) + (1,) * (len(shape) - 1))
    with h5py.File(tmp_path / "a.h5") as file:
        for elem in (array, file["a"], stored):
            part = storage.Part(storage.open_matrix(elem, direct=direct), np.array([9, 0, 5]), np.arange(3))
            first, second = storage.read_dense([part], np.array([0, 1, 3]))
            assert (first.shape, second.shape, first.dtype) == ((1, *shape[1:]), (2, *shape[1:]), np.float32)


@pytest.mark.parametrize("kind", ["h5", "zarr2", "zarr3"])
def test_csr_dataset_of_anndata_opens_and_reads(kind, tmp_path):
    matrix = random_csr(50, 20, seed=0)
    if kind == "h5":
        path = write_h5(csr_parts(matrix), tmp_path / "a.h5ad", csr_attrs(matrix), chunks=(16,), compression="gzip")
    else:
        path = write_zarr(csr_parts(matrix), tmp_path / "a.zarr", csr_attrs(matrix), int(kind[-1]), chunks=(16,))
    opened = open_csr(path)
    for elem in (opened.elem, opened.handle["X"]):
        for direct in (True, False):
            source = storage.open_matrix(elem, direct=direct)
            assert source.shape == (50, 20)
            assert source.is_sparse
            assert source.indices_dtype == np.int32
            assert str(path) in source.location
            chosen = [(0, r) for r in (3, 49, 0, 3, 7)]
            check_csr([source], [matrix], (chosen, np.array([0, 2, 5]), [None], 20))
            again = pickle.loads(pickle.dumps(source))
            check_csr([again], [matrix], (chosen, np.array([0, 2, 5]), [None], 20))
            again.close()
    opened.close()


def test_old_group_names_of_anndata_are_read(tmp_path):
    matrix = random_csr(10, 5, seed=0)
    path = write_h5(
        csr_parts(matrix), tmp_path / "old.h5ad", {"h5sparse_format": "csr", "h5sparse_shape": matrix.shape}
    )
    with h5py.File(path, "r") as f:
        check_csr([storage.open_matrix(f["X"])], [matrix], ([(0, 2), (0, 1)], np.array([0, 2]), [None], 5))


def test_dtype_converts_exactly_or_raises():
    matrix = sp.csr_matrix(np.array([[0, 300.0], [2.5, 0]], "float32"))
    source = storage.open_matrix(matrix)

    def read(row, dtype):
        part = storage.Part(source, np.array([row]), np.array([0]))
        return storage.read_csr([part], np.array([0, 1]), n_var=2, dtype=dtype)[0].data

    assert read(0, "uint16").dtype == np.uint16
    assert read(0, "uint16")[0] == 300
    assert read(1, "float16")[0] == 2.5
    with pytest.raises(ValueError, match="dtype=uint8 cannot hold all values, which are stored as float32"):
        read(0, "uint8")
    with pytest.raises(ValueError, match="dtype=int64 cannot hold all values"):
        read(1, "int64")


@pytest.mark.parametrize("source", ["int8", "int64", "uint8", "uint64", "float32", "float64", "bool"])
@pytest.mark.parametrize("target", ["int8", "int32", "int64", "uint8", "uint64", "float32", "float64", "bool"])
def test_casts_of_extreme_values_are_exact_or_refused(source, target):
    from annbatch.storage.dtypes import cast_exactly

    info = np.iinfo(source) if np.dtype(source).kind in "iu" else None
    if info is not None:
        values = [0, 1, info.min, info.max, info.max // 2 + 1]
    elif source == "bool":
        values = [False, True]
    else:
        values = [0.0, 1.0, -1.0, 0.5, 127.0, 128.0, 2.0**31, 2.0**63, 2.0**64, -(2.0**63), 1e300, np.inf, np.nan]
    for value in values:
        with np.errstate(all="ignore"):
            given_value = np.array([value]).astype(source)
            there = given_value.astype(target)
        python = given_value[0].item()
        # Python numbers compare exactly whatever their size, so they are the judge.
        rounded = np.dtype(source).kind == "f" and np.dtype(target).kind == "f"
        exact = bool(np.isinf(there[0]) == np.isinf(python)) if rounded else _same_number(python, target)
        if exact:
            np.testing.assert_array_equal(cast_exactly(given_value, np.dtype(target)), there)
        else:
            with pytest.raises(ValueError, match="cannot hold all values"):
                cast_exactly(given_value, np.dtype(target))


def _same_number(value, target):
    target = np.dtype(target)
    if target.kind == "b":
        return value in (0, 1)
    if target.kind == "f":
        return int(target.type(value)) == value
    return (
        value == value
        and abs(value) != np.inf
        and value == int(value)
        and np.iinfo(target).min <= value <= np.iinfo(target).max
    )


CSC = sp.csc_matrix(np.eye(3, dtype="float32"))


def test_csc_is_refused_with_advice(tmp_path):
    attrs = {"encoding-type": "csc_matrix", "encoding-version": "0.1.0", "shape": CSC.shape}
    write_h5(csr_parts(CSC), tmp_path / "a.h5ad", attrs)
    with h5py.File(tmp_path / "a.h5ad", "r") as f:
        for elem in (CSC, ad.io.sparse_dataset(f["X"]), f["X"]):
            with pytest.raises(TypeError, match=r"must be stored by rows \(CSR\), got csc; convert it first"):
                storage.open_matrix(elem)


@pytest.mark.parametrize("elem", [[[1, 2]], "a.h5ad", None])
def test_what_is_no_matrix_is_refused(elem):
    with pytest.raises(TypeError, match=r"expected a numpy\.ndarray, h5py\.Dataset or zarr\.Array, got "):
        storage.open_matrix(elem)


def part(rows, dest, columns=None):
    source = storage.open_matrix(sp.csr_matrix(np.ones((4, 3), "float32")))
    return storage.Part(source, np.array(rows), np.array(dest), columns)


@pytest.mark.parametrize(
    ("parts", "edges", "n_var", "options", "error", "text"),
    [
        ([part([0], [0])], [0, 1], 3, {"num_threads": 0}, ValueError, "num_threads must be >= 1 or None, got 0"),
        (
            [part([4], [0])],
            [0, 1],
            3,
            {},
            IndexError,
            "rows must be within 0 <= row < 4 of matrix in memory, got 4 to 4",
        ),
        ([part([-1], [0])], [0, 1], 3, {}, IndexError, "rows must be within"),
        ([part([0], [1])], [0, 1], 3, {}, IndexError, "dest must be within 0 <= dest < 1"),
        ([part([0, 1], [0, 0])], [0, 2], 3, {}, ValueError, "got position 0 2 times"),
        ([part([0], [0])], [0, 2], 3, {}, ValueError, "got position 1 0 times"),
        ([part([0, 1], [0])], [0, 1], 3, {}, ValueError, "rows and dest must be of one length, got 2 and 1"),
        ([part([0.5], [0])], [0, 1], 3, {}, TypeError, "rows must be a one-dimensional array of integers"),
        ([part([0], [0])], [1, 1], 3, {}, ValueError, "edges must start with 0"),
        ([part([0], [0])], [0, 1, 0], 3, {}, ValueError, "not decrease"),
        ([part([0], [0])], [], 3, {}, TypeError, "edges must be"),
        ([part([0], [0])], [0, 1], 4, {}, ValueError, r"without columns every source must have rows of shape \(4,\)"),
        ([part([0], [0], np.array([0, 1]))], [0, 1], 3, {}, ValueError, "columns must have one entry per column"),
        ([part([0], [0], np.array([0, 1, 3]))], [0, 1], 3, {}, IndexError, "columns must be within -1 <= column < 3"),
        ([part([0], [0], np.array([0, 1, -2]))], [0, 1], 3, {}, IndexError, "columns must be within -1 <= column < 3"),
    ],
)
def test_bad_requests_are_refused(parts, edges, n_var, options, error, text):
    with pytest.raises(error, match=text):
        storage.read_csr(parts, np.array(edges, dtype=int), n_var=n_var, **options)


def test_no_rows_and_no_parts_give_empty_batches():
    assert storage.read_csr([], np.array([0]), n_var=3) == []
    (block,) = storage.read_csr([part([], [])], np.array([0, 0]), n_var=3)
    assert block.to_scipy().shape == (0, 3)
    (batch,) = storage.read_dense([], np.array([0, 0]), n_var=3)
    assert batch.shape == (0, 3)


def test_batches_from_a_pool_are_equal_and_independent():
    rng = np.random.default_rng(0)
    matrix = random_csr(300, 400, seed=rng)
    source, pool = storage.open_matrix(matrix), storage.BufferPool()
    rows = rng.permutation(300)
    edges = np.array([0, 100, 300])
    parts = [storage.Part(source, rows, np.arange(300))]
    kept = [block.to_scipy() for _ in range(3) for block in storage.read_csr(parts, edges, n_var=400, pool=pool)]
    for k, block in enumerate(kept):
        expected = matrix[rows[:100]] if k % 2 == 0 else matrix[rows[100:]]
        assert (block != expected).nnz == 0
        block.data[:] = -1


def test_repr_names_kind_shape_and_way():
    assert repr(storage.open_matrix(np.zeros((3, 2), "float32"))) == "<dense 3x2 float32, direct: array in memory>"


def test_a_masked_array_is_refused():
    with pytest.raises(TypeError, match=r"without a mask, got a numpy.ma.MaskedArray; .* X.filled\(0\)"):
        storage.open_matrix(np.ma.masked_equal(np.eye(3), 0))
