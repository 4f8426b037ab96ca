"""Sizes as people write them: "20GB", "512 MiB", 4096."""

from __future__ import annotations

from numbers import Integral

from annbatch._shared.sizes import as_n_bytes

# What a row counts besides its matrices and obs, so that rows without either have a size.
ROW_BYTES = 64


def parse_rows_or_bytes(name: str, value: int | str) -> tuple[int | None, int | None]:
    """(rows, None) for a number, (None, bytes) for a text with a unit."""
    if isinstance(value, str):
        return None, as_n_bytes(name, value)
    return positive_int(name, value), None


def positive_int(name: str, value: object) -> int:
    """Check a count that must be an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        msg = f"{name} must be an integer, got {value!r} ({type(value).__name__})"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be >= 1, got {value}"
        raise ValueError(msg)
    return int(value)
