"""A data module that hands loaders to Lightning as they are, and each rank its share of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from annbatch.loader import Loader, Sides
from annbatch.samplers import DistributedSampler

try:
    from lightning.pytorch import LightningDataModule
except ImportError:
    try:
        from pytorch_lightning import LightningDataModule
    except ImportError as error:
        msg = 'annbatch.lightning needs Lightning, which is not installed: pip install "annbatch[lightning]"'
        raise ImportError(msg, name="lightning") from error

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = ["AnnDataModule"]


class AnnDataModule(LightningDataModule):
    """Loaders for training, validation, test and prediction, for a Lightning ``Trainer``.

    Parameters
    ----------
    train, validation, test, predict
        A :class:`~annbatch.Loader` each, or anything that Lightning takes as a data loader, or None. Loaders read in threads,
        so they go to Lightning as they are, without worker processes.

    Raises
    ------
    TypeError
        When one of them is no iterable, or all sides of a split.
    ValueError
        When none is given.

    Notes
    -----
    With several devices each rank gets its share of the rows of a :class:`~annbatch.Loader`: its sampler is wrapped in a
    :class:`~annbatch.DistributedSampler`, unless it is one. The ranks agree on a seed, that of the first one.

    A checkpoint that Lightning takes in the middle of an epoch holds where the training loader of every rank stands.
    ``trainer.fit(model, data, ckpt_path=...)`` goes on with the very next batch, on as many devices as before.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from annbatch import Loader
    >>> from annbatch.lightning import AnnDataModule
    >>> cells = ad.AnnData(np.eye(8, dtype="float32"))
    >>> data = AnnDataModule(train=Loader(chunk_size=1, preload_nchunks=4, batch_size=4, shuffle=True).add_adata(cells))
    >>> len(data.train_dataloader())
    2

    Training and validation by donor (see :meth:`annbatch.Loader.split`):

    >>> import pandas as pd
    >>> cells.obs["donor"] = pd.Categorical(["D1", "D2", "D3", "D4"] * 2)
    >>> loader = Loader(chunk_size=1, preload_nchunks=2, batch_size=2, shuffle=True).add_adata(cells)
    >>> data = AnnDataModule(**loader.split({"train": 0.5, "validation": 0.5}, by="donor"))
    >>> len(data.train_dataloader()), len(data.val_dataloader())
    (2, 2)
    """

    def __init__(
        self,
        train: Iterable[Any] | None = None,
        validation: Iterable[Any] | None = None,
        test: Iterable[Any] | None = None,
        predict: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        self._given = {"train": train, "validation": validation, "test": test, "predict": predict}
        if all(loader is None for loader in self._given.values()):
            msg = "at least one of train, validation, test and predict must be given, got none"
            raise ValueError(msg)
        for name, loader in self._given.items():
            if isinstance(loader, Sides):  # iterable, but over the names of the sides
                msg = f"{name} must be a Loader or another data loader, got Sides; pass its sides by name: AnnDataModule(**sides)"
                raise TypeError(msg)
            if loader is not None and not hasattr(loader, "__iter__"):
                msg = f"{name} must be a Loader or another data loader, got {type(loader).__name__}"
                raise TypeError(msg)
        if validation is None:
            # Lightning takes a method that is there for a loader that is there.
            self.__dict__["val_dataloader"] = None

    def __repr__(self) -> str:
        given = ", ".join(f"{name}: {loader!r}" for name, loader in self._given.items() if loader is not None)
        return f"{type(self).__name__}({given})"

    # Lightning's own looks for what a DataLoader of torch has.
    __str__ = __repr__

    def train_dataloader(self) -> Any:
        """Return the training loader, of this rank."""
        return self._share("train")

    def val_dataloader(self) -> Any:
        """Return the validation loader, of this rank."""
        return self._share("validation")

    def test_dataloader(self) -> Any:
        """Return the test loader, of this rank."""
        return self._share("test")

    def predict_dataloader(self) -> Any:
        """Return the loader for predictions, of this rank."""
        return self._share("predict")

    def _share(self, name: str) -> Any:
        loader = self._given[name]
        if loader is None:
            msg = f"AnnDataModule has no {name} loader: pass {name}= when it is made"
            raise RuntimeError(msg)
        trainer = self.trainer
        alone = trainer is None or trainer.world_size == 1
        if alone or not isinstance(loader, Loader) or isinstance(loader.batch_sampler, DistributedSampler):
            return loader
        return loader.subset(slice(None), batch_sampler=DistributedSampler(loader.batch_sampler, dist_info="torch"))
