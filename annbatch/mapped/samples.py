"""Samples that are rows of one block, and the way back from samples to that block.

``MappedCollection`` reads a batch into one block per key. torch's DataLoader wants a list of samples, and its collate
function copies them into a block again. Here the first sample of a batch remembers the blocks, so that collating all samples
of the batch, unchanged and in order, hands out the blocks themselves.
"""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TORCH_COLLATE = "torch.utils.data._utils.collate"

__all__ = ["Sample", "SampleColumn", "collate", "collate_numpy", "make_samples", "register_with_torch"]


@dataclass(frozen=True)
class SampleColumn:
    """One key of a batch.

    Attributes
    ----------
    values
        The value of each row that has one, as a sample shows it.
    block
        The same as one array, or None when the values make none (text, rows of different length).
    rows
        Numbers of the samples that the values belong to; None: all, in order.
    """

    values: Sequence[Any]
    block: np.ndarray | None
    rows: np.ndarray | None = None


class _Batch:
    """The columns that the samples of one batch were made from."""

    __slots__ = ("columns", "n_samples")

    def __init__(self, columns: dict[str, SampleColumn], n_samples: int) -> None:
        self.columns = columns
        self.n_samples = n_samples


class Sample(dict[str, Any]):
    """The first sample of a batch: a dict that knows the batch. Copies and pickles of it are plain dicts."""

    __slots__ = ("batch",)

    def __init__(self, values: dict[str, Any], batch: _Batch) -> None:
        super().__init__(values)
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def make_samples(columns: dict[str, SampleColumn], n_samples: int) -> list[dict[str, Any]]:
    """Cut a batch into samples.

    Parameters
    ----------
    columns
        What each key holds. A sample has only the keys that have a value for it.
    n_samples
        Number of samples.
    """
    samples: list[dict[str, Any]]
    if all(column.rows is None for column in columns.values()):
        keys = tuple(columns)
        rows = zip(*(column.values for column in columns.values()), strict=True)
        samples = [dict(zip(keys, row, strict=True)) for row in rows]
    else:
        samples = [{} for _ in range(n_samples)]
        for key, column in columns.items():
            owners = samples if column.rows is None else [samples[row] for row in column.rows.tolist()]
            for sample, value in zip(owners, column.values, strict=True):
                sample[key] = value
    if samples:
        samples[0] = Sample(samples[0], _Batch(columns, n_samples))
    return samples


def collate(samples: Sequence[Any]) -> Any:
    """Make one batch of tensors of a list of samples.

    Samples that one call of ``__getitems__`` made are handed out as the block that they are rows of, without a copy.
    Anything else goes through :func:`torch.utils.data.default_collate`.

    Raises
    ------
    ImportError
        If torch is not installed.
    KeyError
        If a key is only in some of the samples, because not every file has it.
    ValueError
        If rows of a key differ in shape, because its columns differ between files and are not joined.
    """
    try:
        import torch
        from torch.utils.data import default_collate
    except ImportError as error:
        msg = "collate makes torch tensors, but torch is not installed: pip install torch"
        raise ImportError(msg) from error
    batch = _unchanged_batch(samples)
    if batch is None:
        _check_alike(samples)
        return default_collate([dict(sample) if isinstance(sample, Sample) else sample for sample in samples])
    out: dict[str, Any] = {}
    for key, column in batch.columns.items():
        # Text makes no tensor, nor do the missing labels in it: torch would look at the first value and then stumble.
        out[key] = list(column.values) if column.block is None else torch.from_numpy(column.block)
    return out


def collate_numpy(samples: Sequence[Any]) -> dict[str, Any]:
    """Make one batch of NumPy arrays of a list of samples; a list where values are text.

    Samples that one call of ``__getitems__`` made are handed out as the block that they are rows of, without a copy. Works
    without torch: as ``collate_fn`` of a DataLoader whose batches go to JAX, and as ``batch_fn`` of grain.

    Raises
    ------
    KeyError
        If a key is only in some of the samples, because not every file has it.
    ValueError
        If there are no samples, or rows of a key differ in shape, because its columns differ between files and are not joined.
    """
    batch = _unchanged_batch(samples)
    if batch is not None:
        return {key: list(c.values) if c.block is None else c.block for key, c in batch.columns.items()}
    if not len(samples):
        msg = "samples must hold at least one sample to be collated, got none"
        raise ValueError(msg)
    _check_alike(samples)
    return {key: _stacked([sample[key] for sample in samples]) for key in samples[0]}


def _stacked(values: list[Any]) -> Any:
    is_text = any(isinstance(value, str) for value in values)
    return values if is_text else np.stack([np.asarray(value) for value in values])


def register_with_torch() -> None:
    """Let torch's own default_collate take batches apart no more than :func:`collate` does.

    Uses the table that torch offers for this (see the documentation of ``torch.utils.data.default_collate``). Only our
    own type is added, nothing that torch does with other types changes. Cheap when done already, and nothing happens
    before torch was imported by somebody.
    """
    module = sys.modules.get(_TORCH_COLLATE)
    table: dict[Any, Callable[..., Any]] | None = getattr(module, "default_collate_fn_map", None)
    if table is not None and Sample not in table:
        table[Sample] = _collate_for_torch


def _collate_for_torch(samples: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    module = sys.modules[_TORCH_COLLATE]
    if collate_fn_map is module.default_collate_fn_map:
        return collate(samples)
    # Somebody collates by rules of their own, which we must not pass over.
    plain = [dict(sample) if isinstance(sample, Sample) else sample for sample in samples]
    return module.collate(plain, collate_fn_map=collate_fn_map)


def _check_alike(samples: Sequence[Any]) -> None:
    """See that samples can be stacked; torch would not say which key is in the way."""
    dicts = [sample for sample in samples if isinstance(sample, dict)]
    keys = [set(sample) for sample in dicts]
    partial = sorted(keys[0].union(*keys) - keys[0].intersection(*keys)) if keys else []
    if partial:
        msg = f"{partial} is only in some samples of the batch, because not every file has it: leave it out, or batch by file"
        raise KeyError(msg)
    for key in dicts[0] if dicts else ():
        shapes = sorted({sample[key].shape for sample in dicts if isinstance(sample[key], np.ndarray)})
        if len(shapes) > 1:
            msg = (
                f"{key!r} must have rows of one shape to be stacked, got {shapes[0]} and {shapes[1]} in one batch: "
                "its columns differ between files, so join the genes, leave it out, or batch by file"
            )
            raise ValueError(msg)


def _unchanged_batch(samples: Sequence[Any]) -> _Batch | None:
    """Return the batch that these are all samples of, in order and as they were made; else None."""
    first = samples[0] if len(samples) else None
    if not isinstance(first, Sample):
        return None
    batch = first.batch
    columns = batch.columns
    if len(samples) != batch.n_samples or any(column.rows is not None for column in columns.values()):
        return None
    if not set(map(type, samples)) <= {dict, Sample}:
        return None
    # This runs for every batch, hence without a loop in Python. A value put in place of another is another object, and the
    # rows of a block are objects of their own, so equal order of the values is equal order of the samples.
    if list(chain.from_iterable(samples)) != list(columns) * len(samples):
        return None
    now = chain.from_iterable(map(dict.values, samples))
    made = chain.from_iterable(zip(*(column.values for column in columns.values()), strict=True))
    return batch if all(map(operator.is_, now, made)) else None
