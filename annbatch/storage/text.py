"""Text of many rows, such as the names of cells, in little more memory than its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .engine._ragged import decode_texts
from .row_pointers import RowPointers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CompactText"]


class CompactText:
    """One text per row: UTF-8 bytes below each other, and about 1.2 bytes a row that say where each begins.

    As Python strings the names of cells take 60 to 80 bytes each, and the garbage collector goes through them.

    Parameters
    ----------
    data
        uint8, the bytes of all rows.
    places
        Where the bytes of each row lie.
    """

    def __init__(self, data: np.ndarray, places: RowPointers) -> None:
        self.data, self.places = data, places

    @classmethod
    def of(cls, pieces: Iterable[Any]) -> CompactText:
        """Take in texts, a piece (a sequence of str) at a time; no more than one piece exists as Python strings."""
        data, lengths = [], []
        for piece in pieces:
            encoded = [text.encode("utf-8", "surrogatepass") for text in piece]
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            lengths[-1] = lengths[-1].astype(np.min_scalar_type(int(lengths[-1].max(initial=0))))
            data.append(np.frombuffer(b"".join(encoded), np.uint8))
        places = RowPointers.of_lengths(np.concatenate(lengths) if lengths else np.empty(0, np.uint8))
        return cls(_joined(data), places)

    @classmethod
    def stacked(cls, texts: Sequence[CompactText]) -> CompactText:
        """Put texts below each other."""
        if len(texts) == 1:
            return texts[0]
        lengths = np.concatenate([text.places.lengths for text in texts])
        return cls(_joined([text.data for text in texts]), RowPointers.of_lengths(lengths))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the texts of rows (int64, in range, any order): an object array of str."""
        texts = np.empty(len(rows), dtype=object)
        texts[:] = decode_texts(self.data, *self.places.extents(rows))
        return texts

    def __len__(self) -> int:
        return len(self.places.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.data.nbytes + self.places.nbytes


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint8)
