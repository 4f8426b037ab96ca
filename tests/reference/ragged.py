"""Twins of ``annbatch/storage/engine/_ragged.pyx``."""

from __future__ import annotations

import numpy as np

__all__ = ["find_extents", "lengths_and_starts"]


def lengths_and_starts(pointers: np.ndarray, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Length of each row, and the first value of every ``block_rows``-th row."""
    return np.diff(pointers), pointers[:-1:block_rows]


def find_extents(pointers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First value and number of values of each row."""
    return pointers[rows], pointers[rows + 1] - pointers[rows]
