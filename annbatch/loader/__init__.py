"""Loader: mini-batches of AnnData rows that are on disk or in memory."""

from .loader import Loader

__all__ = ["Loader"]
