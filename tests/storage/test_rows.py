"""The row kernels equal their NumPy twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.storage.dtypes import flat_bytes, type_code
from annbatch.storage.engine import _plan, _rows
from annbatch.storage.engine._plan import PIECE, ArrayCut, Placing
from tests.reference import ragged as twins
from tests.reference import rows as reference_rows


@st.composite
def sparse_rows(draw):
    """(indptr, ascending rows with repeats, one destination per row, chunk size); some rows are neighbours there too."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.sort(np.array(draw(st.lists(st.integers(0, len(lengths) - 1), max_size=15)), np.int64))
    order = np.array(draw(st.permutations(range(len(rows)))), np.int64)
    sizes = (indptr[rows + 1] - indptr[rows])[order] if len(rows) else np.zeros(0, np.int64)
    address = np.empty(len(rows), np.int64)
    address[order] = 4 * np.concatenate([[0], np.cumsum(sizes)])[:-1]
    return indptr, rows, address, draw(st.integers(1, 20))


@given(sparse_rows())
def test_a_plan_of_ranges_names_every_value_once(case):
    indptr, rows, address, chunk_size = case
    tasks, pieces = _rows.plan_ranges(rows, *twins.find_extents(indptr, rows), address, 4, chunk_size)
    expected = reference_rows.plan_ranges(indptr, rows, address, 4, chunk_size)
    assert reference_rows.named_by_plan(tasks, pieces, chunk_size, 4) == expected


def test_neighbouring_rows_become_one_piece():
    indptr = np.array([0, 3, 3, 7, 10])
    tasks, pieces = _rows.plan_ranges(np.arange(4), indptr[:-1], np.diff(indptr), 4 * indptr[:-1], 4, 100)
    assert tasks.tolist() == [(0, 0, 1, 0, 10)]
    assert pieces.tolist() == [(0, 0, 10, -1, -1)]


def test_a_row_that_is_wanted_twice_does_not_split_a_task():
    tasks, pieces = _rows.plan_ranges(
        np.zeros(2, np.int64), np.zeros(2, np.int64), np.array([10, 10]), np.array([0, 400]), 4, 4
    )
    assert tasks.tolist() == [(0, 0, 2, 0, 4), (1, 2, 4, 0, 4), (2, 4, 6, 0, 2)]
    assert pieces["address"].tolist() == [0, 400, 16, 416, 32, 432]


@given(sparse_rows(), st.integers(0, 30), st.integers(0, 5), st.booleans(), st.booleans(), st.integers(1, 20))
def test_stretches_name_every_value_of_their_rows_once(
    case, n_wanted, row_work, values_anywhere, columns_anywhere, column_chunk
):
    indptr, rows, _, value_chunk = case
    cuts = ArrayCut(4, value_chunk, values_anywhere), ArrayCut(8, column_chunk, columns_anywhere)
    plan = _rows.plan_stretches(rows, *twins.find_extents(indptr, rows), n_wanted, row_work, *cuts)
    reference_rows.check_stretches(indptr, rows, n_wanted, row_work, plan, *cuts)


def test_a_stretch_ends_where_the_next_row_starts_in_another_chunk():
    # Rows of 3 values in chunks of 6: rows 1, 3 and 5 end with their chunk, and after two rows the work is enough.
    def stretches(n_wanted, value_cut, column_cut):
        rows = np.arange(9)
        plan = _rows.plan_stretches(rows, 3 * rows, np.full(9, 3), n_wanted, 0, value_cut, column_cut)
        return plan.stretches[["first_row", "stop_row"]].tolist()

    small, large = ArrayCut(4, 6, anywhere=False), ArrayCut(4, 100, anywhere=False)
    assert stretches(4, small, small) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    # Where only the end of the work is a reason, it ends at four times as much; where cuts are free, at once.
    assert stretches(4, large, small) == [(0, 6), (6, 9)]
    free = small._replace(anywhere=True), large._replace(anywhere=True)
    assert stretches(3, *free) == [(row, row + 1) for row in range(9)]


@given(st.sampled_from([1, 2, 2047, 2048, 2049, 2**22 + 1, 2**40]), st.data())
def test_ascending_is_a_stable_argsort(n_obs, data):
    few = st.sampled_from(sorted({0, n_obs // 2, n_obs - 1}))
    rows = np.array(data.draw(st.lists(few | st.integers(0, n_obs - 1), max_size=40)), np.int64)
    rows.flags.writeable = False
    np.testing.assert_array_equal(_rows.ascending(rows, n_obs), np.argsort(rows, kind="stable"))


@pytest.mark.parametrize("index_type", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("renumber", [False, True])
def test_indices_are_renumbered_and_checked(index_type, wide, renumber):
    items = np.array([9, 3, 0, 5, 3], index_type)
    items.flags.writeable = False
    new = np.array([7, -1, 2, 30, 4, 100000], np.int64) if renumber else None
    out = np.zeros(4, np.int64 if wide else np.int32)
    pieces = np.array([(1, out.ctypes.data, 2, -1, -1), (3, out[2:].ctypes.data, 2, -1, -1)], PIECE)
    types = type_code(items.dtype), type_code(out.dtype)
    placing = Placing(*types, items.itemsize, out.itemsize, n_columns=6, columns=new)
    assert _rows.place(flat_bytes(items), 0, pieces, placing) == -1
    np.testing.assert_array_equal(out, new[items[1:]] if renumber else items[1:])
    assert _rows.place(flat_bytes(items), 0, pieces, placing._replace(n_columns=5)) == 1


@pytest.mark.parametrize("source_type", ["uint8", "int64", "float64"])
def test_columns_of_dense_rows_are_scattered_and_converted(source_type):
    # More values than are converted at a time; the first two items of the chunk are not wanted.
    items = np.random.default_rng(0).integers(0, 100, 5000).astype(source_type)
    new = np.random.default_rng(1).permutation(5000)
    new[::7] = -1
    out = np.zeros(5000, np.float32)
    expected = out.copy()
    expected[new[2:][new[2:] >= 0]] = items[2:][new[2:] >= 0]
    pieces = np.array([(2, out.ctypes.data, 4998, 2, -1)], PIECE)
    types = type_code(items.dtype), type_code(out.dtype)
    assert _rows.place(flat_bytes(items), 0, pieces, Placing(*types, items.itemsize, 4, columns=new)) == -1
    np.testing.assert_array_equal(out, expected)


def test_rows_of_tables_lie_in_memory_as_the_kernels_think():
    for name, dtype in _rows._py_layouts().items():
        assert getattr(_plan, name) == dtype, name


def csr_of(rows):
    """Return (start, columns, values) of lists of (column, value)."""
    start = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    flat = [pair for row in rows for pair in row]
    return start, np.array([c for c, _ in flat], np.int32), np.array([v for _, v in flat], np.float32)


N_COLUMNS = 21
ROWS_WITH_DROPS = st.lists(
    st.lists(st.tuples(st.integers(-1, N_COLUMNS - 1), st.integers(1, 9)), max_size=30), max_size=6
)


@given(ROWS_WITH_DROPS, st.booleans())
def test_compact_drops_and_sorts(rows, sort):
    start, columns, values = csr_of(rows)
    kept_rows = [[pair for pair in row if pair[0] >= 0] for row in rows]
    if sort:
        kept_rows = [sorted(row, key=lambda pair: pair[0]) for row in kept_rows]
    expected_start, expected_columns, expected_values = csr_of(kept_rows)
    kept = np.zeros(len(rows), np.int64)
    _rows.count_kept(columns, start, kept, 0, len(rows))
    np.testing.assert_array_equal(kept, np.diff(expected_start))
    new_columns, new_values = np.empty_like(expected_columns), np.empty_like(expected_values)
    addresses = [new_columns.ctypes.data + 4 * expected_start[:-1], new_values.ctypes.data + 4 * expected_start[:-1]]
    _rows.compact(
        columns, values.ctypes.data, 4, start, kept, *addresses, sort=sort, n_columns=N_COLUMNS, low=0, high=len(rows)
    )
    np.testing.assert_array_equal(new_columns, expected_columns)
    np.testing.assert_array_equal(new_values, expected_values)


def test_none_is_no_array():
    with pytest.raises(TypeError, match="must not be None"):
        _rows.ascending(None, 1)
