"""Arguments of Loader and MappedCollection, checked."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.abc import Sampler

from .args import as_bool

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_list", "as_names", "as_numeric", "as_paths", "as_sampler", "one_of"]


def as_sampler(sampler: Sampler | None, **arguments: Any) -> Sampler:
    """Return the given sampler, or make one from the arguments that were given (are not None)."""
    given = {name: value for name, value in arguments.items() if value is not None}
    if sampler is not None:
        if given:
            msg = f"{', '.join(given)} must not be given together with batch_sampler, which decides about them"
            raise ValueError(msg)
        if not isinstance(sampler, Sampler):
            msg = f"batch_sampler must be an annbatch.abc.Sampler, got {type(sampler).__name__}"
            raise TypeError(msg)
        return sampler
    from annbatch.samplers import RandomSampler, SequentialSampler

    given = {"chunk_size": 512, "preload_nchunks": 32, "batch_size": 1, **given}
    return RandomSampler(**given) if as_bool("shuffle", given.pop("shuffle", False)) else SequentialSampler(**given)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Return `value`, which must be None or one of `choices`."""
    if value is not None and value not in choices:
        msg = f"{name} must be None or one of {', '.join(map(repr, choices))}, got {value!r}"
        raise ValueError(msg)
    return value


def as_list(parameter: str, values: Any, one: str) -> list[Any]:
    """Return several things as a list; a single one, which may also be gone through, is a slip."""
    if isinstance(values, (str, bytes, os.PathLike)) or hasattr(values, "shape"):
        shown = repr(os.fspath(values)) if isinstance(values, (str, bytes, os.PathLike)) else type(values).__name__
        msg = f"{parameter} must be a list, got a single {one} ({shown}): pass [{one}]"
        raise TypeError(msg)
    try:
        return list(values)
    except TypeError:
        msg = f"{parameter} must be a list, got {values!r} ({type(values).__name__})"
        raise TypeError(msg) from None


def as_paths(parameter: str, paths: Any) -> list[str | os.PathLike[str]]:
    """Return a list of paths."""
    found = as_list(parameter, paths, "path")
    for path in found:
        if not isinstance(path, (str, os.PathLike)):
            msg = f"{parameter} must hold paths, got {path!r} ({type(path).__name__})"
            raise TypeError(msg)
    return found


def as_names(parameter: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a list of distinct names as a tuple; a single string usually means a slip."""
    if isinstance(names, str):
        msg = f"{parameter} must be a list of names, got the string {names!r}: pass [{names!r}]"
        raise TypeError(msg)
    try:
        found = tuple(names)
    except TypeError:
        msg = f"{parameter} must be a list of names, got {names!r}"
        raise TypeError(msg) from None
    if not all(isinstance(name, str) for name in found):
        msg = f"{parameter} must be a list of names, got {names!r}"
        raise TypeError(msg)
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        msg = f"{parameter} must name each only once, got {', '.join(map(repr, twice[:3]))} more than once"
        raise ValueError(msg)
    return found


def as_numeric(dtype: Any) -> np.dtype[Any]:
    """Return `dtype` as a number type in native byte order."""
    found: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    if found.kind not in "biuf":
        msg = f"dtype must be a number type, got {found}"
        raise ValueError(msg)
    return found
