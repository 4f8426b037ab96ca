"""Row pointers as lengths: the same places as from the pointers themselves, in a fraction of the memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from annbatch.storage import CorruptDataError, row_pointers
from annbatch.storage.chunks.arrays import MemoryArray
from annbatch.storage.engine._ragged import BLOCK_ROWS
from annbatch.storage.row_pointers import RowPointers
from tests.reference import ragged as twins

WIDEST = {np.uint8: 255, np.uint16: 65_535, np.uint32: 2**32 - 1, np.uint64: 2**40}


def stored(pointers):
    return MemoryArray(np.asarray(pointers), "file :: X/indptr")


@st.composite
def pointers_and_rows(draw):
    n_rows = draw(st.sampled_from([1, 2, 63, 64, 65, 200]))
    widest = draw(st.sampled_from(list(WIDEST.values())))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = rng.integers(0, widest, n_rows, endpoint=True)
    rows = rng.integers(0, n_rows, draw(st.integers(0, 300)))
    if draw(st.booleans()):
        rows.sort()
        event("rows ascend")
    dtype = draw(st.sampled_from([np.int32, np.uint64, np.int64]))
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    return pointers.astype(dtype if pointers[-1] <= np.iinfo(dtype).max else np.int64), rows


@given(pointers_and_rows(), st.sampled_from([1, 64, 100, 1 << 20]))
def test_extents_are_those_of_the_pointers(given_data, entries_at_once):
    pointers, rows = given_data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_pointers, "_ENTRIES_AT_ONCE", entries_at_once)
        kept = RowPointers.read(stored(pointers), int(pointers[-1]))
    lengths, starts = twins.lengths_and_starts(pointers.astype(np.int64), BLOCK_ROWS)
    np.testing.assert_array_equal(kept.lengths, lengths)
    np.testing.assert_array_equal(kept.block_start, starts)
    for found, expected in zip(kept.extents(rows), twins.find_extents(pointers.astype(np.int64), rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(kept.indptr(), pointers)


@pytest.mark.parametrize(("dtype", "longest"), WIDEST.items())
def test_lengths_have_the_smallest_type_that_holds_the_longest_row(dtype, longest):
    kept = RowPointers.read(stored([0, longest, longest + 1]), longest + 1)
    assert kept.lengths.dtype == dtype


def test_a_long_row_late_in_the_data_widens_what_was_read_before(monkeypatch):
    monkeypatch.setattr(row_pointers, "_ENTRIES_AT_ONCE", 3)
    pointers = np.concatenate([[0], np.cumsum([5, 250, 0, 7, 70_000, 1])])
    kept = RowPointers.read(stored(pointers), int(pointers[-1]))
    np.testing.assert_array_equal(kept.indptr(), pointers)


def test_about_two_bytes_a_row():
    pointers = np.arange(0, 3_000_003, 300)
    assert RowPointers.read(stored(pointers), int(pointers[-1])).nbytes <= 2.2 * len(pointers)


@pytest.mark.parametrize(
    ("pointers", "message"),
    [
        ([1, 2, 3], "must start with 0, got 1"),
        ([0, 5, 4, 9], "must not decrease, but goes from 5 to 4 at row 1"),
        ([0, 5, 11], "ends at 11, but only 10 values are stored"),
    ],
)
@pytest.mark.parametrize("entries_at_once", [1, 1 << 20])
def test_damage_is_named(pointers, message, entries_at_once, monkeypatch):
    monkeypatch.setattr(row_pointers, "_ENTRIES_AT_ONCE", entries_at_once)
    with pytest.raises(CorruptDataError, match=message):
        RowPointers.read(stored(pointers), 10)


def test_pointers_beyond_int64_are_damage():
    with pytest.raises(CorruptDataError, match="only 10 values are stored"):
        RowPointers.read(stored(np.array([0, 2**63 + 5], np.uint64)), 10)


def test_no_rows():
    kept = RowPointers.read(stored(np.zeros(1, np.int64)), 0)
    assert kept.n_values == 0
    np.testing.assert_array_equal(kept.indptr(), [0])


@given(pointers_and_rows(), st.integers(0, 2**41))
def test_rows_to_a_bound_of_values(given_data, n_values):
    pointers, _ = given_data
    kept = RowPointers.read(stored(pointers), int(pointers[-1]))
    for start in range(0, len(pointers) - 1, 17):
        stop = kept.stop_within(start, n_values)
        assert start < stop <= len(pointers) - 1
        assert stop == start + 1 or int(pointers[stop]) - int(pointers[start]) <= n_values
        far = np.searchsorted(pointers.astype(np.int64), int(pointers[start]) + n_values, side="right") - 1
        assert stop > far - BLOCK_ROWS
