"""What an input holds: its frames, and its obs and matrices as things to read rows from."""

from __future__ import annotations

import hashlib
import marshal
import pickle
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from annbatch._shared.collection_format import SOURCE_DTYPE
from annbatch.collection.building.fields import ROW_BYTES, Array, Field, Ragged
from annbatch.storage.documents import read_by_anndata
from annbatch.storage.hdf5_heap import check_attributes
from annbatch.storage.opening import check_not_empty

from .obs import FrameObs, Obs, ObsRows, StoredObs, in_memory

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

LoadAdata = Callable[[Any], "ad.AnnData"]


class _OnDisk(NamedTuple):
    """What the file system says of an input."""

    n_files: int
    n_bytes: int
    newest: int


@dataclass(frozen=True)
class InputSpec:
    """An input before it is opened; what travels to other processes.

    Attributes
    ----------
    item
        What the user named: a path, a zarr or h5py group, an AnnData, or anything ``load_adata`` understands.
    load_adata
        The user's way to make an AnnData of it, or None.
    label
        Its name in ``obs["src_path"]``.
    """

    item: Any
    load_adata: LoadAdata | None
    label: str

    @classmethod
    def of(cls, item: Any, load_adata: LoadAdata | None, position: int) -> InputSpec:
        """Name an input. A path must exist; what it holds is not looked at."""
        import h5py
        import zarr

        if isinstance(item, (str, Path)) or hasattr(item, "__fspath__"):
            check_not_empty(item, "adata_paths")
            if load_adata is None and "://" not in str(item) and not Path(item).exists():
                msg = f"adata_paths: {str(item)!r} does not exist"
                raise FileNotFoundError(msg)
            # Workers of an executor, and later calls, may be in another folder.
            is_local = load_adata is None and "://" not in str(item)
            return cls(Path(item).absolute() if is_local else item, load_adata, str(item))
        if isinstance(item, h5py.Group):
            return cls(item, load_adata, item.file.filename + item.name.rstrip("/"))
        if isinstance(item, zarr.Group):
            return cls(item, load_adata, str(item.store_path))
        if load_adata is None and type(item).__name__ != "AnnData":
            msg = (
                "adata_paths must hold paths, zarr or h5py groups or AnnData objects, "
                f"got {type(item).__name__}; pass load_adata to read anything else"
            )
            raise TypeError(msg)
        return cls(item, load_adata, f"input_{position}")

    def __getstate__(self) -> dict[str, Any]:
        import h5py

        if isinstance(self.item, h5py.Group):
            return {**self.__dict__, "item": _H5Place(self.item.file.filename, self.item.name)}
        return self.__dict__

    def open(self, scratch: Path | None = None) -> Input:
        """Open it; no rows are read. ``scratch``: a folder for temporary files, None: the system's."""
        import anndata as ad
        import h5py
        import zarr

        from annbatch import storage

        item = self.item
        if isinstance(item, _H5Place):
            item = h5py.File(item.filename, "r")[item.name]
        if self.load_adata is not None:
            item = self.load_adata(item)
            if not isinstance(item, ad.AnnData):
                msg = f"load_adata must return an AnnData, got {type(item).__name__} for {self.label}"
                raise TypeError(msg)
        if isinstance(item, ad.AnnData):
            return input_of_adata(self.label, item)
        is_open = isinstance(item, (h5py.Group, zarr.Group))
        group = item if is_open else storage.open_group(item)
        return input_of_group(self.label, group, owned=not is_open, scratch=scratch)

    def fingerprint(self) -> str:
        """Text that changes when the input does, as far as can be told without reading it.

        It is always new for what is in memory.
        """
        files = self._files()
        return secrets.token_hex() if files is None else f"{self._path().resolve()} {self.label} {files}"

    def size(self) -> int | None:
        """Bytes of its files; None for what is in memory or elsewhere."""
        files = self._files()
        return None if files is None else files.n_bytes

    def _files(self) -> _OnDisk | None:
        path = self._path()
        n_files = n_bytes = newest = 0
        try:
            for file in chain([path], path.rglob("*")):
                stat = file.stat()
                n_files += 1
                n_bytes += 0 if S_ISDIR(stat.st_mode) else stat.st_size
                newest = max(newest, stat.st_mtime_ns)
        except OSError:
            return None
        return _OnDisk(n_files, n_bytes, newest)

    def _path(self) -> Path:
        """Where it is on this machine; no file has the name of what is elsewhere."""
        import h5py
        import zarr
        from zarr.storage import LocalStore

        if isinstance(self.item, h5py.Group):
            return Path(self.item.file.filename)
        if isinstance(self.item, zarr.Group) and isinstance(self.item.store, LocalStore):
            return Path(self.item.store.root) / self.item.path
        return self.item if isinstance(self.item, Path) else Path(self.label)


def function_fingerprint(function: Callable[..., Any] | None) -> str:
    """Text that changes when a function does; always new for what cannot be told."""
    if function is None:
        return ""
    code = getattr(function, "__code__", None)
    if code is None:  # a partial, an object with __call__
        what: Any = function
    else:
        closure = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        # Format 2: later ones write an object that is shared differently from run to run.
        what = marshal.dumps(code, 2), getattr(function, "__defaults__", None), closure
    try:
        return hashlib.sha256(pickle.dumps(what)).hexdigest()
    except Exception:  # noqa: BLE001 - pickle raises whatever the object raises
        return secrets.token_hex()


@dataclass(frozen=True)
class _H5Place:
    filename: str
    name: str


class Matrix:
    """A matrix of an input, on disk or in memory, that annbatch.storage reads."""

    def __init__(self, source: Any, dtype: np.dtype[Any] | None = None) -> None:
        self._source = source
        self.shape: tuple[int, ...] = source.shape
        # What a reader is given, which of a dataset of a collection is not what is stored.
        self.dtype: np.dtype[Any] = source.dtype if dtype is None else dtype
        self.is_sparse: bool = source.is_sparse
        self.row_step = 1

    def bytes_before(self) -> Array:
        """Bytes of the rows before row ``i`` once read (int64, n_obs + 1 entries)."""
        if self.is_sparse:
            return np.asarray(self._source.row_pointers.indptr()) * (self.dtype.itemsize + 4)
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return np.arange(self.shape[0] + 1, dtype=np.int64) * row

    def read(self, rows: Array, columns: Array | None, n_columns: int, num_threads: int) -> Field:
        """Rows in the order given; ``columns`` maps each column to its new number, -1 leaves it out."""
        from annbatch import storage

        part = storage.Part(self._source, rows, np.arange(len(rows), dtype=np.int64), columns)
        edges = np.array([0, len(rows)], np.int64)
        if self.is_sparse:
            [block] = storage.read_csr([part], edges, n_var=n_columns, num_threads=num_threads)
            return Ragged(block.indptr.astype(np.int64, copy=False), (block.data, block.indices))
        n_var = n_columns if columns is not None else None
        [dense] = storage.read_dense([part], edges, n_var=n_var, num_threads=num_threads)
        return np.asarray(dense)

    def close(self) -> None:
        """Close the files behind it."""
        self._source.close()


class DaskMatrix:
    """A dask array; computed a piece at a time."""

    def __init__(self, array: Any) -> None:
        import scipy.sparse as sp

        self._array = array
        meta = array._meta  # noqa: SLF001 - the documented way to learn what the chunks are made of
        self.shape: tuple[int, ...] = tuple(int(n) for n in array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.is_sparse = sp.issparse(meta)
        # Blocks that start and end on chunk edges compute no chunk twice.
        self.row_step = max(1, max(array.chunks[0], default=1))

    def bytes_before(self) -> Array:
        """Bytes of the rows before row ``i``; a tenth of the values of sparse chunks is assumed, nothing is known."""
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        return np.arange(self.shape[0] + 1, dtype=np.int64) * (row // 5 if self.is_sparse else row)

    def read(self, rows: Array, columns: Array | None, n_columns: int, num_threads: int) -> Field:
        """Rows in the order given; they must be a permutation of a contiguous range."""
        from annbatch import storage

        first = int(rows.min()) if len(rows) else 0
        computed = self._array[first : first + len(rows)].compute(scheduler="synchronous")
        if self.is_sparse:
            computed = computed.tocsr()
        return Matrix(storage.open_matrix(computed)).read(rows - first, columns, n_columns, num_threads)

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class Input:
    """An open input.

    Attributes
    ----------
    obs
        Read a block of rows at a time.
    matrices
        By name: ``X``, ``raw/X``, ``layers/NAME``, ``obsm/NAME``.
    skipped
        Names of row-aligned elements that a collection cannot hold, with the reason.
    """

    label: str
    obs: Obs
    var: pd.DataFrame
    varm: Mapping[str, Any]
    raw_var: pd.DataFrame | None
    matrices: dict[str, Matrix | DaskMatrix]
    skipped: dict[str, str] = field(default_factory=dict)
    file: Any = None

    def __post_init__(self) -> None:
        self._window: tuple[int, ObsRows | None] = 0, None
        self._window_lock = threading.Lock()

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return self.obs.n_obs

    def obs_rows(self, start: int, stop: int, window_bytes: int) -> ObsRows:
        """Rows ``[start, stop)`` of obs.

        At least ``window_bytes`` are read in one go and kept: blocks mostly follow each other, and a short read costs
        as much as a longer one.
        """
        with self._window_lock:
            first, window = self._window
            if window is None or start < first or stop > first + len(window):
                n_rows = max(stop - start, window_bytes // max(1, self.obs.row_bytes))
                first, window = self._window = start, self.obs.rows(start, min(start + n_rows, self.n_obs))
        return window.part(start - first, stop - first)

    @property
    def row_step(self) -> int:
        """Blocks of rows are best cut at multiples of this."""
        return max((matrix.row_step for matrix in self.matrices.values()), default=1)

    def bytes_before(self) -> Array:
        """Bytes of all matrices before row ``i`` once read (int64, n_obs + 1 entries)."""
        small = np.arange(self.n_obs + 1, dtype=np.int64) * ROW_BYTES
        return sum((matrix.bytes_before() for matrix in self.matrices.values()), small)

    def close(self) -> None:
        """Close the files that were opened here."""
        for matrix in self.matrices.values():
            matrix.close()
        self.obs.close()
        self._window = 0, None
        if self.file is not None:
            self.file.close()


def input_of_group(label: str, group: Any, *, owned: bool, scratch: Path | None = None) -> Input:
    """Input of an open h5py or Zarr group; ``owned``: closing the input closes its file."""
    from annbatch import storage

    if not owned and hasattr(group, "file"):
        check_attributes(group, skip=(b"uns", b"obsp", b"varp"))
    if "obs" not in group or "var" not in group:
        msg = f"{label} is no AnnData file: it has no obs or no var"
        raise ValueError(msg)
    X, raw = _member(group, "X"), _member(group, "raw")
    elements = {} if X is None else {"X": X}
    raw_var = None
    if raw is not None and "X" in raw:
        elements["raw/X"] = raw["X"]
        raw_var = storage.read_frame(raw["var"])
    for kind in ("layers", "obsm"):
        if kind in group:
            elements |= {f"{kind}/{name}": group[kind][name] for name in group[kind]}
    matrices, skipped = _open_all(label, elements)
    return Input(
        label,
        StoredObs(group["obs"], scratch),
        storage.read_frame(group["var"]),
        _read_varm(group["varm"]) if "varm" in group else {},
        raw_var,
        matrices,
        skipped,
        getattr(group, "file", None) if owned else None,
    )


def _member(group: Any, name: str) -> Any:
    """A member of a group, or None; newer files say "null" where older ones say nothing."""
    member = group.get(name)
    return None if member is None or member.attrs.get("encoding-type") == "null" else member


def _read_varm(group: Any) -> dict[str, Any]:
    return dict(read_by_anndata(group)) if len(group) else {}


def input_of_adata(label: str, adata: ad.AnnData) -> Input:
    """Input of an AnnData in memory, backed or of dask arrays."""
    elements: dict[str, Any] = {} if adata.X is None else {"X": adata.X}
    raw_var = None
    if adata.raw is not None:
        elements["raw/X"] = adata.raw.X
        raw_var = in_memory(adata.raw.var)
    elements |= {f"layers/{name}": value for name, value in adata.layers.items() if name is not None}
    elements |= {f"obsm/{name}": value for name, value in adata.obsm.items()}
    matrices, skipped = _open_all(label, elements)
    return Input(label, FrameObs(adata.obs), in_memory(adata.var), _read_varm_of(adata), raw_var, matrices, skipped)


def _read_varm_of(adata: ad.AnnData) -> dict[str, Any]:
    """Elements of varm in memory: read_lazy gives pointers to the file."""
    loaded = {name: value.to_memory() if hasattr(value, "to_memory") else value for name, value in adata.varm.items()}
    return {name: value.compute() if hasattr(value, "compute") else value for name, value in loaded.items()}


def _open_all(label: str, elements: Mapping[str, Any]) -> tuple[dict[str, Matrix | DaskMatrix], dict[str, str]]:
    matrices: dict[str, Matrix | DaskMatrix] = {}
    skipped: dict[str, str] = {}
    for name, element in elements.items():
        reason = _no_matrix(element)
        if reason and name.startswith("obsm/"):
            skipped[name] = reason
            continue
        try:
            matrices[name] = _open(element)
        except (TypeError, ValueError) as error:
            error.add_note(f"while opening {name} of {label}")
            raise
    return matrices, skipped


def _no_matrix(element: Any) -> str:
    """Why an element of obsm is no matrix ("" if it is one)."""
    encoding = (
        dict(getattr(element, "attrs", {})).get("encoding-type", "") if not hasattr(element, "iloc") else "dataframe"
    )
    if type(element).__name__ == "Dataset2D":  # a data frame of read_lazy
        encoding = "dataframe"
    if encoding in ("dataframe", "awkward-array") or type(element).__module__.startswith("awkward"):
        return f"is a {encoding or 'awkward-array'}"
    return ""


def _open(element: Any) -> Matrix | DaskMatrix:
    import scipy.sparse as sp

    from annbatch import storage

    if type(element).__module__.partition(".")[0] == "dask":
        return DaskMatrix(element)
    if isinstance(element, (sp.csc_matrix, sp.csc_array)):
        element = element.tocsr()
    if type(element).__name__ == "ArrayView":
        element = np.asarray(element)
    recorded = dict(getattr(getattr(element, "group", element), "attrs", {})).get(SOURCE_DTYPE)
    return Matrix(storage.open_matrix(element), None if recorded is None else np.dtype(str(recorded)))
