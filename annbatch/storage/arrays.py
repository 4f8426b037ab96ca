"""One stored array, wherever it lies: in memory, in an HDF5 file, in a Zarr store."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._dtypes import native
from .errors import CorruptDataError

if TYPE_CHECKING:
    import h5py
    import zarr

__all__ = ["Hdf5Array", "MemoryArray", "StoredArray", "ZarrArray", "stored_array"]

# Items that one task of the fallback covers where the store itself has no chunks.
_VIRTUAL_CHUNK = 1 << 16


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
    n_concurrent
        How many calls of :meth:`read` may usefully run at a time; None: as many as there are threads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    location: str
    direct: bool = True
    n_concurrent: ClassVar[int | None] = None

    @property
    @abstractmethod
    def chunk_rows(self) -> int:
        """Length along the first axis of what is best read at once."""

    @property
    def is_direct(self) -> bool:
        """Whether the compiled engine reads this array."""
        return False

    @abstractmethod
    def _read(self, start: int, stop: int) -> np.ndarray:
        """Read without checks."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return start <= row < stop along the first axis, C-contiguous and in native byte order.

        Raises
        ------
        CorruptDataError
            The store could not make sense of its bytes.
        """
        wanted = (stop - start, *self.shape[1:])
        try:
            values = np.asarray(self._read(start, stop))
        except (MemoryError, ImportError, ConnectionError, TimeoutError, InterruptedError):
            raise
        except Exception as error:
            msg = f"{self.location}, rows {start} to {stop}: {error}"
            raise CorruptDataError(msg) from error
        if values.shape != wanted:
            msg = f"{self.location}, rows {start} to {stop}: expected shape {wanted}, got {values.shape}"
            raise CorruptDataError(msg)
        return np.ascontiguousarray(values, native(values.dtype))

    def close(self) -> None:
        """Drop what is held open; a later read opens it again."""


class MemoryArray(StoredArray):
    """A NumPy array."""

    def __init__(self, array: np.ndarray, location: str) -> None:
        self.array = np.ascontiguousarray(array, native(array.dtype))
        self.shape, self.dtype, self.location = array.shape, self.array.dtype, location

    @property
    def is_direct(self) -> bool:
        return self.direct

    @property
    def chunk_rows(self) -> int:
        return max(1, _VIRTUAL_CHUNK // max(1, prod(self.shape[1:])))

    def _read(self, start: int, stop: int) -> np.ndarray:
        view: np.ndarray = self.array[start:stop]
        return view


class Hdf5Array(StoredArray):
    """A dataset of an HDF5 file.

    The handle is not carried to another process: there the file is opened again by its path.
    """

    # HDF5 has one lock for everything.
    n_concurrent = 1

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.path, self.name = os.path.abspath(dataset.file.filename), dataset.name  # noqa: PTH100
        self.location = f"{dataset.file.filename} :: {self.name}"
        self.shape, self.dtype = dataset.shape, native(dataset.dtype)
        self._chunks = dataset.chunks
        self._dataset: h5py.Dataset | None = dataset
        self._own_file: h5py.File | None = None
        self._pid = os.getpid()

    @property
    def chunk_rows(self) -> int:
        if self._chunks:
            return int(self._chunks[0])
        return max(1, _VIRTUAL_CHUNK // max(1, prod(self.shape[1:])))

    @property
    def dataset(self) -> h5py.Dataset:
        """The open dataset."""
        if self._dataset is None or not self._dataset or self._pid != os.getpid():
            import h5py

            try:
                self._own_file = h5py.File(self.path, "r")
                self._dataset = self._own_file[self.name]
            except (OSError, KeyError) as error:
                msg = f"{self.location} cannot be opened again: {error}"
                raise CorruptDataError(msg) from error
            self._pid = os.getpid()
        return self._dataset

    def _read(self, start: int, stop: int) -> np.ndarray:
        values: np.ndarray = self.dataset[start:stop]
        return values

    def close(self) -> None:
        self._dataset = None
        if self._own_file is not None and self._pid == os.getpid():
            self._own_file.close()
        self._own_file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None, "_own_file": None}


class ZarrArray(StoredArray):
    """An array of a Zarr store, of format 2 or 3, local or remote."""

    def __init__(self, array: zarr.Array) -> None:
        self.array = array
        self.location = f"{_store_name(array)} :: {array.path or '/'}"
        self.shape, self.dtype = array.shape, native(np.dtype(array.dtype))

    @property
    def chunk_rows(self) -> int:
        return int(self.array.chunks[0]) if self.array.chunks else 1

    @property
    def is_local(self) -> bool:
        """Whether the chunks are files on this machine."""
        from zarr.storage import LocalStore

        return isinstance(self.array.store, LocalStore)

    @property
    def n_concurrent(self) -> int | None:  # type: ignore[override]
        # A remote store answers slowly but many at a time.
        return None if self.is_local else 16

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.array[start:stop])


def stored_array(elem: Any, location: str | None = None) -> StoredArray:
    """Wrap a numpy, h5py or zarr array.

    Raises
    ------
    TypeError
        It is none of them.
    """
    if isinstance(elem, np.ndarray):
        return MemoryArray(elem, location or "array in memory")
    module = type(elem).__module__.partition(".")[0]
    if module == "h5py":
        import h5py

        if isinstance(elem, h5py.Dataset):
            return Hdf5Array(elem)
    if module == "zarr":
        import zarr

        if isinstance(elem, zarr.Array):
            return ZarrArray(elem)
    msg = f"expected a numpy.ndarray, h5py.Dataset or zarr.Array, got {type(elem).__module__}.{type(elem).__qualname__}"
    raise TypeError(msg)


def _store_name(array: zarr.Array) -> str:
    root = getattr(array.store, "root", None)
    return str(array.store if root is None else root)
