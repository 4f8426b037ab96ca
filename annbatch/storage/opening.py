"""Opening what a path leads to."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annbatch._shared.collection_format import sorted_datasets

from .documents import check_documents
from .errors import CorruptDataError, damage_named
from .listing import Listing, being_put_in_place, check_format
from .manifest import check_dataset

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

    import h5py
    import zarr

    from .far.handed import StoredObject
    from .far.hdf5 import FarFile
    from .far.options import FarOptions

__all__ = ["check_is_store", "holds", "home_of", "is_store", "open_datasets", "open_group", "open_groups", "open_hdf5"]

# Members of an AnnData that are not read, or by anndata when their turn comes.
_NOT_READ = (b"uns", b"obsp", b"varp")
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is an HDF5 file or the folder of a Zarr group.

    Looks at the content, not at the name. False for a path that does not exist.
    """
    import h5py

    path = Path(path)
    if path.is_dir():
        return any((path / mark).is_file() for mark in _ZARR_MARKS)
    return path.is_file() and bool(h5py.is_hdf5(path))


def check_is_store(path: Path) -> None:
    """Raise CorruptDataError when a path is no store."""
    if not is_store(path):
        if path.is_dir() and sorted_datasets(child.name for child in path.iterdir()):
            msg = f"{path} holds datasets of a collection, but its zarr.json is missing; copy that file again from where the collection came from"
            raise CorruptDataError(msg)
        msg = f"{path} is neither an HDF5 file nor a Zarr group; it may be empty, cut short, or of another kind"
        raise CorruptDataError(msg)


def check_not_empty(path: object, name: str = "a path") -> None:
    """Raise ValueError for a path of no letters, which would lead to the current folder."""
    if path == "":
        msg = f"{name} must name a file, a folder or a URL, got ''; write '.' for the current folder"
        raise ValueError(msg)


def open_groups(
    paths: Sequence[str | os.PathLike[str] | StoredObject], far: FarOptions | None = None
) -> list[h5py.Group | zarr.Group]:
    """Open several paths, URLs and objects of stores as :func:`open_group` does; what is far, all together."""
    from .far.opening import is_far_place, open_far

    places: list[Any] = [path for path in paths if is_far_place(path)]
    opened = iter(open_far(places, far)) if places else iter(())
    return [next(opened) if is_far_place(path) else open_group(path) for path in paths]


def home_of(file: h5py.File) -> str | FarFile:
    """Return what :func:`open_group` opens the same HDF5 file from."""
    from .far.hdf5 import far_file_of

    far = far_file_of(file)
    return str(file.filename) if far is None else far


def open_group(
    path: str | os.PathLike[str] | StoredObject | FarFile, far: FarOptions | None = None, *, quick: bool = False
) -> h5py.Group | zarr.Group:
    """Open an ``.h5ad`` or ``.zarr`` path for reading.

    Parameters
    ----------
    path
        An HDF5 file, the folder of a Zarr group (format 2 or 3), the URL of either, or one of a store; or what
        :func:`home_of` returned.
    far
        How it is read where it is far; None: as is usual.
    quick
        Whether it may be a group of storage/local_zarr.py or storage/local_hdf5.py, which anndata does not know; for one that is not
        handed on.

    Returns
    -------
    The root group: ``h5py.File`` or ``zarr.Group``.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    PermissionError
        It must not be read.
    ImportError
        The library for such a URL is not installed.
    CorruptDataError
        Something is there, but it is neither of the two, or it is damaged.
    ValueError
        The path is empty, or the URL can be of no bucket.
    """
    import zarr

    from .far.handed import StoredObject
    from .far.hdf5 import FarFile
    from .far.opening import is_url, open_far
    from .local_zarr import open_local_group

    if isinstance(path, FarFile):
        return path.open()
    if is_url(path) or isinstance(path, StoredObject):
        return open_far([path], far)[0]  # type: ignore[list-item]
    check_not_empty(path)
    path = Path(str(path).removeprefix("file://"))
    is_file = path.is_file()
    if not is_file and not path.exists():
        msg = f"no such file or folder: {path}"
        raise FileNotFoundError(msg)
    if is_file:
        with damage_named(str(path)):
            try:
                return open_hdf5(path, quick=quick)
            except OSError:
                check_is_store(path)
                raise
    check_is_store(path)
    with damage_named(str(path)):
        if quick:
            check_dataset(path)  # without a manifest, documents are looked at as they are read
            return open_local_group(path.absolute())
        check_store(path)
        # Consolidated metadata is a copy, which saves nothing in a local folder, and may be an old one.
        return zarr.open_group(path, mode="r", use_consolidated=False)


def open_hdf5(path: Path, skip: Collection[bytes] = _NOT_READ, *, quick: bool = False) -> h5py.File:
    """Open a local file for reading, and see that HDF5 can read the attributes of what is in it but for some members of its root."""
    import h5py

    from .hdf5_heap import check_attributes
    from .local_hdf5 import open_local_file

    file = open_local_file(str(path)) if quick else h5py.File(path, "r")
    try:
        check_attributes(file, skip)
    except BaseException:
        file.close()
        raise
    return file


def open_datasets(collection: zarr.Group) -> list[Any]:
    """Open all datasets of a collection; in a local folder, they are compared with their manifests, and with what it lists.

    Raises
    ------
    CorruptDataError
        A dataset is missing, another one than the collection lists, of Zarr format 2, or damaged.
    """
    from zarr.storage import LocalStore

    from .far.opening import find_datasets
    from .local_zarr import LocalGroup, location_of

    folder = Path(collection.store.root, collection.path) if isinstance(collection.store, LocalStore) else None
    # Datasets stay unseen until all of an addition are there, as docs/collections.md promises. (Asked before and after: the addition
    # may begin or end meanwhile.)
    unseen = frozenset() if folder is None else being_put_in_place(folder)
    found = set(find_datasets(collection))
    listing = Listing.of(collection.attrs, folder or location_of(collection))
    listing.check_all_there(found.__contains__, None if folder is not None else partial(holds, collection))
    if folder is not None:
        # Of all that are in the folder: zarr-python sees none of format 2, or an old copy of its metadata in the root.
        for name in sorted_datasets(child.name for child in folder.iterdir()):
            check_format(folder, name)
        found -= unseen | being_put_in_place(folder)
    groups = []
    for name in sorted_datasets(found):
        if folder is not None:
            listing.check(name)
            if isinstance(collection, LocalGroup):
                check_dataset(folder / name)
        groups.append(collection[name])
    return groups


def holds(group: zarr.Group, key: str) -> bool:
    """Whether something is stored at a key below a Zarr group of any store."""
    from zarr.core.sync import sync

    is_there: bool = sync((group.store_path / key).exists())
    return is_there


def check_store(folder: Path) -> None:
    """See that the metadata of a Zarr hierarchy in a local folder can be read, and compare it with its manifest, if any.

    Raises
    ------
    CorruptDataError
        A document or file is damaged, missing, or of another kind.
    """
    if not check_dataset(folder):
        check_documents(folder)
