from typing import Any

import numpy as np
import numpy.typing as npt

_Int64 = npt.NDArray[np.int64]
_UInt64 = npt.NDArray[np.uint64]

def random_words(key: _UInt64, number: int, kind: int, out: _UInt64) -> None: ...
def draw_integers(key: _UInt64, number: int, kind: int, n: int, out: _Int64) -> None: ...
def find_runs(
    codes: npt.NDArray[Any], start: int, stop: int, run_start: _Int64, run_code: _Int64
) -> tuple[int, int]: ...
def group_runs(
    run_start: _Int64,
    run_code: _Int64,
    stop: int,
    chunk_size: int,
    class_offset: _Int64,
    grouped_start: _Int64,
    cumulative_starts: _Int64,
    class_rows: _Int64,
    class_short_runs: _Int64,
) -> None: ...
def count_runs(codes: npt.NDArray[Any], start: int, stop: int) -> int: ...
def count_codes(codes: npt.NDArray[Any], start: int, stop: int, counts: _Int64) -> int: ...
def index_rows(
    codes: npt.NDArray[Any],
    start: int,
    stop: int,
    class_offset: _Int64,
    free: _Int64,
    rows: npt.NDArray[np.uint32 | np.uint64],
) -> None: ...
def draw_groups(
    key: _UInt64,
    number: int,
    kind: int,
    cumulative_weights: npt.NDArray[np.float64],
    drawable: _Int64,
    out: _Int64,
) -> None: ...
def draw_run_chunks(
    key: _UInt64,
    number: int,
    kind: int,
    groups: _Int64,
    group_chunks: int,
    class_offset: _Int64,
    grouped_start: _Int64,
    cumulative_starts: _Int64,
    starts: _Int64,
) -> None: ...
def draw_index_rows(
    key: _UInt64,
    number: int,
    kind: int,
    groups: _Int64,
    group_chunks: int,
    first: _Int64,
    n_rows: _Int64,
    rows: npt.NDArray[np.uint32 | np.uint64],
    starts: _Int64,
) -> None: ...
def permute(keys: _UInt64, n: int, n_left: int, n_right: int, first: int, out: _Int64) -> None: ...
def shuffle_segments(
    key: _UInt64, number: int, kind: int, segment: int, out: npt.NDArray[np.int32 | np.int64]
) -> None: ...
def chunk_slices(starts: _Int64, chunk_size: int, skip: int, n_rows: int) -> list[slice]: ...
def code_dtype_names() -> dict[str, int]: ...
