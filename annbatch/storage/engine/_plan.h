/* The rows of the tables that cross between Python and compiled code: who fills them, who reads them.
 *
 * All fields are 64 bits wide, so that a table is one C-contiguous NumPy array without padding. _plan.py has the same rows as
 * NumPy dtypes, _plan.pxd as Cython sees them; a test compares the layouts.
 */
#ifndef ANNBATCH_PLAN_H
#define ANNBATCH_PLAN_H

#include <stdint.h>

/* n neighbouring items, from item `source` of a chunk to `address`. `column` is that of the first item in its row where
 * columns of dense rows are renumbered, else -1. `row` is the row that the piece belongs to where rows are added up, else -1. */
typedef struct { int64_t source, address, n, column, row; } piece_t;

/* A row that is added up, and scaled, when all its values are placed: where they are, how many, how many are missing yet, and
 * the total. */
typedef struct { int64_t address, n_values, n_missing; double total; } row_t;

/* The pieces first_piece <= piece < stop_piece of one chunk; they lie in its items low <= item < high. */
typedef struct { int64_t chunk, first_piece, stop_piece, low, high; } task_t;

/* Rows of a CSR matrix that one worker makes dense: the rows first_row <= row < stop_row of the plan, the tasks that bring
 * their values and their column numbers, and how many of each these are. The addresses of its pieces count from the start of
 * the stretch's own memory. */
typedef struct {
    int64_t first_row, stop_row, first_value_task, stop_value_task, first_column_task, stop_column_task, n_values;
} stretch_t;

/* Which values of its stretch a row has. */
typedef struct { int64_t first_value, n_values; } extent_t;

/* Part of a dense row that is contiguous in a chunk: which chunk beside the first one of the row, the first item in the row
 * of that chunk, the first item in the whole row, and the items. */
typedef struct { int64_t cell, source, target, n; } span_t;

/* What tells a file from the one that was there when its table was read. */
typedef struct { int64_t size, time_ns, inode; } stamp_t;

/* The bytes of a task's chunk that are in memory already: where, and how many; -1 for a chunk that is not stored. Where
 * chunks are not encoded, only the bytes of the items low <= item < high. */
typedef struct { int64_t address, n_bytes; } fetched_t;

#endif
