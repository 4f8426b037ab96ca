"""Twins of ``annbatch/storage/engine/_ragged.pyx``."""

from __future__ import annotations

import numpy as np

__all__ = [
    "decode_texts",
    "find_extents",
    "first_broken",
    "heap_texts",
    "lengths_and_starts",
    "number_texts",
    "unpack_texts",
]


def lengths_and_starts(pointers: np.ndarray, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Length of each row, and the first value of every ``block_rows``-th row."""
    return np.diff(pointers), pointers[:-1:block_rows]


def find_extents(pointers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First value and number of values of each row."""
    return pointers[rows], pointers[rows + 1] - pointers[rows]


def decode_texts(data: np.ndarray, start: np.ndarray, length: np.ndarray) -> list[str]:
    """Texts by where their bytes are."""
    return [data[a : a + n].tobytes().decode("utf-8", "surrogatepass") for a, n in zip(start, length, strict=True)]


def unpack_texts(chunk: np.ndarray, n_texts: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Bytes and lengths of the first texts of a ``vlen-utf8`` chunk; None when it has not so many, or ends before."""
    raw, at, texts = chunk.tobytes(), 4, []
    if len(raw) < 4 or int.from_bytes(raw[:4], "little") < n_texts:
        return None
    for _ in range(n_texts):
        n_bytes = int.from_bytes(raw[at : at + 4], "little")
        if at + 4 + n_bytes > len(raw):
            return None
        texts.append(raw[at + 4 : at + 4 + n_bytes])
        at += 4 + n_bytes
    return np.frombuffer(b"".join(texts), np.uint8), np.array([len(text) for text in texts], np.int64)


def heap_texts(collections: dict[int, bytes], references: list[tuple[int, int, int]]) -> list[bytes] | None:
    """Texts of HDF5 by (bytes, address of a collection, number in it); None when one leads nowhere, or elsewhere than it says."""
    texts = []
    for n_bytes, address, number in references:
        if not n_bytes or not address:
            texts.append(b"")
            continue
        objects, at, collection = {}, 16, collections[address]
        while at + 16 <= len(collection) and collection[at : at + 2] != b"\0\0":
            size = int.from_bytes(collection[at + 8 : at + 16], "little")
            if at + 16 + size > len(collection):
                return None
            objects[int.from_bytes(collection[at : at + 2], "little")] = collection[at + 16 : at + 16 + size]
            at += 16 + -(-size // 8) * 8
        if len(objects.get(number, b"")) != n_bytes:
            return None
        texts.append(objects[number].partition(b"\0")[0])
    return texts


def first_broken(collections: list[bytes]) -> int:
    """Number of the first collection that HDF5 would not walk to its very end; -1 when there is none."""
    for number, collection in enumerate(collections):
        at = 16
        while at + 16 <= len(collection):
            size = int.from_bytes(collection[at + 8 : at + 16], "little")
            step = size if collection[at : at + 2] == b"\0\0" else 16 + -(-size // 8) * 8
            if step < 16 or at + step > len(collection):
                return number
            at += step
    return -1


def number_texts(data: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Number of each text among the distinct ones, and these in the order in which they come first."""
    ends = np.cumsum(length)
    texts = [data[end - n : end].tobytes() for end, n in zip(ends, length, strict=True)]
    found: dict[bytes, int] = {}
    return np.array([found.setdefault(text, len(found)) for text in texts], np.int32), list(found)
