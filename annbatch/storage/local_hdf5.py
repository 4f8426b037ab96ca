"""HDF5 files of this machine, opened for reading, whose groups and datasets remember what h5py asks HDF5 for each time.

Of thousands of small files, most of what opening takes is h5py making an object for the file whenever a dataset is asked for its
own, and asking anew for its type, its chunks and its settings. Of a file that nobody can write to, none of these can change.
Whatever is out of the ordinary is left to h5py, and so are its errors.
"""

from __future__ import annotations

from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import h5py

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["LocalDataset", "LocalFile", "LocalMembers", "open_local_file", "plain_hdf5", "remembered"]

T = TypeVar("T")

# Of chunks that HDF5 keeps for each dataset: what it took before its version 2.0, which takes eight times as much. All of obs is read
# once, column by column, and these would be kept until the file is closed.
_CACHE_BYTES = 1 << 20


class LocalMembers(h5py.Group):  # type: ignore[misc]
    """A group, or the file itself, whose members remember what they were asked."""

    @property
    def file(self) -> LocalFile:
        """The file that it lies in."""
        raise NotImplementedError

    def __getitem__(self, name: Any) -> Any:
        """Return a member, as h5py does."""
        if not isinstance(name, str) or not name.isascii():
            return super().__getitem__(name)
        file = self.file
        found = h5py.h5o.open(self.id, name.encode())
        if h5py.h5f.get_name(found) == file.name_of_file:  # it may lie behind a link to another file
            if isinstance(found, h5py.h5d.DatasetID):
                return LocalDataset(found, file)
            if isinstance(found, h5py.h5g.GroupID):
                return _InnerGroup(found, file)
        return super().__getitem__(name)

    def get(self, name: Any, default: Any = None, *more: Any, **options: Any) -> Any:
        """Return a member, or the default, as h5py does."""
        if more or options:
            return super().get(name, default, *more, **options)
        try:
            return self[name]
        except KeyError:
            return default


class _InnerGroup(LocalMembers):
    def __init__(self, found: h5py.h5g.GroupID, file: LocalFile) -> None:
        super().__init__(found)
        self._local_file = file

    @property
    def file(self) -> LocalFile:
        """See the base class."""
        return self._local_file


class LocalFile(LocalMembers, h5py.File):  # type: ignore[misc]
    """A file that nobody can write to, see :func:`open_local_file`."""

    @property
    def file(self) -> LocalFile:
        """Itself."""
        return self

    @cached_property
    def name_of_file(self) -> bytes:
        """Its name as HDF5 has it."""
        name: bytes = h5py.h5f.get_name(self.id)
        return name

    @cached_property
    def filename(self) -> str:
        """See h5py."""
        name: str = super().filename
        return name

    @cached_property
    def driver(self) -> str:
        """See h5py."""
        driver: str = super().driver
        return driver

    @cached_property
    def mode(self) -> str:
        """See h5py."""
        mode: str = super().mode
        return mode

    @cached_property
    def userblock_size(self) -> int:
        """See h5py."""
        size: int = super().userblock_size
        return size


class LocalDataset(h5py.Dataset):  # type: ignore[misc]
    """A dataset of such a file."""

    def __init__(self, found: h5py.h5d.DatasetID, file: LocalFile) -> None:
        super().__init__(found, readonly=True)
        self._local_file = file

    @property
    def file(self) -> LocalFile:
        """The file that it lies in."""
        return self._local_file

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """See h5py."""
        dtype: np.dtype[Any] = super().dtype
        return dtype

    @cached_property
    def chunks(self) -> tuple[int, ...] | None:
        """See h5py."""
        chunks: tuple[int, ...] | None = super().chunks
        return chunks


def remembered(ask: Callable[[Any], T]) -> Callable[[Any], T]:
    """Remember what a function makes of a file or dataset that cannot change; of others, it is asked each time.

    What it returns must hold nothing of the open file, and is for reading.
    """

    @wraps(ask)
    def found(elem: Any) -> T:
        if not isinstance(elem, LocalDataset | LocalFile):
            return ask(elem)
        name = f"{ask.__module__}.{ask.__qualname__}"
        if name not in elem.__dict__:
            elem.__dict__[name] = ask(elem)
        answer: T = elem.__dict__[name]
        return answer

    return found


def open_local_file(path: str) -> h5py.File:
    """Open an HDF5 file for reading; one of h5py where this process has it open for writing, so that what is known may change."""
    file = LocalFile(path, "r", rdcc_nbytes=_CACHE_BYTES)
    return file if file.mode == "r" else h5py.File(file.id)


def plain_hdf5(elem: Any) -> Any:
    """Return a group or dataset of h5py as h5py has it, for libraries that look at the type."""
    if isinstance(elem, LocalDataset):
        return h5py.Dataset(elem.id, readonly=True)
    return h5py.Group(elem.id) if isinstance(elem, LocalMembers) else elem
