from typing import Any

import numpy as np
import numpy.typing as npt

_Int64 = npt.NDArray[np.int64]

def draw_integers(bit_generator: np.random.BitGenerator, n: int, out: _Int64) -> None: ...
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
def draw_class_chunks(
    bit_generator: np.random.BitGenerator,
    cumulative_weights: npt.NDArray[np.float64],
    drawable: _Int64,
    class_offset: _Int64,
    grouped_start: _Int64,
    cumulative_starts: _Int64,
    group_chunks: int,
    starts: _Int64,
) -> None: ...
def draw_chunks(
    bit_generator: np.random.BitGenerator, displaced: npt.NDArray[np.uint32 | np.uint64], n_drawn: int, out: _Int64
) -> None: ...
def shuffle_segments(bit_generator: np.random.BitGenerator, segment: int, out: _Int64) -> None: ...
def code_dtype_names() -> dict[str, int]: ...
