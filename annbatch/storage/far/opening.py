"""Opening what is far away, in few round trips.

zarr-python and h5py ask for one thing after the other. So what opening will need is fetched before they ask, all at a time,
and kept until all is open.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from annbatch._shared.collection_format import dataset_name
from annbatch.storage.manifest import MANIFEST, is_true_copy, listed_documents

from .clients import fsspec_objects
from .fetch import fetcher
from .handed import StoredObject
from .hdf5 import open_far_files
from .hdf5_opening import fetch_needed
from .options import FarOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import h5py
    import zarr

    from .fetch import Fetcher
    from .hdf5 import FarFile
    from .needs import Needs
    from .stores import Objects
    from .zarr_store import FarStore

__all__ = ["far_groups", "fetched_ahead", "find_datasets", "is_far_place", "is_url", "open_far"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(::|://)")
_IN_BUCKET = re.compile(r"(s3|s3a|gs|gcs)://([^/?]*)")
# By a name, or by an address of Amazon's.
_BUCKET = re.compile(r"[A-Za-z0-9._\-]{1,255}|arn:.+")
_HDF5_NAMES = (".h5ad", ".h5", ".hdf5")
_ROOT_DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Datasets that are looked for at a time where a store cannot list what it holds.
_PROBED = 32


def is_url(path: Any) -> bool:
    """Whether a path names something that is not a file of this machine."""
    return isinstance(path, str) and _URL.match(path) is not None and not path.startswith("file://")


def is_far_place(path: Any) -> bool:
    """Whether a path is a URL, or an object of a store that was handed over."""
    return is_url(path) or isinstance(path, StoredObject)


def open_far(places: Sequence[str | StoredObject], options: FarOptions | None = None) -> list[h5py.File | zarr.Group]:
    """Open HDF5 files and Zarr groups at URLs and in stores, all together.

    Raises
    ------
    FileNotFoundError
        There is neither at a place.
    PermissionError
        The store refuses to tell.
    ImportError
        The library that knows this kind of URL is not installed.
    CorruptDataError
        What is there is damaged.
    ValueError
        A URL can be of no bucket.
    TypeError
        The library that knows this kind of URL does not take the `storage_options`.
    """
    try:
        return _opened(places, options)
    except TypeError as error:
        if options is None or not options.storage_options:
            raise
        # Their values may be secrets.
        msg = f"storage_options must be what the library of {places[0]} takes, got {sorted(options.storage_options)}: {error}"
        raise TypeError(msg) from error


def _opened(places: Sequence[str | StoredObject], options: FarOptions | None) -> list[h5py.File | zarr.Group]:
    from .zarr_store import FarStore

    options = FarOptions() if options is None else options
    for place in places:
        _check_bucket(place)
    options.open_cache()
    kinds = _kinds(places, options)
    files = open_far_files([_object_at(at, options) for at, kind in zip(places, kinds, strict=True) if kind], options)
    stores = []
    for place, kind in zip(places, kinds, strict=True):
        if not kind:
            store, path = _zarr_store(place, options)
            stores.append((FarStore(store, options), path))
    _fetch_together([(store, [f"{path}/{name}".lstrip("/") for name in _ROOT_DOCUMENTS]) for store, path in stores])
    opened_files, opened_stores = iter(files), iter(stores)
    return [
        next(opened_files).open() if kind else _open_zarr(*next(opened_stores), str(place))
        for place, kind in zip(places, kinds, strict=True)
    ]


def _check_bucket(place: str | StoredObject) -> None:
    """Refuse a URL without a possible name of a bucket: libraries ask for it again and again, as if the network failed."""
    found = _IN_BUCKET.match(place) if isinstance(place, str) else None
    if found and not _BUCKET.fullmatch(found[2]):
        msg = f"{place} must be {found[1]}://BUCKET/PATH, with a bucket of letters, digits, '.', '-' and '_', got the bucket {found[2]!r}"
        raise ValueError(msg)


def _kinds(places: Sequence[str | StoredObject], options: FarOptions) -> list[bool]:
    """Say of each place whether an HDF5 file is there: by its name, or by what its first bytes are."""
    found = {}
    unclear = []
    for number, place in enumerate(places):
        path = (place if isinstance(place, str) else place.path).partition("?")[0].rstrip("/")
        if path.endswith(_HDF5_NAMES) or path.endswith(".zarr"):
            found[number] = path.endswith(_HDF5_NAMES)
        else:
            unclear.append(number)
    if unclear:
        objects_and_keys = [_object_at(places[number], options) for number in unclear]
        calls = [lambda objects=objects, key=key: objects.read_start(key, 8) for objects, key in objects_and_keys]
        answers = _queue(options).gather(calls, [str(places[number]) for number in unclear])
        for number, answer in zip(unclear, answers, strict=True):
            found[number] = not isinstance(answer, BaseException) and bytes(answer[0]) == _SIGNATURE
    return [found[number] for number in range(len(places))]


def _open_zarr(store: FarStore, path: str, name: str) -> zarr.Group:
    import zarr

    try:
        return _with_true_copies(zarr.open_group(store, path=path, mode="r"))
    except FileNotFoundError as error:
        if store.refused is not None:
            msg = f"{name}: {store.refused}"
            raise PermissionError(msg) from error
        msg = f"there is no Zarr group at {name}"
        raise FileNotFoundError(msg) from error


def _object_at(place: str | StoredObject, options: FarOptions) -> tuple[Objects, str]:
    if isinstance(place, str):
        # The whole path is the root, and the key is empty: two slashes in a row are part of the name of an object, and a query
        # belongs to it, too.
        store, _ = _zarr_store(place, options)
        return fsspec_objects(store.fs, store.path), ""
    return place.object()


def _zarr_store(place: str | StoredObject, options: FarOptions) -> tuple[Any, str]:
    from zarr.storage import FsspecStore

    if not isinstance(place, str):
        return place.zarr_store()
    try:
        return FsspecStore.from_url(place, storage_options=options.storage_options_of(place), read_only=True), ""
    except ImportError as error:
        msg = f"{place} needs fsspec and the package that knows such URLs: pip install 'annbatch[remote]' ({error})"
        raise ImportError(msg) from error


def _queue(options: FarOptions) -> Fetcher:
    assert isinstance(options.max_in_flight, int)
    return fetcher(options.max_requests, options.max_in_flight)


def far_groups(groups: Sequence[Any], options: FarOptions | None = None) -> list[Any]:
    """Return groups of any stores so that they are read as far ones are; local ones, and HDF5, as they are."""
    import zarr

    from .zarr_store import FarStore

    if options is not None and any(_is_to_be_far(group, options) for group in groups):
        options.open_cache()
    stores: list[FarStore] = []
    far: list[tuple[Any, FarStore | None]] = []
    for group in groups:
        found = None
        if _is_to_be_far(group, options):
            inner = group.store._store if isinstance(group.store, FarStore) else group.store  # noqa: SLF001 (ours)
            found = next((store for store in stores if _are_same(store._store, inner)), None)  # noqa: SLF001
            if found is None:
                found = FarStore(inner, options)
                stores.append(found)
        far.append((group, found))
    _fetch_together(
        [(store, [_path(group, "zarr.json")]) for group, store in far if store and group.metadata.zarr_format == 3]
    )
    return [
        group
        if store is None
        else _with_true_copies(
            zarr.open_group(store, path=group.path, mode="r", zarr_format=group.metadata.zarr_format)
        )
        for group, store in far
    ]


def _is_to_be_far(group: Any, options: FarOptions | None) -> bool:
    from zarr.storage import LocalStore, MemoryStore

    from .zarr_store import FarStore

    store = getattr(group, "store", None)
    if store is None or isinstance(store, LocalStore | MemoryStore):
        return False
    return not (isinstance(store, FarStore) and options in (None, store.far_options))


def _are_same(store: Any, other: Any) -> bool:
    """Whether two stores are one, but for what may be written to them."""
    if store is other:
        return True
    try:
        return bool(store.with_read_only(read_only=True) == other.with_read_only(read_only=True))
    except NotImplementedError:
        return False


def _with_true_copies(group: zarr.Group) -> zarr.Group:
    """Return a group without its copies of the documents below it where they are not what manifests say.

    Then the documents themselves are read, and compared.
    """
    import zarr

    store: FarStore = group.store  # type: ignore[assignment]
    if not _is_consolidated(group) or group.metadata.zarr_format != 3:
        return group
    data = store.document(group.path)
    if data is None or is_true_copy(data):
        return group
    return zarr.open_group(store, path=group.path, mode="r", zarr_format=3, use_consolidated=False)


# -- what opening will need


@contextmanager
def fetched_ahead(groups: Sequence[Any], needs: Needs) -> Iterator[None]:
    """Fetch what opening groups will need, of all of them together; groups that are not far are left alone."""
    far = [(group, group.store) for group in groups if _is_far(group)]
    files: list[FarFile] = []
    try:
        files = fetch_needed(groups, needs)
        for group, store in far:
            listed = listed_documents(group.attrs.get(MANIFEST))
            if listed:
                store.listed[group.path] = listed
        _fetch_together([(store, _metadata_keys(group, needs)) for group, store in far])
        _fetch_together([(store, _column_metadata_keys(group, needs)) for group, store in far])
        _fetch_together([(store, _part_metadata_keys(group, needs)) for group, store in far])
        _fetch_together([(store, _data_keys(group, needs)) for group, store in far])
        yield
    finally:
        for _, store in far:
            store.forget()
        for file in files:
            file.forget()


def find_datasets(group: zarr.Group) -> list[str]:
    """Return the names of the datasets of a collection, also where the store cannot list them."""
    if _is_far(group) and not _is_consolidated(group):
        store: FarStore = group.store  # type: ignore[assignment]
        for first in range(0, 10**6, _PROBED):
            names = [dataset_name(number) for number in range(first, first + _PROBED)]
            if not store.can_list:
                _fetch_together([(store, [f"{_path(group, name)}/zarr.json" for name in names])])
            if not store.has(f"{_path(group, names[-1])}/zarr.json"):
                break
    return list(group)


def _is_far(group: Any) -> bool:
    store = getattr(group, "store", None)
    return store is not None and hasattr(store, "far_options")


def _is_consolidated(group: zarr.Group) -> bool:
    return getattr(group.metadata, "consolidated_metadata", None) is not None


def _path(group: zarr.Group, *names: str) -> str:
    return "/".join(part for part in (group.path, *names) if part)


def _fetch_together(wanted: Sequence[tuple[FarStore, Sequence[str]]]) -> None:
    """Fetch keys of several stores: those of one store, or of stores with the same limits, in one round."""
    by_store: dict[int, tuple[FarStore, list[str]]] = {}
    for store, keys in wanted:
        by_store.setdefault(id(store), (store, []))[1].extend(keys)
    together = [(store, key) for store, keys in by_store.values() for key in dict.fromkeys(keys) if store.lacks(key)]
    if not together:
        return
    calls = [lambda store=store, key=key: store.objects.read_all(key) for store, key in together]
    answers = together[0][0].queue.gather(calls, [store.objects.text(key) for store, key in together])
    for (store, key), answer in zip(together, answers, strict=True):
        store.keep(key, answer)


_MATRIX_PARTS = ("", "/data", "/indices", "/indptr")
# What columns of text and of labels consist of, as anndata writes them: row names are no labels.
_COLUMN_PARTS = ("", "/codes", "/categories")
_INDEX_PARTS = ("", "/codes", "/values", "/mask")


def _documents(group: zarr.Group, path: str) -> list[str]:
    """Return the keys of the metadata of a node."""
    whole = _path(group, path)
    if group.metadata.zarr_format == 3:
        return [f"{whole}/zarr.json".lstrip("/")]
    return [f"{whole}/{name}".lstrip("/") for name in (".zgroup", ".zarray", ".zattrs")]


def _metadata_keys(group: zarr.Group, needs: Needs) -> list[str]:
    if _is_consolidated(group):
        return []
    paths = [*needs.frames, "layers", "obsm", "raw", "raw/X", "raw.X", "raw/var"]
    paths += [path + part for path in needs.matrices for part in _MATRIX_PARTS]
    return [key for path in paths for key in _documents(group, path)]


def _frame_columns(frame: Any, columns: Sequence[str] | None) -> list[str]:
    """Return the names of stored arrays that a table is read from; none when it is no group."""
    attrs = dict(frame.attrs) if hasattr(frame, "group_keys") else {}
    if "_index" not in attrs or "column-order" not in attrs:
        return []
    stored = [str(name) for name in attrs["column-order"]]
    return [str(attrs["_index"]), *(stored if columns is None else [name for name in columns if name in stored])]


def _column_metadata_keys(group: zarr.Group, needs: Needs) -> list[str]:
    if _is_consolidated(group):
        return []
    return [
        key
        for frame, columns in needs.frames.items()
        if frame in group
        for number, name in enumerate(_frame_columns(group[frame], columns))
        for part in (_COLUMN_PARTS if number else _INDEX_PARTS)
        for key in _documents(group, f"{frame}/{name}{part}")
    ]


def _part_metadata_keys(group: zarr.Group, needs: Needs) -> list[str]:
    """Return keys of parts that the usual columns do not have: of nullable ones, and of categories that may be missing."""
    if _is_consolidated(group):
        return []
    paths = []
    for frame, columns in needs.frames.items():
        for name in _frame_columns(group[frame], columns)[1:] if frame in group else []:
            path = f"{frame}/{name}"
            elem: Any = group.get(path)
            if hasattr(elem, "group_keys"):
                is_categorical = "codes" in elem
                if not is_categorical or hasattr(elem.get("categories"), "group_keys"):
                    whole = f"{path}/categories" if is_categorical else path
                    paths += [f"{whole}/values", f"{whole}/mask"]
    return [key for path in paths for key in _documents(group, path)]


def _data_keys(group: zarr.Group, needs: Needs) -> list[str]:
    keys: list[str] = []
    for frame, columns in needs.frames.items():
        if frame in group:
            elem = group[frame]
            names = _frame_columns(elem, columns)
            for name in names[1:] if frame in needs.without_index else names:
                keys += _keys_under(elem, name)
    for path in needs.matrices:
        if path in group:
            elem = group[path]
            if hasattr(elem, "group_keys"):
                keys += _keys_under(elem, "indptr")
    return keys


def _keys_under(parent: Any, name: str) -> list[str]:
    """Return the keys of all objects of an array, or of the arrays that an encoded column consists of."""
    if name not in parent:
        return []
    elem = parent[name]
    if hasattr(elem, "group_keys"):
        parts = ("codes", "categories") if "codes" in elem else ("values", "mask")
        return [key for part in parts for key in _keys_under(elem, part)]
    from itertools import product

    stored = elem.shards or elem.chunks
    grid = product(*(range(-(-n // c)) for n, c in zip(elem.shape, stored, strict=True)))
    prefix = f"{elem.path}/" if elem.path else ""
    return [prefix + elem.metadata.encode_chunk_key(at) for at in grid]
