"""Groups and arrays of Zarr stores in local folders that are found quickly.

zarr-python asks its event loop for every member, and once more whether it is there, and makes a dozen objects of each metadata
document: of thousands of small stores that is most of what opening them takes. Here a document is read where it lies, and what
comes out are groups and arrays of zarr-python that know what opening asks for, and become whole when anything else is asked.
Whatever is out of the ordinary is left to zarr-python, and so are its errors.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import zarr
from zarr.storage import LocalStore, StorePath

from .errors import CorruptDataError, damage_named
from .manifest import check_document, parsed_document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

__all__ = [
    "DOCUMENTS",
    "LocalArray",
    "LocalGroup",
    "check_zarr_format",
    "is_version_3",
    "location_of",
    "open_local_group",
]

# Names of metadata documents, the likeliest first.
DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


class _Node:
    """What groups and arrays of a local folder know without zarr-python."""

    _store: LocalStore
    _path: str
    _document: dict[str, Any]

    @property
    def store(self) -> Any:
        """Where it lies."""
        return self._store

    @property
    def path(self) -> str:
        """Path in the store."""
        return self._path

    @property
    def store_path(self) -> StorePath:
        """Both."""
        return StorePath(self._store, self._path)

    @property
    def location(self) -> str:
        """What str(store_path) is."""
        return f"{self._store}/{self._path}" if self._path else str(self._store)

    @property
    def attrs(self) -> Any:
        """Attributes, for reading."""
        return self._document.get("attributes", {})


class LocalGroup(_Node, zarr.Group):
    """A group of a local folder, for reading."""

    def __init__(self, store: LocalStore, path: str, document: dict[str, Any]) -> None:
        # A copy, which saves nothing in a local folder, and may be an old one.
        document.pop("consolidated_metadata", None)
        # (zarr.Group is frozen.)
        self.__dict__.update(_store=store, _path=path, _document=document)

    @property
    def _async_group(self) -> Any:
        if "_whole" not in self.__dict__:
            self.__dict__["_whole"] = zarr.AsyncGroup.from_dict(self.store_path, self._document)
        return self.__dict__["_whole"]

    @property
    def is_version_3(self) -> bool:
        """Whether it is of format 3."""
        return bool(self._document["zarr_format"] == 3)

    def __getitem__(self, path: str) -> Any:
        """Return an array or a group below this one; KeyError where there is none, CorruptDataError where it is damaged."""
        if isinstance(path, str) and _is_plain(path):
            whole = f"{self._path}/{path}" if self._path else path
            found = _node(self._store, whole, 3 if self.is_version_3 else 2)
            if found is not None:
                return found
            _check_documents_of(f"{self._store.root}/{whole}")  # zarr-python opens whatever has the name of one
        try:
            return super().__getitem__(path)
        except KeyError:
            raise
        except Exception:
            with damage_named(f"{self._store.root}/{self._path} :: {path}"):
                raise

    def __contains__(self, path: str) -> bool:
        """Whether there is such an array or group."""
        if isinstance(path, str) and _is_plain(path):
            folder = f"{self._store.root}/{self._path}/{path}" if self._path else f"{self._store.root}/{path}"
            names = ("zarr.json",) if self.is_version_3 else (".zarray", ".zgroup")
            return any(os.path.exists(f"{folder}/{name}") for name in names)  # noqa: PTH110 (quick)
        found: bool = super().__contains__(path)
        return found

    def __iter__(self) -> Any:
        """Yield names of members."""
        with os.scandir(f"{self._store.root}/{self._path}") as entries:
            return iter([entry.name for entry in entries if entry.name in self])

    def __len__(self) -> int:
        """Return the number of members; list() asks for it."""
        return sum(1 for _ in self)

    def plain(self) -> zarr.Group:
        """Return the group as zarr-python has it, for libraries that look at the type."""
        return zarr.Group(self._async_group)


class LocalArray(_Node, zarr.Array[Any]):
    """An array of a local folder, for reading, of format 3."""

    def __init__(self, store: LocalStore, path: str, document: dict[str, Any], traits: _Traits) -> None:
        self._store, self._path, self._document, self._traits = store, path, document, traits

    @property
    def _async_array(self) -> Any:  # type: ignore[override]
        if "_whole" not in self.__dict__:
            self.__dict__["_whole"] = zarr.AsyncArray.from_dict(self.store_path, self._document)
        return self.__dict__["_whole"]

    @property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(self._document["shape"])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._document["shape"])

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self._traits.dtype

    @property
    def fill_value(self) -> Any:
        """Value of what is not stored."""
        return self._traits.fill_value

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of what is encoded at a time."""
        at: Any = self._document["codecs"][0] if self._traits.is_sharded else self._document["chunk_grid"]
        return tuple(at["configuration"]["chunk_shape"])

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Shape of what a file holds, where that is many chunks."""
        return tuple(self._document["chunk_grid"]["configuration"]["chunk_shape"]) if self._traits.is_sharded else None


def open_local_group(folder: Path) -> zarr.Group:
    """Open the Zarr group in a folder."""
    store = LocalStore(folder, read_only=True)
    found = _node(store, "", 3 if (folder / "zarr.json").exists() else 2)
    if isinstance(found, LocalGroup):
        return found
    _check_documents_of(str(folder))
    # Consolidated metadata is a copy, which saves nothing in a local folder, and may be an old one.
    return zarr.open_group(folder, mode="r", use_consolidated=False)


def check_zarr_format(folder: object, document: Mapping[str, Any]) -> None:
    """Raise CorruptDataError when the zarr.json of a folder does not say that it is one."""
    if document.get("zarr_format") != 3:
        msg = f"{folder}/zarr.json is damaged: zarr_format must be 3 there, got {document.get('zarr_format')!r}"
        raise CorruptDataError(msg)


def is_version_3(array: Any) -> bool:
    """Whether an array of a Zarr store is of format 3."""
    return isinstance(array, LocalArray) or array.metadata.zarr_format == 3


def location_of(elem: Any) -> str:
    """Name the place of an array or group of a Zarr store: str(elem.store_path), but quickly."""
    return elem.location if isinstance(elem, _Node) else str(elem.store_path)


def _is_plain(path: str) -> bool:
    return bool(path) and "\\" not in path and not {"", ".", ".."}.intersection(path.split("/"))


def _check_documents_of(folder: str) -> None:
    for name in DOCUMENTS:
        try:
            check_document(f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            continue


def _node(store: LocalStore, path: str, zarr_format: int) -> Any:
    """Return the array or group at a place; None where zarr-python shall look."""
    try:
        document = _document(f"{store.root}/{path}" if path else str(store.root), zarr_format)
        if document.get("node_type") == "array" or "chunks" in document:
            traits = _traits(document) if zarr_format == 3 else None
            if traits is not None:
                return LocalArray(store, path, document, traits)
            return zarr.Array(zarr.AsyncArray.from_dict(StorePath(store, path), document))
        if zarr_format == 3:
            check_zarr_format(f"{store.root}/{path}" if path else store.root, document)
        group = LocalGroup(store, path, document)
        if zarr_format != 3 or document.keys() - {"attributes"} != {"zarr_format", "node_type"}:
            _ = group._async_group  # noqa: SLF001 (ours; zarr-python says whether it is one)
        elif (document["zarr_format"], document["node_type"]) != (3, "group"):
            return None
    except CorruptDataError:
        raise
    except Exception:  # noqa: BLE001 - what it is, zarr-python says when it is asked
        return None
    return group


def _document(folder: str, zarr_format: int) -> dict[str, Any]:
    """Read the metadata of a node, as one document."""
    if zarr_format == 3:
        return dict(parsed_document(f"{folder}/zarr.json"))
    try:
        document = dict(parsed_document(f"{folder}/.zarray"))
    except FileNotFoundError:
        document = dict(parsed_document(f"{folder}/.zgroup"))
    try:
        document["attributes"] = dict(parsed_document(f"{folder}/.zattrs"))
    except FileNotFoundError:
        document["attributes"] = {}
    return document


class _Traits(NamedTuple):
    """What arrays have in common whose metadata differ in lengths and attributes only."""

    dtype: np.dtype[Any]
    fill_value: Any
    is_sharded: bool


def _traits(document: dict[str, Any]) -> _Traits | None:
    """Return what zarr-python makes of an array's metadata; None where it must look at this very document.

    Of arrays that differ in nothing but lengths and attributes it looks at one, and lengths are checked here.
    """
    grid, codecs = document["chunk_grid"], document["codecs"]
    if document["zarr_format"] != 3 or grid.keys() != {"name", "configuration"}:
        return None
    if grid["configuration"].keys() != {"chunk_shape"}:
        return None
    shape, stored = document["shape"], grid["configuration"]["chunk_shape"]
    is_sharded = len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed"
    chunk = codecs[0]["configuration"]["chunk_shape"] if is_sharded else stored
    numbers = (*shape, *stored, *chunk)
    if not len(shape) == len(stored) == len(chunk) or any(type(n) is not int or n < 0 for n in numbers):
        return None
    if 0 in stored or 0 in chunk or any(n % m for n, m in zip(stored, chunk, strict=True)):
        return None
    ones = [1] * len(shape)
    alike = {**document, "shape": ones, "chunk_grid": {**grid, "configuration": {"chunk_shape": ones}}}
    alike.pop("attributes", None)
    if is_sharded:
        alike["codecs"] = [{**codecs[0], "configuration": {**codecs[0]["configuration"], "chunk_shape": ones}}]
    return _traits_of(json.dumps(alike))


@lru_cache(maxsize=1024)
def _traits_of(text: str) -> _Traits | None:
    try:
        array: Any = zarr.Array(zarr.AsyncArray.from_dict(StorePath(LocalStore("/")), json.loads(text)))
        return _Traits(array.dtype, array.fill_value, array.shards is not None)
    except Exception:  # noqa: BLE001 - zarr-python says it of the document itself
        return None
