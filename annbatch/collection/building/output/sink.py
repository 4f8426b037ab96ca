"""The arrays of one output dataset, filled from the first row to the last, in Zarr or in HDF5.

Only the row-aligned arrays grow here; var and other small things are written by anndata itself.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from annbatch._shared.running_sum import starts_of
from annbatch.collection.building._pack import place_rows
from annbatch.collection.building.fields import Ragged, decode_text

from .shards import ShardStream, chunk_encoder, default_compressors, with_checksums

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import zarr

    from annbatch.collection.building.fields import Array, Field

# Rows of obs in a chunk: obs is read whole, so its chunks are as big as is polite to memory. A row waits until its
# chunk is full.
_FRAME_CHUNK_ROWS = 2**17
_LEAST_FRAME_CHUNK_ROWS = 2**12
_FRAME_CHUNK_BYTES = 32 * 10**6


class Stream(Protocol):
    """An array that grows along its first axis."""

    def append(self, rows: Any, /) -> None:
        """Add rows: an array, or of text a ragged field of UTF-8 bytes."""

    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class Layout:
    """How matrices are cut and compressed. ``shard_rows`` or ``shard_bytes`` is given, not both.

    ``narrow_columns``: column numbers of sparse matrices in Zarr may be stored in uint16.
    """

    n_obs_per_chunk: int
    shard_rows: int | None
    shard_bytes: int | None
    compressors: tuple[Any, ...] | None
    h5ad_compression: str | None
    narrow_columns: bool = False

    def threads(self) -> int:
        """Threads that compress; counted where the work is done."""
        from annbatch.storage import available_cpus

        return available_cpus()

    def cut(self, n_items: int, n_obs: int, item_bytes: int) -> tuple[int, int]:
        """(items a chunk, items a shard) of an array that holds ``n_items`` items for ``n_obs`` rows."""
        per_row = n_items / n_obs if n_obs else 1.0
        chunk = max(1, round(min(self.n_obs_per_chunk, max(n_obs, 1)) * per_row))
        if self.shard_rows is not None:
            shard = self.shard_rows * per_row
        else:
            assert self.shard_bytes is not None
            shard = self.shard_bytes / max(item_bytes, 1)
        most = -(-max(n_items, 1) // chunk)
        return chunk, chunk * max(1, min(round(shard / chunk), most))


# Settings of anndata belong to the process: threads that write at a time would undo each other's.
_settings = threading.Lock()
# What those were that a thread has changed for now: a process that was forked meanwhile would keep the change.
_changed: dict[str, Any] = {}


def _after_fork() -> None:
    global _settings
    _settings = threading.Lock()
    if _changed:
        import anndata as ad

        for key in reversed(_changed):  # as anndata itself sets them back
            setattr(ad.settings, key, _changed[key])
        _changed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def write_element(root: Any, name: str, value: Any) -> None:
    """Write anything that is small, the way anndata writes it."""
    import anndata as ad

    # Whatever the user or the version of anndata prefers: one file each is right for small things, and text with
    # missing values is text.
    chosen = {"auto_shard_zarr_v3": False, "allow_write_nullable_strings": True}
    known = {key: value for key, value in chosen.items() if key in dir(ad.settings)}
    with _settings:
        _changed.update({key: getattr(ad.settings, key) for key in known})
        try:
            with ad.settings.override(**known):
                parent, _, key = name.rpartition("/")
                ad.io.write_elem(root[parent] if parent else root, key, value)
        finally:
            _changed.clear()


class Sink(ABC):
    """A dataset that is being written.

    Attributes
    ----------
    narrow_columns
        Whether column numbers may be stored in a type that scipy only reads.
    """

    narrow_columns = False

    def __init__(self, root: Any, layout: Layout, obs_row_bytes: int) -> None:
        self.root = root
        self._layout = layout
        most = _FRAME_CHUNK_BYTES // max(1, obs_row_bytes)
        self._frame_chunk_rows = min(max(most, _LEAST_FRAME_CHUNK_ROWS), _FRAME_CHUNK_ROWS)

    def group(self, name: str, encoding: str, version: str = "0.1.0", **attributes: Any) -> None:
        """Make a group that holds something encoded as AnnData does it."""
        attributes |= {"encoding-type": encoding, "encoding-version": version}
        self.root.require_group(name).attrs.update(attributes)

    def element(self, name: str, value: Any) -> None:
        """Write anything that is small, the way anndata writes it."""
        write_element(self.root, name, value)

    @abstractmethod
    def matrix(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], n_obs: int, attributes: Mapping[str, Any]
    ) -> Stream:
        """A new array for the values of ``n_obs`` rows, cut and compressed for random reading."""

    @abstractmethod
    def column(self, name: str, dtype: np.dtype[Any], n_rows: int, attributes: Mapping[str, Any]) -> Stream:
        """A new 1-d array for a column of obs, which is always read whole."""

    @abstractmethod
    def text(self, name: str, n_rows: int, attributes: Mapping[str, Any]) -> Stream:
        """A new 1-d array of text, filled with fields of UTF-8 bytes."""

    def _frame_chunk(self, n_rows: int) -> int:
        """Rows of a column in a chunk."""
        return _at_least_one(min(n_rows, self._frame_chunk_rows))


class ZarrSink(Sink):
    """A Zarr v3 group in a local folder."""

    def __init__(self, path: Path, layout: Layout, obs_row_bytes: int = 0) -> None:
        import zarr

        super().__init__(zarr.open_group(path, mode="a", zarr_format=3, use_consolidated=False), layout, obs_row_bytes)
        self.narrow_columns = layout.narrow_columns
        self._path = path
        self._opened: list[ShardStream] = []
        self._pool = ThreadPoolExecutor(layout.threads(), thread_name_prefix="annbatch-encode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for stream in self._opened:
            stream.abandon()

    def _stream(self, name: str, **options: Any) -> Stream:
        attributes = options.pop("attributes")
        compressors = with_checksums(options.pop("compressors"))
        array = self.root.create_array(name, fill_value=0, compressors=compressors, **options)
        array.attrs.update(attributes)
        self._opened.append(ShardStream(array, self._path / name, self._pool))
        return self._opened[-1]

    def matrix(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], n_obs: int, attributes: Mapping[str, Any]
    ) -> Stream:
        """See the base class."""
        chunk, shard = self._layout.cut(shape[0], n_obs, dtype.itemsize * prod(shape[1:]))
        return self._stream(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(chunk, *map(_at_least_one, shape[1:])),
            shards=(shard, *map(_at_least_one, shape[1:])),
            compressors=self._layout.compressors or default_compressors(),
            attributes=attributes,
        )

    def column(self, name: str, dtype: np.dtype[Any], n_rows: int, attributes: Mapping[str, Any]) -> Stream:
        """See the base class."""
        from zarr.codecs import ZstdCodec

        chunk = self._frame_chunk(n_rows)
        return self._stream(
            name,
            shape=(n_rows,),
            dtype=dtype,
            chunks=(chunk,),
            shards=(chunk * max(1, -(-n_rows // chunk)),),
            compressors=(ZstdCodec(level=3),),
            attributes=attributes,
        )

    def text(self, name: str, n_rows: int, attributes: Mapping[str, Any]) -> Stream:
        """See the base class."""
        from zarr.codecs import ZstdCodec

        array = self.root.create_array(
            name,
            shape=(n_rows,),
            dtype=str,
            chunks=(self._frame_chunk(n_rows),),
            compressors=with_checksums([ZstdCodec(level=3)]),
            fill_value="",
        )
        array.attrs.update(attributes)
        return _TextChunks(array, self._path / name)


class H5Sink(Sink):
    """An h5ad file.

    Deflate ("gzip") ends every chunk with a checksum. What it does not compress gets HDF5's Fletcher-32, except for values of
    matrices, which it would cost a tenth to several times the time of reading, and text, of which HDF5 filters only the places.
    """

    def __init__(self, path: Path, layout: Layout, obs_row_bytes: int = 0) -> None:
        import h5py

        super().__init__(h5py.File(path, "w"), layout, obs_row_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.root.close()

    def element(self, name: str, value: Any) -> None:
        """See the base class."""
        super().element(name, value)
        _add_fletcher32(self.root, name)

    def _stream(
        self,
        name: str,
        dtype: Any,
        shape: tuple[int, ...],
        chunk: int,
        attributes: Mapping[str, Any],
        *,
        fletcher32: bool = False,
    ) -> Stream:
        compression = self._layout.h5ad_compression
        # HDF5 takes no chunks for an array without values.
        options: dict[str, Any] = {"chunks": (chunk, *shape[1:]), "compression": compression} if prod(shape) else {}
        if options and fletcher32 and compression != "gzip":
            options["fletcher32"] = True
        dataset = self.root.create_dataset(name, shape=shape, dtype=dtype, **options)
        dataset.attrs.update(attributes)
        return _Slices(dataset, chunk)

    def matrix(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], n_obs: int, attributes: Mapping[str, Any]
    ) -> Stream:
        """See the base class."""
        chunk, _ = self._layout.cut(shape[0], n_obs, dtype.itemsize * prod(shape[1:]))
        return self._stream(name, dtype, shape, chunk, attributes)

    def column(self, name: str, dtype: np.dtype[Any], n_rows: int, attributes: Mapping[str, Any]) -> Stream:
        """See the base class."""
        return self._stream(name, dtype, (n_rows,), self._frame_chunk(n_rows), attributes, fletcher32=True)

    def text(self, name: str, n_rows: int, attributes: Mapping[str, Any]) -> Stream:
        """See the base class."""
        import h5py

        return self._stream(name, h5py.string_dtype(), (n_rows,), self._frame_chunk(n_rows), attributes)


def _add_fletcher32(parent: Any, name: str) -> None:
    """Write the numbers in an element of an HDF5 file once more, each chunk with a checksum."""
    element = parent[name]
    if hasattr(element, "keys"):
        for key in list(element):
            _add_fletcher32(element, key)
        return
    if element.dtype.kind not in "biufc" or not element.shape or not element.size or element.fletcher32:
        return
    values, attributes = element[()], dict(element.attrs)
    del parent[name]
    dataset = parent.create_dataset(name, data=values, dtype=element.dtype, fletcher32=True)
    dataset.attrs.update(attributes)


class _Slices:
    """Appends to an array that takes slice assignment, whole chunks at a time.

    Text waits as bytes: Python objects take several times as much.
    """

    def __init__(self, array: Any, chunk_rows: int) -> None:
        self._array = array
        self._chunk_rows = chunk_rows
        self._waiting: list[Field] = []
        self._n_waiting = 0
        self._done = 0

    def append(self, rows: Field) -> None:
        self._waiting.append(rows)
        self._n_waiting += len(rows)
        if self._n_waiting >= self._chunk_rows:
            self._flush(self._n_waiting // self._chunk_rows * self._chunk_rows)

    def close(self) -> None:
        self._flush(self._n_waiting)

    def _flush(self, n_rows: int) -> None:
        if n_rows:
            rows = _concatenate(self._waiting)
            for start in range(0, n_rows, self._chunk_rows):
                piece = _slice(rows, start, min(start + self._chunk_rows, n_rows))
                self._put(piece)
                self._done += len(piece)
            self._n_waiting -= n_rows
            self._waiting = [_slice(rows, n_rows, len(rows))]

    def _put(self, rows: Field) -> None:
        """Write the rows of a chunk."""
        values = rows
        if isinstance(rows, Ragged):
            values = decode_text(rows)
            if not rows.values[0].all():
                bad = next(text for text in values if "\0" in text)
                msg = (
                    f"{self._array.name} must be text without NUL characters in an h5ad collection, got {bad[:50]!r}; "
                    "change it with load_adata, or build a Zarr collection"
                )
                raise ValueError(msg)
        self._array[self._done : self._done + len(rows)] = values


class _TextChunks(_Slices):
    """Writes text to a Zarr array in a local folder: bytes stay bytes, where zarr-python takes, and packs, a str for each row."""

    def __init__(self, array: zarr.Array[Any], folder: Path) -> None:
        super().__init__(array, array.chunks[0])
        self._folder = folder
        self._encode = chunk_encoder(array)

    def _put(self, rows: Field) -> None:
        assert isinstance(rows, Ragged)
        if not len(rows.values[0]):
            return  # fill values, which zarr-python does not store either
        path = self._folder / self._array.metadata.encode_chunk_key((self._done // self._chunk_rows,))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._encode(_packed_texts(rows, self._chunk_rows)))


def _packed_texts(texts: Ragged, n_rows: int) -> Array:
    """Pack texts as ``vlen-utf8`` does: their number, then the length and the bytes of each; empty ones up to ``n_rows``."""
    starts, counts = texts.indptr[:-1], np.diff(texts.indptr)
    packed = np.zeros(4 * (n_rows + 1) + len(texts.values[0]), np.uint8)
    packed[:4] = np.array([n_rows], "<u4").view(np.uint8)
    places = 4 + 4 * np.arange(len(texts)) + starts
    place_rows(texts.values[0], starts, counts, packed, places + 4, 1)
    lengths = counts.astype("<u4").view(np.uint8)
    place_rows(lengths, 4 * np.arange(len(texts)), np.full(len(texts), 4), packed, places, 1)
    return packed


def _concatenate(fields: list[Field]) -> Field:
    ragged = [field for field in fields if isinstance(field, Ragged)]
    if not ragged:
        return np.concatenate([field for field in fields if isinstance(field, np.ndarray)])
    counts = np.concatenate([np.diff(field.indptr) for field in ragged])
    values = [np.concatenate(arrays) for arrays in zip(*(field.values for field in ragged), strict=True)]
    return Ragged(starts_of(counts), tuple(values))


def _slice(field: Field, start: int, stop: int) -> Field:
    """Rows ``[start, stop)``, in memory of their own."""
    if not isinstance(field, Ragged):
        return field[start:stop].copy()
    indptr = field.indptr[start : stop + 1]
    return Ragged(indptr - indptr[0], tuple(values[indptr[0] : indptr[-1]].copy() for values in field.values))


def _at_least_one(n: int) -> int:
    return max(1, n)
