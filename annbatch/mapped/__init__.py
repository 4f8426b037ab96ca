"""MappedCollection: a map-style dataset over many AnnData files."""

from .mapped import MappedCollection

__all__ = ["MappedCollection"]
