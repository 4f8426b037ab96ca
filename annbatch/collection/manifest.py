"""What makes a dataset one that notices damage: every array gets its checksums, and the dataset a manifest (storage/manifest.py)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage import manifest
from annbatch.storage.engine import _engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_manifest(folder: Path, *, add_checksums: bool = True) -> None:
    """Give a finished dataset its manifest.

    Arrays that have no checksums, as those that anndata writes, get them here: their files, one for each chunk, grow by
    the four bytes of Zarr's codec ``crc32c``. Not with ``add_checksums=False``, for a dataset that is in its place: others may
    be reading it, and each document is the old or the new one, also after a power cut.
    """
    documents = {}
    for name, document in list(_nodes(folder, "", (manifest.place_of_folder(folder.parent),))):
        if document["node_type"] == "array":
            if add_checksums:
                _add_checksums(folder / name, document)
            document.setdefault("attributes", {})[manifest.FILES] = _files(folder / name, document).encoded()
            _replace(folder / name / "zarr.json", document, sync=not add_checksums)
        if name:
            documents[name] = manifest.digest((folder / name / "zarr.json").read_bytes())
    root = json.loads((folder / "zarr.json").read_text())
    contents: dict[str, Any] = {"version": 1, "documents": documents}
    root.setdefault("attributes", {})[manifest.MANIFEST] = contents
    contents["digest"] = manifest.root_digest(root)
    _replace(folder / "zarr.json", root, sync=not add_checksums)


def _replace(path: Path, document: dict[str, Any], *, sync: bool) -> None:
    """Write a document in one step, for those who read it meanwhile; ``sync``: on the disk before it takes its name."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        file.write(json.dumps(document, indent=manifest.INDENT))
        if sync:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)


def _nodes(folder: Path, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and metadata of every group and array, but where a link leads back to a folder `above`."""
    document = json.loads((folder / name / "zarr.json").read_text())
    here = manifest.place_of_folder(folder / name)
    if here in above:
        return
    yield name, document
    if document["node_type"] == "array":
        return
    with os.scandir(folder / name) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir())
    for each in below:
        path = f"{name}/{each}" if name else each
        if (folder / path / "zarr.json").is_file():
            yield from _nodes(folder, path, (*above, here))


def _add_checksums(folder: Path, document: dict[str, Any]) -> None:
    if manifest.is_sharded(document) or document["codecs"][-1]["name"] == "crc32c":
        return
    document["codecs"].append({"name": "crc32c"})
    for key in manifest.file_keys(document):
        path = folder / key
        if path.exists():
            checksum = int(_engine.crc32c(path.read_bytes()))
            with path.open("ab") as file:
                file.write(checksum.to_bytes(4, "little"))


def _files(folder: Path, document: dict[str, Any]) -> manifest.Files:
    sharded = manifest.is_sharded(document)
    found = [manifest.read_mark(f"{folder}/{key}", sharded=sharded) for key in manifest.file_keys(document)]
    pairs = np.array(found, dtype=[("size", np.int64), ("mark", np.uint64)])
    return manifest.Files(pairs["size"], pairs["mark"])
