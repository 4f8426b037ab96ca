"""What type checkers are told of torch: a Loader and a MappedCollection are its datasets. At run time nothing is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["IterableStyle", "MapStyle"]

if TYPE_CHECKING:
    from torch.utils.data import Dataset, IterableDataset

    from annbatch.types import LoaderOutput

    IterableStyle: TypeAlias = IterableDataset[LoaderOutput]
    MapStyle: TypeAlias = Dataset[dict[str, Any]]
else:
    IterableStyle = MapStyle = object
