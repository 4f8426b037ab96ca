"""Whether the metadata documents of a Zarr hierarchy can be read: asked before a library reads whatever has the name of one."""

from __future__ import annotations

import os
from typing import Any

from .local_hdf5 import plain_hdf5
from .local_zarr import DOCUMENTS, LocalGroup
from .manifest import check_document, parsed_document

__all__ = ["check_documents", "read_by_anndata"]


def read_by_anndata(group: Any) -> Any:
    """Read what is below a group of any kind as anndata does, which knows those of zarr-python and h5py by their very types only.

    Raises
    ------
    CorruptDataError
        As :func:`check_documents`, of a local Zarr group that was opened quickly; as ``check_chunks`` of a group of HDF5.
    """
    import h5py
    from anndata.io import read_elem

    if isinstance(group, h5py.Group):
        from .chunks.hdf5_chunks import check_chunks
        from .hdf5_heap import check_attributes

        check_attributes(group)
        group.visititems(lambda _, item: check_chunks(item) if isinstance(item, h5py.Dataset) else None)
    if isinstance(group, LocalGroup):
        check_documents(f"{group.store.root}/{group.path}")
        group = group.plain()
    return read_elem(plain_hdf5(group))


def check_documents(folder: str | os.PathLike[str], *, parse: bool = True) -> None:
    """See that every metadata document of a Zarr hierarchy in a local folder can be read as one.

    Parameters
    ----------
    folder
        Of the hierarchy. Links are followed, into every folder once.
    parse
        Whether documents are also read.

    Raises
    ------
    CorruptDataError
        One is no regular file (reading a pipe would wait for ever, and a device has no end), is too long, or no JSON.
    """
    _check_documents(os.fspath(folder), set(), parse=parse)


def _check_documents(folder: str, seen: set[tuple[int, int]], *, parse: bool) -> None:
    here = os.stat(folder)  # noqa: PTH116
    if (here.st_dev, here.st_ino) in seen:
        return
    seen.add((here.st_dev, here.st_ino))
    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}
    has_members = True
    for name in found.keys() & set(DOCUMENTS):
        if not parse:
            check_document(f"{folder}/{name}")
            continue
        document = parsed_document(f"{folder}/{name}")
        has_members &= name != ".zarray" and document.get("node_type") != "array"
    if has_members:
        for name in sorted(found.keys() - set(DOCUMENTS)):
            below = found[name]
            # Folders of chunks hold none of these.
            if below.is_dir() and any(os.path.exists(f"{below.path}/{mark}") for mark in DOCUMENTS):  # noqa: PTH110
                _check_documents(below.path, seen, parse=parse)
