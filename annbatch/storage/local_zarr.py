"""Groups of Zarr stores in local folders whose members are found quickly.

zarr-python asks its event loop for every member, and once more whether it is there: to open an AnnData takes some thirty of such
calls. Here its metadata document is read where it lies, and what comes out are zarr-python's own arrays and groups. Whatever is
out of the ordinary is left to zarr-python, and so are its errors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore, StorePath

from .errors import damage_named
from .manifest import parsed_document

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LocalGroup", "open_local_group"]


class LocalGroup(zarr.Group):
    """A group of a local folder, for reading."""

    def __getitem__(self, path: str) -> Any:
        """Return an array or a group below this one; KeyError where there is none, CorruptDataError where it is damaged."""
        found = None
        if isinstance(path, str) and _is_plain(path):
            found = _node(self.store_path / path, self.metadata.zarr_format)
        if found is not None:
            return found
        try:
            return super().__getitem__(path)
        except KeyError:
            raise
        except Exception:
            with damage_named(f"{_folder(self.store_path)} :: {path}"):
                raise

    def plain(self) -> zarr.Group:
        """Return the group as zarr-python has it, for libraries that look at the type."""
        return zarr.Group(self._async_group)

    def __contains__(self, path: str) -> bool:
        """Whether there is such an array or group."""
        if isinstance(path, str) and _is_plain(path):
            folder = _folder(self.store_path / path)
            names = ("zarr.json",) if self.metadata.zarr_format == 3 else (".zarray", ".zgroup")
            return any(os.path.exists(f"{folder}/{name}") for name in names)  # noqa: PTH110 (quick)
        found: bool = super().__contains__(path)
        return found


def open_local_group(folder: Path) -> zarr.Group:
    """Open the Zarr group in a folder."""
    store = LocalStore(folder, read_only=True)
    found = _node(StorePath(store), 3 if (folder / "zarr.json").exists() else 2)
    if isinstance(found, LocalGroup):
        return found
    # Consolidated metadata is a copy, which saves nothing in a local folder, and may be an old one.
    return zarr.open_group(folder, mode="r", use_consolidated=False)


def _is_plain(path: str) -> bool:
    return bool(path) and "\\" not in path and not {"", ".", ".."}.intersection(path.split("/"))


def _folder(at: StorePath) -> str:
    store: Any = at.store
    return f"{store.root}/{at.path}" if at.path else str(store.root)


def _node(at: StorePath, zarr_format: int) -> Any:
    """Return the array or group at a place; None where zarr-python shall look."""
    try:
        document = _document(_folder(at), zarr_format)
        if document.get("node_type") == "array" or "chunks" in document:
            return zarr.Array(zarr.AsyncArray.from_dict(at, document))
        document.pop("consolidated_metadata", None)
        return LocalGroup(zarr.AsyncGroup.from_dict(at, document))
    except Exception:  # noqa: BLE001 - what it is, zarr-python says when it is asked
        return None


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
