"""DatasetCollection and write_sharded: many files as one well shuffled store."""

from .collection import DatasetCollection, write_sharded

__all__ = ["DatasetCollection", "write_sharded"]
