"""Which client asks a store for byte ranges: the quickest that its library allows for."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from .http import NotPlainError
from .signed import SignedObjects, can_be_signed
from .stores import FsspecObjects, HttpObjects, Objects, ObstoreObjects, RoutedObjects, ZarrObjects

__all__ = ["awaitable", "fsspec_objects", "is_file_system", "is_obstore", "objects_of"]

_PASSWORD = re.compile(r"(?<=://)[^/]*@")


def is_file_system(store: Any) -> bool:
    """Whether something is a file system of fsspec."""
    return all(hasattr(store, name) for name in ("cat_file", "protocol", "async_impl", "storage_options"))


def is_obstore(store: Any) -> bool:
    """Whether something is a store of obstore."""
    return all(hasattr(store, name) for name in ("get_async", "head_async")) and "obstore" in type(store).__module__


def awaitable(files: Any) -> Any:
    """Return a file system of fsspec as one that is awaited in zarr-python's event loop, where it can be."""
    if not files.async_impl or files.asynchronous:
        return files
    try:
        return type(files)(*files.storage_args, **{**files.storage_options, "asynchronous": True})
    except ValueError:
        return files  # one on top of another that is not awaited, as those of a folder are


def objects_of(store: Any) -> Objects:
    """Return the objects of a store of obstore or zarr-python, by the quickest way that its client offers."""
    from zarr.storage import FsspecStore

    if is_obstore(store):
        return ObstoreObjects(store)
    if isinstance(store, FsspecStore):
        return fsspec_objects(store.fs, store.path)
    try:
        from zarr.storage import ObjectStore
    except ImportError:
        return ZarrObjects(store)
    return ObstoreObjects(store.store) if isinstance(store, ObjectStore) else ZarrObjects(store)


def fsspec_objects(files: Any, path: str) -> Objects:
    """Return objects under a path of an fsspec file system."""
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    if protocol in ("http", "https"):
        headers, general = _plain_http(files), FsspecObjects(files, path)
        if headers is not None and path.startswith(("http://", "https://")):
            # A name and password in the URL are for aiohttp to hand in.
            has_password = "@" in urlsplit(path).netloc
            return PlainOrFsspec(general if has_password else HttpObjects(path, headers), general)
    if can_be_signed(files):
        return SignedObjects(FsspecObjects(files, path))
    return FsspecObjects(files, path)


def _plain_http(files: Any) -> dict[str, str] | None:
    """Return the headers of an fsspec file system of HTTP, or None when it needs more than those."""
    given = {name: value for name, value in files.storage_options.items() if value is not None}
    for name in ("asynchronous", "loop", "skip_instance_cache", "use_listings_cache", "block_size", "cache_type"):
        given.pop(name, None)
    headers = dict(given.pop("headers", {}))
    client = dict(given.pop("client_kwargs", {}))
    headers.update(client.pop("headers", {}))
    return None if given or client else headers


class PlainOrFsspec(RoutedObjects):
    """Plain HTTP, until an answer shows that a general client is needed: a redirect, or data of unknown length."""

    def __init__(self, plain: Objects, general: Objects) -> None:
        self._plain, self._general = plain, general

    def __reduce__(self) -> tuple[Any, ...]:
        return PlainOrFsspec, (self._plain, self._general)

    def text(self, key: str) -> str:
        """See the base class."""
        return self.identity(key).partition("?")[0]

    def identity(self, key: str) -> str:
        """See the base class."""
        return _PASSWORD.sub("", self._general.text(key), count=1)

    async def _call(self, name: str, key: str, *args: Any) -> Any:
        try:
            return await getattr(self._plain, name)(key, *args)
        except NotPlainError:
            self._plain = self._general
            return await getattr(self._plain, name)(key, *args)
