"""Dtype codes of the kernels, and casts that refuse to change a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .engine import _rows
from .engine._plan import PIECE, Placing

if TYPE_CHECKING:
    from collections.abc import Iterable

# The same order as in _convert.h.
_CODES = {
    np.dtype(name): code
    for code, name in enumerate(
        ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "bool"]
    )
}


def type_code(dtype: np.dtype) -> int:
    """Return the kernels' code of a dtype in native byte order; -1 for one they can only copy."""
    return _CODES.get(dtype, -1)


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the smallest dtype that holds the values of all; float32 when there are none."""
    return np.result_type(*found) if (found := [native(dtype) for dtype in dtypes]) else np.dtype(np.float32)


def native(dtype: np.dtype) -> np.dtype:
    """Return the dtype in this machine's byte order."""
    return dtype.newbyteorder("=")


def cast_exactly(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert, or raise ValueError when a value would change.

    Rounding between float dtypes is allowed; becoming infinite is not.
    """
    if values.dtype == dtype:
        return values
    source, target = type_code(values.dtype), type_code(dtype)
    if source >= 0 and target >= 0:
        values = np.ascontiguousarray(values)
        out = np.empty(values.shape, dtype)
        whole = np.array([(0, out.ctypes.data, values.size, -1, -1)], PIECE)
        placing = Placing(source, target, values.itemsize, out.itemsize)
        exact = _rows.place(flat_bytes(values), 0, whole, placing) < 0
    else:
        with np.errstate(all="ignore"):
            out = values.astype(dtype)
            both_float = values.dtype.kind == "f" and dtype.kind == "f"
            exact = bool(
                (np.isinf(out) == np.isinf(values)).all() if both_float else (out.astype(values.dtype) == values).all()
            )
    if not exact:
        raise ValueError(lossy(values.dtype, dtype))
    return out


def lossy(source: np.dtype, target: np.dtype) -> str:
    """Return the text of the error about a cast that changes values."""
    return f"dtype={target.name} cannot hold all values, which are stored as {source.name}; choose a wider dtype"


def flat_bytes(array: np.ndarray) -> np.ndarray:
    """View a C-contiguous array as flat bytes, also when it is empty."""
    return array.reshape(-1).view(np.uint8)
