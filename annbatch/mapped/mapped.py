"""Rows of many AnnData files, one at a time or a batch at once, for torch's map-style DataLoader."""

from __future__ import annotations

import operator
import os
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from annbatch._shared.args import as_choice, as_count, as_keys, as_names, as_numeric, levels_to_user
from annbatch._shared.row_filter import what_is_not_there
from annbatch._shared.torch_types import MapStyle
from annbatch._shared.workers import current_worker
from annbatch.storage import BufferPool, FarOptions, packed_state, unpacked_state
from annbatch.storage.cpus import threads_each
from annbatch.storage.frames import Labels
from annbatch.storage.reading.median import check_scaled_dtype

from .arguments import (
    as_encoded_keys,
    as_filter,
    as_path_list,
    as_scale,
    as_scaled_keys,
    as_scaler,
    as_unknown_labels,
    check_distinct,
)
from .gene_join import join_genes
from .mapped_files import open_files, read_labels
from .matrices import JoinedMatrix, RowsOfFile
from .obs_columns import LabelColumn, NumberColumn, label_weights, merge_labels, merge_numbers, number_labels
from .samples import SampleColumn, collate, collate_numpy, make_samples, register_with_torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from numpy.typing import DTypeLike

__all__ = ["MappedCollection"]


# What there is per row and per file: these refer to each other.
_SENT_TOGETHER = ("_files", "_matrices", "_columns", "_more_labels")


class MappedCollection(MapStyle):
    """A map-style dataset over many AnnData files, virtually concatenated.

    ``m[i]`` is one row as a dict; a :class:`torch.utils.data.DataLoader` over it needs no special arguments: torch asks for
    a batch at once, and the batch is read at once.

    Parameters
    ----------
    path_list
        Paths and URLs of ``.h5ad`` files and ``.zarr`` folders (Zarr format 2 or 3), also mixed. Open files of fsspec and pairs
        of a store and a path in it, as in :meth:`annbatch.Loader.add_paths`.
    layers_keys
        Matrices to return, one key or several. None or ``"X"`` is ``.X``; ``"raw.X"`` is ``.raw.X``, which is never joined;
        others are keys of ``.layers``. An empty list: none.
    obs_keys
        Columns of ``.obs`` to return, one key or several.
    obsm_keys
        Keys of ``.obsm`` to return, one or several; they come out as ``obsm_{key}``.
    obs_filter
        ``{column: value}`` or ``{column: [values]}``. Only rows for which all conditions hold are in the collection. NaN (or
        None) among the values selects rows whose value is missing. A file without the column has no such rows. A value that no row
        of any file has brings up a UserWarning.
    join
        How genes are aligned when they differ between files. "inner": the shared genes, in the order of the first file.
        "outer": all genes, sorted, zero where a file lacks one. None: every row as in its file.
    encode_labels
        True: all ``obs_keys`` become integers, the place of the label in the sorted merged categories of all files. A list:
        just these keys. False or an empty list: none.
    unknown_label
        This label gets -1 and takes no integer of its own; numpy.nan or pandas.NA are the missing label, which is otherwise
        numpy.nan. A dict gives one label per key.
    cache_categories
        Accepted so that existing scripts run: the merged categories, one object per category and not per row, are always
        kept in memory.
    parallel
        Accepted so that existing scripts run: a process never uses a handle that another one opened, with or without it.
    dtype
        Convert the matrices to this. None: the smallest dtype that holds the stored values of all files, so integers
        stay integers. A value that it cannot hold is an error; floats are rounded to the nearest of a narrower float type.
    var_names
        Return just these joint genes, in this order.
    num_threads
        Threads that read a batch. None: the CPUs that this process may use, shared out among DataLoader workers.
    normalize_total
        Scale the values of each row of ``.X`` so that they add up to this, as ``scanpy.pp.normalize_total(target_sum=...)`` does. The
        total of a row is over all its stored genes, also where ``join`` or ``var_names`` keep only some. ``"median"``: the
        median of the totals of all rows of the files, which takes one pass over them.
    log1p
        Take ``log(1 + value)`` of ``.X``, after ``normalize_total``. Each stored value is scaled for itself, as in scanpy:
        where a CSR row holds a column twice, the logarithms of both parts add up.
    library_size
        Whether samples carry the total of the row before scaling, ``"library_size"`` (float32).
    normalize_layers
        Keys of ``layers_keys`` that the three above are about instead of ``.X``; the library size is that of the first. Scaled
        values are float32, or ``dtype``.
    storage_options, max_requests, max_in_flight, cache, cache_size
        For data at URLs, as in :class:`annbatch.Loader`.

    Attributes
    ----------
    encoders
        ``{key: {label: integer}}`` of the encoded keys.
    storage_idx, indices
        int64, one entry per row: number of its file, and number of the row in that file.
    original_shapes
        Rows (that pass the filter) and genes of each file.
    var_list
        Gene names of each file.
    var_joint
        Gene names of a row; None when genes differ and are not joined.
    var_indices
        Per file, for each joint gene, the column that holds it (int64, -1: the file lacks it); None for a file whose
        columns stay where they are.
    join_vars
        "inner" or "outer" when columns have to move, else None.
    closed
        Whether :meth:`close` was called.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    KeyError
        If no file has a column of ``obs_filter``, or if ``var_names`` holds an unknown gene.
    TypeError
        If an argument is of the wrong kind, or labels are text in one file and numbers in another.
    ValueError
        If an argument has a value that is not allowed, a path is no AnnData file, a matrix is stored by columns (CSC), no gene
        is shared, or no row passes the filter.

    Notes
    -----
    Nothing of the matrices is read at construction. Labels are kept as codes, of one byte per row up to 128 categories.

    Rows of a file that lacks an obs key have a missing label (``numpy.nan``). A key of ``layers_keys`` or
    ``obsm_keys`` that a file lacks is left out of its samples. A key that no file has is left out of all, and a UserWarning names it
    and the keys there are.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, tempfile
    >>> from annbatch import MappedCollection
    >>> obs = pd.DataFrame({"cell_type": pd.Categorical(["B", "T", "B"])}, index=["c0", "c1", "c2"])
    >>> path = tempfile.mkdtemp() + "/cells.h5ad"
    >>> ad.AnnData(np.eye(3, dtype="float32"), obs=obs).write_h5ad(path)
    >>> with MappedCollection([path], obs_keys="cell_type") as m:
    ...     m[1]
    {'X': array([0., 1., 0.], dtype=float32), 'cell_type': 1, '_store_idx': 0}
    """

    def __init__(
        self,
        path_list: Sequence[str | os.PathLike[str] | tuple[Any, str] | Any],
        layers_keys: str | Sequence[str] | None = None,
        obs_keys: str | Sequence[str] | None = None,
        obsm_keys: str | Sequence[str] | None = None,
        obs_filter: Mapping[str, Any] | None = None,
        join: Literal["inner", "outer"] | None = "inner",
        encode_labels: bool | Sequence[str] = True,  # noqa: FBT001, FBT002
        unknown_label: Any | Mapping[str, Any] | None = None,
        cache_categories: bool = True,  # noqa: FBT001, FBT002
        parallel: bool = False,  # noqa: FBT001, FBT002
        dtype: DTypeLike | None = None,
        *,
        var_names: Sequence[str] | None = None,
        num_threads: int | None = None,
        normalize_total: float | Literal["median"] | None = None,
        log1p: bool = False,
        library_size: bool = False,
        normalize_layers: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        max_requests: int = 128,
        max_in_flight: int | str = "256MB",
        cache: str | os.PathLike[str] | None = None,
        cache_size: int | str | None = None,
    ) -> None:
        paths = as_path_list(path_list)
        far = FarOptions(storage_options, max_requests, max_in_flight, cache, cache_size)
        self.layers_keys = ["X"] if layers_keys is None else list(as_keys("layers_keys", layers_keys))
        self.obs_keys = [] if obs_keys is None else list(as_keys("obs_keys", obs_keys))
        self.obsm_keys = [] if obsm_keys is None else list(as_keys("obsm_keys", obsm_keys))
        self.obs_filter = as_filter(obs_filter)
        self.join = as_choice("join", join, ("inner", "outer", None))
        self.encode_labels = as_encoded_keys(encode_labels, self.obs_keys)
        self.unknown_label = as_unknown_labels(unknown_label, self.encode_labels)
        self.parallel = parallel
        self.dtype = None if dtype is None else as_numeric(dtype)
        self.num_threads = None if num_threads is None else as_count("num_threads", num_threads)
        self.path_list = paths

        self.normalize_total, self.log1p, self.library_size = as_scale(normalize_total, log1p, library_size)
        scaled = self.normalize_total is not None or self.log1p
        if scaled:
            check_scaled_dtype(self.dtype)
        check_distinct(self.layers_keys, self.obs_keys, self.obsm_keys, library_size=self.library_size)
        self._files, missing = open_files(
            paths, self.layers_keys, self.obs_keys, self.obsm_keys, self.encode_labels, self.obs_filter, far
        )
        for kind, keys in missing.items():
            setattr(self, kind, [key for key in getattr(self, kind) if key not in keys])
        self.encode_labels = [key for key in self.encode_labels if key in self.obs_keys]
        self.unknown_label = {key: self.unknown_label[key] for key in self.unknown_label if key in self.obs_keys}
        self._scaled_keys = as_scaled_keys(
            normalize_layers, self.layers_keys, is_used=scaled or library_size, missing=missing["layers_keys"]
        )
        self._starts = np.concatenate([[0], np.cumsum([file.n_rows for file in self._files])]).astype(np.int64)
        lost = what_is_not_there(self.obs_filter, [file.filtered_by for file in self._files])
        if self.obs_filter and not len(self):
            msg = f"obs_filter={obs_filter!r}: no row of the {len(paths)} files passes it"
            raise ValueError(f"{msg}; {lost}" if lost else msg)
        if lost:
            warnings.warn(f"obs_filter: {lost}", UserWarning, stacklevel=levels_to_user())
        self.var_list = [file.var_names for file in self._files]
        names_of_files = [file.name for file in self._files]
        wanted = None if var_names is None else as_names("var_names", var_names)
        genes = join_genes(self.var_list, names_of_files, join, wanted)
        self.join_vars, self.var_joint, self.var_indices = genes.how, genes.names, genes.sources
        keys = [*self.layers_keys, *(f"obsm_{key}" for key in self.obsm_keys)]
        self._matrices = {
            name: JoinedMatrix(
                [file.matrices.get(name) for file in self._files],
                # raw has genes of its own, and what is in obsm are no genes.
                genes.targets if name in self.layers_keys and name != "raw.X" else [None] * len(paths),
                self.n_vars,
                self.dtype,
                *((self.normalize_total, self.log1p) if name in self._scaled_keys else ()),
            )
            for name in keys
            if any(name in file.matrices for file in self._files)
        }
        self._columns = {key: self._merged(key) for key in self.obs_keys}
        self._more_labels: dict[str, LabelColumn] = {}
        self.encoders: dict[str, dict[Any, int]] = {
            key: self._label_column(key).encode(self.unknown_label.get(key)) for key in self.encode_labels
        }
        self._pool = BufferPool()
        self._threads_of = (-1, 1)
        self.closed = False

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    @property
    def n_vars(self) -> int | None:
        """Number of joint genes; None when genes differ between files and are not joined."""
        return None if self.var_joint is None else len(self.var_joint)

    @property
    def shape(self) -> tuple[int, int | None]:
        """Rows and joint genes."""
        return self.n_obs, self.n_vars

    @property
    def original_shapes(self) -> list[tuple[int, int]]:
        """Rows (that pass the filter) and genes of each file."""
        return [(file.n_rows, len(file.var_names)) for file in self._files]

    @cached_property
    def storage_idx(self) -> np.ndarray:
        """Number of the file of each row, int64."""
        return np.repeat(np.arange(len(self._files)), np.diff(self._starts))

    @cached_property
    def indices(self) -> np.ndarray:
        """Number of each row in its file, int64."""
        rows = [np.arange(file.n_rows) if file.rows is None else file.rows for file in self._files]
        return np.concatenate(rows)

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one row.

        Parameters
        ----------
        index
            Number of the row; negative numbers count from the end.

        Returns
        -------
        dict
            One entry per key of ``layers_keys`` (1-D array), ``obs_keys`` (integer, label or number) and ``obsm_keys``,
            and ``_store_idx``, the number of the file.

        Raises
        ------
        IndexError
            If there is no such row.
        RuntimeError
            If the collection is closed.
        TypeError
            If ``index`` is not an integer.
        ValueError
            If a file is damaged, or ``dtype`` cannot hold a value.
        """
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            msg = f"index must be an integer, got {type(index).__name__}; __getitems__ takes a list of integers"
            raise TypeError(msg)
        return dict(make_samples(self._read(np.array([operator.index(index)]), num_threads=1), 1)[0])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read a batch; torch's DataLoader calls this.

        Parameters
        ----------
        indices
            Numbers of the rows, in any order, also repeated; negative numbers count from the end.

        Returns
        -------
        list of dict
            What ``[m[i] for i in indices]`` gives. The arrays are rows of one block per key.

        Raises
        ------
        IndexError
            If there is no such row.
        RuntimeError
            If the collection is closed.
        TypeError
            If ``indices`` are not integers.
        ValueError
            If a file is damaged, or ``dtype`` cannot hold a value.
        """
        if type(self).__getitem__ is not MappedCollection.__getitem__:
            # A subclass that changes samples must see every one of them.
            return [self[index] for index in indices]
        numbers = np.asarray(indices)
        if numbers.size == 0:
            numbers = numbers.astype(np.int64)
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            msg = f"indices must be a list of integers, got {numbers.dtype} of shape {numbers.shape}"
            raise TypeError(msg)
        register_with_torch()
        return list(make_samples(self._read(numbers, num_threads=self._threads()), len(numbers)))

    # What grain's sources that read a batch at once are asked for.
    _getitems = __getitems__

    def read_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Read a batch as one block per key, without making samples of it.

        Parameters
        ----------
        indices
            Numbers of the rows, as for ``__getitems__``.

        Returns
        -------
        dict
            Per key a NumPy array with one row per index; a list where values are text. What
            ``collate_numpy(m.__getitems__(indices))`` gives.

        Raises
        ------
        KeyError
            If a key is only in some of the rows, because not every file has it.
        ValueError
            If rows of a key differ in shape, because its columns differ between files and are not joined.
        IndexError, RuntimeError, TypeError
            As ``__getitems__``.

        Examples
        --------
        With grain, batches of row numbers are shuffled and dealt out, and each is read at once:

        >>> import grain  # doctest: +SKIP
        >>> batches = grain.MapDataset.range(len(m)).shuffle(seed=0).batch(128).map(m.read_batch)  # doctest: +SKIP
        """
        return collate_numpy(self.__getitems__(indices))

    collate = staticmethod(collate)
    collate_numpy = staticmethod(collate_numpy)

    def get_merged_labels(self, key: str) -> np.ndarray:
        """Return the label of each row.

        Parameters
        ----------
        key
            A column of ``.obs``; it need not be one of ``obs_keys``.

        Returns
        -------
        ndarray
            One label per row, not encoded; ``numpy.nan`` where it is missing.

        Raises
        ------
        KeyError
            If no file has the column.
        """
        return self._label_column(key).labels()

    def get_merged_categories(self, key: str) -> set[Any]:
        """Return the distinct labels of all files, without missing ones.

        Parameters
        ----------
        key
            A column of ``.obs``; it need not be one of ``obs_keys``.

        Returns
        -------
        set
            The labels, not encoded.

        Raises
        ------
        KeyError
            If no file has the column.
        """
        return set(self._label_column(key).categories)

    def get_label_weights(
        self,
        obs_keys: str | Sequence[str],
        scaler: float | None = None,
        return_categories: bool = False,  # noqa: FBT001, FBT002
    ) -> np.ndarray | dict[Any, float]:
        """Weigh each row by how rare its label is, for :class:`torch.utils.data.WeightedRandomSampler`.

        Parameters
        ----------
        obs_keys
            A column of ``.obs``, or several: their labels are then counted together, and named joined with ``"__"``, or as a
            tuple where two would have the same name. They need not be among the ``obs_keys`` of the collection.
        scaler
            None: the weight of a row is ``1 / count`` of its label, so that all labels are drawn equally often. A number
            > 0: ``scaler / (count + scaler)``, which evens out less the larger it is.
        return_categories
            Return the weight of each label instead.

        Returns
        -------
        ndarray or dict
            float64, one weight per row; or ``{label: weight}``.

        Raises
        ------
        KeyError
            If no file has a column.
        ValueError
            If ``obs_keys`` is empty or ``scaler`` is not a number > 0.

        Notes
        -----
        Rows with a missing label, and all rows of a file that lacks the column, count as one more label, ``numpy.nan``
        ("nan" in joined labels), and so have a weight like all others. To leave them out, set their weight to zero:
        ``weights[pandas.isna(m.get_merged_labels(key))] = 0``.

        Examples
        --------
        >>> from torch.utils.data import DataLoader, WeightedRandomSampler  # doctest: +SKIP
        >>> sampler = WeightedRandomSampler(m.get_label_weights("cell_type"), num_samples=len(m))  # doctest: +SKIP
        >>> loader = DataLoader(m, batch_size=128, sampler=sampler)  # doctest: +SKIP
        """
        keys = as_keys("obs_keys", obs_keys)
        if not keys:
            msg = "obs_keys must name at least one column, got none"
            raise ValueError(msg)
        weights, by_label = label_weights([self._label_column(key) for key in keys], as_scaler(scaler))
        return by_label if return_categories else weights

    def check_vars_sorted(self, ascending: bool = True) -> bool:  # noqa: FBT001, FBT002
        """Say whether the genes of every file are sorted by name.

        Parameters
        ----------
        ascending
            Which way.
        """
        return all(
            names.is_monotonic_increasing if ascending else names.is_monotonic_decreasing for names in self.var_list
        )

    def check_vars_non_aligned(self, vars: Iterable[str]) -> list[int]:  # noqa: A002
        """Return the numbers of the files whose genes are not these, in this order.

        Parameters
        ----------
        vars
            Gene names.
        """
        wanted = pd.Index(list(vars))
        return [number for number, names in enumerate(self.var_list) if not names.equals(wanted)]

    @staticmethod
    def torch_worker_init_fn(worker_id: int) -> None:
        """Prepare a DataLoader worker; pass it as ``worker_init_fn``.

        Accepted so that existing scripts run: workers open their own handles without it.

        Parameters
        ----------
        worker_id
            Number of the worker.
        """

    def close(self) -> None:
        """Close all files. Labels and weights can still be asked for, rows can not."""
        for matrix in self._matrices.values():
            matrix.close()
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        parts = [f"{len(self._files)} files", f"{self.n_obs} x {'?' if self.n_vars is None else self.n_vars}"]
        kinds = (("layers", self.layers_keys), ("obs", self.obs_keys), ("obsm", self.obsm_keys))
        parts += [f"{name}: {', '.join(keys)}" for name, keys in kinds if keys]
        if self.closed:
            parts.append("closed")
        return f"<MappedCollection {'; '.join(parts)}>"

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key not in ("storage_idx", "indices")}
        return packed_state(state, _SENT_TOGETHER)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(unpacked_state(state))

    def _read(self, numbers: np.ndarray, num_threads: int) -> dict[str, SampleColumn]:
        if self.closed:
            msg = "this MappedCollection is closed: make a new one to read rows"
            raise RuntimeError(msg)
        n_obs = self.n_obs
        # Before they become int64, where a larger number would wrap around to another row.
        outside = (numbers < -n_obs) | (numbers >= n_obs)
        if outside.any():
            msg = f"index {numbers[outside][0]} is out of range for {n_obs} rows"
            raise IndexError(msg)
        numbers = numbers.astype(np.int64, copy=False)
        numbers = np.where(numbers < 0, numbers + n_obs, numbers)
        of_file = np.searchsorted(self._starts, numbers, side="right") - 1
        groups = self._by_file(numbers, of_file)
        totals = np.zeros(len(numbers), dtype=np.float32) if self.library_size else None
        columns = {
            name: matrix.read(
                groups, len(numbers), self._pool, num_threads, totals if [name] == self._scaled_keys[:1] else None
            )
            for name, matrix in self._matrices.items()
        }
        columns |= {
            key: SampleColumn(column.values(numbers), column.numbers(numbers)) for key, column in self._columns.items()
        }
        counted = columns.get(self._scaled_keys[0]) if self._scaled_keys else None
        if totals is not None and counted is not None:
            having = totals if counted.rows is None else totals[counted.rows]
            columns["library_size"] = SampleColumn(
                list(having), None if counted.rows is not None else having, counted.rows
            )
        columns["_store_idx"] = SampleColumn(of_file.tolist(), of_file)
        return {name: column for name, column in columns.items() if column is not None}

    def _by_file(self, numbers: np.ndarray, of_file: np.ndarray) -> list[RowsOfFile]:
        order = np.argsort(of_file, kind="stable")
        edges = np.flatnonzero(np.diff(of_file[order])) + 1
        groups = []
        for positions in np.split(order, edges) if len(order) else []:
            number = int(of_file[positions[0]])
            local = numbers[positions] - self._starts[number]
            rows = self._files[number].rows
            groups.append(RowsOfFile(number, local if rows is None else rows[local], positions))
        return groups

    def _threads(self) -> int:
        if self.num_threads is not None:
            return self.num_threads
        # Asked for once in each process: in a DataLoader worker the answer is another one.
        pid = os.getpid()
        if self._threads_of[0] != pid:
            worker = current_worker()
            self._threads_of = (pid, threads_each(1 if worker is None else worker.count))
        return self._threads_of[1]

    def _merged(self, key: str) -> LabelColumn | NumberColumn:
        per_file = [file.obs.pop(key) for file in self._files]
        n_rows = [file.n_rows for file in self._files]
        numbers = [column for column in per_file if not isinstance(column, Labels)]
        if len(numbers) == len(per_file):
            return merge_numbers(numbers, n_rows)
        labels = [number_labels(column) if isinstance(column, np.ndarray) else column for column in per_file]
        return merge_labels(key, labels, n_rows, [file.name for file in self._files])

    def _label_column(self, key: str) -> LabelColumn:
        if not isinstance(key, str):
            msg = f"key must be the name of one obs column, got {key!r} ({type(key).__name__})"
            raise TypeError(msg)
        column = self._columns.get(key, self._more_labels.get(key))
        if isinstance(column, LabelColumn):
            return column
        if column is not None:
            labels = [number_labels(column.array)]
            self._more_labels[key] = merge_labels(key, labels, [self.n_obs], [""])
        else:
            per_file = [read_labels(file, key) for file in self._files]
            if all(labels is None for labels in per_file):
                msg = f"no file has the obs column {key!r}"
                raise KeyError(msg)
            names = [file.name for file in self._files]
            self._more_labels[key] = merge_labels(key, per_file, [file.n_rows for file in self._files], names)
        return self._more_labels[key]
