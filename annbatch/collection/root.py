"""The root document of a collection in a local folder, with copies of all documents below it.

Whoever opens the collection reads those copies (zarr-python: consolidated metadata) in place of a document for each array. Of a
hundred datasets they are megabytes. So they stand last, the attribute ``annbatch-copies`` has the digest of their text, and as long
as that is true an addition puts its own behind them and parses none of the others.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from annbatch.storage.listing import LISTING
from annbatch.storage.manifest import digest, parsed_document, read_document

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["DOCUMENT", "Root", "read_root", "root_text"]

DOCUMENT = "zarr.json"
# Copies have at most this size: a document of twice the size is refused, see storage/manifest.py, and readers far away fetch the root
# first of all.
MOST_BYTES = 32 * 2**20
_COPIES = "annbatch-copies"
_CONSOLIDATED = "consolidated_metadata"
# Between these, at the end of the document, stand the members of a JSON object. Closed right behind _BEGIN, the document is one of its
# own only if nothing but its outermost object was still open.
_BEGIN = b'"consolidated_metadata": {"kind": "inline", "must_understand": false, "metadata": {'
_END = b"}}}"


class Root(NamedTuple):
    """A root document.

    Attributes
    ----------
    document
        What it says; without what `copies` has.
    copies
        Copies of documents as they were written here, members of a JSON object; None where they are not to be told from others'.
    modified
        Time of its last change in nanoseconds.
    """

    document: Mapping[str, Any]
    copies: bytes | None = None
    modified: int = 0

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Attributes of the collection."""
        attributes: Mapping[str, Any] = self.document.get("attributes", {})
        return attributes


def read_root(path: Path) -> Root:
    """Read a root document; raises as :func:`parsed_document`."""
    modified = path.stat().st_mtime_ns
    head, begin, rest = read_document(path).partition(_BEGIN)
    if rest.endswith(_END):
        copies = rest.removesuffix(_END)
        try:
            root = Root(json.loads(head + begin + _END), copies, modified)
            if root.attributes[_COPIES] == digest(copies):
                return root
        except (ValueError, RecursionError, KeyError, TypeError):
            pass  # someone else's
    return Root(parsed_document(path), None, modified)


def root_text(folder: Path, root: Root, attributes: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Text of the root document of a collection with other attributes, and copies of the documents of all its datasets.

    Parameters
    ----------
    folder
        The collection.
    root
        Its root as it is.
    attributes
        With the listing of datasets.
    names
        Of the datasets that are there.

    Returns
    -------
    None if the root has that text already.
    """
    document = {key: value for key, value in root.document.items() if key != _CONSOLIDATED}
    document["attributes"] = kept = {key: value for key, value in attributes.items() if key != _COPIES}
    copies = None
    # Once they were left out, they stay out: to count them again would take longer than all else.
    if _CONSOLIDATED in root.document or LISTING not in root.attributes:
        copies = _copies(folder, root, attributes[LISTING], names)
        if len(copies) > MOST_BYTES:
            copies = None
    if copies is not None and attributes[LISTING].keys() <= set(names):
        kept[_COPIES] = digest(copies)
    if copies == root.copies and kept == root.attributes:
        return None
    # Without indent: with it json is ten times as slow, which tells where there are many datasets.
    text = json.dumps(document)
    return text if copies is None else b"".join((text[:-1].encode(), b", ", _BEGIN, copies, _END)).decode()


def _copies(folder: Path, root: Root, listed: Mapping[str, str], names: Collection[str]) -> bytes:
    """Copies of the documents of all datasets, members of a JSON object by their keys."""
    kept, new = b"", names
    before = root.attributes.get(LISTING)
    if root.copies is not None and isinstance(before, dict) and _are_true(folder, root, before, listed, names):
        kept, new = root.copies, [name for name in names if name not in before]
    nodes: dict[str, Any] = {}
    for name in new:
        _note_documents(f"{folder}/{name}", name, nodes)
    return b", ".join(part for part in (kept, json.dumps(nodes)[1:-1].encode()) if part)


def _are_true(
    folder: Path, root: Root, before: Mapping[str, str], listed: Mapping[str, str], names: Collection[str]
) -> bool:
    """Whether a root's copies are of datasets that nobody has written to since: a manifest tells all documents of one."""
    return (
        all(before.values())
        and before.items() <= listed.items()
        and before.keys() <= set(names)
        and all(os.stat(f"{folder}/{name}/{DOCUMENT}").st_mtime_ns < root.modified for name in before)  # noqa: PTH116
    )


def _note_documents(folder: str, key: str, nodes: dict[str, Any]) -> None:
    """Note the document of a node and of all below it, by their keys; nothing where there is no node.

    With plain strings and one call for each document: a collection of hundreds of datasets has thousands.
    """
    try:
        document = parsed_document(f"{folder}/{DOCUMENT}")
    except (FileNotFoundError, NotADirectoryError):
        return
    nodes[key] = document
    if document.get("node_type") == "group":  # what lies below an array are chunks
        with os.scandir(folder) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir())
        for name in below:
            _note_documents(f"{folder}/{name}", f"{key}/{name}", nodes)
