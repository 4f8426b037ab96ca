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
    assert len(set(tasks["chunk"].tolist())) == len(tasks), "a chunk has two tasks"
    assert (np.diff(tasks["chunk"]) > 0).all(), "tasks are not in chunk order"
    named = []
    expected_first = 0
    for chunk, first, stop, low, high in tasks.tolist():
        assert first == expected_first, "a piece belongs to no task or to two"
        assert first < stop, "a task without pieces"
        expected_first = stop
        own = pieces[first:stop]
        assert low == own["source"].min()
        assert high == (own["source"] + own["n"]).max()
        assert 0 <= low < high <= chunk_size
        for source, address, n, *_ in own.tolist():
            named += [(chunk * chunk_size + source + k, address + k * itemsize) for k in range(n)]
    assert expected_first == len(pieces)
    return sorted(named)


def check_stretches(indptr, rows, n_wanted, row_work, plan, value_cut, column_cut):
    """See that stretches cover all rows once, that none has too much work, and that their tasks bring just their values."""
    stretches, extents = plan.stretches, plan.extents
    covered = [row for stretch in stretches for row in range(stretch["first_row"], stretch["stop_row"])]
    assert covered == list(range(len(rows)))
    n_done = {"value": 0, "column": 0}
    arrays = (("value", plan.values, value_cut), ("column", plan.columns, column_cut))
    for stretch in stretches:
        own = slice(stretch["first_row"], stretch["stop_row"])
        own_rows, first_values = rows[own], extents["first_value"][own]
        lengths = indptr[own_rows + 1] - indptr[own_rows]
        np.testing.assert_array_equal(extents["n_values"][own], lengths)
        assert (lengths[:-1] + row_work).sum() < max(4 * n_wanted, 1)
        # Copies of a row share its values.
        place_of_row = dict(zip(own_rows.tolist(), first_values.tolist(), strict=True))
        distinct, places = np.array(list(place_of_row), np.int64), np.array(list(place_of_row.values()), np.int64)
        np.testing.assert_array_equal(first_values, [place_of_row[row] for row in own_rows.tolist()])
        assert stretch["n_values"] == sum(indptr[row + 1] - indptr[row] for row in distinct)
        for name, (tasks, pieces), cut in arrays:
            first_task, stop_task = stretch[f"first_{name}_task"], stretch[f"stop_{name}_task"]
            assert first_task == n_done[name]
            n_done[name] = stop_task
            own_tasks = tasks[first_task:stop_task].copy()
            first_piece = own_tasks[0]["first_piece"] if len(own_tasks) else 0
            stop_piece = own_tasks[-1]["stop_piece"] if len(own_tasks) else 0
            own_tasks["first_piece"] -= first_piece
            own_tasks["stop_piece"] -= first_piece
            expected = plan_ranges(indptr, distinct, cut.itemsize * places, cut.itemsize, cut.chunk_size)
            own_pieces = pieces[first_piece:stop_piece]
            assert named_by_plan(own_tasks, own_pieces, cut.chunk_size, cut.itemsize) == expected
            n_bytes = cut.itemsize * int(stretch["n_values"])
            assert sorted(address for _, address in expected) == list(range(0, n_bytes, cut.itemsize))
    assert n_done == {name: len(tasks) for name, (tasks, _), _ in arrays}


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


def scaled_rows(matrix, scale):
    """Return all rows as a dense float64 array after scaling, and the total of each; stored values are scaled one by one."""
    totals, out = [], np.zeros(matrix.shape)
    for row in range(matrix.shape[0]):
        if hasattr(matrix, "indptr"):
            at = slice(matrix.indptr[row], matrix.indptr[row + 1])
            columns, values = matrix.indices[at], matrix.data[at].astype(np.float64)
        else:
            columns, values = np.arange(matrix.shape[1]), matrix[row].astype(np.float64)
        totals.append(values.sum())
        if scale is not None:
            if scale.target_sum is not None and totals[-1] != 0:
                values = values / totals[-1] * scale.target_sum
            if scale.log1p:
                values = np.log1p(values)
        np.add.at(out[row], columns, values)
    return out, np.array(totals)
