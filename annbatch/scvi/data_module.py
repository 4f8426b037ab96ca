"""A data module that describes loaders to scvi-tools and hands it their batches under its names."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.lightning import AnnDataModule
from annbatch.loader import Loader, Sides
from annbatch.samplers import SequentialSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

__all__ = ["SCVIDataModule"]


class SCVIDataModule(AnnDataModule):
    """Loaders for training and validation of a model of scvi-tools, by ``model.train(datamodule=...)``.

    Labels come as the integers that the loaders make of them once, when data is added, so that no batch is encoded by itself.

    Parameters
    ----------
    train, validation, test
        A :class:`~annbatch.Loader` each, made with ``to="torch"`` (or `device`), with ``dense=True``, with raw counts in X, and with
        all columns named below among its `labels`; often views of one (:meth:`annbatch.Loader.split`). `test` is for
        ``data.test_dataloader()`` and ``data.inference_dataloader(sides["test"])``: training does not touch it.
    batch_key
        The label that tells batches (donors, experiments) apart. None: all cells are of one batch.
    labels_key
        The label that is the cell's class. None: there are no classes. Cells whose label is missing get `unlabeled_category`.
    categorical_covariate_keys
        Labels that count as categorical covariates. Continuous ones are the loaders' own `covariates`.
    unlabeled_category
        The class of cells without a label.
    model_name
        Name of the model class that is trained.

    Raises
    ------
    TypeError
        When `train`, `validation` or `test` is no Loader.
    ValueError
        When the loaders hold no data, lack a label, differ in labels, covariates or variables, or a model could not take their
        batches: they are no torch tensors, or no raw counts.

    Notes
    -----
    For scvi-tools 1.5 and later. The arguments of ``model.train`` that split data or set a batch size do not apply: `train`,
    `validation` and their batch sizes are as given. With several devices each rank gets its share, as with
    :class:`annbatch.lightning.AnnDataModule`.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from annbatch import Loader
    >>> from annbatch.scvi import SCVIDataModule
    >>> obs = pd.DataFrame({"donor": list("abcdabcd")}, index=[f"cell_{i}" for i in range(8)])
    >>> cells = ad.AnnData(np.ones((8, 3), dtype="float32"), obs=obs)
    >>> given = dict(chunk_size=2, preload_nchunks=2, batch_size=2, shuffle=True, to="torch", dense=True, labels=["donor"])
    >>> sides = Loader(**given).add_adata(cells).split({"train": 0.5, "validation": 0.5}, by="donor")
    >>> data = SCVIDataModule(**sides, batch_key="donor")
    >>> data.n_vars, data.n_batch, data.n_obs
    (3, 4, 4)

    ``model = SCVI(registry=data.registry)`` and ``model.train(datamodule=data)`` do the rest.
    """

    def __init__(
        self,
        train: Loader,
        validation: Loader | None = None,
        test: Loader | None = None,
        *,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] = (),
        unlabeled_category: str = "Unknown",
        model_name: str = "SCVI",
    ) -> None:
        given = {"train": train, "validation": validation, "test": test}
        for name, loader in given.items():
            if not (isinstance(loader, Loader) or (name != "train" and loader is None)):
                hint = "; pass its sides by name: SCVIDataModule(**sides, ...)" if isinstance(loader, Sides) else ""
                msg = f"{name} must be a Loader, got {type(loader).__name__}{hint}"
                raise TypeError(msg)
            if loader is not None:
                self._must_suit(name, loader)
        super().__init__(**given)
        self.model_name = model_name
        self.unlabeled_category = unlabeled_category
        self._loader = train
        self._batch_key = batch_key
        self._labels_key = labels_key
        self._categorical = list(categorical_covariate_keys)
        needed = [key for key in (batch_key, labels_key, *self._categorical) if key is not None]
        missing = [key for key in needed if key not in train.encoders]
        if missing:
            msg = f"train must be a Loader with labels={sorted({*train.encoders, *missing})}, got {sorted(train.encoders)}"
            raise ValueError(msg)
        for name, loader in (("validation", validation), ("test", test)):
            if loader is not None:
                self._must_agree(train, name, loader, needed)

    @staticmethod
    def _must_suit(name: str, loader: Loader) -> None:
        if loader.to != "torch":
            msg = f'{name} must hand out torch tensors: make its Loader with to="torch" and dense=True, got to={loader.to!r}'
            raise ValueError(msg)
        if loader.is_scaled:
            msg = f"{name} must hand out raw counts, which scvi-tools models: leave out normalize_total and log1p"
            raise ValueError(msg)
        _variables(name, loader)

    @staticmethod
    def _must_agree(train: Loader, name: str, other: Loader, needed: list[str]) -> None:
        for key in needed:
            if key not in other.encoders or not other.encoders[key].equals(train.encoders[key]):
                msg = (
                    f"train and {name} must have the same labels of {key!r}, in the same order, got "
                    f"{list(train.encoders[key])} and {list(other.encoders.get(key, []))}: make them by loader.split(), "
                    f"or fix them, as in Loader(labels={{{key!r}: [...]}})"
                )
                raise ValueError(msg)
        if other.covariates != train.covariates:
            msg = f"train and {name} must have the same covariates, got {train.covariates} and {other.covariates}"
            raise ValueError(msg)
        if not _variables(name, other).equals(_variables("train", train)):
            msg = f"train and {name} must have the same variables, got {train.n_var} and {other.n_var} that differ"
            raise ValueError(msg)

    def inference_dataloader(self, loader: Loader | None = None) -> _Inference:
        """Return batches for ``model.get_latent_representation(dataloader=...)`` and its like, all rows in their order.

        Parameters
        ----------
        loader
            The rows, such as the loader that was split. None: those of training.
        """
        loader = self._loader if loader is None else loader
        size = max(loader.batch_sampler.batch_size or 1, 1)
        in_order = loader.subset(slice(None), batch_sampler=SequentialSampler(size, 1, size))
        return _Inference(self, in_order)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        """Give the parts of a batch the names that scvi-tools has for them; Lightning calls this."""
        import torch

        X = batch.get("X")
        if not isinstance(X, torch.Tensor):
            msg = f"batches for scvi-tools must hold a torch tensor X, got {type(X).__name__}: no x=False, and no transform that changes X"
            raise ValueError(msg)
        if X.layout != torch.strided:
            X = X.to_dense()
        n_rows = X.shape[0]
        nothing = torch.zeros((n_rows, 1), dtype=torch.int64, device=X.device)
        tensors = {
            "X": X.float(),
            "batch": nothing if self._batch_key is None else self._codes(batch, self._batch_key),
            "labels": nothing,
        }
        if self._labels_key is not None:
            codes = batch["labels"][self._labels_key][:, None]
            tensors["labels"] = torch.where(codes < 0, self._unlabeled_code, codes)
        if self._categorical:
            tensors["extra_categorical_covs"] = torch.cat([self._codes(batch, key) for key in self._categorical], dim=1)
        if self._loader.covariates:
            tensors["extra_continuous_covs"] = batch["covariates"]
        return tensors

    @staticmethod
    def _codes(batch: Any, key: str) -> Any:
        codes = batch["labels"][key]
        if (codes < 0).any():
            msg = (
                f"every row must have a label of {key!r}, got {int((codes < 0).sum())} rows of a batch without: leave them out "
                f"by obs_filter or subset, or give them a label"
            )
            raise ValueError(msg)
        return codes[:, None]

    @property
    def n_obs(self) -> int:
        """Number of rows to train on."""
        return self._loader.n_obs

    @property
    def n_train(self) -> int:
        """Number of rows to train on."""
        return self._loader.n_obs

    @property
    def n_val(self) -> int:
        """Number of rows to validate on."""
        validation = self._given["validation"]
        return validation.n_obs if isinstance(validation, Loader) else 0

    @property
    def n_vars(self) -> int:
        """Number of variables of a batch."""
        return self._loader.n_var

    @property
    def var_names(self) -> pd.Index:
        """Names of the variables of a batch."""
        return _variables("train", self._loader)

    @property
    def batch_labels(self) -> np.ndarray | None:
        """What the codes of the batches stand for."""
        return None if self._batch_key is None else self._names(self._batch_key)

    @property
    def labels(self) -> np.ndarray | None:
        """What the codes of the labels stand for; the last one, or the one of that name, is of cells without a label."""
        if self._labels_key is None:
            return None
        names = self._names(self._labels_key)
        return names if self.unlabeled_category in names else np.append(names, self.unlabeled_category)

    @property
    def n_batch(self) -> int:
        """Number of batches."""
        return 1 if self._batch_key is None else len(self._names(self._batch_key))

    @property
    def n_labels(self) -> int:
        """Number of labels, with that of cells that have none."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def n_samples(self) -> int:
        """Number of samples, which this module does not tell apart."""
        return 1

    @property
    def n_continuous_cov(self) -> int:
        """Number of continuous covariates."""
        return len(self._loader.covariates)

    @property
    def n_cats_per_cov(self) -> tuple[int, ...] | None:
        """Number of categories of each categorical covariate; None where there are none."""
        return tuple(len(self._names(key)) for key in self._categorical) or None

    @property
    def registry(self) -> dict[str, Any]:
        """What scvi-tools wants to know of the data, in its form; ``SCVI(registry=data.registry)`` makes a model of it."""
        categorical: dict[str, Any] = {
            "data_registry": {},
            "state_registry": {},
            "summary_stats": {"n_extra_categorical_covs": len(self._categorical)},
        }
        if self._categorical:
            categorical["data_registry"] = {"attr_key": "_scvi_extra_categorical_covs", "attr_name": "obsm"}
            categorical["state_registry"] = {
                "field_keys": self._categorical,
                "mapping": {key: self._names(key) for key in self._categorical},
                "n_cats_per_key": list(self.n_cats_per_cov or ()),
            }
        covariates = self._loader.covariates
        continuous: dict[str, Any] = {
            "data_registry": {},
            "state_registry": {},
            "summary_stats": {"n_extra_continuous_covs": len(covariates)},
        }
        if covariates:
            continuous["data_registry"] = {"attr_key": "_scvi_extra_continuous_covs", "attr_name": "obsm"}
            continuous["state_registry"] = {"columns": np.array(covariates, dtype=object)}
        return {
            "scvi_version": _version_of("scvi-tools"),
            "model_name": self.model_name,
            "setup_method_name": "setup_datamodule",
            "setup_args": {
                "layer": None,
                "batch_key": self._batch_key,
                "labels_key": self._labels_key,
                "samples_key": None,
                "size_factor_key": None,
                "categorical_covariate_keys": self._categorical or None,
                "continuous_covariate_keys": list(covariates) or None,
            },
            "field_registries": {
                "X": {
                    "data_registry": {"attr_name": "X", "attr_key": None},
                    "state_registry": {
                        "n_obs": self.n_obs,
                        "n_vars": self.n_vars,
                        "column_names": self.var_names.to_numpy(),
                    },
                    "summary_stats": {"n_vars": self.n_vars, "n_cells": self.n_obs},
                },
                "batch": {
                    "data_registry": {"attr_name": "obs", "attr_key": "_scvi_batch"},
                    "state_registry": {"categorical_mapping": self.batch_labels, "original_key": self._batch_key},
                    "summary_stats": {"n_batch": self.n_batch},
                },
                "labels": {
                    "data_registry": {"attr_name": "obs", "attr_key": "_scvi_labels"},
                    "state_registry": {
                        "categorical_mapping": self.labels,
                        "original_key": self._labels_key,
                        "unlabeled_category": self.unlabeled_category,
                    },
                    "summary_stats": {"n_labels": self.n_labels},
                },
                "size_factor": {"data_registry": {}, "state_registry": {}, "summary_stats": {}},
                "extra_categorical_covs": categorical,
                "extra_continuous_covs": continuous,
            },
        }

    def _names(self, key: str) -> np.ndarray:
        return self._loader.encoders[key].to_numpy(dtype=object)

    @property
    def _unlabeled_code(self) -> int:
        names = self.labels
        return 0 if names is None else int(np.flatnonzero(names == self.unlabeled_category)[0])


class _Inference:
    """Batches for scvi-tools, outside of a Trainer."""

    def __init__(self, module: SCVIDataModule, loader: Loader) -> None:
        self._module = module
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._loader:
            yield self._module.on_before_batch_transfer(batch, 0)


def _variables(name: str, loader: Loader) -> pd.Index:
    if loader.var is None:
        msg = f"{name} must hold data with names of variables: add AnnData, paths or a collection to it first"
        raise ValueError(msg)
    return loader.var.index


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
