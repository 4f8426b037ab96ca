"""What the header of an object of HDF5 says that h5py does not hand out: how a dataset lies, and what leads to its texts.

The words are those of the HDF5 File Format Specification: IV.A (object headers), IV.A.2.i (layout message).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import h5py

__all__ = [
    "ATTRIBUTE",
    "CHUNKED",
    "DATATYPE",
    "FILL_VALUE",
    "committed_datatype",
    "edges_are_unfiltered",
    "header_address",
    "layout_message",
    "local_bytes",
    "messages",
    "sizes_are_usual",
]

CHUNKED = 2
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Kinds of messages.
DATATYPE, FILL_VALUE, ATTRIBUTE = 0x03, 0x05, 0x0C
_LAYOUT, _CONTINUATION = 0x08, 0x10
# Of the flags of a message: it stands elsewhere. And of what stands in its place then: in the header of another object.
_SHARED, _IN_HEADER = 2, 2
# Versions of the layout message that have flags, and the flags that there are: edges, and an index of a single chunk.
_WITH_FLAGS, _EDGES_UNFILTERED, _KNOWN_FLAGS = (4, 5), 1, 3
# Bytes and areas of one object header at most. Real ones are far smaller.
_MOST_HEADER_BYTES = 1 << 20
_MOST_HEADER_AREAS = 1 << 10


def edges_are_unfiltered(dataset: h5py.Dataset, peek: Callable[[int, int], bytes | bytearray]) -> bool | None:
    """Whether chunks that reach beyond the end of a chunked dataset are stored without the filters of all others.

    A setting of the dataset (``H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS``) that the filter masks of its chunks do not show.

    Parameters
    ----------
    dataset
        Of a file whose bytes `peek` returns.
    peek
        Returns so many bytes from a position on, fewer where the file ends.

    Returns
    -------
    None where it cannot be told.
    """
    message = layout_message(dataset, peek)
    if message is None or len(message) < 3 or message[0] > max(_WITH_FLAGS):
        return None
    if message[0] not in _WITH_FLAGS:
        return False
    kind, flags = message[1:3]
    return None if kind != CHUNKED or flags & ~_KNOWN_FLAGS else bool(flags & _EDGES_UNFILTERED)


def local_bytes(file: h5py.File) -> Callable[[int, int], bytes]:
    """Return what reads a local file that h5py has open in the usual way, from a position on."""
    descriptor = file.id.get_vfd_handle()
    return lambda start, n_bytes: os.pread(descriptor, n_bytes, start)


def layout_message(dataset: h5py.Dataset, peek: Callable[[int, int], bytes | bytearray]) -> bytes | None:
    """Return the message of an object header that says how a dataset's data lie; None when it is not found.

    Parameters
    ----------
    dataset, peek
        As of :func:`edges_are_unfiltered`.
    """
    import h5py

    if not sizes_are_usual(bytes(peek(0, 64))):
        return None
    # (h5py.h5o.get_info walks the tree of chunks, to tell how large it is.)
    return _content(peek, header_address(h5py.h5g.get_objinfo(dataset.id, b".")), _LAYOUT)


def header_address(info: h5py.h5g.GroupStat) -> int:
    """Return where in its file the header of an object begins, of which ``h5py.h5g.get_objinfo`` told."""
    low, high = info.objno
    address: int = low | high << 8 * struct.calcsize("l")
    return address


def committed_datatype(peek: Callable[[int, int], bytes | bytearray], content: bytes) -> bytes:
    """Return the datatype message that the content of a message that stands elsewhere leads to; empty: it is not found.

    A type that has a name, which datasets and attributes share, has a header of its own.
    """
    if len(content) < 10 or content[0] not in (1, 2, 3) or (content[0] == 3 and content[1] != _IN_HEADER):
        return b""
    address = int.from_bytes(content[8:16] if content[0] == 1 else content[2:10], "little")
    return _content(peek, address, DATATYPE) or b""


def sizes_are_usual(start: bytes) -> bool:
    """Whether addresses and sizes take eight bytes and count from the file's first byte."""
    if len(start) < 64 or start[:8] != _SIGNATURE or start[8] > 3:
        return False
    sizes, base = (start[13:15], 24 + 4 * start[8]) if start[8] < 2 else (start[9:11], 12)
    return sizes == b"\x08\x08" and start[base : base + 8] == bytes(8)


def messages(peek: Callable[[int, int], bytes | bytearray], address: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield the messages of the object header at an address, in a file of usual sizes, as far as they are understood.

    Of each, what it is about (as DATATYPE), its content, and whether that only says where the message stands.
    """
    try:
        yield from _walk(peek, address)
    except (struct.error, IndexError, OverflowError):
        return


def _content(peek: Callable[[int, int], bytes | bytearray], address: int, wanted: int) -> bytes | None:
    """Return the first message about something that stands in a header; None: there is none."""
    return next((content for kind, content, away in messages(peek, address) if kind == wanted and not away), None)


def _walk(peek: Callable[[int, int], bytes | bytearray], address: int) -> Iterator[tuple[int, bytes, bool]]:
    head = bytes(peek(address, 64))
    if head[:4] == b"OHDR":
        flags = head[5]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        areas = [(address + at + width, int.from_bytes(head[at : at + width], "little"))]
        prefix, order, is_old = struct.Struct("<BHB"), 2 if flags & 0x04 else 0, False
    elif head[:1] == b"\x01":
        areas = [(address + 16, struct.unpack_from("<I", head, 8)[0])]
        prefix, order, is_old = struct.Struct("<HHB3x"), 0, True
    else:
        return
    n_left = _MOST_HEADER_BYTES
    for number, (start, n_bytes) in enumerate(areas):  # grows while it is walked
        if number >= _MOST_HEADER_AREAS or not 0 <= n_bytes <= n_left:
            return
        n_left -= n_bytes
        data = bytes(peek(start, n_bytes))
        at = 0
        while at + prefix.size + order <= len(data):
            kind, size, flags = prefix.unpack_from(data, at)
            at += prefix.size + order
            message = data[at : at + size]
            at += size
            yield kind, message, bool(flags & _SHARED)
            if kind == _CONTINUATION and not flags & _SHARED:
                more, length = struct.unpack_from("<QQ", message)
                # Newer areas have a signature before and a checksum behind their messages.
                areas.append((more, length) if is_old else (more + 4, length - 8))
