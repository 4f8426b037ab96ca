"""Training scvi-tools models on loaders: a data module that speaks their protocol."""

try:
    from .data_module import SCVIDataModule
except ImportError as error:
    if error.name != "lightning":
        raise
    msg = 'annbatch.scvi needs scvi-tools, which is not installed: pip install "annbatch[scvi]" (Python 3.12 or later)'
    raise ImportError(msg) from error

__all__ = ["SCVIDataModule"]
