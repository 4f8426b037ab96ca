"""The words that a collection is written with: read and spoken in several wings, spelled here only.

A collection is a Zarr group with the attributes :data:`MARKER`, or a folder of h5ad files without any, that holds
``dataset_0``, ``dataset_1``, ... (``dataset_0.h5ad``, ...). Numbers say in which order they were written; some may be
missing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = [
    "H5AD_SUFFIX",
    "JOURNAL",
    "MARKER",
    "SOURCE_DTYPE",
    "WORK_FOLDER",
    "dataset_name",
    "dataset_number",
    "is_h5ad_collection",
    "is_marked",
    "sorted_datasets",
]

MARKER = {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
H5AD_SUFFIX = ".h5ad"
# Attribute of a matrix that is stored in a smaller type than the one its values had, and are given back in.
SOURCE_DTYPE = "annbatch-source-dtype"
# Folder in a collection that belongs to the call that writes to it.
WORK_FOLDER = ".annbatch"
# File in it that says how far that call is.
JOURNAL = "journal.json"

_NAME = re.compile(r"dataset_(\d+)(\.h5ad)?")


def is_marked(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes of a Zarr group are those of a collection."""
    return bool(attributes.get("encoding-type") == MARKER["encoding-type"])


def dataset_name(number: int, suffix: str = "") -> str:
    """Name of a dataset; `suffix` is that of the files of an h5ad collection."""
    return f"dataset_{number}{suffix}"


def dataset_number(name: str, suffix: str = "") -> int | None:
    """Number of a dataset, or None for the name of anything else."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and (match[2] or "") == suffix else None


def sorted_datasets(names: Iterable[str], suffix: str = "") -> list[str]:
    """Names of datasets among `names`, in the order of their numbers."""
    numbered = [(number, name) for name in names if (number := dataset_number(name, suffix)) is not None]
    return [name for _, name in sorted(numbered)]


def is_h5ad_collection(path: Path) -> bool:
    """Whether a folder holds the h5ad files of a collection."""
    return path.is_dir() and any(dataset_number(child.name, H5AD_SUFFIX) is not None for child in path.iterdir())
