"""View: the list of rows behind every loader, against numpy indexing."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annbatch.loader import views
from annbatch.loader.views import View


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """So that a few rows are several blocks, and ranges are kept where they pay, too."""
    patch = pytest.MonkeyPatch()
    patch.setattr(views, "_BLOCK", 7)
    patch.setattr(views, "_ROWS_PER_RANGE", 3)
    yield
    patch.undo()


@st.composite
def choices(draw, n):
    """What may be passed as rows, for n rows, n > 0; the choice holds at least one row."""
    kind = draw(st.sampled_from(["mask", "numbers", "runs", "slice", "list", "range"]))
    if kind == "mask":
        mask = draw(hnp.arrays(bool, n))
        mask[draw(st.integers(0, n - 1))] = True
        return mask
    if kind == "runs":
        stops = sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=6)))
        mask = np.zeros(n, dtype=bool)
        for start, stop in zip(stops[::2], stops[1::2], strict=False):
            mask[start:stop] = True
        mask[0] |= not mask.any()
        return np.flatnonzero(mask) if draw(st.booleans()) else mask
    if kind == "slice":
        rows = draw(st.slices(n))
        return rows if len(range(n)[rows]) else slice(None, None, draw(st.sampled_from([None, 1, 2, -1])))
    if kind == "range":
        return range(draw(st.integers(-n, -1)), draw(st.integers(1, n)))
    dtype = draw(st.sampled_from(["int64", "int32", "int8", "uint8"]))
    lowest = 0 if dtype == "uint8" else -n
    numbers = draw(st.lists(st.integers(lowest, n - 1), min_size=1, max_size=3 * n))
    if kind == "list":
        return numbers
    array = np.array(numbers, dtype=dtype)
    return array[::-1] if draw(st.booleans()) else array


def check(view, rows, n_data):
    """That a view is these rows, whichever way it is asked for them."""
    assert (view.n_obs, view.n_data) == (len(rows), n_data)
    everything = view.take(np.arange(len(rows)))
    assert everything.dtype == np.int64
    assert everything.tolist() == rows.tolist()
    backwards = np.arange(len(rows))[::-1]
    assert view.take(backwards).tolist() == rows[::-1].tolist()
    assert view.is_all == (rows.tolist() == list(range(n_data)))
    assert view.repeats == (len(set(rows.tolist())) < len(rows))
    assert view.nbytes <= 4 * max(len(rows), 2)


@settings(max_examples=300)
@given(st.data())
def test_views_of_views_are_numpy_indexing(data):
    n_data = data.draw(st.integers(1, 60))
    rows, view = np.arange(n_data), View.of_all(n_data)
    check(view, rows, n_data)
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(choices(len(rows)))
        rows = rows[list(chosen) if isinstance(chosen, range) else chosen]
        view = view.subset(chosen)
        check(view, rows, n_data)
        check(pickle.loads(pickle.dumps(view)), rows, n_data)


@given(st.data())
def test_the_same_rows_are_the_same_view_however_they_were_chosen(data):
    n = data.draw(st.integers(1, 40))
    one = data.draw(choices(n))
    rows = np.arange(n)[list(one) if isinstance(one, range) else one]
    first, second = View.of_all(n).subset(one), View.of_all(n).subset(np.arange(n)).subset(rows)
    assert first.fingerprint == second.fingerprint
    assert first.nbytes == second.nbytes
    assert (first.fingerprint is None) == (rows.tolist() == list(range(n)))
    other = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1)))
    same = other.tolist() == rows.tolist()
    assert (View.of_all(n).subset(other).fingerprint == first.fingerprint) is same


@given(st.lists(st.lists(st.booleans(), max_size=30), min_size=1, max_size=6))
def test_views_of_data_below_each_other(masks):
    masks = [np.array(mask, dtype=bool) for mask in masks]
    view = View.joined([View.of_mask(mask) for mask in masks])
    check(view, np.flatnonzero(np.concatenate(masks)), sum(map(len, masks)))


def test_memory_a_row(monkeypatch):
    monkeypatch.undo()
    n = 200_000
    mask = np.random.default_rng(0).random(n) < 0.5
    assert View.of_all(n).nbytes < 100
    assert View.of_all(n).subset(np.ones(n, dtype=bool)).nbytes < 100
    assert View.of_all(n).subset(slice(10, -10)).nbytes < 100
    assert View.of_all(n).subset(mask).nbytes == 4 * mask.sum()
    assert View.of_all(n).subset(np.arange(n) % 1000 < 900).nbytes == 200 * 8
    assert View.of_all(2**33).subset(slice(5, None)).take(np.array([2**33 - 6])) == [2**33 - 1]
    assert View.of_all(2**33).subset([2**33 - 1, 3]).take(np.array([0, 1])).tolist() == [2**33 - 1, 3]
    # More rows than 32 bits number, of data with fewer.
    twice = View.joined([View.of_all(2**31), View.of_all(2**31)])
    assert (twice.n_obs, twice.is_all) == (2**32, True)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (np.ones(9, dtype=bool), ValueError, r"rows must hold one boolean for each of the 10 rows, got 9"),
        (np.ones(11, dtype=bool), ValueError, "got 11"),
        ([True] * 9, ValueError, "got 9"),
        (np.zeros(10, dtype=bool), ValueError, "rows must choose at least one row, got none"),
        ([], ValueError, "at least one row"),
        (slice(5, 5), ValueError, "at least one row"),
        (range(3, 3), ValueError, "at least one row"),
        ([0, 10], IndexError, r"rows must be row numbers in \[-10, 10\), got numbers from 0 to 10"),
        ([-11], IndexError, "from -11 to -11"),
        (range(5, 11), IndexError, "from 5 to 10"),
        (np.array([2**64 - 1], dtype="uint64"), IndexError, "18446744073709551615"),
        ([0.0, 1.0], TypeError, r"rows must be booleans or row numbers, got float64"),
        (np.array(["a"]), TypeError, "rows must be booleans or row numbers, got <U1"),
        ([0, None], TypeError, "got object"),
        (None, TypeError, "got object"),
        ("abc", TypeError, "got <U3"),
        (3, ValueError, r"rows must be one-dimensional, got shape \(\)"),
        ([[0, 1]], ValueError, r"one-dimensional, got shape \(1, 2\)"),
        (np.ones((10, 1), dtype=bool), ValueError, "one-dimensional"),
        (slice(0.5, 3), TypeError, "rows.start must be an integer, got 0.5"),
        (slice(None, None, 0), ValueError, "step other than 0"),
    ],
)
def test_rows_that_cannot_be_meant(rows, error, message):
    with pytest.raises(error, match=message):
        View.of_all(10).subset(rows)
