"""Objects of stores that are handed over as such, in place of a URL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annbatch._shared.args import as_list

from .clients import awaitable, fsspec_objects, is_file_system, is_obstore, objects_of

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from .stores import Objects

__all__ = ["StoredObject", "as_places"]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a store, or the Zarr group at a path in it.

    Attributes
    ----------
    store
        A file system of fsspec, a store of obstore, or one of zarr-python.
    path
        Where it is in there.
    """

    store: Any
    path: str

    def __str__(self) -> str:
        objects, key = self.object()
        return objects.text(key)

    def object(self) -> tuple[Objects, str]:
        """Return it as an object: the objects of its store, and the key there."""
        if is_file_system(self.store):
            return fsspec_objects(awaitable(self.store), self.path), ""
        return objects_of(self.store), self.path

    def zarr_store(self) -> tuple[Store, str]:
        """Return it as a group: a store of zarr-python, and the path there."""
        if is_file_system(self.store):
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
            from zarr.storage import FsspecStore

            files = awaitable(self.store)
            files = (
                files if files.async_impl and files.asynchronous else AsyncFileSystemWrapper(files, asynchronous=True)
            )
            return FsspecStore(files, read_only=True, path=self.path), ""
        path = self.path.strip("/")
        if is_obstore(self.store):
            from zarr.storage import ObjectStore

            return ObjectStore(self.store, read_only=True), path
        return self.store, path


def as_places(name: str, places: Any) -> list[str | os.PathLike[str] | StoredObject]:
    """Return several places as paths, URLs and objects of stores.

    Parameters
    ----------
    name
        Of the parameter, for error texts.
    places
        Besides paths and URLs: open files of fsspec (whatever has its ``fs`` and ``path``), and pairs of a store and a path in
        it. Those of a local file system become paths.

    Raises
    ------
    TypeError
        One of them is something else, or a file of obstore, which does not tell where it is; or it is but a single one.
    ValueError
        A file that fsspec would decompress.
    """
    if _is_pair(places) or _is_fsspec_file(places):
        # A file is gone through line by line.
        msg = f"{name} must be a list, got a single {'pair' if _is_pair(places) else 'file'}: put it into a list"
        raise TypeError(msg)
    return [_as_place(name, place) for place in as_list(name, places, "path")]


def _as_place(name: str, place: Any) -> str | os.PathLike[str] | StoredObject:
    if _is_pair(place):
        store, path = place
    elif _is_fsspec_file(place):
        store, path = place.fs, place.path
        if getattr(place, "compression", None) is not None:
            msg = f"{name} must hold files that are read as they are, got {path} with compression={place.compression!r}"
            raise ValueError(msg)
    elif isinstance(place, str | os.PathLike):
        return place
    else:
        msg = f"{name} must hold paths, URLs, files of fsspec, or pairs (store, path), got {place!r} ({type(place).__name__})"
        if type(place).__name__ == "ReadableFile":
            msg += "; a file of obstore does not tell where it is: pass the store and the path that it was opened with"
        raise TypeError(msg)
    if is_file_system(store):
        path = store._strip_protocol(path)  # noqa: SLF001 (fsspec's own way to say it)
        if "file" in ((store.protocol,) if isinstance(store.protocol, str) else store.protocol):
            return Path(path)
    elif (root := getattr(store, "root", None)) is not None and _is_zarr_store(store):
        return Path(os.fspath(root), path.lstrip("/"))  # keys have no root of their own
    return StoredObject(store, path)


def _is_pair(place: Any) -> bool:
    if not isinstance(place, tuple) or len(place) != 2 or not isinstance(place[1], str):
        return False
    return is_file_system(place[0]) or is_obstore(place[0]) or _is_zarr_store(place[0])


def _is_fsspec_file(place: Any) -> bool:
    return is_file_system(getattr(place, "fs", None)) and isinstance(getattr(place, "path", None), str)


def _is_zarr_store(store: Any) -> bool:
    from zarr.abc.store import Store

    return isinstance(store, Store)
