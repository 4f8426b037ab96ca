"""Opening what a path leads to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CorruptDataError, damage_named
from .manifest import check_dataset, parsed_document

if TYPE_CHECKING:
    import os

    import h5py
    import zarr

__all__ = ["is_store", "open_group"]

_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
_DOCUMENTS = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


def is_store(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is an HDF5 file or the folder of a Zarr group.

    Looks at the content, not at the name. False for a path that does not exist.
    """
    import h5py

    path = Path(path)
    if path.is_dir():
        return any((path / mark).is_file() for mark in _ZARR_MARKS)
    return path.is_file() and bool(h5py.is_hdf5(path))


def open_group(path: str | os.PathLike[str]) -> h5py.Group | zarr.Group:
    """Open an ``.h5ad`` or ``.zarr`` path for reading.

    Parameters
    ----------
    path
        An HDF5 file, the folder of a Zarr group (format 2 or 3), or a URL that zarr can open.

    Returns
    -------
    The root group: ``h5py.File`` or ``zarr.Group``.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    CorruptDataError
        Something is there, but it is neither of the two, or it is damaged.
    """
    import h5py
    import zarr

    if "://" in str(path):
        return zarr.open_group(str(path), mode="r")
    path = Path(path)
    if not path.exists():
        msg = f"no such file or folder: {path}"
        raise FileNotFoundError(msg)
    if not is_store(path):
        msg = f"{path} is neither an HDF5 file nor a Zarr group; it may be empty, cut short, or of another kind"
        raise CorruptDataError(msg)
    with damage_named(str(path)):
        if not path.is_dir():
            return h5py.File(path, "r")
        check_store(path)
        # Consolidated metadata is a copy, which saves nothing in a local folder, and may be an old one.
        return zarr.open_group(path, mode="r", use_consolidated=False)


def check_store(folder: Path) -> None:
    """See that the metadata of a Zarr hierarchy in a local folder can be read, and compare it with its manifest, if any.

    Raises
    ------
    CorruptDataError
        A document or file is damaged, missing, or of another kind.
    """
    if not check_dataset(folder):
        check_documents(folder)


def check_documents(folder: Path) -> None:
    """See that every metadata document of a Zarr hierarchy in a local folder can be read as one.

    Raises
    ------
    CorruptDataError
        One is no regular file (reading a pipe would wait for ever, and a device has no end), is too long, or no JSON.
    """
    names = {path.name for path in folder.iterdir()}
    has_members = True
    for name in _DOCUMENTS & names:
        document = parsed_document(f"{folder}/{name}")
        has_members &= name != ".zarray" and document.get("node_type") != "array"
    if has_members:
        for name in sorted(names - _DOCUMENTS):
            below = folder / name
            # Folders of chunks hold none of these.
            if below.is_dir() and any((below / mark).exists() for mark in _DOCUMENTS):
                check_documents(below)
