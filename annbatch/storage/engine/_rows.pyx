"""Row kernels: plan which stored values go where, then move, renumber and compact them.

Input is checked by the Python face (annbatch/storage). Destinations are plain addresses, because one request fills the
arrays of many batches; the face keeps those arrays alive. What a plan consists of is said in _plan.h.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._plan cimport (
    FINE, SCALE, extent_t, piece_t, place_piece, placing_t, row_t, scaling_t, set_placing, set_scaling, span_t,
    stamp_t, stretch_t, task_t,
)

from ._plan import EXTENT, PIECE, STRETCH, TASK, Plan, StretchPlan

ctypedef fused index_t:
    int32_t
    int64_t


def _py_layouts():
    """Return the dtype of each struct as the C compiler lays it out. For tests."""
    cdef piece_t piece
    cdef task_t task
    cdef stretch_t stretch
    cdef extent_t extent
    cdef span_t span
    cdef stamp_t stamp
    cdef row_t row
    return {
        "PIECE": np.asarray(<piece_t[:1]>&piece).dtype, "TASK": np.asarray(<task_t[:1]>&task).dtype,
        "STRETCH": np.asarray(<stretch_t[:1]>&stretch).dtype, "EXTENT": np.asarray(<extent_t[:1]>&extent).dtype,
        "SPAN": np.asarray(<span_t[:1]>&span).dtype, "STAMP": np.asarray(<stamp_t[:1]>&stamp).dtype,
        "ROW": np.asarray(<row_t[:1]>&row).dtype,
    }


# --- planning -------------------------------------------------------------------------------------------------------

cdef class _Plan:
    """Growing task and piece tables. Counting first would walk everything twice; growing doubles instead."""

    cdef object tasks, pieces
    cdef task_t[::1] task_view
    cdef piece_t[::1] piece_view
    cdef task_t *task
    cdef piece_t *piece
    cdef Py_ssize_t n_tasks, n_pieces
    cdef bint closed  # the next piece begins a task, whatever its chunk

    def __init__(self, Py_ssize_t expected):
        self.hold(np.empty(expected + 16, TASK), np.empty(expected + 16, PIECE))

    cdef int hold(self, tasks, pieces) except -1:
        self.tasks, self.pieces = tasks, pieces
        self.task_view, self.piece_view = tasks, pieces
        self.task, self.piece = &self.task_view[0], &self.piece_view[0]
        return 0

    cdef inline int room(self, Py_ssize_t more) except -1 nogil:
        """Make room for this many more tasks and pieces. Only growing takes the GIL: taking it per row is slow."""
        if self.n_tasks + more > self.task_view.shape[0] or self.n_pieces + more > self.piece_view.shape[0]:
            with gil:
                self.hold(_grown(self.tasks, self.n_tasks + more), _grown(self.pieces, self.n_pieces + more))
        return 0

    cdef inline void add(self, int64_t chunk, int64_t source, int64_t address, int64_t n, int64_t column,
                         int64_t row, int itemsize) noexcept nogil:
        cdef task_t *task = self.task + self.n_tasks - 1
        cdef piece_t *piece = self.piece + self.n_pieces - 1
        if not self.n_tasks or self.closed or task.chunk != chunk:
            self.closed = False
            self.n_tasks += 1
            task += 1
            task.chunk, task.first_piece, task.low, task.high = chunk, self.n_pieces, source, source + n
        elif (
            column < 0 and piece.source + piece.n == source and piece.address + piece.n * itemsize == address
            and piece.row == row
        ):
            piece.n += n
            task.high = max(task.high, source + n)
            return
        self.n_pieces += 1
        piece += 1
        piece.source, piece.address, piece.n, piece.column, piece.row = source, address, n, column, row
        task.stop_piece = self.n_pieces
        task.low = min(task.low, source)
        task.high = max(task.high, source + n)

    def result(self):
        return Plan(self.tasks[: self.n_tasks], self.pieces[: self.n_pieces])


def _grown(table, needed):
    if needed <= len(table):
        return table
    bigger = np.empty(max(needed, 2 * len(table)), table.dtype)
    bigger[: len(table)] = table
    return bigger


cdef enum:
    DIGIT_BITS = 11
    N_DIGITS = 1 << DIGIT_BITS


def ascending(const int64_t[::1] rows not None, int64_t n_obs):
    """Return the order (int64) that sorts rows 0 <= row < n_obs; equal rows stay in order.

    The same as ``np.argsort(rows, kind="stable")``, as a radix sort: a request has thousands of rows of few digits.
    """
    cdef Py_ssize_t n = rows.shape[0], i, digit
    cdef int64_t count[N_DIGITS]
    cdef int64_t place, next_place
    cdef int shift = 0
    order, other = np.arange(n), np.empty(n, np.int64)
    cdef int64_t[::1] source = order, target = other
    while (n_obs - 1) >> shift > 0:
        with nogil:
            memset(count, 0, sizeof(count))
            for i in range(n):
                count[rows[i] >> shift & (N_DIGITS - 1)] += 1
            place = 0
            for digit in range(N_DIGITS):
                next_place = place + count[digit]
                count[digit] = place
                place = next_place
            for i in range(n):
                digit = rows[source[i]] >> shift & (N_DIGITS - 1)
                target[count[digit]] = source[i]
                count[digit] += 1
        order, other = other, order
        source, target = order, other
        shift += DIGIT_BITS
    return order


def plan_ranges(const int64_t[::1] rows not None, const int64_t[::1] first_value not None,
                const int64_t[::1] n_values not None, const int64_t[::1] address not None, int itemsize,
                int64_t chunk_size, *, bint by_row=False):
    """Cut the values of CSR rows at chunk borders.

    Parameters
    ----------
    rows
        Rows in ascending order; the same row may occur several times.
    first_value, n_values
        Where the values of each of ``rows`` begin, and how many they are.
    address
        Where the values of each of ``rows`` go.
    itemsize
        Bytes of a value at its destination.
    chunk_size
        Values per chunk.
    by_row
        True: each piece belongs to one row, the one at ``piece.row`` of ``rows``, so that rows can be added up.

    Returns
    -------
    Plan
        Ranges that are neighbours at both ends are one piece.
    """
    cdef Py_ssize_t n_rows = rows.shape[0], i = 0, j
    cdef _Plan plan = _Plan(n_rows)
    with nogil:
        while i < n_rows:
            j = i + 1
            while j < n_rows and rows[j] == rows[i]:
                j += 1
            _add_values(plan, first_value[i], first_value[i] + n_values[i], &address[i], j - i, i if by_row else -1,
                        itemsize, chunk_size)
            i = j
    return plan.result()


cdef int _add_values(_Plan plan, int64_t low, int64_t high, const int64_t *address, Py_ssize_t n_copies, int64_t row,
                     int itemsize, int64_t chunk_size) except -1 nogil:
    """Plan the values low <= value < high of one row, which go to each of ``n_copies`` addresses.

    The copies are the rows ``row``, ``row + 1``, ... of the plan; -1: that does not matter.
    """
    cdef int64_t chunk, start = low, stop
    cdef Py_ssize_t r
    if low >= high:
        return 0
    chunk = low // chunk_size
    while start < high:
        stop = min(high, (chunk + 1) * chunk_size)
        plan.room(n_copies)
        # Copies of one row stand together, so that no chunk is left and entered again.
        for r in range(n_copies):
            plan.add(chunk, start - chunk * chunk_size, address[r] + (start - low) * itemsize, stop - start, -1,
                     row + r if row >= 0 else -1, itemsize)
        start = stop
        chunk += 1
    return 0


def plan_stretches(const int64_t[::1] rows not None, const int64_t[::1] first_value not None,
                   const int64_t[::1] n_values not None, int64_t n_wanted, int64_t row_work, value_cut not None,
                   column_cut not None):
    """Cut CSR rows into stretches of about the same work, and plan the reading of each.

    A chunk that two stretches touch is decoded for both. So a stretch ends, if it can, where the next row starts in
    other chunks.

    Parameters
    ----------
    rows, first_value, n_values
        As in :func:`plan_ranges`. A row that is wanted several times in a stretch is read once for it.
    n_wanted
        A stretch may end once its work is so many values, and ends at the latest when it is four times as many.
    row_work
        Work that a row is besides its values, in values.
    value_cut, column_cut
        :class:`ArrayCut` of the array of the values, and of that of the column numbers.

    Returns
    -------
    StretchPlan
    """
    cdef Py_ssize_t n_rows = rows.shape[0], r
    cdef int64_t n_stretches = 0, low, high = 0, work = 0, n_in_stretch = 0, address
    cdef int64_t value_chunk = value_cut.chunk_size, column_chunk = column_cut.chunk_size
    cdef int value_size = value_cut.itemsize, column_size = column_cut.itemsize
    cdef bint values_anywhere = value_cut.anywhere, columns_anywhere = column_cut.anywhere
    cdef bint copied, free_cut
    cdef _Plan values = _Plan(n_rows), columns = _Plan(n_rows)
    stretches, extents = np.empty(n_rows, STRETCH), np.empty(n_rows, EXTENT)
    cdef stretch_t[::1] stretch_view = stretches
    cdef extent_t[::1] extent = extents
    cdef stretch_t *stretch = NULL
    with nogil:
        for r in range(n_rows):
            low = first_value[r]
            free_cut = (values_anywhere or low // value_chunk > (high - 1) // value_chunk) and (
                columns_anywhere or low // column_chunk > (high - 1) // column_chunk
            )
            copied = r > 0 and rows[r] == rows[r - 1]
            if r == 0 or work >= 4 * n_wanted or (work >= n_wanted and free_cut):
                stretch = &stretch_view[n_stretches]
                n_stretches += 1
                stretch.first_row, stretch.first_value_task = r, values.n_tasks
                stretch.first_column_task = columns.n_tasks
                values.closed = columns.closed = True
                work = n_in_stretch = 0
                copied = False
            high = low + n_values[r]
            extent[r].first_value = n_in_stretch - n_values[r] if copied else n_in_stretch
            extent[r].n_values = n_values[r]
            if not copied:
                address = n_in_stretch * value_size
                _add_values(values, low, high, &address, 1, -1, value_size, value_chunk)
                address = n_in_stretch * column_size
                _add_values(columns, low, high, &address, 1, -1, column_size, column_chunk)
                n_in_stretch += n_values[r]
            work += n_values[r] + row_work
            stretch.stop_row, stretch.stop_value_task, stretch.stop_column_task = r + 1, values.n_tasks, columns.n_tasks
            stretch.n_values = n_in_stretch
    return StretchPlan(stretches[:n_stretches], extents, values.result(), columns.result())


def plan_rows(const int64_t[::1] rows not None, const int64_t[::1] address not None, int itemsize, int64_t chunk_rows,
              int64_t row_stride, const span_t[::1] spans not None, *, bint mapped, bint by_row=False):
    """Cut dense rows at chunk borders.

    Parameters
    ----------
    rows, address, itemsize
        As in :func:`plan_ranges`.
    chunk_rows
        Rows per chunk.
    row_stride
        Items from one row to the next inside a chunk.
    spans
        Table of SPAN, in order of ``cell``.
    mapped
        True: the address of each piece is that of its row, for columns that are renumbered later.
    by_row
        As in :func:`plan_ranges`.

    Returns
    -------
    Plan
    """
    cdef Py_ssize_t n_rows = rows.shape[0], n_spans = spans.shape[0], i = 0, j, k, m, r
    cdef int64_t block, chunk, n_cells = spans[n_spans - 1].cell + 1 if n_spans else 0
    cdef _Plan plan = _Plan(n_rows * n_spans)
    with nogil:
        while i < n_rows:
            block = rows[i] // chunk_rows
            j = i + 1
            while j < n_rows and rows[j] // chunk_rows == block:
                j += 1
            plan.room((j - i) * n_spans)
            k = 0
            while k < n_spans:
                m = k
                chunk = block * n_cells + spans[k].cell
                while m < n_spans and spans[m].cell == spans[k].cell:
                    m += 1
                for r in range(i, j):
                    _add_row(plan, chunk, (rows[r] - block * chunk_rows) * row_stride, address[r], itemsize,
                             &spans[k], m - k, r if by_row else -1, mapped)
                k = m
            i = j
    return plan.result()


cdef void _add_row(_Plan plan, int64_t chunk, int64_t source, int64_t address, int itemsize, const span_t *span,
                   Py_ssize_t n_spans, int64_t row, bint mapped) noexcept nogil:
    cdef Py_ssize_t s
    for s in range(n_spans):
        if mapped:
            plan.add(chunk, source + span[s].source, address, span[s].n, span[s].target, row, itemsize)
        else:
            plan.add(chunk, source + span[s].source, address + span[s].target * itemsize, span[s].n, -1, row,
                     itemsize)


# --- placing pieces of a chunk --------------------------------------------------------------------------------------

def place(const uint8_t[::1] items not None, int64_t offset, const piece_t[::1] pieces not None, placing not None):
    """Move pieces to their addresses, as the engine does with those of a chunk that it decoded.

    Parameters
    ----------
    items
        Bytes of the items ``offset``, ``offset + 1``, ... of the chunk.
    placing
        A ``Placing``. Several threads may place pieces of its rows.

    Returns
    -------
    int
        -1, or the number of the first piece that has a column number out of range, or of which a value would change.
    """
    cdef Py_ssize_t p
    cdef const char *base
    cdef placing_t how
    if not pieces.shape[0]:
        return -1
    set_placing(&how, placing)
    base = <const char *>&items[0] - offset * how.source_size
    with nogil:
        for p in range(pieces.shape[0]):
            if place_piece(&how, base + pieces[p].source * how.source_size, &pieces[p], 0) != FINE:
                with gil:
                    return p
    return -1


# --- whole rows -----------------------------------------------------------------------------------------------------

def count_kept(index_t[::1] columns not None, const int64_t[::1] start not None, int64_t[::1] kept not None,
               Py_ssize_t low, Py_ssize_t high):
    """Fill ``kept[row]`` with how many of a row's columns are not negative, for low <= row < high."""
    cdef Py_ssize_t r, i
    cdef int64_t n
    with nogil:
        for r in range(low, high):
            n = 0
            for i in range(start[r], start[r + 1]):
                n += columns[i] >= 0
            kept[r] = n


cdef void _compact_row(const index_t *columns, const char *values, int64_t n, int itemsize, index_t *new_columns,
                       char *new_values) noexcept nogil:
    cdef int64_t i, k = 0
    for i in range(n):
        if columns[i] >= 0:
            new_columns[k] = columns[i]
            memcpy(new_values + k * itemsize, values + i * itemsize, itemsize)
            k += 1


cdef bint _sort_row(const index_t *columns, const char *values, int64_t n, int itemsize, index_t *new_columns,
                    char *new_values, uint8_t *seen, int64_t *position, int64_t n_columns) noexcept nogil:
    """Write the kept values in column order; False (and nothing usable written) when a column occurs twice."""
    cdef int64_t i, c, k = 0, word
    cdef bint unique = True
    for i in range(n):
        if columns[i] >= 0:
            if seen[columns[i]]:
                unique = False
            seen[columns[i]] = 1
            position[columns[i]] = i
    for word in range((n_columns + 7) // 8):
        # Eight columns at a time: most of them are empty.
        if (<int64_t *>seen)[word]:
            for c in range(8 * word, 8 * word + 8):
                if seen[c]:
                    new_columns[k] = <index_t>c
                    memcpy(new_values + k * itemsize, values + position[c] * itemsize, itemsize)
                    k += 1
            (<int64_t *>seen)[word] = 0
    return unique


cdef void _insert_row(const index_t *columns, const char *values, int64_t n, int itemsize, index_t *new_columns,
                      char *new_values) noexcept nogil:
    """Sort with repeated columns: stable insertion. Slow for long rows, but only seen in data that is not canonical."""
    cdef int64_t i, j, k = 0
    for i in range(n):
        if columns[i] < 0:
            continue
        j = k
        while j > 0 and new_columns[j - 1] > columns[i]:
            new_columns[j] = new_columns[j - 1]
            memcpy(new_values + j * itemsize, new_values + (j - 1) * itemsize, itemsize)
            j -= 1
        new_columns[j] = columns[i]
        memcpy(new_values + j * itemsize, values + i * itemsize, itemsize)
        k += 1


def compact(index_t[::1] columns not None, uintptr_t values, int itemsize, const int64_t[::1] start not None,
            const int64_t[::1] kept not None, const int64_t[::1] column_address not None,
            const int64_t[::1] value_address not None, *, bint sort, int64_t n_columns, Py_ssize_t low, Py_ssize_t high,
            const double[::1] totals=None, scaling=None, int value_type=-1):
    """Copy the values with a column that is not negative to their row's addresses, for the rows low <= row < high.

    ``kept`` is what :func:`count_kept` counted. With ``sort`` each row is put in column order; otherwise the order
    stays. What was copied is scaled where ``totals`` of the whole rows, a ``RowScaling`` and the dtype code of the
    values are given.
    """
    cdef scaling_t how
    cdef Py_ssize_t r
    cdef int64_t n
    cdef const index_t *row_columns
    cdef const char *row_values
    cdef uint8_t *seen = NULL
    cdef int64_t *position = NULL
    if not columns.shape[0]:
        return
    if totals is not None:
        set_scaling(&how, scaling, value_type)
    if sort:
        seen = <uint8_t *>calloc(<size_t>(n_columns + 8), 1)
        position = <int64_t *>calloc(<size_t>(n_columns + 1), sizeof(int64_t))
        if seen == NULL or position == NULL:
            free(seen)
            free(position)
            raise MemoryError
    with nogil:
        for r in range(low, high):
            row_columns = &columns[0] + start[r]
            row_values = <const char *>values + start[r] * itemsize
            n = start[r + 1] - start[r]
            if not sort:
                _compact_row(row_columns, row_values, n, itemsize, <index_t *><uintptr_t>column_address[r],
                             <char *><uintptr_t>value_address[r])
            elif not _sort_row(row_columns, row_values, n, itemsize, <index_t *><uintptr_t>column_address[r],
                               <char *><uintptr_t>value_address[r], seen, position, n_columns):
                _insert_row(row_columns, row_values, n, itemsize, <index_t *><uintptr_t>column_address[r],
                            <char *><uintptr_t>value_address[r])
            if totals is not None:
                SCALE[how.value_type](<char *><uintptr_t>value_address[r], kept[r], totals[r], how.target_sum,
                                      how.log1p)
    free(seen)
    free(position)
