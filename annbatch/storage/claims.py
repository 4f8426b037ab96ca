"""Whether what a file claims to hold can be true: asked before memory is taken for it."""

from __future__ import annotations

import os
import re
from math import prod
from pathlib import Path
from typing import Any

from .errors import CorruptDataError
from .manifest import check_array

__all__ = [
    "check_chunk_count",
    "check_chunk_shape",
    "check_chunk_size",
    "check_claim",
    "check_files",
    "check_folder",
    "check_keys",
    "most_bytes",
    "stored_bytes",
]

# What is smaller is not worth a look.
_HARMLESS_BYTES = 64 * 2**20
# No codec in use packs so much into a byte: deflate 1,032 bytes, zstd some 30,000.
_MOST_PER_STORED_BYTE = 2**16
# Chunks may reach beyond the end of their array, but not for this many times its size.
_MOST_ARRAYS_PER_CHUNK = 16
# So many chunks may be looked at one by one, though none is stored; of more, as many as there are bytes.
_HARMLESS_CHUNKS = 10**6
# How Zarr names chunks, or folders of them, in one way or another.
_LIKE_A_CHUNK = re.compile(r"c|c\.\d[.\d]*|\d[.\d]*")


def check_claim(elem: Any, where: str) -> None:
    """Refuse an array, of which not all can be fill values, that claims to hold more than its files can.

    Parameters
    ----------
    elem
        A Zarr array or HDF5 dataset: row names or a row pointer, of which every item was written.
    where
        File and array.

    Raises
    ------
    CorruptDataError
        It claims more.
    """
    n_bytes = prod(elem.shape) * max(1, getattr(elem.dtype, "itemsize", 1))
    if n_bytes <= _HARMLESS_BYTES:
        return
    stored = _stored_bytes_of(elem)
    if stored is not None and n_bytes > _HARMLESS_BYTES + _MOST_PER_STORED_BYTE * stored:
        msg = f"{where} claims to hold {n_bytes} bytes, of shape {elem.shape}, but only {stored} are stored: the file is damaged"
        raise CorruptDataError(msg)


def most_bytes(n_bytes: int) -> int:
    """Bytes that a chunk may decode to, of an array of so many."""
    return max(_HARMLESS_BYTES, _MOST_ARRAYS_PER_CHUNK * n_bytes)


def check_chunk_size(elem: Any, chunk_shape: tuple[int, ...], itemsize: int, where: str) -> None:
    """Refuse chunks that claim to be far larger than their whole array.

    Parameters
    ----------
    elem
        A Zarr array or HDF5 dataset.
    chunk_shape, itemsize
        Shape of a chunk, and bytes of its items.
    where
        File and array.

    Raises
    ------
    CorruptDataError
        They do.
    """
    n_bytes, claimed = prod(elem.shape) * itemsize, prod(chunk_shape) * itemsize
    if claimed > most_bytes(n_bytes):
        msg = f"{where}: a chunk of shape {chunk_shape} claims {claimed} bytes of an array of {n_bytes}: the metadata is damaged"
        raise CorruptDataError(msg)


def check_chunk_count(elem: Any, where: str) -> None:
    """Refuse an array that claims far more chunks (64 KiB, where it has none) than its files can hold.

    Asked before all of them are looked at; absent ones have the fill value, so that a claim alone is no damage.

    Parameters
    ----------
    elem, where
        As of :func:`check_claim`.

    Raises
    ------
    CorruptDataError
        It claims more.
    """
    chunks = getattr(elem, "chunks", None)
    if chunks:
        n_chunks = prod(-(-n // max(1, c)) for n, c in zip(elem.shape, chunks, strict=True))
    else:
        n_chunks = prod(elem.shape) * max(1, getattr(elem.dtype, "itemsize", 1)) >> 16
    if n_chunks <= _HARMLESS_CHUNKS:
        return
    # (HDF5 would go through its whole index, to tell what this dataset takes.)
    stored = elem.file.id.get_filesize() if hasattr(elem, "file") else _stored_bytes_of(elem)
    if stored is not None and n_chunks > stored:
        msg = f"{where} claims to hold {n_chunks} chunks, of shape {elem.shape}, but there are only {stored} bytes: the file is damaged"
        raise CorruptDataError(msg)


def check_folder(array: Any) -> None:
    """Look at the files of a Zarr array in a local folder, before zarr-python reads them.

    Raises
    ------
    CorruptDataError
        One is no regular file (reading a pipe would wait for ever), or not as the manifest of the dataset says.
    """
    check_files(array)
    check_array(array)


def check_chunk_shape(elem: Any, where: str) -> None:
    """Refuse an array whose chunks have no extent: nothing could be divided by it.

    Raises
    ------
    CorruptDataError
        It is such an array.
    """
    chunks = getattr(elem, "chunks", None)
    if chunks and min(chunks) < 1:
        msg = f"{where}: a chunk of shape {tuple(chunks)} holds nothing: the metadata is damaged"
        raise CorruptDataError(msg)


def check_keys(folder: str, first_key: str) -> None:
    """Refuse a Zarr array in a local folder whose files have the names of chunks, but not in the way its metadata says.

    Zarr would take every chunk as absent, and give fill values.

    Parameters
    ----------
    folder
        Of the array.
    first_key
        Name of the file of its first chunk, by its metadata.

    Raises
    ------
    CorruptDataError
        It is such an array.
    """
    first = first_key.partition("/")[0]
    expected = re.compile(re.escape(first).replace("0", r"\d+"))
    other = ""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if expected.fullmatch(entry.name):
                    return
                other = entry.name if _LIKE_A_CHUNK.fullmatch(entry.name) else other
    except (FileNotFoundError, NotADirectoryError):
        return  # for its reader to say
    if other:
        msg = f"{folder} holds {other!r}, but chunks are named like {first!r} by its metadata: one of them is damaged"
        raise CorruptDataError(msg)


def check_files(array: Any) -> None:
    """Look at the files of a Zarr array, if it lies in a local folder; not at its manifest.

    Raises
    ------
    CorruptDataError
        One is no regular file.
    """
    from zarr.storage import LocalStore

    if isinstance(array.store, LocalStore):
        key = array.metadata.encode_chunk_key((0,) * array.ndim)
        check_keys(f"{array.store.root}/{array.path}", key)
        _check_regular(Path(array.store.root, array.path), key.count("/"))


def _check_regular(folder: Path, n_levels: int) -> None:
    """Look at all below a folder; so many levels of folders lead to files."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return  # for its reader to say
    with entries:
        for entry in entries:
            is_folder = entry.is_dir()
            if is_folder and n_levels:
                _check_regular(Path(entry.path), n_levels - 1)
            elif (is_folder or not entry.is_file()) and os.path.lexists(entry.path):
                msg = f"{entry.path} is not a regular file"
                raise CorruptDataError(msg)


def stored_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(os.lstat(f"{at}/{name}").st_size for at, _, names in os.walk(folder) for name in names)


def _stored_bytes_of(elem: Any) -> int | None:
    """Bytes that an array takes on the disk; None where it lies in no folder of this machine."""
    if hasattr(elem, "file"):
        stored: int = elem.id.get_storage_size()
        return stored
    root = getattr(elem.store, "root", None)
    return None if root is None else stored_bytes(Path(root, elem.path))
