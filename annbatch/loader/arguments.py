"""The sampler of a Loader: the one that was given, or one made of the arguments that stand for it."""

from __future__ import annotations

from typing import Any

from annbatch._shared.args import as_bool
from annbatch.abc import Sampler

__all__ = ["as_sampler"]

# What most models of single cells are trained with.
_BATCH_SIZE = 128


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

    given = {"chunk_size": 512, "preload_nchunks": 32, "batch_size": _BATCH_SIZE, **given}
    kind = RandomSampler if as_bool("shuffle", given.pop("shuffle", False)) else SequentialSampler
    return kind.fitted(**given)
