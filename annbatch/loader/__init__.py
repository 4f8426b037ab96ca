"""Loader: mini-batches of AnnData rows that are on disk or in memory."""

from .loader import Loader
from .sides import Sides

__all__ = ["Loader", "Sides"]
