"""The global heap of a local HDF5 file, looked at before HDF5 walks it.

Texts of any length, of arrays and of attributes, lie in *collections* of the global heap. Whoever asks for one has HDF5 walk all
objects of its collection, from one to the next by their sizes: where the head of an object was overwritten with zeros it never gets
on, with the interpreter's lock held. Each look here passes each byte once. The words are those of the HDF5 File Format
Specification: III.E (global heap).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from .engine._engine import can_read_files
from .engine._ragged import first_broken
from .errors import CorruptDataError
from .hdf5_headers import header_address, local_bytes, sizes_are_usual
from .hdf5_items import TEXT_PLACE, places_in_header

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["MOST_BYTES", "LocalHeap", "check_attributes", "places_in_use"]

# What collections that are read together take at most.
MOST_BYTES = 1 << 26

_HEAD = np.dtype([("signature", "S4"), ("version", "u1"), ("reserved", "V3"), ("size", "<u8")])
_OBJECT = struct.Struct("<HHIQ")
# Collections that lie no further apart are read together.
_GAP = 1 << 13
# Of a larger collection, so much is read at a time.
_WINDOW = 1 << 20


class Collections(NamedTuple):
    """Collections, ascending, none of which reaches into another.

    Attributes
    ----------
    starts, stops
        int64, where each begins and ends in the file.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def span_firsts(self) -> np.ndarray:
        """Numbers of those that begin a stretch that is read at once."""
        return np.flatnonzero(np.append(True, self.starts[1:] > self.stops[:-1] + _GAP))

    @property
    def n_bytes(self) -> int:
        """Bytes that are read for them."""
        if not len(self.starts):
            return 0
        firsts = self.span_firsts
        return int((self.stops[np.append(firsts[1:] - 1, -1)] - self.starts[firsts]).sum())


class LocalHeap:
    """The global heap of a local file that h5py has open for reading.

    Parameters
    ----------
    file
        Whose addresses and sizes are as usual (:func:`sizes_are_usual`).
    where
        What needs the texts, for errors.
    """

    def __init__(self, file: h5py.File, where: str) -> None:
        self._peek, self._n_bytes, self._where = local_bytes(file), file.id.get_filesize(), where

    def collections(self, addresses: np.ndarray) -> Collections:
        """Find collections by their addresses (uint64, ascending, each once).

        Raises
        ------
        CorruptDataError
            There is none at one of them, or it reaches beyond the end of the file or into another.
        """
        known = [address for address in addresses.tolist() if address <= self._n_bytes - _HEAD.itemsize]
        if len(known) < len(addresses):
            raise self._broken(int(addresses[len(known)]), f"the file ends at byte {self._n_bytes}")
        starts = addresses.astype(np.int64)
        heads = [self._peek(start, _HEAD.itemsize) for start in known]
        whole = next((i for i, head in enumerate(heads) if len(head) < _HEAD.itemsize), None)
        if whole is not None:
            raise self._broken(known[whole], "the file was cut short")
        head = np.frombuffer(b"".join(heads), _HEAD)
        strange = np.flatnonzero((head["signature"] != b"GCOL") | (head["version"] != 1))
        if len(strange):
            raise self._broken(known[strange[0]], "no collection of texts is there")
        room = (self._n_bytes - starts).astype(np.uint64)
        wrong = np.flatnonzero((head["size"] < _HEAD.itemsize) | (head["size"] > room))
        if len(wrong):
            raise self._broken(known[wrong[0]], f"it says that it has {head['size'][wrong[0]]} bytes")
        stops = starts + head["size"].astype(np.int64)
        inside = np.flatnonzero(starts[1:] < stops[:-1])
        if len(inside):
            raise self._broken(known[inside[0]], "another one lies inside of it")
        return Collections(starts, stops)

    def read(self, found: Collections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the bytes of collections (uint8), and where in these each begins and ends (int64).

        Raises
        ------
        CorruptDataError
            The file was cut short.
        """
        if not len(found.starts):
            return np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64)
        firsts = found.span_firsts
        starts, stops = found.starts[firsts], found.stops[np.append(firsts[1:] - 1, -1)]
        lengths = stops - starts
        parts = [self._peek(*span) for span in zip(starts.tolist(), lengths.tolist(), strict=True)]
        heap = np.frombuffer(b"".join(parts), np.uint8)
        if len(heap) < lengths.sum():
            raise self._broken(int(found.starts[0]), "the file was cut short")
        n_in_span = np.diff(np.append(firsts, len(found.starts)))
        moved = np.repeat(np.cumsum(lengths) - lengths - starts, n_in_span)
        return heap, found.starts + moved, found.stops + moved

    def check(self, addresses: np.ndarray) -> None:
        """Walk collections (uint64, ascending, each once) as HDF5 will, all of each.

        Raises
        ------
        CorruptDataError
            HDF5 would not come to the end of one.
        """
        found = self.collections(addresses)
        first = 0
        while first < len(found.starts):
            # Those that begin in the next MOST_BYTES; the last of them may be longer.
            stop = int(np.searchsorted(found.starts, found.starts[first] + MOST_BYTES - 1, side="right"))
            while stop > first + 1 and found.stops[stop - 1] - found.starts[first] > MOST_BYTES:
                stop -= 1
            if found.stops[first] - found.starts[first] > MOST_BYTES:
                for _ in self._objects(int(found.starts[first]), int(found.stops[first])):
                    pass
            else:
                part = Collections(found.starts[first:stop], found.stops[first:stop])
                broken = first_broken(*self.read(part))
                if broken >= 0:
                    for _ in self._objects(int(part.starts[broken]), int(part.stops[broken])):
                        pass
            first = stop

    def check_places(self, places: np.ndarray, *, first_row: int | None = None) -> None:
        """Look whether each place of a text (TEXT_PLACE) leads to one of its length, a Python object each.

        Parameters
        ----------
        places
            What is looked at.
        first_row
            Row of the first of them, for the error; None: they have none.

        Raises
        ------
        CorruptDataError
            One does not.
        """
        found = self.collections(places_in_use(places))
        address = np.where(places["n_bytes"] > 0, places["address"], 0)
        order = np.argsort(address, kind="stable")
        first, behind = (
            np.searchsorted(address[order], found.starts.astype(np.uint64), side) for side in ("left", "right")
        )
        for start, stop, low, high in zip(*(part.tolist() for part in (*found, first, behind)), strict=True):
            size_of = dict(self._objects(start, stop))
            rows = order[low:high]
            for row, number, n_bytes in zip(
                rows.tolist(), places["number"][rows].tolist(), places["n_bytes"][rows].tolist(), strict=True
            ):
                if size_of.get(number) != n_bytes:
                    there = f"has {size_of[number]} bytes" if number in size_of else "is not there"
                    said = f"text {number} in it, of {n_bytes} bytes, {there}"
                    raise self._broken(start, said if first_row is None else f"{said} (row {first_row + row})")

    def _objects(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield number and size of each object of a collection, as HDF5 walks them; what is free has the number 0."""
        at, window, begin = start + _HEAD.itemsize, b"", 0
        while at + _OBJECT.size <= stop:
            if at + _OBJECT.size > begin + len(window):
                begin, window = at, self._peek(at, min(_WINDOW, stop - at))
                if len(window) < _OBJECT.size:
                    raise self._broken(start, "the file was cut short")
            number, _, _, size = _OBJECT.unpack_from(window, at - begin)
            # What is free has its head counted in.
            step = size if number == 0 else _OBJECT.size + -(-size // 8) * 8
            if step < _OBJECT.size or step > stop - at:
                raise self._broken(start, f"at byte {at} an object says that it has {size} bytes")
            yield number, size
            at += step

    def _broken(self, address: int, what: str) -> CorruptDataError:
        return CorruptDataError(f"{self._where}: the texts at byte {address} of the file are damaged: {what}")


def places_in_use(places: np.ndarray) -> np.ndarray:
    """Return the addresses (uint64, ascending, each once) of the collections that places of texts (TEXT_PLACE) lead to."""
    address = places["address"]  # HDF5 goes to that of a text without bytes, too
    turns = np.flatnonzero(address[1:] != address[:-1]) + 1  # most are followed by one in the same
    found = np.unique(address[np.append(0, turns)] if len(address) else address)
    return found[found > 0]


def check_attributes(group: h5py.Group, skip: Collection[bytes] = ()) -> None:
    """See that HDF5 can read the texts of attributes of a group and all below it; links to other files are not followed.

    Nothing is looked at in files that are far or open for writing, and of an object with so many attributes that HDF5 keeps
    them elsewhere than in its header.

    Parameters
    ----------
    group
        Of a file of any kind.
    skip
        Names in the group that are not looked at.

    Raises
    ------
    CorruptDataError
        HDF5 would loop for ever over them, or one is not there.
    """
    file = group.file
    if not can_read_files or file.driver != "sec2" or file.mode != "r" or not sizes_are_usual(local_bytes(file)(0, 64)):
        return
    peek, path = local_bytes(file), group.name.rstrip("/")
    found: list[tuple[str, bytes]] = []
    for name, address in _headers(group.id, path, skip):
        found += [(name, places) for places in places_in_header(peek, address) if places]
    if not found:
        return
    try:
        LocalHeap(file, file.filename).check(_in_use([places for _, places in found]))
    except CorruptDataError:
        # Whose?
        for name, places in found:
            LocalHeap(file, f"{file.filename} :: {name.strip('/') or '/'}, attributes").check(_in_use([places]))
        raise


def _in_use(places: list[bytes]) -> np.ndarray:
    return places_in_use(np.frombuffer(b"".join(places), TEXT_PLACE))


def _headers(group: h5py.h5g.GroupID, path: str, skip: Collection[bytes]) -> Iterator[tuple[str, int]]:
    """Yield path and address of a group and all objects below it; what HDF5 cannot list is left out, whoever reads it is told."""
    seen: set[int] = set()
    waiting = [(group, path)]
    while waiting:
        here, at = waiting.pop()
        try:
            address = header_address(h5py.h5g.get_objinfo(here, b"."))
            if address in seen:
                continue
            seen.add(address)
            yield at, address
            for name in here:
                if name in skip and here is group:
                    continue
                info = h5py.h5g.get_objinfo(here, name, follow_link=False)
                below = f"{at}/{name.decode(errors='replace')}"
                if info.type == h5py.h5g.GROUP:
                    waiting.append((h5py.h5g.open(here, name), below))
                elif info.type == h5py.h5g.DATASET and (address := header_address(info)) not in seen:
                    seen.add(address)
                    yield below, address
        except (OSError, RuntimeError, ValueError, KeyError):
            continue
