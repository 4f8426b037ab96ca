# Plain strings and not Path objects: thousands of files are looked at, which takes half the time this way.
# ruff: noqa: PTH116, PTH118, PTH123
"""What a dataset that annbatch wrote says of its own files, and whether it is true.

The root group of such a dataset has an attribute ``annbatch-manifest``: the digest of every metadata document below it, and of the
root's own. Every array has an attribute ``annbatch-files``: the size and the mark of each of its files. A mark is a few bytes of the
file that depend on all it holds, so that a file that stands in another's place is found without reading it: the eight bytes with
which a shard begins (made of the checksums of its chunks; no chunk lies there, and readers of shards go by the index), else the
checksum with which the file of a chunk ends. For other readers both are attributes like any other.

Sizes and documents are compared when a dataset is opened, marks when a file is first touched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import time
from collections import Counter
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "FILES",
    "INDENT",
    "MANIFEST",
    "MARK_BYTES",
    "Files",
    "check_array",
    "check_dataset",
    "check_digest",
    "check_document",
    "check_file",
    "dataset_damage",
    "described_files",
    "digest",
    "file_keys",
    "file_namer",
    "files_of",
    "first_file_key",
    "has_manifest",
    "is_set_aside",
    "is_sharded",
    "is_true_copy",
    "listed_documents",
    "lost",
    "manifest_digest",
    "manifest_in",
    "missing_files",
    "parsed_document",
    "place_of_folder",
    "read_document",
    "read_mark",
    "root_digest",
    "set_aside",
]

MANIFEST = "annbatch-manifest"
FILES = "annbatch-files"
# Bytes with which a shard begins.
MARK_BYTES = 8
_VERSION = 1
# Of the JSON of documents, so that copies of them can be told from others.
INDENT = 2
# Longer ones are refused unread: a document of this size describes millions of files.
_MOST_DOCUMENT_BYTES = 64 * 2**20
# Documents that are kept: of at most this size, and last changed so long ago that any later change shows in their times.
_MOST_KEPT_BYTES = 1 << 14
_SETTLED_NS = 2 * 10**9
_CHANGED_ON_PURPOSE = "if it was changed on purpose, `annbatch verify PATH --accept` takes the dataset as it is now"
# Not to be accepted: the chunks of a file that is gone would be read as fill values.
_COPY_AGAIN = "copy it again from where the dataset came from, or build the dataset anew"


class Files(NamedTuple):
    """Files of an array, in C order of their grid.

    Attributes
    ----------
    sizes
        int64, -1 where none is stored.
    marks
        uint64.
    """

    sizes: np.ndarray
    marks: np.ndarray

    def encoded(self) -> str:
        """As text for an attribute."""
        pairs = np.stack([self.sizes.astype("<i8").view("<u8"), self.marks.astype("<u8")], axis=1)
        return base64.b64encode(pairs.tobytes()).decode()

    @classmethod
    def decoded(cls, text: Any) -> Files:
        """Read the text of an attribute.

        Raises
        ------
        ValueError, TypeError
            It is no such text.
        """
        pairs = np.frombuffer(base64.b64decode(text, validate=True), "<u8").reshape(-1, 2)
        return cls(pairs[:, 0].astype(np.uint64).view(np.int64), pairs[:, 1].astype(np.uint64))


def read_document(path: str | os.PathLike[str]) -> bytes:
    """Read a metadata document.

    Raises
    ------
    FileNotFoundError
        There is none.
    CorruptDataError
        It is no regular file, or longer than any document.
    """
    size = check_document(path)
    # (An object for the file would ask the system twice as often.)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        pieces = []
        # Not more: Python takes the memory for as many bytes as it is asked for.
        while size > 0 and (piece := os.read(descriptor, size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def check_document(path: str | os.PathLike[str]) -> int:
    """Return the size of a metadata document, which may be read; raises as :func:`read_document`."""
    path = os.fspath(path)
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path} is not a regular file; a metadata document must be one"
        raise CorruptDataError(msg)
    if found.st_size > _MOST_DOCUMENT_BYTES:
        msg = f"{path} has {found.st_size} bytes; a metadata document has at most {_MOST_DOCUMENT_BYTES}"
        raise CorruptDataError(msg)
    return found.st_size


def digest(data: bytes) -> str:
    """Digest of a document."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def root_digest(document: Mapping[str, Any]) -> str:
    """Digest of the document that holds the manifest: of all but the digest itself, and a copy of other documents."""
    attributes = dict(document.get("attributes", {}))
    attributes[MANIFEST] = {key: value for key, value in attributes[MANIFEST].items() if key != "digest"}
    kept = {key: value for key, value in document.items() if key != "consolidated_metadata"}
    return digest(json.dumps({**kept, "attributes": attributes}, sort_keys=True, separators=(",", ":")).encode())


def place_of_folder(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """What is the same for every path that leads to a folder."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def is_sharded(document: Mapping[str, Any]) -> bool:
    """Whether the files of an array are shards."""
    return [step["name"] for step in document["codecs"]] == ["sharding_indexed"]


def file_keys(document: Mapping[str, Any]) -> Iterator[str]:
    """Names of the files of an array below its folder, in C order of their grid."""
    shape, chunk = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    yield from map(file_namer(document), np.ndindex(*grid))


def first_file_key(document: Mapping[str, Any]) -> str:
    """Name of the first of :func:`file_keys`, whether there are any or more than can be."""
    return file_namer(document)([0] * len(document["shape"]))


def file_namer(document: Mapping[str, Any]) -> Callable[[Sequence[int]], str]:
    """Return what names a file of an array of format 3, given its position in the grid."""
    encoding = document["chunk_key_encoding"]
    is_default = encoding["name"] == "default"
    separator = encoding.get("configuration", {}).get("separator", "/" if is_default else ".")
    prefix = ["c"] if is_default else []
    return lambda position: separator.join([*prefix, *map(str, position)]) or "0"


def read_mark(path: str, *, sharded: bool) -> tuple[int, int]:
    """Size and mark of a file; (-1, 0) where there is none."""
    if _file_size(path) < 0:
        return -1, 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not sharded:
                file.seek(max(0, size - 4))
            data = file.read(MARK_BYTES if sharded else 4)
    except FileNotFoundError:
        return -1, 0
    return size, int.from_bytes(data, "little")


def described_files(document: Mapping[str, Any], path: object) -> Files | None:
    """What an array says of its files; None when it says nothing, or something of other files than it has now.

    Raises
    ------
    CorruptDataError
        It says something that nobody understands.
    """
    text = document.get("attributes", {}).get(FILES)
    if text is None:
        return None
    try:
        files = Files.decoded(text)
    except (ValueError, TypeError):
        msg = f"{path}: the attribute {FILES} is damaged"
        raise CorruptDataError(msg) from None
    shape, chunk = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    n_files = prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    # Attributes may have been copied to an array that is cut in another way.
    return files if len(files.sizes) == n_files else None


def check_dataset(folder: str | os.PathLike[str]) -> bool:
    """Compare all documents and the sizes of all files of a dataset with its manifest; no data is read.

    Parameters
    ----------
    folder
        The dataset, a local folder.

    Returns
    -------
    Whether it has a manifest. Without one nothing is compared.

    Raises
    ------
    CorruptDataError
        A file is missing, or is not what it was when it was written.
    """
    folder = os.fspath(folder)
    try:
        if _root_document(folder) is None:
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    for error in dataset_damage(folder):
        raise error
    return True


# By folder, how many readers have set its manifest aside.
_SET_ASIDE: Counter[str] = Counter()


def has_manifest(folder: str | os.PathLike[str]) -> bool:
    """Whether a local folder is a dataset with a manifest, damaged or not."""
    if is_set_aside(folder):
        return False
    try:
        data = read_document(f"{os.fspath(folder)}/zarr.json")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return MANIFEST.encode() in data


def manifest_digest(folder: str) -> str | None:
    """The digest that tells a dataset from any other, as its manifest has it.

    Returns
    -------
    "" without a manifest; None for the one of a later annbatch, and where manifests are set aside.

    Raises
    ------
    CorruptDataError
        The document that holds it is damaged.
    FileNotFoundError
        There is none.
    """
    root = _root_document(folder)
    if root is not None:
        return str(root["digest"])
    return None if is_set_aside(folder) or has_manifest(folder) else ""


@contextmanager
def set_aside(folders: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Within, this process reads datasets as if they had no manifest. What is on the disk stays as it is."""
    more = Counter(os.path.realpath(folder) for folder in folders)
    _SET_ASIDE.update(more)
    try:
        yield
    finally:
        _SET_ASIDE.subtract(more)


def is_set_aside(folder: str | os.PathLike[str]) -> bool:
    """Whether what a folder says of itself is not to be compared, see :func:`set_aside`."""
    return _SET_ASIDE.total() > 0 and _SET_ASIDE[os.path.realpath(folder)] > 0


def dataset_damage(folder: str, *, marks: bool = False) -> Iterator[CorruptDataError]:
    """Everything that is not as the manifest of a dataset says.

    Parameters
    ----------
    folder
        The dataset.
    marks
        Whether to look into the files for their marks.
    """
    try:
        root = _root_document(folder)
    except CorruptDataError as error:
        yield error
        return
    for name, expected in () if root is None else root["documents"].items():
        try:
            document = _checked_document(f"{folder}/{name}/zarr.json", expected)
            files = described_files(document, f"{folder}/{name}") if document.get("node_type") == "array" else None
        except CorruptDataError as error:
            yield error
            continue
        if files is None:
            continue
        sharded = is_sharded(document)
        for key, size, mark in zip(file_keys(document), files.sizes.tolist(), files.marks.tolist(), strict=True):
            path = f"{folder}/{name}/{key}"
            try:
                found = _file_size(path)
                _check_size(path, size, found)
                if marks and found >= 0:
                    check_file(path, (size, mark), read_mark(path, sharded=sharded))
            except CorruptDataError as error:
                yield error


def missing_files(folder: str | os.PathLike[str]) -> Iterator[CorruptDataError]:
    """Files that arrays of a dataset with a manifest say they have, and have no longer.

    Arrays that were written anew by someone else say nothing, and are not looked at. Documents are taken as they are now.

    Parameters
    ----------
    folder
        The dataset. Its metadata documents can be read.
    """
    folder = os.fspath(folder)
    root = parsed_document(f"{folder}/zarr.json")
    for name in listed_documents(root.get("attributes", {}).get(MANIFEST)):
        try:
            document = parsed_document(f"{folder}/{name}/zarr.json")
        except (FileNotFoundError, NotADirectoryError):
            continue  # a column that was removed
        if document.get("node_type") != "array":
            continue
        try:
            files = described_files(document, f"{folder}/{name}")
        except CorruptDataError as error:
            yield error
            continue
        for key, size in () if files is None else zip(file_keys(document), files.sizes.tolist(), strict=True):
            path = f"{folder}/{name}/{key}"
            if size >= 0 and _file_size(path) < 0:
                yield _missing(path, size)


def files_of(folder: str) -> Files | None:
    """What the manifest above an array says of its files; None where there is none.

    Parameters
    ----------
    folder
        Of the array.

    Raises
    ------
    CorruptDataError
        The array's document, or one above it, is not what it was when the dataset was written.
    """
    above = Path(folder)
    parts: list[str] = []
    for _ in range(32):  # deeper than any AnnData
        parts.insert(0, above.name)
        above = above.parent
        try:
            root = _root_document(str(above))
        except FileNotFoundError:
            return None
        if root is not None:
            document: dict[str, Any] = {}
            for n in range(1, len(parts) + 1):
                name = "/".join(parts[:n])
                if name not in root["documents"]:
                    return None  # added by someone else
                document = _checked_document(f"{above}/{name}/zarr.json", root["documents"][name])
            return described_files(document, f"{folder}/zarr.json")
    return None


def listed_documents(manifest: Any) -> dict[str, str]:
    """Nodes below a dataset that its manifest, the value of its attribute, knows, with digests; none of what is not understood."""
    if not isinstance(manifest, dict) or not isinstance(manifest.get("documents"), dict):
        return {}
    version = manifest.get("version")
    return {} if isinstance(version, int) and version > _VERSION else dict(manifest["documents"])


def manifest_in(name: str, data: bytes) -> dict[str, Any] | None:
    """The manifest in a metadata document, checked in itself; None when it has none, or one of a later annbatch.

    Parameters
    ----------
    name, data
        Of the document.

    Raises
    ------
    CorruptDataError
        The document is not what it was when it was written.
    """
    return _manifest_of(name, _parsed(name, data)) if MANIFEST.encode() in data else None


def check_digest(name: str, data: bytes, expected: str) -> None:
    """Raise when a metadata document is not what it was when it was written."""
    if digest(data) != expected:
        raise _changed(name)


def _changed(name: str) -> CorruptDataError:
    return CorruptDataError(f"{name} is damaged, or was changed after it was written; {_CHANGED_ON_PURPOSE}")


def lost(name: str) -> CorruptDataError:
    """Error about a metadata document that is missing, which a manifest knows."""
    return CorruptDataError(f"{name} is missing; {_CHANGED_ON_PURPOSE}")


def is_true_copy(data: bytes) -> bool:
    """Whether a document's copies of the documents below it (consolidated metadata) are what the manifests among them say."""
    try:
        root = json.loads(data)
        nodes = {"": root, **root["consolidated_metadata"]["metadata"]}
        for name, document in nodes.items():
            manifest = _manifest_of(name, document) if MANIFEST in document.get("attributes", {}) else None
            for below, expected in () if manifest is None else manifest["documents"].items():
                copy = nodes[f"{name}/{below}".lstrip("/")]
                if digest(json.dumps(copy, indent=INDENT).encode()) != expected:
                    return False
    except (CorruptDataError, KeyError, TypeError, AttributeError, ValueError):
        return False
    return True


def check_array(array: Any) -> Files | None:
    """Compare sizes and marks of all files of a Zarr array with what the manifest above it says.

    Returns
    -------
    What the manifest says; None where there is none.

    Raises
    ------
    CorruptDataError
        A file is missing, or another one stands in its place.
    """
    from zarr.storage import LocalStore

    if not isinstance(array.store, LocalStore) or array.metadata.zarr_format != 3:
        return None
    folder = os.path.join(os.fspath(array.store.root), array.path)
    files = files_of(folder)
    if files is not None:
        document = parsed_document(f"{folder}/zarr.json")
        sharded = is_sharded(document)
        for key, size, mark in zip(file_keys(document), files.sizes.tolist(), files.marks.tolist(), strict=True):
            check_file(f"{folder}/{key}", (size, mark), read_mark(f"{folder}/{key}", sharded=sharded))
    return files


def check_file(path: str, expected: tuple[int, int], found: tuple[int, int]) -> None:
    """Raise when size and mark of a file are not what they were."""
    _check_size(path, expected[0], found[0])
    if expected[1] != found[1]:
        msg = f"{path} is damaged, or another file stands in its place: it does not begin or end as it was written"
        raise CorruptDataError(msg)


def _root_document(folder: str) -> dict[str, Any] | None:
    """The manifest in a folder, checked in itself; None when it has none."""
    path = f"{folder}/zarr.json"
    found = os.stat(path)
    if is_set_aside(folder):
        return None
    return _manifest_in(path, (found.st_size, found.st_mtime_ns, found.st_ino))


@lru_cache(maxsize=16)  # every array of a dataset asks for it
def _manifest_in(path: str, stamp: tuple[int, int, int]) -> dict[str, Any] | None:
    del stamp
    data = read_document(path)
    if MANIFEST.encode() not in data:
        return None
    return _manifest_of(path, _parsed(path, data))


def _manifest_of(path: str, document: dict[str, Any]) -> dict[str, Any] | None:
    manifest = document.get("attributes", {}).get(MANIFEST)
    if manifest is None:
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("documents"), dict):
        msg = f"{path}: the attribute {MANIFEST} is damaged"
        raise CorruptDataError(msg)
    version = manifest.get("version")
    if isinstance(version, int) and version > _VERSION:
        return None  # of a later annbatch
    if manifest.get("digest") != root_digest(document):
        raise _changed(path)
    return manifest


def _checked_document(path: str, expected: str) -> dict[str, Any]:
    try:
        found, document = _digested(path)
    except FileNotFoundError:
        raise lost(path) from None
    except CorruptDataError:
        check_digest(path, read_document(path), expected)  # that it was changed says more than that it is no JSON
        raise
    if found != expected:
        raise _changed(path)
    return document


def parsed_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a metadata document as JSON, see :func:`read_document`; it is not the caller's to change.

    Whoever opens a store asks for the same one several times.
    """
    return _digested(os.fspath(path))[1]


def _digested(path: str) -> tuple[str, dict[str, Any]]:
    """Digest of a metadata document, and what it says."""
    found = os.stat(path)
    newest = max(found.st_mtime_ns, found.st_ctime_ns)
    if found.st_size > _MOST_KEPT_BYTES or newest + _SETTLED_NS > time.time_ns():
        return _read_digested(path)
    return _digested_of(path, (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev))


@lru_cache(maxsize=256)
def _digested_of(path: str, stamp: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    del stamp
    return _read_digested(path)


def _read_digested(path: str) -> tuple[str, dict[str, Any]]:
    data = read_document(path)
    return digest(data), _parsed(path, data)


def _parsed(path: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"{path} is damaged: it is no JSON document ({error})"
        raise CorruptDataError(msg) from None
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        msg = f"{path} is damaged: it is no metadata document"
        raise CorruptDataError(msg)
    return document


def _file_size(path: str) -> int:
    """Size of a file; -1 where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path} is not a regular file"
        raise CorruptDataError(msg)
    return found.st_size


def _missing(path: str, n_bytes: int) -> CorruptDataError:
    return CorruptDataError(f"{path} is missing; it had {n_bytes} bytes; {_COPY_AGAIN}")


def _check_size(path: str, expected: int, found: int) -> None:
    if expected == found:
        return
    if found < 0:
        raise _missing(path, expected)
    if expected < 0:
        msg = f"{path} was not there when the dataset was written; {_CHANGED_ON_PURPOSE}"
    else:
        what = "is cut short" if found < expected else "has grown, or another file stands in its place"
        msg = f"{path} {what}: it had {expected} bytes when it was written, and has {found}; {_CHANGED_ON_PURPOSE}"
    raise CorruptDataError(msg)
