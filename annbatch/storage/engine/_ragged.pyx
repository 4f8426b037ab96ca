"""Kernels of rows of different lengths: where a row begins, from the lengths and one start per block of rows.

Pointers of 8 bytes a row are what a large matrix costs in memory. A length fits 1 or 2 bytes nearly always, and the
lengths of the rows before it in a block of 64 are added up faster than another cache line is fetched.

The faces, `annbatch.storage.row_pointers` and `annbatch.storage.text`, check; the twins are in
`tests/reference/ragged.py`.
"""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    BLOCK_SHIFT = 6

BLOCK_ROWS = 1 << BLOCK_SHIFT

# How HDF5 stores a text of any length in an array: the number of its bytes, and where they are, the file address of a
# collection of the global heap and a number in it.
cdef packed struct heap_reference:
    uint32_t n_bytes
    uint64_t address
    uint32_t number

cdef enum:
    COLLECTION_HEAD = 16
    OBJECT_HEAD = 16
    MOST_OBJECTS = 1 << 16

ctypedef fused length_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

ctypedef fused pointer_t:
    int64_t
    uint64_t


def find_extents(const length_t[::1] lengths not None, const int64_t[::1] block_start not None,
                 const int64_t[::1] rows not None, int64_t[::1] start not None, int64_t[::1] length not None):
    """Fill first value and number of values of each of ``rows``, which are in range, in any order, also repeated.

    At most 63 additions a row; none again for a row in the same block as the one before it, when that lies behind.
    """
    cdef Py_ssize_t i
    cdef int64_t row, at = 0, position = 0, block = -1
    with nogil:
        for i in range(rows.shape[0]):
            row = rows[i]
            if row >> BLOCK_SHIFT != block or row < at:
                block = row >> BLOCK_SHIFT
                at = block << BLOCK_SHIFT
                position = block_start[block]
            while at < row:
                position += <int64_t> lengths[at]
                at += 1
            start[i] = position
            length[i] = <int64_t> lengths[row]


def check_pointers(const pointer_t[::1] pointers not None, int64_t[::1] longest not None):
    """Find the first entry that is less than the one before it, and the greatest step between neighbours.

    Returns
    -------
    int
        Number of the entry after which the pointers fall; -1 when they never do. ``longest[0]`` is raised to the
        greatest step up to there.
    """
    cdef Py_ssize_t i, n = pointers.shape[0]
    cdef int64_t step, most = longest[0]
    cdef bint falls = False
    with nogil:
        for i in range(n - 1):
            if pointers[i + 1] < pointers[i]:
                falls = True
                break
            step = <int64_t> (pointers[i + 1] - pointers[i])
            most = step if step > most else most
    longest[0] = most
    return i if falls else -1


def keep_lengths(const pointer_t[::1] pointers not None, Py_ssize_t first_row, length_t[::1] lengths not None,
                 int64_t[::1] block_start not None):
    """Store the rows whose pointers these are (one entry more than rows), which begin with row ``first_row``."""
    cdef Py_ssize_t i, row
    with nogil:
        for i in range(pointers.shape[0] - 1):
            row = first_row + i
            lengths[row] = <length_t> (pointers[i + 1] - pointers[i])
            if row & ((1 << BLOCK_SHIFT) - 1) == 0:
                block_start[row >> BLOCK_SHIFT] = <int64_t> pointers[i]


def decode_texts(const uint8_t[::1] data not None, const int64_t[::1] start not None,
                 const int64_t[::1] length not None, object[::1] texts not None):
    """Fill ``texts`` with the str whose UTF-8 begins at ``start`` and takes ``length`` bytes, all within ``data``.

    About 40 ns a text; the GIL is held, because Python objects are made. Raises UnicodeDecodeError for what is no
    UTF-8; halves of surrogate pairs, which Python strings may hold, pass.
    """
    cdef Py_ssize_t i
    # Where there are no bytes, some address all the same: nothing is read there, but C wants one.
    cdef uint8_t nothing = 0
    cdef const uint8_t *base = &nothing
    if data.shape[0]:
        base = &data[0]
    for i in range(start.shape[0]):
        # Without a byte nothing is read, wherever the address leads.
        texts[i] = PyUnicode_DecodeUTF8(<const char *> base + start[i], length[i], b"surrogatepass")


def unpack_texts(const uint8_t[::1] chunk not None, int64_t[::1] length not None, uint8_t[::1] data not None):
    """Put the first texts of a decoded ``vlen-utf8`` chunk below each other: as many as ``length`` has entries.

    The chunk is a count (uint32, little-endian), then of each text its bytes (uint32) and these. ``data`` is as long as
    ``chunk`` at least. One copy, without the GIL; whether it is UTF-8 is for the caller to see.

    Returns
    -------
    int
        Bytes of all texts together; -1 when the chunk has not so many, or ends inside one.
    """
    cdef Py_ssize_t i, n = length.shape[0], size = chunk.shape[0], at = 4, n_bytes = 0
    cdef uint32_t here
    cdef const uint8_t *source
    cdef bint is_whole = size >= 4 and data.shape[0] >= size
    if not is_whole:
        return -1
    source = &chunk[0]
    with nogil:
        is_whole = little_endian(source) >= <uint64_t> n
        for i in range(n if is_whole else 0):
            if size - at < 4:
                is_whole = False
                break
            here = little_endian(source + at)
            at += 4
            if size - at < <Py_ssize_t> here:
                is_whole = False
                break
            memcpy(&data[n_bytes], source + at, here)
            length[i] = here
            at += here
            n_bytes += here
    return n_bytes if is_whole else -1


def heap_texts(const uint8_t[::1] heap not None, const heap_reference[::1] reference not None,
               const uint64_t[::1] address not None, const int64_t[::1] begin not None,
               const int64_t[::1] end not None, int64_t[::1] place not None, int64_t[::1] length not None,
               uint8_t[::1] data not None):
    """Put the texts that references of HDF5 lead to below each other.

    The collection at ``address[k]`` (ascending, each once, all that references name but 0) lies in
    ``heap[begin[k]:end[k]]``, which no other shares. Its objects are walked where the references turn to it: a
    reference costs a look at ``place`` (65,536 of -1), and files made so that the same objects are walked again and
    again are left to HDF5. ``data`` has room for as many bytes as all references claim. A text ends at its first zero
    byte, as in HDF5. One copy, without the GIL; whether it is UTF-8 is for the caller to see.

    Returns
    -------
    int
        Bytes of all texts together; -1 when a reference leads nowhere, or to an object of another size.
    """
    cdef Py_ssize_t i, n_bytes = 0, k = -1, low, high, middle, n_collections = address.shape[0]
    cdef int64_t at, size, here, n_left = heap.shape[0] + 8 * reference.shape[0]
    cdef uint32_t number
    cdef const uint8_t *stop
    cdef bint is_whole = True
    with nogil:
        for i in range(reference.shape[0]):
            length[i] = 0
            here = reference[i].n_bytes
            if here == 0 or reference[i].address == 0:
                continue
            if k < 0 or address[k] != reference[i].address:
                low, high = 0, n_collections
                while low < high:
                    middle = (low + high) // 2
                    if address[middle] < reference[i].address:
                        low = middle + 1
                    else:
                        high = middle
                is_whole = low < n_collections and address[low] == reference[i].address
                if not is_whole:
                    break
                k = low
                at = begin[k] + COLLECTION_HEAD
                while at + OBJECT_HEAD <= end[k]:
                    number = heap[at] | <uint32_t> heap[at + 1] << 8
                    size = <int64_t> little_endian_8(&heap[at + 8])
                    if number == 0:  # what is free, up to the end
                        break
                    n_left -= 1
                    if size < 0 or size > end[k] - at - OBJECT_HEAD:
                        n_left = -1
                        break
                    place[number] = at
                    at += OBJECT_HEAD + ((size + 7) & ~7)
            number = reference[i].number
            is_whole = n_left >= 0 and number < MOST_OBJECTS
            if not is_whole:
                break
            at = place[number]
            # Else it is of another collection.
            is_whole = at >= begin[k] and at < end[k] and <int64_t> little_endian_8(&heap[at + 8]) == here
            if not is_whole:
                break
            stop = <const uint8_t *> memchr(&heap[at + OBJECT_HEAD], 0, here)
            if stop != NULL:
                here = stop - &heap[at + OBJECT_HEAD]
            if here:
                memcpy(&data[n_bytes], &heap[at + OBJECT_HEAD], here)
            length[i] = here
            n_bytes += here
    return n_bytes if is_whole else -1


def first_broken(const uint8_t[::1] heap not None, const int64_t[::1] begin not None, const int64_t[::1] end not None):
    """Walk collections of the global heap of HDF5 as HDF5 does, which goes on for ever where an object has no size.

    Collection ``k`` lies in ``heap[begin[k]:end[k]]``, head first. Each byte is passed once; without the GIL.

    Returns
    -------
    int
        The first collection whose objects do not lead to its very end; -1: all of them do.
    """
    cdef Py_ssize_t k, found = -1
    cdef int64_t at, size
    with nogil:
        for k in range(begin.shape[0]):
            at = begin[k] + COLLECTION_HEAD
            while at + OBJECT_HEAD <= end[k]:
                size = <int64_t> little_endian_8(&heap[at + 8])
                if size < 0 or size > end[k] - at:
                    size = -1
                elif heap[at] | heap[at + 1]:
                    size = OBJECT_HEAD + ((size + 7) & ~7)
                # What is free, object 0, has its head counted in.
                if size < OBJECT_HEAD or size > end[k] - at:
                    found = k
                    break
                at += size
            if found >= 0:
                break
    return found


def number_texts(const uint8_t[::1] data not None, const int64_t[::1] length not None, uint64_t seed,
                 int32_t[::1] slots not None, int32_t[::1] code not None, int64_t[::1] begin not None,
                 int64_t[::1] size not None):
    """Number the distinct ones of texts whose bytes lie below each other, in the order in which they come first.

    ``slots`` is a hash table: a power of two of them, more than there are texts, all -1. ``code`` gets the number of
    each text, ``begin`` and ``size`` where the bytes of each distinct one begin in ``data`` and how many they are; all
    as long as ``length``. About 1 ns a byte; ``seed`` keeps files from being made for collisions.

    Returns
    -------
    int
        How many distinct ones there are.
    """
    cdef Py_ssize_t i, at = 0, slot, n_found = 0, mask = slots.shape[0] - 1
    cdef int32_t found
    # Where there are no bytes, some address all the same: nothing is read there, but C wants one.
    cdef uint8_t nothing = 0
    cdef const uint8_t *base = &nothing
    if data.shape[0]:
        base = &data[0]
    with nogil:
        for i in range(length.shape[0]):
            slot = <Py_ssize_t> (hash_of(base + at, length[i], seed) & <uint64_t> mask)
            found = slots[slot]
            while found >= 0 and (size[found] != length[i] or memcmp(base + begin[found], base + at, length[i]) != 0):
                slot = (slot + 1) & mask
                found = slots[slot]
            if found < 0:
                slots[slot] = found = <int32_t> n_found
                begin[n_found] = at
                size[n_found] = length[i]
                n_found += 1
            code[i] = found
            at += length[i]
    return n_found


cdef inline uint32_t little_endian(const uint8_t *at) noexcept nogil:
    return at[0] | <uint32_t> at[1] << 8 | <uint32_t> at[2] << 16 | <uint32_t> at[3] << 24


cdef inline uint64_t little_endian_8(const uint8_t *at) noexcept nogil:
    return little_endian(at) | <uint64_t> little_endian(at + 4) << 32


cdef inline uint64_t hash_of(const uint8_t *text, int64_t n_bytes, uint64_t seed) noexcept nogil:
    """FNV-1a, whose low bits are then made to depend on all."""
    cdef int64_t i
    cdef uint64_t state = seed ^ <uint64_t> 0xcbf29ce484222325
    for i in range(n_bytes):
        state = (state ^ text[i]) * <uint64_t> 0x100000001b3
    return state ^ (state >> 32)
