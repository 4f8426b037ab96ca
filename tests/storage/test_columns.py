"""obs by columns is what pandas makes of the same frames: dtypes, categories, order, missing values, names of rows."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch.storage import columns
from annbatch.storage.columns import CompactFrame, stacked
from tests.reference.obs_frames import concat_frames

KINDS = {
    "int": (st.integers(-5, 5), "int64"),
    "short": (st.integers(0, 5), "uint8"),
    "float": (st.sampled_from([0.5, np.nan, -1.0]), "float32"),
    "bool": (st.booleans(), "bool"),
    "date": (st.sampled_from([pd.Timestamp("2020-01-01"), pd.NaT]), "datetime64[ns]"),
    "nullable int": (st.sampled_from([1, 2, pd.NA]), "Int16"),
    "nullable float": (st.sampled_from([1.5, pd.NA]), "Float64"),
    "nullable bool": (st.sampled_from([True, False, pd.NA]), "boolean"),
    "text": (st.text(st.sampled_from("aé\N{GRINNING FACE}"), max_size=3), object),
    "text or nan": (st.sampled_from(["a", "b", np.nan]), object),
    "text or None": (st.sampled_from(["a", "c", None]), object),
    "nullable text": (st.sampled_from(["a", "b", pd.NA]), "string"),
    "anything": (st.sampled_from(["a", 1, 2.5, None]), object),
    "labels": (st.sampled_from(["x", "y", None]), "category"),
    "numbers as labels": (st.sampled_from([1, 3, 2]), "category"),
    "stages": (st.sampled_from(["low", "high"]), pd.CategoricalDtype(["low", "high"], ordered=True)),
    "zoned": (st.sampled_from([pd.Timestamp("2020-01-01", tz="UTC"), pd.NaT]), "datetime64[ns, UTC]"),
}


@st.composite
def frames_and_rows(draw):
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=5))
    usual = {name: draw(st.sampled_from(sorted(KINDS))) for name in names}
    frames = []
    for number in range(draw(st.integers(1, 4))):
        n_rows = draw(st.integers(0, 6))
        here = {name: kind for name, kind in usual.items() if draw(st.integers(0, 9))}
        here |= {name: draw(st.sampled_from(sorted(KINDS))) for name in here if not draw(st.integers(0, 9))}
        values = {name: draw(st.lists(KINDS[kind][0], min_size=n_rows, max_size=n_rows)) for name, kind in here.items()}
        index = pd.Index(
            [f"é{number}_{i}" for i in range(n_rows)], name=draw(st.sampled_from([None, "cell"])), dtype=object
        )
        data = {name: pd.Series(values[name], index=index, dtype=KINDS[kind][1]) for name, kind in here.items()}
        frames.append(pd.DataFrame(data, index=index))
    n_rows = sum(map(len, frames))
    return frames, np.array(draw(st.lists(st.integers(0, n_rows - 1), max_size=8)) if n_rows else [], dtype=np.int64)


@pytest.mark.parametrize("always_few", [4096, 1])
@given(drawn=frames_and_rows())
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:The behavior of array concatenation:FutureWarning")
def test_rows_are_those_of_the_frames_below_each_other(always_few, drawn):
    frames, rows = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_ALWAYS_FEW", always_few)  # 1: text is kept as bytes
        patch.setattr(columns, "_ROWS_PER_VALUE", 1 if always_few > 1 else 100)
        compact = [CompactFrame.of_frame(frame) for frame in frames]
        together = stacked(compact)
        expected = concat_frames(frames)
        options = {"check_column_type": bool(len(expected.columns))}
        pd.testing.assert_frame_equal(together.take(rows), expected.take(rows), **options)
        pd.testing.assert_frame_equal(together.frame(rows), expected.take(rows), **options)
        pd.testing.assert_frame_equal(together.frame(), expected, **options)
        elsewhere = pickle.loads(pickle.dumps(together))
        pd.testing.assert_frame_equal(elsewhere.take(rows), expected.take(rows), **options)


def test_text_that_differs_after_a_nul_stays_different():
    frame = pd.DataFrame({"x": ["a\0b", "a\0c", "a"], "y": ["", "\0x", ""]})
    compact = CompactFrame.of_frame(frame)
    pd.testing.assert_frame_equal(
        compact.take(np.array([2, 1, 0])).reset_index(drop=True), frame[::-1].reset_index(drop=True)
    )
