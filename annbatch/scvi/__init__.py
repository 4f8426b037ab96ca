"""Training scvi-tools models on loaders: a data module that speaks their protocol."""

from .data_module import SCVIDataModule

__all__ = ["SCVIDataModule"]
