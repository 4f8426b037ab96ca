"""Arrays as their libraries may read them: a chunk that lies about its size is refused before memory is taken for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
from numcodecs.abc import Codec as Numcodec
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, GzipCodec, ShardingCodec, VLenBytesCodec, VLenUTF8Codec, ZstdCodec

from annbatch.storage.claims import most_bytes

from .decoders import as_bytes, decoder, lzma_decoder, most_text_bytes, with_room
from .hdf5_chunks import check_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    import zarr

__all__ = ["bounded", "readable"]

# Bytes of a complex number of double precision.
_WIDEST_ITEM = 16


def readable(array: Any) -> Any:
    """Return a stored array as its library may read it: of Zarr :func:`bounded`, of HDF5 the same, whose chunks were looked at.

    Raises
    ------
    CorruptDataError
        Something in a chunk would take far more memory than is right.
    """
    if hasattr(array, "async_array"):
        return bounded(array)
    if hasattr(array, "file"):
        check_chunks(array)
    return array


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array, of which zarr-python decodes each chunk to no more than the array says it holds.

    Where another library decodes for zarr-python, it is the array that was given.
    """
    import zarr

    asynchronous = array.async_array
    if not type(asynchronous.codec_pipeline).__module__.startswith("zarr."):
        return array
    metadata: Any = array.metadata
    itemsize = _itemsize(metadata.dtype)
    most = None if itemsize is None else most_bytes(prod(array.shape) * itemsize)
    if metadata.zarr_format == 2:
        n_rows = prod(metadata.chunks)
        # Filters (AsType, Delta and FixedScaleOffset with `astype`) may store other items than the array holds.
        stored = itemsize if itemsize is None or not metadata.filters else max(itemsize, _WIDEST_ITEM)
        here = n_rows if stored is None else min(n_rows * stored, most or 0)
        changed = replace(
            metadata,
            compressor=_BoundedFilter.of(metadata.compressor, here, is_text=itemsize is None),
            filters=None
            if metadata.filters is None
            else tuple(_BoundedFilter.of(step, here, is_text=itemsize is None) for step in metadata.filters),
        )
    else:
        changed = replace(metadata, codecs=_bounded_steps(metadata.codecs, most))
    return zarr.Array(type(asynchronous)(metadata=changed, store_path=asynchronous.store_path))


def _itemsize(dtype: Any) -> int | None:
    """Bytes of an item as it is stored; None: each has its own."""
    native = getattr(dtype, "to_native_dtype", lambda: np.dtype(dtype))()
    return None if native.kind in ("O", "T") or native.hasobject else int(native.itemsize)


def _decoder_of(codec: Any) -> Callable[[Any, int], Any] | None:
    """Return what decodes as a codec of zarr-python or numcodecs, to no more than is told; None for one that is not known here."""
    known = {BloscCodec: "blosc", GzipCodec: "gzip", ZstdCodec: "zstd"}.get(type(codec))
    name = known or str(getattr(codec, "codec_id", getattr(codec, "codec_name", ""))).removeprefix("numcodecs.")
    if name == "lzma":
        settings = getattr(codec, "codec_config", None) or codec.get_config()
        return lzma_decoder(settings.get("format", 1), settings.get("filters"))
    return decoder(name)


def _bounded_steps(steps: Any, most: int | None) -> tuple[Any, ...]:
    found = []
    for step in steps:
        found.append(_bounded_step(step, most))
        if isinstance(step, VLenUTF8Codec | VLenBytesCodec):
            found.append(_CountedTexts())
    return tuple(found)


def _bounded_step(step: Any, most: int | None) -> Any:
    if isinstance(step, ShardingCodec):
        return replace(step, codecs=_bounded_steps(step.codecs, most))
    if isinstance(step, BytesBytesCodec) and not isinstance(step, _BoundedCodec) and _decoder_of(step) is not None:
        return _BoundedCodec(step, most)
    return step


@dataclass(frozen=True)
class _BoundedCodec(BytesBytesCodec):  # type: ignore[misc,unused-ignore]
    """A codec of Zarr format 3."""

    inner: Any
    most: int | None
    is_fixed_size = False

    def to_dict(self) -> Any:
        return self.inner.to_dict()

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        size: int = self.inner.compute_encoded_size(input_byte_length, chunk_spec)
        return size

    def _decode_sync(self, chunk_data: Any, chunk_spec: Any) -> Any:
        raw = chunk_data.as_numpy_array()
        if self.most is None:
            limit = most_text_bytes(prod(chunk_spec.shape), len(raw))
        else:
            itemsize = _itemsize(chunk_spec.dtype) or 1
            limit = with_room(min(prod(chunk_spec.shape) * itemsize, self.most))
        decode = _decoder_of(self.inner)
        assert decode is not None
        return chunk_spec.prototype.buffer.from_bytes(decode(raw, limit))

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)


@dataclass(frozen=True)
class _CountedTexts(BytesBytesCodec):  # type: ignore[misc,unused-ignore]
    """Behind texts in Zarr format 3, which begin with their number: looked at before memory is taken for so many."""

    is_fixed_size = True

    def to_dict(self) -> Any:
        return {"name": "annbatch.counted_texts"}

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        return input_byte_length

    def _decode_sync(self, chunk_data: Any, chunk_spec: Any) -> Any:
        _check_count(chunk_data.as_numpy_array(), prod(chunk_spec.shape))
        return chunk_data

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return self._decode_sync(chunk_data, chunk_spec)


class _BoundedFilter(Numcodec):  # type: ignore[misc,unused-ignore]
    """A codec of Zarr format 2."""

    codec_id = ""  # zarr-python looks for one in the class

    def __init__(self, inner: Any, n: int, *, is_text: bool) -> None:
        self.inner, self.codec_id, self._n, self._is_text = inner, inner.codec_id, n, is_text
        self._decode = _decoder_of(inner)

    @classmethod
    def of(cls, inner: Any, n: int, *, is_text: bool) -> Any:
        """Wrap a codec; `n`: bytes of a chunk, of text its rows."""
        if not hasattr(inner, "codec_id"):
            return inner
        is_counted = is_text and inner.codec_id in ("vlen-utf8", "vlen-bytes")
        return cls(inner, n, is_text=is_text) if _decoder_of(inner) is not None or is_counted else inner

    def encode(self, buf: Any) -> Any:
        return self.inner.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        if self._decode is None:
            _check_count(as_bytes(buf), self._n)
            return self.inner.decode(buf, out)
        raw = as_bytes(buf)
        decoded = self._decode(raw, most_text_bytes(self._n, len(raw)) if self._is_text else with_room(self._n))
        if out is None:
            return decoded
        return numcodecs.compat.ndarray_copy(decoded, out)

    def get_config(self) -> Any:
        return self.inner.get_config()


def _check_count(encoded: np.ndarray, n_rows: int) -> None:
    n_said = int.from_bytes(encoded[:4].tobytes(), "little")
    if n_said > n_rows:
        msg = f"a chunk of {n_rows} texts claims to hold {n_said}"
        raise ValueError(msg)
