"""Where each of several things of given lengths begins, when they lie behind each other."""

from __future__ import annotations

import numpy as np

__all__ = ["starts_of"]


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Return the start of each, and the end of the last: int64, one entry longer, the row pointer of rows of these lengths."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
