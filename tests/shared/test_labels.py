"""Labels mean the same over all datasets, in whatever order these come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch._shared.labels import code_dtype, encode_together, is_missing, recode, unite_categories, unite_dtypes
from annbatch._shared.row_filter import as_conditions, found_in, passing, what_is_not_there


@pytest.mark.parametrize(
    ("tables", "united"),
    [
        ([["T", "B"], ["A"]], ["A", "B", "T"]),
        ([[3, 1], [2.5]], [1.0, 2.5, 3.0]),
        ([[True], [False]], [False, True]),
        ([[], ["b", "a"], []], ["a", "b"]),
        ([[]], []),
        ([["a"], [1]], None),
        ([[True], [1]], None),
        ([np.array([2**63], dtype="uint64"), [-1]], None),
        (
            [pd.to_datetime(["2021-01-01"]), pd.to_datetime(["2020-01-01"])],
            pd.to_datetime(["2020-01-01", "2021-01-01"]),
        ),
        ([["a", 1]], None),
    ],
)
def test_tables_are_united_and_sorted(tables, united):
    found = unite_categories([pd.Index(table) for table in tables])
    if united is None:
        assert found is None
    else:
        assert found.tolist() == list(united)


def test_text_of_any_dtype_is_the_same_text():
    tables = [pd.Index(["b", "a"], dtype=dtype) for dtype in (object, "string")]
    assert unite_categories(tables).tolist() == ["a", "b"]
    codes, labels = encode_together("x", [(np.array([0, 1]), table) for table in tables], [2, 2], ["first", "second"])
    assert codes.tolist() == [1, 0, 1, 0]
    assert labels.tolist() == ["a", "b"]


def test_order_stays_where_all_agree():
    def dtype(categories, ordered):
        return pd.CategoricalDtype(categories, ordered=ordered)

    low_high = dtype(["low", "high"], True)
    assert unite_dtypes([low_high, low_high]) == low_high
    assert unite_dtypes([low_high, dtype(["low", "high"], False)]) == dtype(["high", "low"], False)
    assert unite_dtypes([low_high, dtype(["low", "mid", "high"], True)]) == dtype(["high", "low", "mid"], False)


labels = st.lists(st.none() | st.sampled_from("abcdefgh"), max_size=12)


@given(columns=st.lists(st.none() | labels, min_size=1, max_size=5))
def test_codes_equal_those_of_pandas_on_everything_at_once(columns):
    given = [None if column is None else pd.Categorical(column[::-1]) for column in columns]
    per_dataset = [None if column is None else (column.codes, column.categories) for column in given]
    n_rows = [2 if column is None else len(column) for column in given]
    values = [value for column in given for value in ([None, None] if column is None else column)]
    codes, categories = encode_together("x", per_dataset, n_rows, [str(number) for number in range(len(columns))])
    expected = pd.Categorical([None if pd.isna(value) else value for value in values])
    assert codes.tolist() == expected.codes.tolist()
    assert categories.tolist() == expected.categories.tolist()
    assert codes.dtype == code_dtype(len(categories))


def test_a_label_that_is_not_listed_has_no_code():
    assert recode(np.array([0, 1, -1], np.int8), ["a", "b"], pd.Index(["b", "c"])).tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    ("n", "dtype"), [(0, "int8"), (128, "int8"), (129, "int16"), (1 << 15, "int16"), (1 << 17, "int32")]
)
def test_codes_are_small(n, dtype):
    assert code_dtype(n) == dtype
    assert n <= np.iinfo(code_dtype(n)).max + 1


def test_kinds_that_meet_are_named_with_the_files():
    with pytest.raises(TypeError, match=r"'x' holds text in one but booleans in two: make it one kind"):
        encode_together("x", [(np.zeros(1, int), ["a"]), (np.zeros(1, int), [True])], [1, 1], ["one", "two"])


def test_what_is_missing():
    assert all(is_missing(value) for value in (None, np.nan, float("nan"), np.float32("nan"), pd.NA))
    assert not any(is_missing(value) for value in ("", 0, "nan", False))


def test_rows_that_pass():
    codes = np.array([0, 1, -1, 1], np.int8)
    assert passing(codes, ["a", "b"], ["b"]).tolist() == [False, True, False, True]
    assert passing(codes, ["a", "b"], [np.nan, "a"]).tolist() == [True, False, True, False]
    assert as_conditions("obs_filter", {"x": "ab", "y": ("c", None)}) == {"x": ["ab"], "y": ["c", None]}
    with pytest.raises(
        TypeError, match=r"obs_filter\['x'\] must be a value or a list of values, got \[1\] for a value"
    ):
        as_conditions("obs_filter", {"x": [[1]]})


def test_values_of_a_filter_that_no_row_has_are_found():
    codes = np.array([0, 2, 2, 0], np.int8)
    labels = np.array(["a", "b", "c"], object)  # b is a category without rows
    assert found_in(codes, labels, ["a", "c"]) == ((True, True), ())
    assert found_in(codes, labels, ["a", "b", "z", None]) == ((True, False, False, False), ("'a'", "'b'", "'c'"))
    assert found_in(np.array([-1]), labels, [np.nan]) == ((True,), ())
    here, there = found_in(codes, labels, ["a", "z"]), found_in(np.array([0]), np.array(["z"], object), ["a", "z"])
    conditions = {"x": ["a", "z"]}
    assert what_is_not_there(conditions, [{"x": here}, {}, {"x": there}]) == ""
    assert what_is_not_there(conditions, [{"x": here}]) == "no row has 'z' in 'x', there is 'a', 'b', 'c'"
    many = found_in(np.arange(9), np.arange(9), [99])
    text = "no row has 99 in 'x', there is 0, 1, 2, 3, 4, ..."
    assert (
        what_is_not_there({"x": [99]}, [{"x": many}]) == what_is_not_there({"x": [np.int64(99)]}, [{"x": many}]) == text
    )
