"""Loader: mini-batches of AnnData rows that are on disk or in memory."""

from __future__ import annotations

import copy
import sys
import warnings
import weakref
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from annbatch import storage
from annbatch._shared.args import (
    as_bool,
    as_choice,
    as_count,
    as_function,
    as_generator,
    as_list,
    as_names,
    as_numeric,
    levels_to_user,
)
from annbatch._shared.row_filter import as_conditions, what_is_not_there
from annbatch._shared.torch_types import IterableStyle
from annbatch._shared.workers import current_worker
from annbatch.abc import Sampler
from annbatch.storage.cpus import threads_each

from .annotations import Covariates, LabelTables, as_wanted_labels
from .arguments import as_sampler
from .batches import BatchReader
from .datasets import Dataset, Table, Wanted, X, collection_groups
from .device import OnDevice, as_device
from .exports import check_installed, gpu_is_there, let_torch_warn_unheard, makers
from .genes import Genes
from .passes import LoaderPass, LoaderPosition, loads
from .scaling import KeptMedian, as_scaling
from .sealing import own_copy
from .sides import Sides, as_wanted_sides, divide

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Self

    import anndata as ad
    import zarr

    from .views import View

__all__ = ["Loader"]


class Loader(IterableStyle):
    """Mini-batches of the rows of AnnData objects that are on disk or in memory.

    Rows are chosen and cut into batches by a sampler, and copied straight from where they lie to their place in the batch. A
    pass is ``for batch in loader``; every pass is another shuffle. Reading goes on in the background while the caller works
    on a batch.

    Works by itself, inside a ``torch.utils.data.DataLoader`` (with ``batch_size=None``; it counts as an ``IterableDataset``
    there), and under Lightning.

    Parameters
    ----------
    batch_sampler
        Decides which rows are read and how they are cut into batches. None: a :class:`~annbatch.RandomSampler` or
        :class:`~annbatch.SequentialSampler` made from the next six arguments, which can be given only then.
    chunk_size
        Neighbouring rows that are read together (default 512). 1 is a perfect shuffle; larger is faster.
    preload_nchunks
        Chunks that are read together and shuffled (default 32).
    batch_size
        Rows per batch (default 128). Any number: a load request is rounded to whole batches.
    shuffle
        Whether rows come in random order (default False).
    drop_last
        Whether a short last batch is left out (default False).
    rng
        Source of the shuffle, a :class:`numpy.random.Generator`. Default: a fresh seed.
    return_index
        Whether batches carry row numbers (int64) as ``"index"``: of all rows that were added, also in a view.
    preload_to_gpu
        Whether matrices are moved to the current GPU: cupy types come out with ``to=None``, torch tensors on the GPU with
        ``to="torch"``. None: when cupy is installed and sees a GPU, except in DataLoader workers.
    to
        None: ``scipy.sparse.csr_matrix`` and ``numpy.ndarray``. ``"torch"``: tensors, sparse CSR or dense. ``"jax"``: jax
        arrays or ``jax.experimental.sparse.CSR``.
    layers, obsm
        Names of layers and obsm entries to yield besides X. Only these are read. The layer ``"raw.X"`` is ``.raw.X``, which is
        never aligned by name.
    obs_columns
        obs columns to yield, in this order. None: all. An empty list: batches have neither obs nor var, hence no pandas, and
        row names are not kept in memory.
    obs_index
        Whether ``batch["obs"]`` is indexed by the names of the cells, which take about 1.2 times their bytes of memory. False: they
        are neither read nor kept, and the index holds row numbers (int64), those of `return_index`. `labels` and `covariates`
        with an empty list for `obs_columns` need no names either way.
    obs_filter
        ``{column: value}`` or ``{column: [values]}``. Only rows for which all conditions hold are read: the loader is a view of
        them. NaN (or None) among the values selects rows whose value is missing. A dataset without the column has no such
        rows. The columns need not be among `obs_columns`. A value that no row of any dataset has brings up a UserWarning when the
        loader is first used, since data that is added later may have it.
    join
        None: the var of all datasets must be identical. ``"inner"``, ``"outer"``: datasets are aligned by var name, keeping
        the variables of all datasets (in the order of the first), or of any (sorted, when they differ). Values that a
        dataset lacks are zero.
    var_names
        Yield just these variables, in this order. None: all.
    dense
        Whether sparse rows come out as dense arrays.
    dtype
        Dtype of X and layers. None: the one in the store, or the one recorded there before values were stored compactly. A value
        that it cannot hold is an error; floats are rounded to the nearest of a narrower float type (float64 16777217 to float32
        16777216), but never become infinite.
    prefetch
        Load requests to be read ahead of the caller, in a background thread. 0: read in the caller's thread.
    num_threads
        Threads that read and decode. None: the CPUs this process may use, shared out among DataLoader workers.
    transform
        Called with each batch, a dict; what it returns is handed out. Runs in the background thread.
    to_torch
        Deprecated: ``to_torch=True`` means ``to="torch"``.
    x
        Whether X is read. False: batches have None for it.
    labels
        obs columns to yield as integer codes, ``batch["labels"][name]`` (int64, of the kind that `to` names; int32 in jax without
        64 bit): the place of the label in ``loader.encoders[name]``, all labels of the data, sorted; -1 where it is missing. A
        dict ``{name: [labels]}`` fixes labels and their order, ``{name: None}`` does not.
    unknown
        What becomes of a label that is not among fixed ones: ``"error"``, when data is added, or the code ``"-1"``.
    covariates
        obs columns of numbers to yield as ``batch["covariates"]`` (float32, one column each, NaN where a value is missing).
    normalize_total
        Scale the values of each row of X so that they add up to this, as ``scanpy.pp.normalize_total(target_sum=...)`` does. The
        total of a row is over **all** its stored genes, also where `var_names` or `join` keep only some. Rows without counts
        stay zero. ``"median"``: the median of the totals of all rows that were added; it takes one pass over them, when they are
        added, and is kept in a file beside a collection (``<collection>.totals.json``), for as long as that does not change.
    log1p
        Take ``log(1 + value)`` of X, after `normalize_total`. Each stored value is scaled for itself, as in scanpy: where a row
        of a CSR matrix holds a column twice, the logarithms of both parts add up when it becomes dense. ``X.sum_duplicates()``
        before writing makes them one value.
    library_size
        Whether batches carry the total of each row before scaling, ``batch["library_size"]`` (float32).
    normalize_layers
        Layers that `normalize_total`, `log1p` and `library_size` are about instead of X; the library size is that of the first.
        Scaled values are float32, or `dtype`.
    device
        A torch device, such as ``"cuda"``: batches arrive there as tensors (``to="torch"`` is implied), ``obs`` and ``var`` excepted. Counts
        travel as they are stored and are widened, normalised and, with `dense`, made dense on the device, on a stream of its own
        in the background thread; nobody waits for them but the stream that uses them. Not in DataLoader workers. `transform`
        gets tensors on the device. Values keep the dtype of the store: torch makes no dense rows of a sparse tensor of uint16,
        uint32 or uint64 (``to_dense`` is a NotImplementedError), so pass `dtype`, or ``dense=True``, or call
        ``X.to(torch.float32)`` first.
    nse
        With ``to="jax"``: sparse batches have this number of stored values, of which those after the last row's are zero and count
        nowhere, so that a jitted step compiles once (with ``drop_last=True``). A batch that has more is an error; the
        rows of a batch times the most values of a row are always enough.
    storage_options, max_requests, max_in_flight, cache, cache_size
        For data at URLs and in stores that are not local folders, see docs/far.md. `storage_options`: credentials and the like,
        for fsspec, or one dict per protocol (``{"s3": {...}, "https": {...}}``). `max_requests`: most requests under way at a
        time. `max_in_flight`: most bytes on their way, such as ``"256MB"``. `cache`: a local folder where bytes that were
        fetched are kept for later passes and other processes, and `cache_size` the most it holds, such as ``"500GB"``.

    Raises
    ------
    ValueError, TypeError
        When an argument has a wrong value or is of a wrong kind.
    ImportError
        When the library that `to` names is not installed.

    Notes
    -----
    The process holds the rows of at most ``1 + prefetch`` load requests, of ``chunk_size * preload_nchunks`` rows each, besides
    the batches that the caller keeps. The memory is kept for the next pass; it is freed with the loader, and when a pass is left
    early. Results do not depend on `prefetch` or `num_threads`.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from annbatch import Loader
    >>> adata = ad.AnnData(np.arange(20, dtype="float32").reshape(10, 2))
    >>> loader = Loader(chunk_size=2, preload_nchunks=2, batch_size=4).add_adata(adata)
    >>> [batch["X"].shape for batch in loader]
    [(4, 2), (4, 2), (2, 2)]
    """

    def __init__(
        self,
        *,
        batch_sampler: Sampler | None = None,
        chunk_size: int | None = None,
        preload_nchunks: int | None = None,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        drop_last: bool | None = None,
        rng: np.random.Generator | None = None,
        return_index: bool = False,
        preload_to_gpu: bool | None = None,
        to: Literal["torch", "jax"] | None = None,
        layers: Sequence[str] = (),
        obsm: Sequence[str] = (),
        obs_columns: Sequence[str] | None = None,
        obs_index: bool = True,
        obs_filter: Mapping[str, Any] | None = None,
        join: Literal["inner", "outer"] | None = None,
        var_names: Sequence[str] | None = None,
        dense: bool = False,
        dtype: Any = None,
        prefetch: int = 1,
        num_threads: int | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        to_torch: bool | None = None,
        x: bool = True,
        labels: Sequence[str] | Mapping[str, Sequence[Any] | None] = (),
        unknown: Literal["error", "-1"] = "error",
        covariates: Sequence[str] = (),
        normalize_total: float | Literal["median"] | None = None,
        log1p: bool = False,
        library_size: bool = False,
        normalize_layers: Sequence[str] | None = None,
        nse: int | None = None,
        device: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        max_requests: int = 128,
        max_in_flight: int | str = "256MB",
        cache: str | os.PathLike[str] | None = None,
        cache_size: int | str | None = None,
    ) -> None:
        self._batch_sampler = as_sampler(
            batch_sampler,
            chunk_size=chunk_size,
            preload_nchunks=preload_nchunks,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            rng=rng,
        )
        if to_torch is not None:
            warnings.warn('to_torch is deprecated, pass to="torch" instead', DeprecationWarning, stacklevel=2)
            to = "torch" if to_torch else to
        if device is not None:
            if to not in (None, "torch") or preload_to_gpu:
                msg = f"device needs torch tensors, got to={to!r} and preload_to_gpu={preload_to_gpu!r} beside it"
                raise ValueError(msg)
            to, preload_to_gpu = "torch", False
        self._to: Literal["torch", "jax"] | None = as_choice("to", to, (None, "torch", "jax"))
        if self._to is not None:
            check_installed(self._to, f"to={self._to!r}")
        # Looked up now, so that a slip shows here; by name, so that the loader can go to another process.
        self._device = None if device is None else str(as_device(device))
        self._preload_to_gpu = None if preload_to_gpu is None else as_bool("preload_to_gpu", preload_to_gpu)
        if self._preload_to_gpu and self._to is None:
            check_installed("cupy", "preload_to_gpu=True")
        join = as_choice("join", join, (None, "inner", "outer"))
        wanted_labels = as_wanted_labels(labels, unknown)
        self._wanted = Wanted(
            x=as_bool("x", x),
            layers=as_names("layers", layers),
            obsm=as_names("obsm", obsm),
            obs_columns=None if obs_columns is None else as_names("obs_columns", obs_columns),
            obs_index=as_bool("obs_index", obs_index),
            obs_filter=as_conditions("obs_filter", obs_filter),
            labels=tuple(wanted_labels.fixed),
            covariates=as_names("covariates", covariates),
            may_lack=join == "outer",
        )
        if not self._wanted.keys:
            msg = "x=False reads no X, so layers or obsm must name something to read"
            raise ValueError(msg)
        names = None if var_names is None else as_names("var_names", var_names)
        if names == ():
            msg = "var_names must name at least one variable, got none; pass None for all"
            raise ValueError(msg)
        self._table = Table(
            genes=Genes(join=join, wanted=None if names is None else pd.Index(names)),
            labels=LabelTables(wanted_labels) if self._wanted.labels else None,
            covariates=Covariates(self._wanted.covariates) if self._wanted.covariates else None,
            wanted=self._wanted,
        )
        self._nse = None if nse is None else as_count("nse", nse)
        if self._nse is not None and (self._to != "jax" or dense):
            msg = f'nse pads sparse batches of to="jax", got to={self._to!r} and dense={dense!r}'
            raise ValueError(msg)
        self._return_index = as_bool("return_index", return_index)
        self._dense = as_bool("dense", dense)
        self._dtype = None if dtype is None else as_numeric(dtype)
        self._scaling = as_scaling(
            normalize_total, log1p, library_size, normalize_layers, self._wanted.keys, self._dtype
        )
        self._prefetch = as_count("prefetch", prefetch, minimum=0)
        self._num_threads = None if num_threads is None else as_count("num_threads", num_threads)
        self._transform = as_function("transform", transform, "of a batch")
        self._far = storage.FarOptions(storage_options, max_requests, max_in_flight, cache, cache_size)
        self._has_collection = False
        # The rows of a loader that subset or split made; None: all that the filter lets pass.
        self._chosen: View | None = None
        self._has_looked_for_values = False
        self._n_subsets = 0
        self._position: LoaderPosition | None = None
        self._resume: LoaderPosition | None = None
        # Kept from pass to pass, because the first touch of fresh memory is slow.
        self._pool = storage.BufferPool()
        self._n_passes = 0
        self._passes: weakref.WeakSet[LoaderPass] = weakref.WeakSet()

    # -- adding data

    def use_collection(
        self,
        collection: Iterable[Any] | zarr.Group | str | os.PathLike[str],
        *,
        load_adata: Callable[[zarr.Group], ad.AnnData] | None = None,
    ) -> Self:
        """Read all datasets of a collection.

        Parameters
        ----------
        collection
            A :class:`~annbatch.DatasetCollection`, its zarr group, or a path or URL of it.
        load_adata
            Called with the zarr group of each dataset; returns the AnnData to use, in memory or backed. None: X, obs, var and
            what `layers` and `obsm` name, straight from the group.

        Returns
        -------
        The loader.

        Raises
        ------
        RuntimeError
            When a collection was added before, or a pass is open.
        ValueError
            When the collection is empty, or its datasets do not fit what was added before.
        """
        self._check_may_add()
        if self._has_collection:
            msg = (
                "use_collection was called before, and takes one collection; add more data with add_adatas or add_paths"
            )
            raise RuntimeError(msg)
        groups = collection_groups(collection, self._far, quick=load_adata is None)
        if not groups:
            msg = f"collection must hold at least one dataset, got an empty one: {collection!r}"
            raise ValueError(msg)
        if load_adata is None:
            with storage.fetched_ahead(groups, self._wanted.needs):
                added = [Dataset.from_group(group, self._wanted, _name_of(group)) for group in groups]
            for dataset in added:
                dataset.close()
        else:
            added = [Dataset.from_adata(load_adata(group), self._wanted, _name_of(group)) for group in groups]
        self._add(added, KeptMedian.beside(groups) if load_adata is None else None)
        self._has_collection = True
        return self

    def add_adata(self, adata: ad.AnnData) -> Self:
        """Add one AnnData, in memory or backed; see :meth:`add_adatas`."""
        return self.add_adatas([adata])

    def add_adatas(self, adatas: Sequence[ad.AnnData]) -> Self:
        """Add AnnData objects, in memory or backed.

        Parameters
        ----------
        adatas
            Their X, and the layers and obsm entries that the loader was asked for, may be ``anndata.abc.CSRDataset`` (zarr or
            HDF5), ``zarr.Array``, ``h5py.Dataset``, ``scipy.sparse.csr_matrix`` or ``csr_array``, ``numpy.ndarray``.

        Returns
        -------
        The loader.

        Raises
        ------
        TypeError
            When a matrix is of another kind, for instance CSC.
        ValueError
            When the data do not fit each other or what was added before; nothing is added then.
        KeyError
            When a layer, an obsm entry, an obs column or one of `var_names` is missing.
        RuntimeError
            When a pass is open.
        """
        self._check_may_add()
        adatas = as_list("adatas", adatas, "adata")
        names = self._names(len(adatas))
        self._add([Dataset.from_adata(adata, self._wanted, name) for adata, name in zip(adatas, names, strict=True)])
        return self

    def add_dataset(self, dataset: Any, obs: pd.DataFrame | None = None, var: pd.DataFrame | None = None) -> Self:
        """Add one matrix, with obs and var beside it; see :meth:`add_datasets`."""
        return self.add_datasets([dataset], None if obs is None else [obs], None if var is None else [var])

    def add_datasets(
        self,
        datasets: Sequence[Any],
        obs: Sequence[pd.DataFrame] | None = None,
        var: Sequence[pd.DataFrame] | None = None,
    ) -> Self:
        """Add matrices, with obs and var beside them.

        Parameters
        ----------
        datasets
            Matrices of the kinds that :meth:`add_adatas` lists.
        obs, var
            One frame per matrix, or None.

        Returns
        -------
        The loader.

        Raises
        ------
        TypeError, ValueError, KeyError, RuntimeError
            As :meth:`add_adatas`.
        """
        self._check_may_add()
        datasets = as_list("datasets", datasets, "dataset")
        names = self._names(len(datasets))
        frames = []
        for part, given in (("obs", obs), ("var", var)):
            if given is not None and len(given) != len(datasets):
                msg = f"{part} must hold one frame per dataset, got {len(given)} for {len(datasets)} datasets"
                raise ValueError(msg)
            frames.append([None] * len(datasets) if given is None else given)
        added = zip(datasets, *frames, names, strict=True)
        self._add([Dataset.from_matrix(matrix, obs, var, self._wanted, name) for matrix, obs, var, name in added])
        return self

    def add_paths(self, paths: Sequence[str | os.PathLike[str] | tuple[Any, str] | Any]) -> Self:
        """Add ``.h5ad`` and ``.zarr`` paths and URLs; rows are read from them as they lie there.

        Parameters
        ----------
        paths
            Paths and URLs of AnnData files, of both kinds and also mixed. Where a URL does not do: an open file of fsspec
            (``files.open("cells/a.h5ad")``), or a pair of a store, of obstore, fsspec or zarr-python, and a path in it
            (``(store, "a.h5ad")``).

        Returns
        -------
        The loader.

        Raises
        ------
        FileNotFoundError
            When there is nothing at a path.
        TypeError, ValueError, KeyError, RuntimeError
            As :meth:`add_adatas`.
        """
        self._check_may_add()
        places = storage.as_places("paths", paths)
        # Those that are far are opened together.
        far = storage.open_groups([place for place in places if storage.is_far_place(place)], self._far)
        opened = iter(far)
        with storage.fetched_ahead(far, self._wanted.needs):
            added = [self._dataset_at(at, next(opened) if storage.is_far_place(at) else None) for at in places]
        self._add(added)
        return self

    def _dataset_at(self, path: str | os.PathLike[str] | storage.StoredObject, group: Any) -> Dataset:
        group = storage.open_group(path, quick=True) if group is None else group
        try:
            dataset = Dataset.from_group(group, self._wanted, str(path))
            # No open file is carried into a fork.
            dataset.close()
        finally:
            if hasattr(group, "close"):
                group.close()
        return dataset

    def _add(self, datasets: Sequence[Dataset], kept: KeptMedian | None = None) -> None:
        table = self._table.added(datasets).shared()
        # Medians of totals are known before a pass begins: of several DataLoader workers each would go through all rows.
        self._scaling = self._scaling.added(table, None if self._table.lengths else kept, self._num_threads)
        self._table = table
        self._has_looked_for_values = False

    def _check_may_add(self) -> None:
        if self._chosen is not None:
            msg = "data must not be added to a view, whose rows are chosen already: add all data first, then call subset or split"
            raise RuntimeError(msg)
        self._check_no_pass("data must not be added")

    def _check_no_pass(self, rule: str) -> None:
        if any(known.is_open for known in self._passes):
            msg = f"{rule} while a pass is open; finish the pass, or close its iterator, first"
            raise RuntimeError(msg)

    def _names(self, n_added: int) -> list[str]:
        return [f"dataset {number}" for number in range(len(self._table.lengths), len(self._table.lengths) + n_added)]

    # -- what there is

    @property
    def n_obs(self) -> int:
        """Number of rows that the loader reads: of all datasets, or of the view that it is."""
        return self._view.n_obs

    @property
    def n_var(self) -> int:
        """Number of variables of a batch, after `join` and `var_names`."""
        return self._checked_table().n_var

    @property
    def var(self) -> pd.DataFrame | None:
        """Annotations of the variables of a batch, or None when the data has none."""
        return None if self._table.var is None else own_copy(self._table.var)

    @property
    def batch_sampler(self) -> Sampler:
        """The sampler."""
        return self._batch_sampler

    @property
    def dataset_type(self) -> type:
        """Type of the first X that was added."""
        kind = self._checked_table().kind
        assert kind is not None
        return kind

    @property
    def encoders(self) -> dict[str, pd.Index]:
        """Per column of `labels` its labels, in the order of their codes.

        ``loader.encoders["cell_type"][code]`` is the label that ``batch["labels"]["cell_type"]`` means by ``code``. The labels of all
        datasets, sorted, so that they may change when data is added; fixed ones stay as they were given.
        """
        return {} if self._table.labels is None else self._table.labels.encoders

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the columns of ``batch["covariates"]``, in their order."""
        return self._wanted.covariates

    @property
    def to(self) -> Literal["torch", "jax"] | None:
        """The library whose arrays batches hold, as `to` said (`device` says "torch"); None: NumPy and scipy, or cupy."""
        return self._to

    @property
    def is_scaled(self) -> bool:
        """Whether ``batch["X"]`` is normalised or in logarithms, as `normalize_total` and `log1p` say."""
        return self._scaling.scale_of(X) is not None

    @property
    def _obs(self) -> list[pd.DataFrame] | None:
        """One obs frame per dataset, with united categories; of a view one for all its rows. scvi-tools reads this."""
        if self._table.obs is None:
            return None
        return self._table.obs.datasets() if self._view.is_all else [self.obs()]

    def __len__(self) -> int:
        """Count the batches of one pass."""
        return self._batch_sampler.n_batches(self._view_with_rows().n_obs)

    def __repr__(self) -> str:
        n_datasets = len(self._table.lengths)
        shape = f"{self.n_obs} x {self.n_var}" if n_datasets else "no data"
        if not self._view.is_all:
            shape += f", a view of {self._table.n_obs} rows"
        return f"Loader({shape}, {n_datasets} datasets, {self._batch_sampler!r})"

    def _checked_table(self) -> Table:
        if not self._table.lengths:
            msg = "the loader has no data; add some with add_paths, add_adatas or use_collection"
            raise ValueError(msg)
        return self._table

    @property
    def _view(self) -> View:
        """The rows of the data that the loader reads."""
        return self._table.passing if self._chosen is None else self._chosen

    def _view_with_rows(self) -> View:
        table = self._checked_table()
        if not table.n_obs:
            msg = f"the data must have at least one row, got {len(table.lengths)} datasets without rows"
            raise ValueError(msg)
        if not self._view.n_obs:
            msg = f"obs_filter={self._wanted.obs_filter!r}: no row of the {len(table.lengths)} datasets passes it"
            there = table.obs_columns()
            unknown = [column for column in self._wanted.obs_filter if column not in there]
            if unknown:
                msg += f"; no dataset has {', '.join(map(repr, unknown))}, there is {there}"
            lost = what_is_not_there(self._wanted.obs_filter, table.filtered_by)
            raise ValueError(f"{msg}; {lost}" if lost else msg)
        self._warn_of_lost_values()
        return self._view

    def _warn_of_lost_values(self) -> None:
        """Say, once, which values of the filter no row has: when the loader is first used, and so all data is there."""
        if self._has_looked_for_values or not self._wanted.obs_filter:
            return
        self._has_looked_for_values = True
        lost = what_is_not_there(self._wanted.obs_filter, self._table.filtered_by)
        worker = current_worker()
        if lost and (worker is None or worker.id == 0):
            warnings.warn(f"obs_filter: {lost}", UserWarning, stacklevel=levels_to_user())

    def _fingerprint(self) -> dict[str, Any]:
        facts = dict(self._checked_table().fingerprint)
        if self._view.fingerprint is not None:
            facts["view"] = dict(self._view.fingerprint)
        return facts

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the obs of the rows that the loader reads.

        Parameters
        ----------
        columns
            Which columns, in this order; they need not be among `obs_columns`. None: those that batches have, or all where
            batches have none.

        Returns
        -------
        DataFrame
            Row ``i`` describes row ``i`` of the loader, so that samplers made from it fit. Categorical columns have the
            categories of batches. Its index is that of batches. It is the caller's.

        Raises
        ------
        ValueError
            When there is no data, or it has no obs.
        KeyError
            When no dataset has a column.

        Examples
        --------
        >>> import anndata as ad, numpy as np, pandas as pd
        >>> from annbatch import ClassSampler, Loader
        >>> obs = pd.DataFrame({"cell_type": pd.Categorical(list("BTBTBTBT"))}, index=[f"c{i}" for i in range(8)])
        >>> loader = Loader(batch_size=2, obs_filter={"cell_type": "B"})
        >>> loader = loader.add_adata(ad.AnnData(np.ones((8, 3), dtype="float32"), obs=obs))
        >>> loader.obs(["cell_type"])["cell_type"].tolist()
        ['B', 'B', 'B', 'B']
        """
        table = self._checked_table()
        return table.obs_frame(
            None if columns is None else as_names("columns", columns), self._view, names=self._wanted.obs_index
        )

    # -- choosing rows

    def subset(self, rows: Any, batch_sampler: Sampler | None = None) -> Self:
        """Return a loader of some of the rows: a view.

        It shares the data (opened files, annotations, row pointers) with this loader, and has its own sampler, buffers and
        read-ahead. A view of a view is one, too.

        Parameters
        ----------
        rows
            With the meaning that numpy gives it: a boolean array with one entry for each of the `n_obs` rows of this loader, row
            numbers of this loader in any order, also repeated or negative, or a slice. An index of a pandas Series is not
            looked at. Batches of a sequential pass come in this order; neighbours that are neighbours in the data, too, are read
            faster.
        batch_sampler
            Sampler over the rows of the view, numbered from 0. None: a copy of the sampler of this loader, with the same
            arguments, but over all rows of the view (a mask is not taken over), at its first pass, and with a generator of its
            own, derived from that of this loader, which is not moved. A class-based sampler does not fit other rows, and a pass or
            ``len`` of the view says so: pass one that was made of :meth:`obs` of the view
            (``view.subset(slice(None), batch_sampler=...)``).

        Returns
        -------
        The view. Data cannot be added to it.

        Raises
        ------
        TypeError
            When `rows` are neither booleans nor integers, or `batch_sampler` is no Sampler.
        ValueError
            When `rows` choose no row, or are booleans of another number; or there is no data.
        IndexError
            When a row number is out of range.

        Notes
        -----
        A view holds four bytes a row (eight from 2**32 rows of data on), and next to nothing where the rows are long ranges.

        Examples
        --------
        >>> import numpy as np
        >>> from annbatch import Loader
        >>> loader = Loader(batch_size=2, return_index=True).add_dataset(np.ones((6, 3)))
        >>> [batch["index"].tolist() for batch in loader.subset([5, 0, 3])]
        [[5, 0], [3]]
        """
        if not (batch_sampler is None or isinstance(batch_sampler, Sampler)):
            as_sampler(batch_sampler)
        chosen = self._view_with_rows().subset(rows)
        if batch_sampler is None:
            batch_sampler = self._batch_sampler._unstarted_copy(  # noqa: SLF001 (a hook for loaders)
                self._n_subsets, same_rows=chosen.has_rows_of(self._view)
            )
            self._n_subsets += 1
        own = {"_chosen": chosen, "_batch_sampler": batch_sampler, "_pool": storage.BufferPool()}
        begun = {"_position": None, "_resume": None, "_n_passes": 0, "_n_subsets": 0}
        view = copy.copy(self)
        view.__dict__.update(own | begun)
        return view

    def split(
        self,
        sides: Mapping[str, Any] | None = None,
        by: str | Sequence[str] | None = None,
        stratify: str | Sequence[str] | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> Sides:
        """Divide the rows into views: disjoint, and together everything.

        Parameters
        ----------
        sides
            What each side gets, by name. A fraction; fractions add up to 1. Or ``{column: value or values}``: the rows for
            which all conditions hold, as in `obs_filter`; fractions are then of the rows that no condition takes. Or ``...``
            for one side that takes the rest. None: ``{"train": 0.8, "validation": 0.1, "test": 0.1}``.
        by
            Column of obs, or several that count together, whose groups stay whole: no donor is on two sides. Rows whose value is
            missing form a group of their own.
        stratify
            Column of obs, or several that count together, whose shares all sides keep.
        rng
            Which rows or groups go where. None: the same split every time, so that restarts and ranks agree.

        Returns
        -------
        Sides
            A dict of one loader per side, as :meth:`subset` makes them; rows of a side are in the order in which they are here.
            Its ``fractions`` says what share of the rows each side has, its ``groups`` which groups.

        Raises
        ------
        TypeError
            When an argument is of the wrong kind, or a column holds text here and numbers there.
        ValueError
            When a side would be empty, fractions do not add up to 1, two sides take the same row, rows are in no side, a value that
            is asked for does not occur, or conditions put rows of one group on two sides.
        KeyError
            When there is no such column.

        Notes
        -----
        Without `by`, numbers of rows are exact: the nearest whole ones. With `stratify` that holds for every label, too: each
        number, and each sum, is less than one row away from its exact share. With `by`, groups are divided so that the fractions
        (and shares) come as near as whole groups allow: the sum of squared differences is as small as can be for few
        groups, and nearly so for many. See `Sides.fractions` for what became of them.

        Where a view holds a row more than once, all its copies go to the same side.

        The same seed gives the same split of the same data. Which row goes where depends on row numbers, and so on the
        order in which files were added; which group goes where depends only on the labels and sizes of groups.

        Examples
        --------
        >>> import anndata as ad, numpy as np, pandas as pd
        >>> from annbatch import Loader
        >>> obs = pd.DataFrame({"donor": ["D1", "D2", "D3", "D4", "D5"] * 20}, index=[f"c{i}" for i in range(100)])
        >>> loader = Loader(batch_size=8).add_adata(ad.AnnData(np.ones((100, 3), dtype="float32"), obs=obs))
        >>> split = loader.split({"train": 0.6, "test": 0.4}, by="donor")
        >>> split
        Sides(train: 60 rows (0.6) in 3 groups, test: 40 rows (0.4) in 2 groups)
        >>> loader.split({"test": {"donor": ["D3"]}, "train": ...})["train"].n_obs
        80
        """
        asked = as_wanted_sides({"train": 0.8, "validation": 0.1, "test": 0.1} if sides is None else sides)
        rng = np.random.default_rng(0) if rng is None else as_generator(rng)
        view = self._view_with_rows()

        def labels_of(column: str, parameter: str) -> tuple[np.ndarray, pd.Index]:
            codes, labels = self._table.labels_of_rows(column, parameter)
            return view.of(codes), labels

        division = divide(asked, view, labels_of, by, stratify, rng)
        loaders = {name: self.subset(division.side == number) for number, name in enumerate(asked.names)}
        return Sides(loaders, {name: loader.n_obs / view.n_obs for name, loader in loaders.items()}, division.groups)

    # -- passes

    def __iter__(self) -> LoaderPass:
        """Start a pass.

        Returns
        -------
        Iterator of batches: dicts with ``X``, ``obs``, ``var``, ``index``, and ``layers`` and ``obsm`` when asked for. It has a
        ``close`` method, which ends the pass early, as does dropping it.

        Raises
        ------
        ValueError
            When there is no data, or the sampler does not fit it.
        """
        n_obs, sampler = self._view_with_rows().n_obs, self._batch_sampler
        reader = self._reader(self._table)
        requests = sampler.sample(n_obs)
        resume = self._resume
        start = LoaderPosition(sampler, sampler.state_dict())
        if resume is not None and resume.stands_where(start):
            start = resume
        self._n_passes += 1
        # Of several load requests to be read ahead, those that are far are read at the same time.
        n_together = self._prefetch if self._table.is_far and not reader.is_on_device else 0
        source = loads(requests, reader, start, self._transform, n_together)
        new_pass = LoaderPass(
            self, self._n_passes, source, min(self._prefetch, 1) if n_together else self._prefetch, reader.cancel
        )
        self._passes.add(new_pass)
        self._position = start
        self._resume = None  # last of all: a pass that Ctrl-C kept from starting starts where it stood
        return new_pass

    def _moved(self, number: int, position: LoaderPosition) -> None:
        """Note where the consumer of a pass stands; of several passes the one that was started last counts."""
        if number == self._n_passes:
            self._position = position

    def _left_early(self) -> None:
        # The old pool lives until the caller has dropped the last batch, and frees its memory then.
        self._pool = storage.BufferPool()

    def _reader(self, table: Table) -> BatchReader:
        worker = current_worker()
        # Asked once a pass: the answer comes from files.
        num_threads = self._num_threads or threads_each(1 if worker is None else worker.count)
        if self._device is not None:
            if worker is not None and not self._device.startswith("cpu"):
                msg = (
                    f"device={self._device!r} does not work in a DataLoader worker, from which tensors of a device do not travel; "
                    "iterate the loader itself, which reads ahead in a thread"
                )
                raise ValueError(msg)
            let_torch_warn_unheard()
        gpu = self._preload_to_gpu
        if gpu is None:
            gpu = worker is None and gpu_is_there(self._to)
        dtypes: dict[bool, set[np.dtype[Any]]] = {True: set(), False: set()}
        for matrix in table.matrices.values():
            dtypes[matrix.is_sparse and not self._dense].add(self._scaling.handed_out(matrix, self._dtype))
        if table.covariates is not None or self._scaling.library_size:
            dtypes[False].add(np.dtype(np.float32))
        return BatchReader(
            table,
            self._view,
            dense=self._dense,
            dtype=self._dtype,
            return_index=self._return_index,
            num_threads=num_threads,
            pool=self._pool,
            scaling=self._scaling,
            make=OnDevice(as_device(self._device))
            if self._device is not None
            else makers(self._to, gpu=gpu, sparse=dtypes[True], dense=dtypes[False], nse=self._nse),
            # Who wants no obs wants no pandas in a batch; loader.var has the variables.
            var=None if self._wanted.obs_columns == () else table.var,
        )

    # -- resuming

    def state_dict(self) -> dict[str, Any]:
        """Describe which batch comes next.

        Returns
        -------
        dict
            Small plain data that survives JSON. Independent of how far the background thread has read. Describes the pass that
            was started last.
        """
        position = self._position
        if position is None or position.sampler is not self._batch_sampler:
            position = LoaderPosition(self._batch_sampler, self._batch_sampler.state_dict())
        return position.as_dict(self._fingerprint())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken: the next pass begins with the very batch that came next there.

        Batches before it are not read again.

        Raises
        ------
        TypeError
            When the state is not a dict.
        ValueError
            When the state has another version, or belongs to other data or another sampler.
        RuntimeError
            When a pass is open.
        """
        self._check_no_pass("a state must not be loaded")
        position = LoaderPosition.from_dict(state, self._fingerprint(), self._batch_sampler)
        self._batch_sampler.load_state_dict(position.state)
        self._position = self._resume = position.taken_up()

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one with number `epoch`; see :meth:`annbatch.abc.Sampler.set_epoch`."""
        self._batch_sampler.set_epoch(epoch)

    # -- other processes, copies, torch

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_passes"}
        return storage.packed_state(state, _SENT_TOGETHER)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(storage.unpacked_state(state))
        self._passes = weakref.WeakSet()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class; torch's ``IterableDataset`` learns here that loaders are of its kind.

        ``isinstance`` looks at this attribute first. So whoever asks whether a loader is an IterableDataset gets the right
        answer, whether torch was imported before or after the loader was made, and torch is never imported for it.
        """
        torch_data = sys.modules.get("torch.utils.data")
        if torch_data is not None and hasattr(torch_data, "IterableDataset"):
            torch_data.IterableDataset.register(Loader)
            if self.__dict__.get("_to") == "torch":
                let_torch_warn_unheard()
        return type(self)


# Which rows, in which order, and where a pass stands: these refer to each other.
_SENT_TOGETHER = ("_batch_sampler", "_chosen", "_position", "_resume")


def _name_of(group: Any) -> str:
    if hasattr(group, "file"):
        return f"{group.file.filename} of the collection"
    # A dataset that was opened by itself is the root of its store.
    name = group.name.strip("/") or PurePath(str(getattr(group.store, "root", group.store))).name
    return f"{name} of the collection"
