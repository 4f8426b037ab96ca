"""Training under Lightning: a data module over loaders."""

from .data_module import AnnDataModule

__all__ = ["AnnDataModule"]
