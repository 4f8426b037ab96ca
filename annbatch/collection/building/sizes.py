"""Sizes as people write them: "20GB", "512 MiB", 4096."""

from __future__ import annotations

import re
from numbers import Integral

# What a row counts besides its matrices and obs, so that rows without either have a size.
ROW_BYTES = 64

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b(?:ytes?)?\s*", re.IGNORECASE)


def parse_bytes(name: str, value: int | str) -> int:
    """Bytes meant by a number of bytes or a text with a unit ("2GB" is 2 * 10**9, "2GiB" is 2 * 2**30)."""
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if match is None:
            msg = f'{name} must be a size such as "2GB" or "512MiB", got {value!r}'
            raise ValueError(msg)
        value = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    return positive_int(name, value)


def parse_rows_or_bytes(name: str, value: int | str) -> tuple[int | None, int | None]:
    """(rows, None) for a number, (None, bytes) for a text with a unit."""
    if isinstance(value, str):
        return None, parse_bytes(name, value)
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
