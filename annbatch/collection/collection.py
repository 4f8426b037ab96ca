"""Collections: many AnnData files turned into one shuffled, sharded store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from annbatch._shared.args import as_bytes, as_choice, as_count, as_function, as_keys, as_rows_or_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor
    from os import PathLike
    from typing import Self

    import anndata as ad
    import h5py
    import numpy as np
    import pandas as pd
    import zarr

    from .building.output.sink import Layout
    from .verify import Report

__all__ = ["DatasetCollection", "write_sharded"]

_DEFAULT_ROWS_PER_CHUNK = 8


class DatasetCollection:
    """A shuffled collection of AnnData datasets on disk, to build, to add to, and to read.

    Parameters
    ----------
    group
        A path, or an open ``zarr.Group`` (format 3). A path need not exist yet.
    mode
        ``"a"``: read, write, create; ``"r+"``: read and write what exists; ``"r"``: read what exists.
    is_collection_h5ad
        The collection is a folder of ``dataset_0.h5ad``, ``dataset_1.h5ad``, ... instead of a Zarr group. A folder that holds
        such files already is taken for one by itself.

    Raises
    ------
    FileNotFoundError
        Nothing is there, and ``mode`` is ``"r"`` or ``"r+"``.
    ValueError
        Something is there that is no collection.

    Notes
    -----
    The layout is one Zarr group with the attribute ``encoding-type: annbatch-preshuffled`` that holds ``dataset_0``,
    ``dataset_1``, ..., each an AnnData group with the same var. anndata and every Zarr v3 reader open the datasets.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, scipy.sparse as sp
    >>> from annbatch import DatasetCollection
    >>> X = sp.random(100, 20, 0.3, format="csr", dtype="float32", random_state=0)
    >>> cell_type = pd.Categorical(np.repeat(["B", "T"], 50))
    >>> obs = pd.DataFrame({"cell_type": cell_type}, index=[f"cell_{i}" for i in range(100)])
    >>> ad.AnnData(X, obs=obs).write_h5ad("cells.h5ad")
    >>> collection = DatasetCollection("cells.zarr").add_adatas(["cells.h5ad"], groupby="cell_type", progress=False)
    >>> collection.obs(["cell_type"])["cell_type"].value_counts().to_dict()
    {'B': 50, 'T': 50}
    """

    def __init__(
        self,
        group: zarr.Group | str | PathLike[str],
        *,
        mode: Literal["a", "r", "r+"] = "a",
        is_collection_h5ad: bool = False,
    ) -> None:
        from .places import place_of

        if mode not in ("a", "r", "r+"):
            msg = f'mode must be "a", "r" or "r+", got {mode!r}'
            raise ValueError(msg)
        self._mode = mode
        self._place = place_of(group, h5ad=is_collection_h5ad, mode=mode)
        if mode != "a" and not self._place.exists():
            msg = f"{self._place} does not exist"
            raise FileNotFoundError(msg)
        self._place.check()

    @property
    def is_empty(self) -> bool:
        """Whether no dataset is there."""
        return not self._place.names()

    @property
    def names(self) -> list[str]:
        """Names of the datasets, in the order in which they were written."""
        return self._place.names()

    def __len__(self) -> int:
        """Return the number of datasets."""
        return len(self._place.names())

    def __iter__(self) -> Iterator[zarr.Group | h5py.Group]:
        """Yield each dataset's group, in the order in which they were written.

        Raises
        ------
        CorruptDataError
            A dataset is missing, or another one than was written, or damaged.
        """
        self._place.check_all_there()
        for name in self._place.names():
            yield self._place.open(name, writable=self._mode != "r")

    def __repr__(self) -> str:
        names = self._place.names()
        return f"<DatasetCollection {self._place}: {len(names)} dataset{'s' if len(names) != 1 else ''}>"

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Read obs of all datasets, one after the other.

        Parameters
        ----------
        columns
            Names of the columns to read; None: all; an empty list: only the index.

        Returns
        -------
        DataFrame with one row per observation, in the order of the rows of the collection. Categorical columns stay
        categorical, with the categories of all datasets.

        Raises
        ------
        KeyError
            A column is in none of the datasets.
        TypeError, ValueError
            ``columns`` is no list of names, or names one twice.
        CorruptDataError
            A dataset is missing, or another one than was written, or damaged.
        """
        import pandas as pd

        from annbatch._shared.args import as_names
        from annbatch.storage.columns import stacked
        from annbatch.storage.frames import FrameReader

        if columns is not None:
            columns = list(as_names("columns", columns))
        self._place.check_all_there()
        frames = []
        for name in self._place.names():
            group = self._place.open(name, writable=False)
            reader = FrameReader(group["obs"])
            wanted = None if columns is None else [column for column in columns if column in reader.columns]
            frames.append(reader.compact(wanted))
            self._place.close(group)
        known = {name for frame in frames for name in frame.columns}
        unknown = [name for name in columns or () if name not in known]
        if unknown and frames:
            msg = f"obs has no column {', '.join(map(repr, unknown))}"
            raise KeyError(msg)
        if not frames:
            return pd.DataFrame()
        table = stacked(frames)
        frames.clear()
        return table.frame(columns=columns, copy=False)

    def verify(self, *, progress: bool = True) -> Report:
        """Read everything once and say what is damaged, see docs/trust.md.

        Parameters
        ----------
        progress
            Show a progress bar.

        Returns
        -------
        Report
            ``is_sound``, and in ``damage`` the file, array, chunks and rows of all that is not as it was written.

        Raises
        ------
        ValueError
            The collection is in a store that is no local folder.
        """
        from .verify import verify

        root = getattr(self._place, "root", None)
        if root is None:
            msg = f"verify reads collections in local folders, got {self._place}; copy it first"
            raise ValueError(msg)
        return verify(root, progress=progress)

    def add_adatas(
        self,
        adata_paths: Iterable[Any],
        *,
        load_adata: Callable[[Any], ad.AnnData] | None = None,
        groupby: str | Iterable[str] | None = None,
        var_subset: Iterable[str] | None = None,
        n_obs_per_chunk: int = _DEFAULT_ROWS_PER_CHUNK,
        shard_size: int | str = "1GB",
        zarr_compressor: Iterable[Any] | None = None,
        h5ad_compressor: Literal["gzip", "lzf"] | None = "gzip",
        dataset_size: int | str = "20GB",
        shuffle_chunk_size: int = 1000,
        shuffle: bool = True,
        rng: np.random.Generator | None = None,
        merge: Literal["same", "unique", "first", "only"] | None = None,
        max_memory: int | str = "2GB",
        compact: bool = True,
        extra_genes: Literal["error", "ignore"] = "error",
        if_exists: Literal["error", "skip", "add"] = "error",
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Self:
        """Shuffle the rows of many AnnData files into new datasets of this collection.

        Parameters
        ----------
        adata_paths
            ``.h5ad`` and ``.zarr`` paths, open ``h5py.Group`` / ``zarr.Group``, AnnData objects, or whatever
            ``load_adata`` takes.
        load_adata
            Makes an AnnData (in memory, backed, or of dask arrays) of an entry of ``adata_paths``. It is called more
            than once per entry. None: files are read directly, which is fastest.
        groupby
            Columns of obs, or ``"src_path"``, to sort every dataset by, after shuffling (stable, missing values last).
            Sorting by the label gives the long runs that :class:`annbatch.ClassSampler` reads.
        var_subset
            Names of the genes to keep, in the order in which the files have them. None: all.
        n_obs_per_chunk
            Rows per chunk, the smallest piece that is read. Sparse arrays are cut by the mean number of values a row.
        shard_size
            Rows per shard (a file of many chunks), or the size of one before compression, as in ``"1GB"``.
        zarr_compressor
            Codecs for matrices. None: what docs/collections.md found best.
        h5ad_compressor
            Compression of an h5ad collection.
        dataset_size
            Most rows per dataset, or its size before compression. Rows are shared out evenly over the datasets.
        shuffle_chunk_size
            Accepted for compatibility. Every row is shuffled by itself, so it has no influence.
        shuffle
            Give every order of the rows the same chance. False: keep the order.
        rng
            Source of the shuffle; one number is drawn from it. With the same state the same inputs give the same
            collection, for any ``max_memory``, ``executor`` and number of threads. None: a new order every time.
        merge
            How columns of var that differ are merged, see :func:`anndata.concat`. Genes are joined (outer); missing
            values are 0.
        max_memory
            Memory to work in, for each task that runs at a time (Python and its libraries come on top, about 300 MB),
            in bytes or as in ``"2GB"``. What grows with the number of rows is counted in it, see docs/collections.md.
        compact
            Store matrices whose values are all whole numbers in the smallest integer type that holds them. The dtype
            they had is noted in the attribute ``annbatch-source-dtype``, and :class:`annbatch.Loader` gives it back. Column
            numbers are stored in uint16 where that is enough, which scipy reads but cannot change in place, see
            docs/collections.md; with False, and in h5ad files, they have the type of the row pointer.
        extra_genes
            What to do with genes that the collection, when it has data already, does not have: ``"error"`` or
            ``"ignore"`` (with a warning).
        if_exists
            What to do with inputs that the collection holds already (same path, size, number and names of rows), and with
            one that is named twice: ``"error"``, ``"skip"`` (leave them out; the log of ``logging.getLogger("annbatch")`` says which, at
            level INFO) or ``"add"`` their rows once more. A file that has changed since is added, with a warning. Of objects in memory nothing is known, so they are always added.
        executor
            Runs the work elsewhere: anything with the ``concurrent.futures.Executor`` interface (a process pool,
            ``dask.distributed.Client.get_executor()``). All of its workers must see the same files. The result is the
            same as without.
        progress
            Show progress bars.

        Returns
        -------
        The collection itself.

        Raises
        ------
        FileNotFoundError
            An input does not exist.
        KeyError
            ``groupby`` names a column that an input lacks, or ``var_subset`` a gene that all inputs lack.
        TypeError
            A column of obs has types that cannot be united, or a type that AnnData files do not hold.
        ValueError
            An argument is out of range; there are no rows; names of genes are not unique; the inputs do not fit
            together or to the collection; the collection holds an input already, or one is named twice (see
            ``if_exists``); ``max_memory`` is too little for the number of rows.
        RuntimeError
            The collection was opened read-only, or another process is writing to it.
        CorruptDataError
            A dataset of the collection is missing, or an input is damaged.

        Notes
        -----
        New datasets are written beside the collection and put in place when all are complete; what was there is never
        touched. If the call is interrupted, in whatever way, the collection is as it was. The same call then continues
        where it was; any other call removes what is left over. Either way a warning says so.

        ``obs["src_path"]`` (categorical) says which input a row came from; a column of that name in the inputs is
        replaced, with a warning. Layers and obsm that only some inputs have are left out, with a warning; uns and
        pairwise data are left out.

        Examples
        --------
        >>> import anndata as ad, numpy as np, scipy.sparse as sp
        >>> from annbatch import DatasetCollection
        >>> for name in ("first.h5ad", "second.h5ad"):
        ...     ad.AnnData(sp.random(50, 20, 0.3, format="csr", dtype="float32")).write_h5ad(name)
        >>> rng = np.random.default_rng(0)
        >>> DatasetCollection("both.zarr").add_adatas(["first.h5ad", "second.h5ad"], rng=rng, progress=False)
        <DatasetCollection both.zarr: 1 dataset>
        """
        from .building.build import build
        from .building.inputs.inputs import InputSpec
        from .building.options import Options

        if self._mode == "r":
            msg = f'{self._place} was opened with mode="r"; open it with mode="a" to add to it'
            raise RuntimeError(msg)
        as_choice("merge", merge, (None, "same", "unique", "first", "only"))
        as_choice("extra_genes", extra_genes, ("error", "ignore"))
        as_choice("if_exists", if_exists, ("error", "skip", "add"))
        as_choice("h5ad_compressor", h5ad_compressor, (None, "gzip", "lzf"))
        as_count("shuffle_chunk_size", shuffle_chunk_size)
        _check_rng(rng)
        as_function("load_adata", load_adata, "that makes an AnnData")
        if executor is not None and not hasattr(executor, "submit"):
            msg = f"executor must have the interface of concurrent.futures.Executor, got {type(executor).__name__}"
            raise TypeError(msg)
        if isinstance(adata_paths, (str, Path)):
            msg = f"adata_paths must be several inputs, got one path; pass [{str(adata_paths)!r}]"
            raise TypeError(msg)
        dataset_rows, dataset_bytes = as_rows_or_bytes("dataset_size", dataset_size)
        options = Options(
            groupby=_names("groupby", groupby) or (),
            var_subset=_names("var_subset", var_subset),
            layout=_layout(n_obs_per_chunk, shard_size, zarr_compressor, h5ad_compressor, narrow_columns=bool(compact)),
            dataset_rows=dataset_rows,
            dataset_bytes=dataset_bytes,
            shuffle=bool(shuffle),
            merge=merge,
            extra_genes=extra_genes,
            if_exists=if_exists,
            max_memory=as_bytes("max_memory", max_memory),
            compact=bool(compact),
            progress=bool(progress),
        )
        specs = [InputSpec.of(item, load_adata, i) for i, item in enumerate(adata_paths)]
        if not specs:
            msg = "adata_paths must name at least one input, got none"
            raise ValueError(msg)
        self._place.check()
        self._place.check_all_there()
        with self._place.target() as target:
            build(target, specs, options, executor, rng)
        return self


def write_sharded(
    group: zarr.Group,
    adata: ad.AnnData,
    *,
    n_obs_per_chunk: int = 64,
    shard_size: int | str = "1GB",
    compressors: Iterable[Any] | None = None,
    key: str | None = None,
) -> None:
    """Write one AnnData as a sharded Zarr v3 group, in the layout of a dataset of a collection.

    Parameters
    ----------
    group
        Where to write; a Zarr v3 group.
    adata
        What to write, in memory, backed or of dask arrays. Values and their dtype stay as they are.
    n_obs_per_chunk
        Rows per chunk. Sparse arrays are cut by the mean number of values a row.
    shard_size
        Rows per shard, or the size of one before compression, as in ``"1GB"``.
    compressors
        Codecs for matrices. None: those of :meth:`DatasetCollection.add_adatas`.
    key
        Name (or path, ``"a/b"``) of the group to make below ``group``; None: ``group`` itself, which must be empty.

    Raises
    ------
    ValueError
        Something is there already; the group is not of Zarr format 3 or read-only; ``key`` is no path below it.

    Examples
    --------
    >>> import anndata as ad, numpy as np, zarr
    >>> from annbatch import write_sharded
    >>> write_sharded(zarr.open_group("one.zarr", mode="w"), ad.AnnData(np.eye(3, dtype="float32")))
    >>> ad.io.read_elem(zarr.open_group("one.zarr", mode="r")).shape
    (3, 3)
    """
    import zarr

    from .building.single import write_adata
    from .places import LocalZarr, OtherZarr, place_of

    if not isinstance(group, zarr.Group):
        msg = f"group must be a zarr.Group, got {type(group).__name__}"
        raise TypeError(msg)
    if group.read_only:
        msg = f'group must be writable, got one that was opened read-only ({group.store_path}); open it with mode="a"'
        raise ValueError(msg)
    if key is not None:
        *parents, key = _path_below("key", key)
        if parents:
            group = group.require_group("/".join(parents))
    place = place_of(group)
    assert isinstance(place, (LocalZarr, OtherZarr))
    taken = place.members() if key is None else {key} & set(place.members())
    if taken:
        msg = f"{place} already holds {sorted(taken)[:5]}; remove them first, or write to another group"
        raise ValueError(msg)
    layout = _layout(n_obs_per_chunk, shard_size, compressors, None)
    with tempfile.TemporaryDirectory(dir=place.scratch_parent(), prefix=".annbatch-") as scratch:
        # Attributes that the caller had set stay.
        attributes = dict(group.attrs) if key is None else {}
        place.take_in(write_adata(Path(scratch), adata, layout, attributes), key)
    if key is None:
        # The caller's handle holds the attributes as they were.
        written = zarr.open_group(group.store, path=group.path, mode="r", use_consolidated=False)
        group.metadata.attributes.update(written.attrs)


def _path_below(name: str, value: str) -> list[str]:
    """Parts of the path of a group below another."""
    parts = value.split("/") if isinstance(value, str) else [""]
    if any(part in ("", ".", "..") for part in parts):
        msg = f'{name} must be the name of a group, or a path such as "a/b", got {value!r}'
        raise ValueError(msg)
    return parts


def _layout(
    n_obs_per_chunk: int,
    shard_size: int | str,
    compressors: Iterable[Any] | None,
    h5ad_compression: str | None,
    *,
    narrow_columns: bool = False,
) -> Layout:
    from .building.output.sink import Layout

    shard_rows, shard_bytes = as_rows_or_bytes("shard_size", shard_size)
    return Layout(
        as_count("n_obs_per_chunk", n_obs_per_chunk),
        shard_rows,
        shard_bytes,
        None if compressors is None else tuple(compressors),
        h5ad_compression,
        narrow_columns,
    )


def _check_rng(rng: object) -> None:
    import numpy as np

    if rng is not None and not isinstance(rng, np.random.Generator):
        msg = f"rng must be a numpy.random.Generator or None, got {type(rng).__name__}; make one with numpy.random.default_rng(seed)"
        raise TypeError(msg)


def _names(name: str, value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    names = None if value is None else as_keys(name, value)
    if names == () and name == "var_subset":
        msg = "var_subset must name at least one gene, got none"
        raise ValueError(msg)
    return names
