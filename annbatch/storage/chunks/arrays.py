"""One stored array, wherever it lies: in memory, in an HDF5 file, in a Zarr store."""

from __future__ import annotations

import errno
import os
import weakref
from abc import ABC, abstractmethod
from collections import deque
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import h5py
import numpy as np
import zarr

from annbatch.storage.claims import check_chunk_shape, check_claim, check_folder
from annbatch.storage.dtypes import flat_bytes, native
from annbatch.storage.engine._plan import SPAN
from annbatch.storage.errors import CorruptDataError, damage_named, system_error
from annbatch.storage.far.hdf5 import far_file_of
from annbatch.storage.local_hdf5 import open_local_file
from annbatch.storage.local_zarr import is_version_3

from .hdf5_chunks import check_chunks
from .tables import ChunkTable

__all__ = ["Hdf5Array", "MemoryArray", "StoredArray", "ZarrArray", "stored_array"]

# Items that one task of the fallback covers where the store itself has no chunks.
_VIRTUAL_CHUNK = 1 << 16
_UNKNOWN: Any = object()
# HDF5 arrays that keep a file open which they have opened themselves.
_MOST_OPEN = 16
# Files of an array that are looked at to tell it from others.
_MOST_FILES = 4096


class Identity(NamedTuple):
    """What tells stored data from other data, and from the same after a change: a text, and when the files changed last."""

    text: str
    newest_ns: int


class StoredArray(ABC):
    """An array that is read in pieces.

    Attributes
    ----------
    shape, dtype
        As stored, the dtype in native byte order.
    location
        File and array, for error texts.
    direct
        Whether the compiled engine may be used.
    is_far
        Whether its bytes come through a network.
    n_concurrent
        How many calls of :meth:`read` may usefully run at a time; None: as many as there are threads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    location: str
    direct: bool = True
    is_far: bool = False
    n_concurrent: ClassVar[int | None] = None
    _table: ChunkTable | None = _UNKNOWN

    @property
    @abstractmethod
    def read_rows(self) -> int:
        """Length along the first axis of what :meth:`read` is best asked for."""

    @abstractmethod
    def _make_table(self) -> ChunkTable | None:
        """Return the chunk table, or None when there is none."""

    @property
    def table(self) -> ChunkTable | None:
        """The chunk table, made at first use; None when the array can only be read through its library."""
        if not self.direct:
            return None
        if self._table is _UNKNOWN:
            self._table = self._make_table()
        return self._table

    @property
    def is_direct(self) -> bool:
        """Whether the compiled engine reads this array."""
        return self.table is not None

    @abstractmethod
    def _read(self, start: int, stop: int) -> np.ndarray:
        """Read without checks."""

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of what one task covers: the stored chunk, or whole rows in the fallback."""
        return (self.read_rows, *self.shape[1:]) if self.table is None else self.table.chunk_shape

    def row_spans(self) -> np.ndarray:
        """Return which parts of a row are contiguous in a chunk: a table of SPAN."""
        whole, inside = self.shape[1:], self.chunk_shape[1:]
        if not prod(whole):
            return np.empty(0, SPAN)
        if whole == inside:
            return np.array([(0, 0, 0, prod(whole))], SPAN)
        whole_strides = [prod(whole[axis + 1 :]) for axis in range(len(whole))]
        inside_strides = [prod(inside[axis + 1 :]) for axis in range(len(inside))]
        grid = [-(-n // c) for n, c in zip(whole, inside, strict=True)]
        spans = []
        for cell, position in enumerate(np.ndindex(*grid)):
            first = [p * c for p, c in zip(position, inside, strict=True)]
            n_here = [min(c, n - f) for c, n, f in zip(inside, whole, first, strict=True)]
            for line in np.ndindex(*n_here[:-1]):
                at = (*line, 0)
                source = sum(i * stride for i, stride in zip(at, inside_strides, strict=True))
                target = sum((f + i) * stride for f, i, stride in zip(first, at, whole_strides, strict=True))
                spans.append((cell, source, target, n_here[-1]))
        return np.array(spans, SPAN)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return start <= row < stop along the first axis, C-contiguous and in native byte order.

        Raises
        ------
        CorruptDataError
            The store could not make sense of its bytes.
        """
        wanted = (stop - start, *self.shape[1:])
        with damage_named(f"{self.location}, rows {start} to {stop}"):
            values = np.asarray(self._read(start, stop))
        if values.shape != wanted:
            msg = f"{self.location}, rows {start} to {stop}: expected shape {wanted}, got {values.shape}"
            raise CorruptDataError(msg)
        return np.ascontiguousarray(values, native(values.dtype))

    def identity(self) -> Identity | None:
        """Return what tells the data from others without reading them; None where nothing does.

        HDF5 has none: of a file that was open before it changed, it may answer from what it has in memory.
        """
        return None

    def check_claim(self) -> None:  # noqa: B027 - what is in memory is there
        """Refuse an array that claims to hold more than its files can; not all of it may be fill values.

        Raises
        ------
        CorruptDataError
            It claims more.
        """

    def close(self) -> None:  # noqa: B027 - most arrays hold nothing open
        """Drop what is held open; a later read opens it again."""


class MemoryArray(StoredArray):
    """A NumPy array."""

    def __init__(self, array: np.ndarray, location: str) -> None:
        self.array = np.ascontiguousarray(array, native(array.dtype))
        self.shape, self.dtype, self.location = array.shape, self.array.dtype, location

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_table"}

    @property
    def read_rows(self) -> int:
        """See the base class."""
        return max(1, _VIRTUAL_CHUNK // max(1, prod(self.shape[1:])))

    def _make_table(self) -> ChunkTable | None:
        shape = (self.read_rows, *self.shape[1:])
        grid = (-(-self.shape[0] // self.read_rows),) + (1,) * (len(shape) - 1)
        return ChunkTable(shape, grid, self.dtype.itemsize, memory=flat_bytes(self.array))

    def _read(self, start: int, stop: int) -> np.ndarray:
        view: np.ndarray = self.array[start:stop]
        return view


class Hdf5Array(StoredArray):
    """A dataset of an HDF5 file.

    The handle is not carried to another process: there the file is opened again by its path.
    """

    # HDF5 has one lock for everything.
    n_concurrent = 1
    _chunks_are_checked = False

    def __init__(self, dataset: h5py.Dataset) -> None:
        file = dataset.file  # h5py makes an object each time
        self._far = far_file_of(file)
        filename = file.filename
        self.path, self.name = os.path.abspath(filename) if self._far is None else filename, dataset.name  # noqa: PTH100
        self.location = f"{filename} :: {self.name}"
        with damage_named(self.location):
            self.shape, self.dtype, self._chunks = dataset.shape, native(dataset.dtype), dataset.chunks
        self._dataset: h5py.Dataset | None = dataset
        self._own_file: h5py.File | None = None
        self._pid = os.getpid()
        self._may_change = file.mode != "r"
        self.is_far = self._far is not None
        if self.is_far:
            self._table = self._make_table()  # while the file is open: opening it again takes several round trips
        self._stamp = _file_stamp(self.path) if self._far is None else None

    @property
    def read_rows(self) -> int:
        """See the base class."""
        if self._chunks:
            return int(self._chunks[0])
        return max(1, _VIRTUAL_CHUNK // max(1, prod(self.shape[1:])))

    @property
    def dataset(self) -> h5py.Dataset:
        """The open dataset."""
        if self._dataset is None or not self._dataset or self._pid != os.getpid():
            self._check_unchanged()
            try:
                own_file = open_local_file(self.path) if self._far is None else self._far.open()
                dataset = own_file[self.name]
            except (ConnectionError, PermissionError, TimeoutError):
                raise
            except (OSError, KeyError) as error:
                if isinstance(error, OSError) and system_error(error) in (errno.EMFILE, errno.ENFILE):
                    raise
                msg = f"{self.location} cannot be opened again: {error}"
                raise CorruptDataError(msg) from error
            self._own_file, self._dataset, self._pid = own_file, dataset, os.getpid()
            _keep_few_open(self)
            return dataset
        return self._dataset

    def _check_unchanged(self) -> None:
        """Raise when the path no longer leads to what was opened."""
        if self._far is not None:
            return  # it looks after that itself, at every read
        if self._stamp is None:
            msg = (
                f"{self.location} cannot be opened again, as another process must: it is in no file; open it by a path"
            )
            raise ValueError(msg)
        if not self._may_change and _file_stamp(self.path) != self._stamp:
            msg = f"{self.location}: the file was changed, replaced or removed after it was opened"
            raise CorruptDataError(msg)

    def check_claim(self) -> None:
        """See the base class."""
        check_claim(self.dataset, self.location)

    def _make_table(self) -> ChunkTable | None:
        from .hdf5_table import hdf5_table

        table = hdf5_table(self.dataset)
        if self._far is None or table is None:
            return table
        from annbatch.storage.far.tables import far_hdf5_table

        return far_hdf5_table(table, self._far)

    def _read(self, start: int, stop: int) -> np.ndarray:
        dataset = self.dataset
        if not self._chunks_are_checked:
            check_chunks(dataset)
            self._chunks_are_checked = True
        values: np.ndarray = dataset[start:stop]
        return values

    def close(self) -> None:
        """See the base class."""
        self._dataset = None
        if self._own_file is not None and self._pid == os.getpid():
            self._own_file.close()
        self._own_file = None
        if self._far is not None:
            self._far.forget()

    def __getstate__(self) -> dict[str, Any]:
        self._check_unchanged()
        state = {key: value for key, value in self.__dict__.items() if key != "_table"}
        return {**state, "_dataset": None, "_own_file": None}


def _raise(error: OSError) -> None:
    raise error


# Arrays that have opened their file again, oldest first: of thousands of files only the last few stay open. Another thread that
# still reads from one of the others keeps its dataset, and with it the file, until it is done.
_opened_again: deque[weakref.ref[Hdf5Array]] = deque()


def _keep_few_open(array: Hdf5Array) -> None:
    _opened_again.append(weakref.ref(array))
    while len(_opened_again) > _MOST_OPEN:
        oldest = _opened_again.popleft()()
        if oldest is not None and oldest is not array:
            oldest._dataset = oldest._own_file = None  # noqa: SLF001 (one of this class)


class ZarrArray(StoredArray):
    """An array of a Zarr store, of format 2 or 3, local or remote."""

    _folder_is_checked = False

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array = _at_absolute_path(array)
        self.location = f"{_store_name(array)} :: {array.path or '/'}"
        check_chunk_shape(array, self.location)
        self.shape, self.dtype = array.shape, native(np.dtype(array.dtype))
        self.is_far = not self.is_local
        self._stamp = self._stamp_now()
        if self.is_far:
            self._table = self._make_table()  # one for all threads, so that each shard index is read once

    @property
    def read_rows(self) -> int:
        """See the base class."""
        return int(self.array.chunks[0]) if self.array.chunks else 1

    @property
    def is_local(self) -> bool:
        """Whether the chunks are files on this machine."""
        from zarr.storage import LocalStore

        return isinstance(self.array.store, LocalStore)

    @property
    def n_concurrent(self) -> int | None:  # type: ignore[override]
        """See the base class."""
        # A remote store answers slowly but many at a time.
        return None if self.is_local else 16

    def identity(self) -> Identity | None:
        """See the base class."""
        if not self.is_local:
            return None
        store: Any = self.array.store
        folder = f"{store.root}/{self.array.path}"
        lines, newest = [folder], 0
        try:
            for at, folders, names in os.walk(folder, onerror=_raise):
                if any(os.path.islink(f"{at}/{name}") for name in folders):  # noqa: PTH114
                    return None  # what lies behind it may change unseen
                folders.sort()
                for name in sorted(names):
                    found = os.stat(f"{at}/{name}")  # noqa: PTH116
                    lines.append(f"{at}/{name} {_all_of(found)}")
                    newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
                if len(lines) > _MOST_FILES:
                    return None
        except OSError:
            return None
        return Identity("\n".join(lines), newest)

    def check_claim(self) -> None:
        """See the base class."""
        check_claim(self.array, self.location)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        """Tell the document of a local array from the one that may replace it."""
        if not self.is_local:
            return None
        store: Any = self.array.store
        name = "zarr.json" if is_version_3(self.array) else ".zarray"
        return _file_stamp(f"{store.root}/{self.array.path}/{name}")

    def _check_unchanged(self) -> None:
        """Raise when the array is no longer the one that was opened, of which row pointers and labels may be known already."""
        if self._stamp_now() != self._stamp:
            msg = f"{self.location} was changed, replaced or removed after it was opened"
            raise CorruptDataError(msg)

    def _make_table(self) -> ChunkTable | None:
        self._check_unchanged()
        if not self.is_local:
            from annbatch.storage.far.tables import far_table

            return far_table(self.array)
        from .zarr_table import zarr_table

        return zarr_table(self.array)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_table", "_bounded")}

    @cached_property
    def _bounded(self) -> Any:
        """The array as zarr-python may read it."""
        from .bounded import bounded

        return bounded(self.array)

    def _read(self, start: int, stop: int) -> np.ndarray:
        from .absent import check_absent
        from .straight import read_straight

        if self.is_local and len(self.shape) == 1 and self.table is not None:
            straight = read_straight(self.table, self.dtype, start, stop)
            if straight is not None:
                return straight
        if not self._folder_is_checked:
            check_folder(self.array)
            self._folder_is_checked = True
        values = np.asarray(self._bounded[start:stop])
        check_absent(self.array, values, start)
        return values


def stored_array(elem: Any, location: str | None = None) -> StoredArray:
    """Wrap a numpy, h5py or zarr array.

    Raises
    ------
    TypeError
        It is none of them, or has a mask, which batches do not.
    """
    if isinstance(elem, np.ma.MaskedArray):
        msg = (
            "expected an array without a mask, got a numpy.ma.MaskedArray; say what masked values are, e.g. X.filled(0)"
        )
        raise TypeError(msg)
    if isinstance(elem, np.ndarray):
        return MemoryArray(elem, location or "array in memory")
    if isinstance(elem, h5py.Dataset):
        return Hdf5Array(elem)
    if isinstance(elem, zarr.Array):
        return ZarrArray(elem)
    msg = f"expected a numpy.ndarray, h5py.Dataset or zarr.Array, got {type(elem).__module__}.{type(elem).__qualname__}"
    raise TypeError(msg)


def _at_absolute_path(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the array by a path that stays right when the process, or a worker of it, changes its folder."""
    from zarr.storage import LocalStore

    store = array.store
    if not isinstance(store, LocalStore) or store.root.is_absolute():
        return array
    return zarr.open_array(
        LocalStore(Path(store.root).absolute(), read_only=True),
        path=array.path,
        mode="r",
        zarr_format=array.metadata.zarr_format,
    )


def _store_name(array: zarr.Array[Any]) -> str:
    root = getattr(array.store, "root", None)
    return str(array.store if root is None else root)


def _all_of(found: os.stat_result) -> str:
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _file_stamp(path: str) -> tuple[int, int, int] | None:
    """Return size, time and inode; None where there is no file."""
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
