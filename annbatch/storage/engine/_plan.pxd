"""What a plan is made of, as compiled code sees it, and the placing of its pieces.

The structs are those of _plan.h over the memory of NumPy arrays; _plan.py has their dtypes.
"""

from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy


cdef extern from "_plan.h" nogil:
    ctypedef struct piece_t:
        int64_t source, address, n, column, row
    ctypedef struct row_t:
        int64_t address, n_values, n_missing
        double total
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

cdef extern from "_scale.h" nogil:
    ctypedef double (*total_fn)(const char *, int64_t)
    ctypedef void (*scale_fn)(char *, int64_t, double, double, int)
    total_fn TOTAL[N_TYPES]
    scale_fn SCALE[N_TYPES]
    ctypedef int (*log_counts_fn)(const char *, float *, int64_t, double, double *)
    log_counts_fn LOG_COUNTS[N_TYPES]
    double scale_row_f4(char *, int64_t, double, int)
    int64_t less_missing(int64_t *, int64_t)

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
    FLOAT32 = 8  # the code of _convert.h
    # Items are converted so many bytes at a time before their columns are renumbered.
    CONVERTED_BYTES = 4096

# What is done to rows that are added up: a RowScaling.
cdef struct scaling_t:
    int value_type
    double target_sum  # 0: they are not normalised
    bint log1p
    log_counts_fn log_counts  # NULL: whole rows are scaled where they were placed

# What happens to the items of an array on their way: a Placing.
cdef struct placing_t:
    int source_type
    int target_type
    int source_size
    int target_size
    bint is_column_number  # to be checked against n_columns, and renumbered by `columns`
    int64_t n_columns
    const int64_t *columns  # NULL: they stay
    row_t *row  # NULL: no rows are added up
    scaling_t scaling


cdef inline int set_scaling(scaling_t *scaling, described, int value_type) except -1:
    """Fill from a ``RowScaling``."""
    scaling.value_type, scaling.target_sum, scaling.log1p = value_type, described.target_sum, described.log1p
    scaling.log_counts = NULL
    return 0


cdef inline int set_placing(placing_t *placing, described) except -1:
    """Fill from a ``Placing``, which must stay alive."""
    cdef const int64_t[::1] columns
    cdef row_t[::1] rows
    placing.source_type, placing.target_type = described.source_type, described.target_type
    placing.source_size, placing.target_size = described.source_size, described.target_size
    placing.is_column_number, placing.n_columns = described.n_columns >= 0, described.n_columns
    placing.columns, placing.row = NULL, NULL
    if described.columns is not None and len(described.columns):
        columns = described.columns
        placing.columns = &columns[0]
    if described.rows is not None and len(described.rows):
        rows = described.rows
        placing.row = &rows[0]
        set_scaling(&placing.scaling, described.scaling, placing.target_type)
        if placing.scaling.log1p and placing.target_type == FLOAT32 and placing.columns == NULL:
            placing.scaling.log_counts = LOG_COUNTS[placing.source_type]
    return 0


cdef inline double scale_row(const scaling_t *scaling, char *values, int64_t n) noexcept nogil:
    """Scale all values of a row in place; returns what they added up to."""
    cdef double total
    if scaling.value_type == FLOAT32:
        return scale_row_f4(values, n, scaling.target_sum, scaling.log1p)
    total = TOTAL[scaling.value_type](values, n)
    if scaling.target_sum > 0 or scaling.log1p:
        SCALE[scaling.value_type](values, n, total, scaling.target_sum, scaling.log1p)
    return total


cdef inline void finish_piece(const placing_t *placing, const piece_t *piece, uintptr_t base) noexcept nogil:
    """Add up and scale the row of a piece that was placed, when no other piece of it is missing.

    Nearly all rows come in one piece, and are still in the cache. Of the others, the thread that brings the last piece
    goes over the whole row, so that the pieces do not matter to the result.
    """
    cdef row_t *row = placing.row + piece.row
    if piece.n == row.n_values or less_missing(&row.n_missing, piece.n) == 0:
        row.total = scale_row(&placing.scaling, <char *>(base + <uintptr_t>row.address), row.n_values)


cdef inline int move_piece(const placing_t *placing, const char *source, const piece_t *piece,
                           uintptr_t base) noexcept nogil:
    """Copy one piece, converting or renumbering: FINE, COLUMN or LOSSY."""
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


cdef inline int place_piece(const placing_t *placing, const char *source, const piece_t *piece,
                            uintptr_t base) noexcept nogil:
    """Move one piece from ``source`` to its address, which counts from ``base``: FINE, COLUMN or LOSSY."""
    cdef row_t *row
    cdef int status
    if placing.row != NULL and placing.scaling.log_counts != NULL:
        row = placing.row + piece.row
        if piece.n == row.n_values and placing.scaling.log_counts(
            source, <float *>(base + <uintptr_t>piece.address), piece.n, placing.scaling.target_sum, &row.total
        ):
            return FINE
    status = move_piece(placing, source, piece, base)
    if status == FINE and placing.row != NULL:
        finish_piece(placing, piece, base)
    return status
