"""Kernels of rows of different lengths: where a row begins, from the lengths and one start per block of rows.

Pointers of 8 bytes a row are what a large matrix costs in memory. A length fits 1 or 2 bytes nearly always, and the
lengths of the rows before it in a block of 64 are added up faster than another cache line is fetched.

The face, `annbatch.storage.row_pointers`, checks; the twins are in `tests/reference/ragged.py`.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    BLOCK_SHIFT = 6

BLOCK_ROWS = 1 << BLOCK_SHIFT

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
