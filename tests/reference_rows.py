"""Plain NumPy twins of the row kernels and of whole load requests. Written to be obviously right, never to be fast."""

from __future__ import annotations

import numpy as np


def plan_ranges(indptr, rows, address, itemsize, chunk_size):
    """Return {(item, address)} that the pieces must name, one entry per value."""
    wanted = []
    for row, start in zip(rows, address, strict=True):
        for k, item in enumerate(range(indptr[row], indptr[row + 1])):
            wanted.append((item, start + k * itemsize))
    return sorted(wanted)


def named_by_plan(tasks, pieces, chunk_size, itemsize):
    """Return the same for a finished plan, after checking that the task table is consistent."""
    assert len(set(tasks[:, 0])) == len(tasks), "a chunk has two tasks"
    assert (np.diff(tasks[:, 0]) > 0).all(), "tasks are not in chunk order"
    named = []
    expected_first = 0
    for chunk, first, stop, low, high in tasks:
        assert first == expected_first, "a piece belongs to no task or to two"
        assert first < stop, "a task without pieces"
        expected_first = stop
        assert low == pieces[first:stop, 0].min()
        assert high == (pieces[first:stop, 0] + pieces[first:stop, 2]).max()
        assert 0 <= low < high <= chunk_size
        for source, address, n, _ in pieces[first:stop]:
            named += [(chunk * chunk_size + source + k, address + k * itemsize) for k in range(n)]
    assert expected_first == len(pieces)
    return sorted(named)


def dense_rows(matrices, columns, n_var):
    """Return all rows of several matrices, one below the other, with the columns renumbered."""
    out = []
    for matrix, new in zip(matrices, columns, strict=True):
        dense = matrix.toarray() if hasattr(matrix, "toarray") else matrix
        if new is None:
            out.append(dense)
            continue
        moved = np.zeros((len(dense), n_var), dense.dtype)
        for old, column in enumerate(new):
            if column >= 0:
                moved[:, column] = dense[:, old]
        out.append(moved)
    return out


def csr_row(matrix, row, new_columns):
    """Return (column numbers, values) of one row of a scipy CSR matrix after renumbering."""
    at = slice(matrix.indptr[row], matrix.indptr[row + 1])
    columns, values = matrix.indices[at].astype(np.int64), matrix.data[at]
    if new_columns is None:
        return columns, values
    columns = new_columns[columns]
    kept = columns >= 0
    columns, values = columns[kept], values[kept]
    used = new_columns[new_columns >= 0]
    if (np.diff(used) > 0).all():
        return columns, values
    order = np.argsort(columns, kind="stable")
    return columns[order], values[order]
