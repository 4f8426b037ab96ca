"""Twins of ``annbatch/collection/building/_pack.pyx``."""

from __future__ import annotations

import numpy as np

__all__ = ["whole_range"]


def whole_range(values: np.ndarray) -> tuple[bool, int, int]:
    """Whether all values are whole numbers that an int64 holds, without negative zero; the lowest and the highest."""
    values = values.astype(np.float64)
    whole = bool(
        np.all(np.isfinite(values))
        and np.all(np.abs(values) < 2.0**63)
        and np.all(np.trunc(values) == values)
        and not np.any((values == 0) & np.signbit(values))
    )
    return (whole, int(values.min()), int(values.max())) if whole and values.size else (whole, 0, 0)
