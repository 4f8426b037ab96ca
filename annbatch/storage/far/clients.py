"""Which client asks a store for byte ranges: the quickest that its library allows for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .http import NotPlainError
from .signed import SignedObjects, can_be_signed
from .stores import FsspecObjects, HttpObjects, Objects, ObstoreObjects, RoutedObjects, ZarrObjects

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["fsspec_objects", "objects_of"]


def objects_of(store: Store) -> Objects:
    """Return the objects of a zarr store, by the quickest way that its client offers."""
    from zarr.storage import FsspecStore

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
        headers = _plain_http(files)
        if headers is not None and path.startswith(("http://", "https://")):
            return PlainOrFsspec(HttpObjects(path, headers), FsspecObjects(files, path))
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
        return self._general.text(key).partition("?")[0]

    async def _call(self, name: str, key: str, *args: Any) -> Any:
        try:
            return await getattr(self._plain, name)(key, *args)
        except NotPlainError:
            self._plain = self._general
            return await getattr(self._plain, name)(key, *args)
