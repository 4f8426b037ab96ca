"""Names of cells without a Python object per row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.storage.text import CompactText

# Whatever a Python string can be: empty, zeros inside, four-byte characters, half of a surrogate pair.
texts = st.lists(st.text(st.characters(), max_size=5), max_size=200)


@given(st.lists(texts, max_size=4), st.randoms(use_true_random=False))
def test_takes_what_was_put_in(pieces, random):
    everything = [text for piece in pieces for text in piece]
    rows = np.array([random.randrange(len(everything)) for _ in range(100 * bool(everything))], dtype=np.int64)
    expected = [everything[row] for row in rows]
    for kept in (
        CompactText.of(pieces),
        CompactText.stacked([CompactText.of([piece]) for piece in pieces] or [CompactText.of([])]),
    ):
        assert len(kept) == len(everything)
        assert kept.take(rows).tolist() == expected


def test_long_texts_beside_short_ones():
    kept = CompactText.of([["a", "b" * 70_000], ["c" * 300, ""]])
    assert [len(text) for text in kept.take(np.arange(4))] == [1, 70_000, 300, 0]


@pytest.mark.parametrize("n", [1, 100_000])
def test_memory_is_little_more_than_the_bytes(n):
    kept = CompactText.of([[f"cell_{i:020d}" for i in range(n)]])
    assert kept.nbytes <= 25 * n * 1.2 + 8
