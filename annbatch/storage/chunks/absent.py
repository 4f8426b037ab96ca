"""Zarr chunks that zarr-python says are not there: whether they were never written, or are lost.

For zarr-python a chunk that is not there is one of fill values. So is an empty shard, which no writer makes, and a chunk that the
index of its shard places beyond the end of the file. So where a chunk comes out as fill values, its file is looked at. That costs
nothing in the usual case: writers do not store such chunks, and few arrays have any.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.listing import OF_FORMAT_2

from .zarr_table import parse_shard_index

if TYPE_CHECKING:
    import zarr

__all__ = ["check_absent"]


def check_absent(array: zarr.Array[Any], values: np.ndarray, start: int) -> None:
    """Raise ValueError when rows of an array, ``values`` from row ``start`` on, lack a chunk that should be there.

    A file may be missing as long as the array's metadata is there: a store that was moved away has neither.
    """
    if not values.size:
        return
    fill = np.asarray(0 if array.fill_value is None else array.fill_value, values.dtype)
    is_fill = np.isnan(values) if np.isnan(fill) else values == fill
    borders = [(start, start + len(values)), *((0, n) for n in array.shape[1:])]
    chunks = [range(low // n, -(-high // n)) for (low, high), n in zip(borders, array.chunks, strict=True)]
    files = {}  # as a set, but in order
    for chunk in product(*chunks):
        inside = tuple(
            slice(max(0, i * n - low), (i + 1) * n - low)
            for i, n, (low, _) in zip(chunk, array.chunks, borders, strict=True)
        )
        if is_fill[inside].all():
            file_shape = array.shards or array.chunks
            files[tuple(i * n // m for i, n, m in zip(chunk, array.chunks, file_shape, strict=True))] = True
    for file in files:
        _check_file(array, array.metadata.encode_chunk_key(file))


def _check_file(array: zarr.Array[Any], key: str) -> None:
    from zarr.core.sync import sync

    at = array.store_path
    document = at / ("zarr.json" if array.metadata.zarr_format == 3 else ".zarray")
    try:
        size = sync(at.store.getsize((at / key).path))
    except FileNotFoundError:
        if not sync(document.exists()):
            msg = f"{key} is missing, as is the array's metadata: the store was moved or removed after it was opened"
            # Where a collection has copies of all metadata, it was opened by these.
            if array.metadata.zarr_format == 3 and sync((at / ".zarray").exists()):
                msg = f"the dataset {OF_FORMAT_2}"
            raise ValueError(msg) from None
        return
    if size == 0:
        msg = f"{key} is cut short: it is empty"
        raise ValueError(msg)
    if array.shards is not None:
        per_shard = tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))
        _check_shard(array, key, size, per_shard)


def _check_shard(array: zarr.Array[Any], key: str, size: int, per_shard: tuple[int, ...]) -> None:
    """Raise ValueError when the index of a shard is damaged."""
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    document: dict[str, Any] = array.metadata.to_dict()
    settings = document["codecs"][0]["configuration"]
    steps = [step["name"] for step in settings["index_codecs"]]
    if steps not in (["bytes"], ["bytes", "crc32c"]):
        return
    n_bytes = 16 * prod(per_shard) + 4 * ("crc32c" in steps)
    at_end = settings["index_location"] == "end"
    where = SuffixByteRequest(n_bytes) if at_end else RangeByteRequest(0, n_bytes)
    at = array.store_path
    index = sync(at.store.get((at / key).path, default_buffer_prototype(), where))
    if index is None or len(index) < n_bytes:
        msg = f"{key} is cut short: its shard index alone takes {n_bytes} bytes"
        raise ValueError(msg)
    try:
        parse_shard_index(index.as_numpy_array().view(np.uint8), per_shard, size, has_checksum="crc32c" in steps)
    except ValueError as error:
        msg = f"{key}: {error}"
        raise ValueError(msg) from None
