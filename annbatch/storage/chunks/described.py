"""How an array is stored, in words: for people, never for reading."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py

from .hdf5_table import filters_of, hdf5_obstacle
from .zarr_table import described_table, zarr_obstacle, zarr_steps

if TYPE_CHECKING:
    import zarr

__all__ = ["Storage", "storage_of"]


class Storage(NamedTuple):
    """How an array is stored.

    Attributes
    ----------
    codecs
        Names, in the order of encoding; none: the values lie there as they are.
    obstacle
        Why the compiled engine does not read it by itself; None: it does.
    """

    codecs: tuple[str, ...]
    obstacle: str | None


def storage_of(array: h5py.Dataset | zarr.Array[Any]) -> Storage:
    """Look at the metadata of an array; no chunk and no index of chunks is read."""
    if isinstance(array, h5py.Dataset):
        return Storage(tuple(name for name, _ in filters_of(array)), hdf5_obstacle(array))
    _, document = document_of(array)
    obstacle = None if described_table(array, document, array.path) is not None else zarr_obstacle(document, array)
    return Storage(tuple(_with_inner(*step) for step in zarr_steps(document) if step[0] != "bytes"), obstacle)


def document_of(array: zarr.Array[Any]) -> tuple[str, dict[str, Any]]:
    """Return name and content of an array's metadata document, as its format has them."""
    from zarr.core.buffer import default_buffer_prototype

    name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
    return name, json.loads(array.metadata.to_buffer_dict(default_buffer_prototype())[name].to_bytes())


def _with_inner(name: str, settings: dict[str, Any]) -> str:
    """Say which compressor blosc uses."""
    return f"blosc ({settings['cname']})" if name == "blosc" and "cname" in settings else name
