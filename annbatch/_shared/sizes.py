"""Sizes as people write them: "20GB", "512 MiB", 4096."""

from __future__ import annotations

import re

from .args import as_count

__all__ = ["as_n_bytes"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b(?:ytes?)?\s*", re.IGNORECASE)


def as_n_bytes(name: str, value: int | str) -> int:
    """Return what is meant by a number of bytes or a text with a unit ("2GB" is 2 * 10**9, "2GiB" is 2 * 2**30)."""
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if match is None:
            msg = f'{name} must be a size such as "2GB" or "512MiB", got {value!r}'
            raise ValueError(msg)
        value = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    return as_count(name, value)
