"""Checks of arguments, and the one sentence form that reports them: parameter, rule, value seen."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np

__all__ = ["as_bool", "as_count", "as_generator", "as_range", "resolve_range"]


def as_count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int that is at least `minimum`."""
    if isinstance(value, (bool, np.bool_)):
        msg = f"{name} must be an integer, got {value!r} ({type(value).__name__})"
        raise TypeError(msg)
    try:
        count = operator.index(value)
    except TypeError:
        msg = f"{name} must be an integer, got {value!r} ({type(value).__name__})"
        raise TypeError(msg) from None
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
        msg = f"{name} must be True or False, got {value!r} ({type(value).__name__})"
        raise TypeError(msg)
    return bool(value)


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
            stacklevel=_levels_to_user(),
        )
        return np.random.default_rng(int(rng))
    msg = (
        f"rng must be a numpy.random.Generator, got {rng!r} ({type(rng).__name__}); use numpy.random.default_rng(seed)"
    )
    raise TypeError(msg)


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


def _levels_to_user() -> int:
    """Stack level of the first caller outside this package, so that a warning points at the user's line."""
    import sys

    level, frame = 1, sys._getframe(1)  # noqa: SLF001 (the documented way to look at one's callers)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("annbatch."):
        frame = frame.f_back
        level += 1
    return level
