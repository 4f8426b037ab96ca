"""Where in what HDF5 stores the places of texts lie: in items of a datatype, in attributes, in fill values.

Of a text, or a sequence, of any length, an item, an attribute or a fill value has only its *place*: how long it is, and where it lies in
the global heap. The words are those of the HDF5 File Format Specification: IV.A.2.d (datatype message), IV.A.2.f (fill value),
IV.A.2.m (attribute message).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .hdf5_headers import ATTRIBUTE, DATATYPE, FILL_VALUE, committed_datatype, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Peek = Callable[[int, int], bytes | bytearray]

__all__ = ["TEXT_PLACE", "ItemPlaces", "places_in_header", "stored_items"]

# How a text of any length is noted: its length, and where it lies. As in engine/_ragged.pyx. (Specification, IV.A.2.d and III.E.)
TEXT_PLACE = np.dtype([("n_bytes", "<u4"), ("address", "<u8"), ("number", "<u4")])

# Classes of datatypes.
_OPAQUE, _COMPOUND, _ENUMERATION, _ANY_LENGTH, _ARRAY, _COMPLEX = 5, 6, 8, 9, 10, 11
# Bytes that those without further parts take behind their head: whole numbers, floats, times, texts, bits, references.
_PROPERTIES = {0: 4, 1: 12, 2: 2, 3: 0, 4: 4, 7: 0}
# A head: class and version, 24 bits that mean something else in each class, and the bytes of an item.
_HEAD = struct.Struct("<BHxI")
# Version and flags, and the bytes of name, datatype and dataspace.
_ATTRIBUTE_HEAD = struct.Struct("<BBHHH")
# Types inside of types, and places in an item, at most.
_MOST_DEPTH, _MOST_PLACES = 16, 1 << 16
_NOWHERE = np.empty(0, np.int64)


class ItemPlaces(NamedTuple):
    """Where the places of texts lie in each item of a datatype.

    Attributes
    ----------
    item_bytes
        Bytes of an item in the file.
    offsets
        int64, where in it each place (TEXT_PLACE) begins.
    units
        int64, bytes that each length counts: 1 of a text, of a sequence those of its items.
    """

    item_bytes: int
    offsets: np.ndarray
    units: np.ndarray

    @classmethod
    def of(cls, datatype: bytes) -> ItemPlaces | None:
        """Take them from a datatype message; None where it is not understood."""
        return _item_places(datatype)

    def places(self, items: bytes | np.ndarray) -> np.ndarray:
        """Return the places (TEXT_PLACE) in whole items; one row for each of them."""
        if self.item_bytes == TEXT_PLACE.itemsize and len(self.offsets):
            return np.frombuffer(items, TEXT_PLACE)[:, None]
        raw = np.frombuffer(items, np.uint8).reshape(-1, self.item_bytes)
        picked = raw[:, self.offsets[:, None] + np.arange(TEXT_PLACE.itemsize)]
        return np.ascontiguousarray(picked).view(TEXT_PLACE)[:, :, 0]


# (Of the attributes of a file, most are of the same few.)
@lru_cache(16)
def _item_places(datatype: bytes) -> ItemPlaces | None:
    try:
        _, found = _parsed(datatype, 0, 0)
    except (struct.error, IndexError, ValueError):
        return None
    n_bytes = len(found.offsets) * TEXT_PLACE.itemsize
    last = int(found.offsets.max(initial=0))
    return found if not n_bytes or max(n_bytes, last + TEXT_PLACE.itemsize) <= found.item_bytes else None


def stored_items(peek: Peek, address: int) -> tuple[ItemPlaces | None, bytes]:
    """Return where places lie in the items of the dataset whose header is at an address, and its fill value (empty: it has none).

    Parameters
    ----------
    peek, address
        As of :func:`places_in_header`.
    """
    kind = fill = b""
    for what, content, is_elsewhere in messages(peek, address):
        if what == DATATYPE:
            kind = committed_datatype(peek, content) if is_elsewhere else content
        elif what == FILL_VALUE and not is_elsewhere:
            fill = _fill_value(content)
    return ItemPlaces.of(kind), fill


def places_in_header(peek: Peek, address: int) -> Iterator[bytes]:
    """Yield the places (items of TEXT_PLACE) that a header holds itself: those of attributes, and of a fill value.

    Parameters
    ----------
    peek
        Returns so many bytes of a file of usual sizes from a position on, fewer where it ends.
    address
        Where the header begins.
    """
    has_fill = False
    for what, content, is_elsewhere in messages(peek, address):
        if is_elsewhere:
            continue
        if what == ATTRIBUTE:
            yield _attribute_places(peek, content)
        elif what == FILL_VALUE and len(content) > TEXT_PLACE.itemsize:
            has_fill = True
    if has_fill:
        item, fill = stored_items(peek, address)
        if item is not None and len(fill) == item.item_bytes:
            yield item.places(fill).tobytes()


def _attribute_places(peek: Peek, message: bytes) -> bytes:
    if len(message) < 8 or message[0] not in (1, 2, 3):
        return b""
    version, flags, name_size, type_size, space_size = _ATTRIBUTE_HEAD.unpack_from(message)
    width, at = 8 if version == 1 else 1, 8 if version < 3 else 9
    at += _up(name_size, width)
    kind = message[at : at + type_size]
    at += _up(type_size, width)
    if version > 1 and flags & 1:
        kind = committed_datatype(peek, kind)
    # Most are of numbers or texts.
    if not kind or kind[0] & 0x0F in _PROPERTIES:
        return b""
    item = _item_places(kind)
    if item is None or not len(item.offsets):
        return b""
    n_items = _n_items(message[at : at + space_size])
    at += _up(space_size, width)
    n_items = min(n_items, (len(message) - at) // item.item_bytes)
    data = message[at : at + n_items * item.item_bytes]
    return data if item.item_bytes == TEXT_PLACE.itemsize else item.places(data).tobytes()


def _fill_value(message: bytes) -> bytes:
    """Return the value that a fill value message says; empty: none."""
    if len(message) < 8 or message[0] not in (1, 2, 3):
        return b""
    if message[0] == 3:
        is_there, at = message[1] & 0x20, 2
    else:
        is_there, at = message[3], 4
    size = int.from_bytes(message[at : at + 4], "little")
    return message[at + 4 : at + 4 + size] if is_there else b""


def _n_items(space: bytes) -> int:
    """Return how many items a dataspace message says that there are."""
    if len(space) < 4 or space[0] not in (1, 2):
        return 0
    n_axes = space[1]
    at = 8 if space[0] == 1 else 4
    if (space[0] == 2 and space[3] == 2) or len(space) < at + 8 * n_axes:  # null
        return 0
    return prod(struct.unpack_from(f"<{n_axes}Q", space, at))


def _parsed(data: bytes, at: int, depth: int) -> tuple[int, ItemPlaces]:
    """Return where the datatype that begins at a byte ends, and what it says."""
    kind, flags, size = _HEAD.unpack_from(data, at)
    version, kind, at = kind >> 4, kind & 0x0F, at + _HEAD.size
    if depth > _MOST_DEPTH or not size:
        msg = "there are too many types in each other, or an item has no bytes"
        raise ValueError(msg)
    found = ItemPlaces(size, _NOWHERE, _NOWHERE)
    if kind in _PROPERTIES:
        return at + _PROPERTIES[kind], found
    if kind == _OPAQUE:
        return at + (flags & 0xFF), found
    if kind == _COMPOUND:
        return _compound(data, at, depth, version, flags, size)
    if kind == _ARRAY:
        n_axes, at = data[at], at + (4 if version < 3 else 1)
        n = prod(struct.unpack_from(f"<{n_axes}I", data, at))
        at, base = _parsed(data, at + 4 * n_axes * (2 if version < 3 else 1), depth + 1)
        return at, _repeated(base, n)._replace(item_bytes=size)
    at, base = _parsed(data, at, depth + 1)
    if kind == _ENUMERATION:
        for _ in range(flags):
            at = _behind_name(data, at, version)
        return at + flags * base.item_bytes, found
    if kind == _ANY_LENGTH and size == TEXT_PLACE.itemsize:
        return at, ItemPlaces(size, np.zeros(1, np.int64), np.array([base.item_bytes]))
    if kind == _COMPLEX:
        return at, found
    msg = f"there is no class {kind} of {size} bytes"
    raise ValueError(msg)


def _compound(data: bytes, at: int, depth: int, version: int, n_members: int, size: int) -> tuple[int, ItemPlaces]:
    offsets, units = [_NOWHERE], [_NOWHERE]
    width = 4 if version < 3 else (size.bit_length() + 7) // 8
    for _ in range(n_members):
        at = _behind_name(data, at, version)
        offset, at, n = int.from_bytes(data[at : at + width], "little"), at + width, 1
        if version == 1:  # a member may be an array of up to four axes
            n, at = prod(struct.unpack_from(f"<{data[at]}I", data, at + 12)), at + 28
        at, member = _parsed(data, at, depth + 1)
        member = _repeated(member, n)
        offsets.append(offset + member.offsets)
        units.append(member.units)
    found = ItemPlaces(size, np.concatenate(offsets), np.concatenate(units))
    return at, _repeated(found, 1)


def _behind_name(data: bytes, at: int, version: int) -> int:
    """Return where the name that begins at a byte ends, the zeros behind it counted in."""
    n_bytes = data.index(0, at) + 1 - at
    return at + (_up(n_bytes, 8) if version < 3 else n_bytes)


def _repeated(item: ItemPlaces, n: int) -> ItemPlaces:
    """Return the places of `n` items behind each other."""
    if (n == 1 and len(item.offsets) <= _MOST_PLACES) or not len(item.offsets):
        return item
    if n * len(item.offsets) > _MOST_PLACES:
        msg = f"an item has more than {_MOST_PLACES} places of texts"
        raise ValueError(msg)
    starts = np.arange(n, dtype=np.int64)[:, None] * item.item_bytes
    return ItemPlaces(item.item_bytes, (starts + item.offsets).reshape(-1), np.tile(item.units, n))


def _up(n: int, width: int) -> int:
    return -(-n // width) * width
