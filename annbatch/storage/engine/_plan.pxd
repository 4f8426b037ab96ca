"""What a plan is made of, as compiled code sees it, and the placing of its pieces.

The structs are those of _plan.h over the memory of NumPy arrays; _plan.py has their dtypes.
"""

from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy


cdef extern from "_plan.h" nogil:
    ctypedef struct piece_t:
        int64_t source, address, n, column
    ctypedef struct task_t:
        int64_t chunk, first_piece, stop_piece, low, high
    ctypedef struct stretch_t:
        int64_t first_row, stop_row, first_value_task, stop_value_task, first_column_task, stop_column_task, n_values
    ctypedef struct extent_t:
        int64_t first_value, n_values
    ctypedef struct span_t:
        int64_t cell, source, target, n
    ctypedef struct stamp_t:
        int64_t size, time_ns, inode
    ctypedef struct fetched_t:
        int64_t address, n_bytes

cdef extern from "_convert.h" nogil:
    enum: N_TYPES
    ctypedef int (*convert_fn)(const char *, char *, int64_t)
    ctypedef int64_t (*index_fn)(const char *, char *, int64_t, int64_t, const int64_t *)
    ctypedef void (*densify_fn)(const char *, const char *, int64_t, char *)
    convert_fn CONVERT[N_TYPES][N_TYPES]
    index_fn RENUMBER[2][8]
    densify_fn DENSIFY[2][N_TYPES]
    void scatter_items(const char *, char *, int64_t, int, const int64_t *)

# How a task can end.
cdef enum:
    FINE = 0
    CANNOT_READ = 1
    CUT_SHORT = 2
    CHANGED = 3
    DAMAGED = 4
    CHECKSUM = 5
    WRONG_SIZE = 6
    COLUMN = 7
    LOSSY = 8
    MEMORY = 9
    PYTHON = 10

cdef enum:
    # Items are converted so many bytes at a time before their columns are renumbered.
    CONVERTED_BYTES = 4096

# What happens to the items of an array on their way. Type codes are those of _convert.h; equal codes copy, and then
# only the itemsize counts.
cdef struct placing_t:
    int source_type
    int target_type
    int source_size
    int target_size
    bint is_column_number  # to be checked against n_columns, and renumbered by `columns`
    int64_t n_columns
    const int64_t *columns  # new number of each old column, -1 to drop; NULL: they stay


cdef inline int place_piece(const placing_t *placing, const char *source, const piece_t *piece,
                            uintptr_t base) noexcept nogil:
    """Copy one piece from ``source`` to its address, which counts from ``base``: FINE, COLUMN or LOSSY."""
    cdef char *target = <char *>(base + <uintptr_t>piece.address)
    cdef char converted[CONVERTED_BYTES]
    cdef int64_t i, n
    if placing.is_column_number:
        if RENUMBER[placing.target_size == 8][placing.source_type](
            source, target, piece.n, placing.n_columns, placing.columns
        ) >= 0:
            return COLUMN
    elif placing.columns == NULL:
        if placing.source_type == placing.target_type:
            memcpy(target, source, <size_t>(piece.n * placing.source_size))
        elif CONVERT[placing.target_type][placing.source_type](source, target, piece.n):
            return LOSSY
    elif placing.source_type == placing.target_type:
        scatter_items(source, target, piece.n, placing.source_size, placing.columns + piece.column)
    else:
        i = 0
        while i < piece.n:
            n = min(piece.n - i, CONVERTED_BYTES // placing.target_size)
            if CONVERT[placing.target_type][placing.source_type](source + i * placing.source_size, converted, n):
                return LOSSY
            scatter_items(converted, target, n, placing.target_size, placing.columns + piece.column + i)
            i += n
    return FINE
