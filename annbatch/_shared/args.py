"""Checks of arguments, and the one sentence form that reports them: parameter, rule, value seen.

Every function takes the name of the parameter and the value given, and returns the value in the form that the rest of the
package works with. TypeError: of the wrong kind; ValueError: of the right kind but not allowed.
"""

from __future__ import annotations

import operator
import os
import re
import sys
import warnings
from collections import Counter
from typing import Any

import numpy as np

__all__ = [
    "as_bool",
    "as_bytes",
    "as_choice",
    "as_count",
    "as_function",
    "as_generator",
    "as_keys",
    "as_list",
    "as_names",
    "as_numeric",
    "as_range",
    "as_rows_or_bytes",
    "levels_to_user",
    "resolve_range",
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b(?:ytes?)?\s*", re.IGNORECASE)


def _seen(value: Any) -> str:
    return f"got {value!r} ({type(value).__name__})"


# -- one value


def as_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int that is at least `minimum`."""
    try:
        count = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        msg = f"{name} must be an integer, {_seen(value)}"
        raise TypeError(msg)
    if count < minimum:
        msg = f"{name} must be >= {minimum}, got {count}"
        raise ValueError(msg)
    if count >= 2**63:
        msg = f"{name} must be < 2**63, got {count}"
        raise ValueError(msg)
    return count


def as_bool(name: str, value: Any) -> bool:
    """Return `value` as a bool; only bools are taken, since 0, 1 and "no" usually mean a slip."""
    if not isinstance(value, (bool, np.bool_)):
        msg = f"{name} must be True or False, {_seen(value)}"
        raise TypeError(msg)
    return bool(value)


def as_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value`, which must be one of `choices`."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        raise ValueError(msg)
    return value


def as_function(name: str, value: Any, what: str) -> Any:
    """Return `value`, which must be callable or None; `what` says what it is called for."""
    if value is not None and not callable(value):
        msg = f"{name} must be a function {what}, or None, {_seen(value)}"
        raise TypeError(msg)
    return value


def as_numeric(dtype: Any) -> np.dtype[Any]:
    """Return `dtype` as a number type in native byte order."""
    found: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    if found.kind not in "biuf":
        msg = f"dtype must be a number type, got {found}"
        raise ValueError(msg)
    return found


def as_generator(rng: Any) -> np.random.Generator:
    """Return `rng` as a numpy Generator; an integer seed works, with a FutureWarning."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, (bool, np.bool_)):
        if rng < 0:
            msg = f"rng must be a numpy.random.Generator or a seed >= 0, got {rng}"
            raise ValueError(msg)
        warnings.warn(
            f"rng={rng} is taken as a seed; pass numpy.random.default_rng({rng}) instead",
            FutureWarning,
            stacklevel=levels_to_user(),
        )
        return np.random.default_rng(int(rng))
    msg = f"rng must be a numpy.random.Generator, {_seen(rng)}; use numpy.random.default_rng(seed)"
    raise TypeError(msg)


def as_bytes(name: str, value: Any) -> int:
    """Return bytes meant by a number of bytes or a text with a unit ("2GB" is 2 * 10**9, "2GiB" is 2 * 2**30)."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            msg = f'{name} must be a size such as "2GB" or "512MiB", got {value!r}'
            raise ValueError(msg)
        value = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    return as_count(name, value)


def as_rows_or_bytes(name: str, value: Any) -> tuple[int | None, int | None]:
    """Return (rows, None) for a number, (None, bytes) for a text with a unit."""
    return (None, as_bytes(name, value)) if isinstance(value, str) else (as_count(name, value), None)


# -- several values


def as_list(name: str, values: Any, one: str) -> list[Any]:
    """Return several things as a list; a single one, which may also be gone through, is a slip."""
    if isinstance(values, (str, bytes, os.PathLike)) or hasattr(values, "shape"):
        shown = repr(os.fspath(values)) if isinstance(values, (str, bytes, os.PathLike)) else type(values).__name__
        msg = f"{name} must be a list, got a single {one} ({shown}): pass [{one}]"
        raise TypeError(msg)
    try:
        return list(values)
    except TypeError:
        msg = f"{name} must be a list, {_seen(values)}"
        raise TypeError(msg) from None


def as_names(name: str, names: Any) -> tuple[str, ...]:
    """Return a list of distinct names as a tuple; a single string usually means a slip."""
    if isinstance(names, str):
        msg = f"{name} must be a list of names, got the string {names!r}: pass [{names!r}]"
        raise TypeError(msg)
    found = _texts(name, names, "a list of names")
    twice = [each for each, count in Counter(found).items() if count > 1]
    if twice:
        msg = f"{name} must name each only once, got {', '.join(map(repr, twice[:3]))} more than once"
        raise ValueError(msg)
    return found


def as_keys(name: str, keys: Any) -> tuple[str, ...]:
    """Return one name, or several, as a tuple."""
    return (keys,) if isinstance(keys, str) else _texts(name, keys, "a name or a list of names")


def _texts(name: str, values: Any, rule: str) -> tuple[str, ...]:
    if isinstance(values, (set, frozenset, dict)):
        # The order of a set is another in every process, and that of columns counts; what a dict says besides would be lost.
        msg = f"{name} must be {rule}, got a {type(values).__name__}: pass a list"
        raise TypeError(msg)
    try:
        found = tuple(values)
    except TypeError:
        msg = f"{name} must be {rule}, {_seen(values)}"
        raise TypeError(msg) from None
    for each in found:
        if not isinstance(each, str):
            msg = f"{name} must be {rule}, {_seen(each)} among them"
            raise TypeError(msg)
    return found


# -- ranges of rows


def as_range(mask: Any) -> slice:
    """Return `mask` as `slice(start, stop)` with an integer start >= 0, a stop > start or None, and no step."""
    if mask is None:
        return slice(0, None)
    if not isinstance(mask, slice):
        msg = f"mask must be a slice(start, stop), got {mask!r} ({type(mask).__name__})"
        raise TypeError(msg)
    if mask.step is not None and as_count("mask.step", mask.step, minimum=-(2**63)) != 1:
        msg = f"mask must have step 1, got {mask}"
        raise ValueError(msg)
    start = 0 if mask.start is None else as_count("mask.start", mask.start, minimum=-(2**63))
    stop = None if mask.stop is None else as_count("mask.stop", mask.stop, minimum=-(2**63))
    if start < 0 or (stop is not None and stop < 0):
        msg = f"mask must have start >= 0 and stop >= 0, got {mask}; negative numbers do not count from the end here"
        raise ValueError(msg)
    if stop is not None and stop <= start:
        msg = f"mask must select at least one row, got {mask}"
        raise ValueError(msg)
    return slice(start, stop)


def resolve_range(mask: slice, n_obs: int) -> tuple[int, int]:
    """First row and row after the last that `mask` (as given by `as_range`) selects out of `n_obs`."""
    start, stop = mask.start, n_obs if mask.stop is None else mask.stop
    if stop > n_obs or start >= n_obs:
        msg = f"mask must lie within the {n_obs} rows of the data and select at least one, got {mask}"
        raise ValueError(msg)
    return start, stop


def levels_to_user() -> int:
    """Stack level of the first caller outside this package, so that a warning points at the user's line."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 (the documented way to look at one's callers)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("annbatch."):
        frame = frame.f_back
        level += 1
    return level
