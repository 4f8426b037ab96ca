"""The chunk index of an HDF5 dataset in a far file, fetched level by level before h5py walks it.

HDF5's usual index is a B-tree of small nodes that lie all over the file, and HDF5 reads one after the other: thousands of round
trips for a large file. Here all nodes of a level, of all datasets and files, are asked for at once, and kept in the file
that h5py reads through. What the index says is still read by HDF5 alone. So what is not recognised here, newer kinds of
index (which lie together) and damage included, is only not there beforehand.

The words are those of the HDF5 File Format Specification: III.A.1 (version 1 B-trees).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from annbatch.storage.hdf5_headers import CHUNKED, layout_message

from .fetch import Want
from .ranges import Located, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py

    from .fetch import Fetcher
    from .hdf5 import FarFile

__all__ = ["fetch_chunk_indexes"]

# Entries of a node at most: HDF5's default, which h5py does not change. Of larger nodes the rest is read by HDF5.
_MOST_ENTRIES = 64
_HEAD = struct.Struct("<4sBBHQQ")
# Bytes of nodes kept of a file, at most.
_MOST_NODE_BYTES = 1 << 26


@dataclass(slots=True, eq=False)
class _Tree:
    """A B-tree whose nodes are being fetched.

    Attributes
    ----------
    n_dims
        Numbers in a key: one for each dimension of the dataset, and one more.
    n_left
        Nodes that it may still have.
    level
        Of the nodes at `addresses`; None for the root, which tells.
    """

    file: FarFile
    n_dims: int
    n_left: int
    addresses: list[int]
    level: int | None = None

    @property
    def node_bytes(self) -> int:
        """Bytes of a whole node: keys and children in turn, and one more key."""
        return _HEAD.size + _MOST_ENTRIES * (self._key_bytes + 8) + self._key_bytes

    @property
    def _key_bytes(self) -> int:
        return 8 + 8 * self.n_dims

    def descend(self) -> None:
        """Go to the children of the nodes at `addresses`, which have been fetched."""
        children: list[int] = []
        level = None
        for address in self.addresses:
            if not self.file.has(address, self.node_bytes):
                continue
            node = self.file.peek(address, self.node_bytes)
            signature, kind, node_level, n_entries, _, _ = _HEAD.unpack_from(node)
            expected = node_level if self.level is None else self.level - 1
            if signature != b"TREE" or kind != 1 or node_level != expected or n_entries > _MOST_ENTRIES:
                continue  # HDF5 will say what is wrong
            level = node_level
            stride = self._key_bytes + 8
            first = _HEAD.size + self._key_bytes
            if node_level and len(node) >= _HEAD.size + n_entries * stride:
                children += [struct.unpack_from("<Q", node, first + i * stride)[0] for i in range(n_entries)]
        size = self.file.stamp.size
        self.level = level
        room = min(self.n_left, (_MOST_NODE_BYTES - self.file.n_node_bytes) // self.node_bytes)
        self.addresses = [at for at in dict.fromkeys(children) if 0 < at <= size - _HEAD.size][: max(room, 0)]
        self.n_left -= len(self.addresses)


def fetch_chunk_indexes(datasets: Sequence[h5py.Dataset]) -> None:
    """Fetch the B-trees of chunked datasets of far files, in one round trip for each level of the deepest.

    Others are left alone, and so is what the format does not allow: HDF5, which reads it next, says so.
    """
    trees = [tree for dataset in datasets if (tree := _tree(dataset)) is not None]
    while trees:
        _fetch_nodes(trees)
        for tree in trees:
            tree.descend()
        trees = [tree for tree in trees if tree.addresses]


def _fetch_nodes(trees: Sequence[_Tree]) -> None:
    """Fetch the nodes at the addresses of trees, all together."""
    by_queue: dict[Fetcher, list[tuple[FarFile, int, int]]] = {}
    for tree in trees:
        file = tree.file
        missing = [at for at in tree.addresses if not file.has(at, tree.node_bytes)]
        by_queue.setdefault(file.queue, []).extend(
            (file, at, min(at + tree.node_bytes, file.stamp.size)) for at in missing
        )
    for queue, nodes in by_queue.items():
        numbers: dict[FarFile, int] = {}
        located = Located(
            np.array([numbers.setdefault(file, len(numbers)) for file, _, _ in nodes], np.int64),
            np.array([start for _, start, _ in nodes], np.int64),
            np.array([stop for _, _, stop in nodes], np.int64),
        )
        files = list(numbers)
        ranges = merged(located)
        wants = []
        for number, start, stop in zip(*(part.tolist() for part in ranges[:3]), strict=True):
            file = files[number]
            into = memoryview(bytearray(stop - start))
            wants.append(Want(file.objects, file.key, start, stop, into, file.stamp))
        queue.fetch(wants)
        for (file, start, stop), number in zip(nodes, ranges.of_item.tolist(), strict=True):
            begin, data = wants[number].start, wants[number].into
            assert begin is not None
            assert data is not None
            file.keep_node(start, bytes(data[start - begin : stop - begin]))


def _tree(dataset: h5py.Dataset) -> _Tree | None:
    """Return the tree of a dataset's chunks; None where there is none, or it is not understood."""
    from .hdf5 import far_file_of

    file = far_file_of(dataset.file)
    if file is None or not dataset.chunks:
        return None
    message = layout_message(dataset, file.peek)
    if message is None or message[:2] != bytes((3, CHUNKED)):
        return None
    try:
        n_dims, address = struct.unpack_from("<BQ", message, 2)
    except struct.error:
        return None
    if n_dims != len(dataset.shape) + 1 or not 0 < address <= file.stamp.size - _HEAD.size:
        return None  # an empty dataset has no tree: its address is -1
    n_chunks = prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    return _Tree(file, n_dims, 2 * n_chunks + 16, [address])
