"""Decoders that believe no size that a chunk claims: they read what is there, and make no more than they are told.

Those of numcodecs, which zarr-python uses, take the memory that a chunk asks for, and that of Blosc reads as far as a chunk says it
goes, also beyond its end.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np

from annbatch.storage.engine import _engine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["as_bytes", "decoder", "lzma_decoder", "most_text_bytes", "with_room"]

# Of text, no size is known beforehand: what is usual, and what a chunk may take besides, for each row and byte of it.
_USUAL_TEXT_BYTES = 32 * 2**20
_TEXT_BYTES_PER_ROW = 1024
_TEXT_BYTES_PER_STORED_BYTE = 16
_BLOSC_HEADER = struct.Struct("<BBBBIII")
_SNAPPY = 2
# Bytes that a decoder of a stream is given at a time, and makes of them at a time: what it makes is in memory twice meanwhile. (That of
# deflate makes 1,032 of each at most.)
_FED_BYTES = 1 << 12
_MADE_BYTES = 1 << 20
# Memory that a decoder of xz may ask for: its largest preset needs 65 MB, and takes as much of them as it makes.
_MOST_XZ_BYTES = 1 << 27
_LZ4_HEADER = struct.Struct(">QI")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def decoder(name: str | None) -> Callable[[Any, int], Any] | None:
    """Return what decodes bytes (any buffer) to at most so many; None for a codec that is not known here.

    It raises ValueError when they are more, or damaged. Decoding depends on no setting of these codecs.
    """
    return None if name is None else _DECODERS.get(name)


def most_text_bytes(n_rows: int, n_stored: int) -> int:
    """Bytes that a chunk of text of so many rows, which takes so many bytes, may decode to."""
    return _USUAL_TEXT_BYTES + _TEXT_BYTES_PER_ROW * n_rows + _TEXT_BYTES_PER_STORED_BYTE * n_stored


def with_room(n_bytes: int) -> int:
    """Bytes that so many may become in a codec that cannot pack them, and is followed by another."""
    return n_bytes + n_bytes // 8 + 4096


def as_bytes(raw: Any) -> np.ndarray:
    """Return a buffer as uint8."""
    return np.asarray(raw).reshape(-1).view(np.uint8) if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)


def _check_size(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        msg = f"a chunk claims to decode to {n_bytes} bytes, but has room for {limit}"
        raise ValueError(msg)


def _too_much(limit: int) -> ValueError:
    return ValueError(f"a chunk does not decode to at most {limit} bytes")


def _compiled(name: str, raw: np.ndarray, limit: int) -> bytes:
    decoded = _engine.decode(name, raw, limit)
    if decoded is None:
        raise _too_much(limit)
    return decoded


def _blosc(raw: Any, limit: int) -> Any:
    found = as_bytes(raw)
    n_there = len(found)
    if n_there < _BLOSC_HEADER.size:
        msg = f"cut short, {n_there} bytes are left"
        raise ValueError(msg)
    _, _, flags, _, n_bytes, _, n_said = _BLOSC_HEADER.unpack(found[: _BLOSC_HEADER.size].tobytes())
    if not _BLOSC_HEADER.size <= n_said <= n_there:
        msg = f"cut short, {n_there} bytes are left of {n_said}"
        raise ValueError(msg)
    _check_size(n_bytes, limit)
    if n_bytes and _engine.decodes("blosc") and flags >> 5 != _SNAPPY:
        return _compiled("blosc", found[:n_said], n_bytes)
    return numcodecs.Blosc().decode(found[:n_said])


def _zstd(raw: Any, limit: int) -> Any:
    found = as_bytes(raw)
    n_bytes = _zstd_content_size(found[:18].tobytes())
    if n_bytes is not None:
        _check_size(n_bytes, limit)
    if not _engine.decodes("zstd"):
        return numcodecs.Zstd().decode(found)
    # The room for text may be more than the system gives. (More, where several frames follow each other.)
    decoded = None if n_bytes is None else _engine.decode("zstd", found, n_bytes)
    return _compiled("zstd", found, limit) if decoded is None else decoded


def _zstd_content_size(header: bytes) -> int | None:
    """Bytes that a frame says it decodes to; None where it does not say. RFC 8878, 3.1.1.1."""
    if len(header) < 6 or header[:4] != _ZSTD_MAGIC:
        return None
    is_single_segment = header[4] >> 5 & 1
    at = 5 + (not is_single_segment) + (0, 1, 2, 4)[header[4] & 3]
    n_digits = (is_single_segment, 2, 4, 8)[header[4] >> 6]
    size = int.from_bytes(header[at : at + n_digits], "little") + 256 * (n_digits == 2)
    return size if n_digits else None


def _lz4(raw: Any, limit: int) -> Any:
    found = as_bytes(raw)
    _check_size(int.from_bytes(found[:4].tobytes(), "little"), limit)
    return numcodecs.LZ4().decode(found)


def _lz4_hdf5(raw: Any, limit: int) -> bytes:
    """Decode HDF5's framing of LZ4 blocks: sizes are big-endian."""
    chunk = bytes(raw)
    if len(chunk) < _LZ4_HEADER.size:
        raise _too_much(limit)
    total, block = _LZ4_HEADER.unpack_from(chunk)
    _check_size(total, limit)
    at, done, parts = 12, 0, []
    while done < total:
        wanted = min(block, total - done)
        size = int.from_bytes(chunk[at : at + 4], "big")
        stored = chunk[at + 4 : at + 4 + size]
        if not wanted or len(stored) != size:
            raise _too_much(limit)
        parts.append(stored if size == wanted else numcodecs.LZ4().decode(struct.pack("<I", wanted) + stored))
        at += 4 + size
        done += wanted
    return b"".join(parts)


def lzma_decoder(form: int, filters: Any = None) -> Callable[[Any, int], Any]:
    """Return what :func:`decoder` returns, for lzma: only its settings tell how it is packed.

    Parameters
    ----------
    form, filters
        As ``numcodecs.LZMA`` has them; filters are looked at in raw streams only.
    """

    def make() -> lzma.LZMADecompressor:
        if form == lzma.FORMAT_RAW:
            return lzma.LZMADecompressor(form, filters=filters)
        return lzma.LZMADecompressor(form, memlimit=_MOST_XZ_BYTES)

    return lambda raw, limit: _streams(make, raw, limit)


def _streams(make: Callable[[], Any], raw: Any, limit: int) -> bytearray:
    """Decode one stream after the other, as they stand in files of gzip, bz2 and xz; zeros may follow."""
    left = memoryview(as_bytes(raw))
    decoded = bytearray()  # grows without a second copy
    at = 0
    try:
        while at < len(left):
            stream = make()
            while at < len(left) and not stream.eof:
                fed, at = left[at : at + _FED_BYTES], min(at + _FED_BYTES, len(left))
                _append(stream, fed, decoded, limit)
            if not stream.eof:
                msg = "cut short"
                raise ValueError(msg)
            at -= len(stream.unused_data)
            while at < len(left) and not left[at]:
                at += 1
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        msg = f"a chunk cannot be decoded: {error}"
        raise ValueError(msg) from error
    return decoded


def _append(stream: Any, fed: Any, decoded: bytearray, limit: int) -> None:
    """Append what comes of some bytes."""
    while True:
        most = limit - len(decoded) + 1
        # One of deflate would keep what it did not make, and not say so.
        decoded += stream.decompress(fed, most if hasattr(stream, "unconsumed_tail") else min(most, _MADE_BYTES))
        if len(decoded) > limit:
            decoded.clear()  # or the error would keep it
            raise _too_much(limit)
        if stream.eof or getattr(stream, "needs_input", True):
            return
        fed = b""


_DECODERS: dict[str, Callable[[Any, int], Any]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "lz4_hdf5": _lz4_hdf5,
    "zlib": lambda raw, limit: _streams(zlib.decompressobj, raw, limit),
    "gzip": lambda raw, limit: _streams(lambda: zlib.decompressobj(16 + zlib.MAX_WBITS), raw, limit),
    "bz2": lambda raw, limit: _streams(bz2.BZ2Decompressor, raw, limit),
}
