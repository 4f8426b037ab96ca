"""Shuffled mini-batches from AnnData files, as fast as the machine's memory and disk allow."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import samplers, storage, types
    from .collection import DatasetCollection, write_sharded
    from .loader import Loader
    from .mapped import MappedCollection
    from .samplers import (
        ClassSampler,
        DistributedSampler,
        MatchedSampler,
        RandomSampler,
        SequentialSampler,
        WeightedClassSampler,
    )
    from .samplers import _base as abc

__version__ = "0.5.0"

__all__ = [
    "ClassSampler",
    "DatasetCollection",
    "DistributedSampler",
    "Loader",
    "MappedCollection",
    "MatchedSampler",
    "RandomSampler",
    "SequentialSampler",
    "WeightedClassSampler",
    "abc",
    "samplers",
    "storage",
    "types",
    "write_sharded",
]

# Where each public name lives. Names are imported on first use, so that `import annbatch` costs milliseconds and a
# script that only samples never loads anndata or zarr.
_HOME = {
    "ClassSampler": ".samplers",
    "DatasetCollection": ".collection",
    "DistributedSampler": ".samplers",
    "Loader": ".loader",
    "MappedCollection": ".mapped",
    "MatchedSampler": ".samplers",
    "RandomSampler": ".samplers",
    "SequentialSampler": ".samplers",
    "WeightedClassSampler": ".samplers",
    "write_sharded": ".collection",
}
_MODULES = ("abc", "samplers", "storage", "types")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(import_module(_HOME[name], __name__), name)
        globals()[name] = value
        return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
