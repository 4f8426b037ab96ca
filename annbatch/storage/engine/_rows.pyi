import numpy as np

def ascending(rows: np.ndarray, n_obs: int) -> np.ndarray: ...
def row_lengths(indptr: np.ndarray, rows: np.ndarray, dest: np.ndarray, length: np.ndarray) -> None: ...
def plan_ranges(
    indptr: np.ndarray, rows: np.ndarray, address: np.ndarray, itemsize: int, chunk_size: int
) -> tuple[np.ndarray, np.ndarray]: ...
def plan_stretches(
    indptr: np.ndarray,
    rows: np.ndarray,
    n_wanted: int,
    row_work: int,
    value_size: int,
    value_chunk: int,
    values_cut: bool,
    column_size: int,
    column_chunk: int,
    columns_cut: bool,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]: ...
def plan_rows(
    rows: np.ndarray,
    address: np.ndarray,
    itemsize: int,
    chunk_rows: int,
    row_stride: int,
    spans: np.ndarray,
    *,
    mapped: bool,
) -> tuple[np.ndarray, np.ndarray]: ...
def place_values(
    items: np.ndarray, offset: int, pieces: np.ndarray, source_type: int, target_type: int, itemsize: int
) -> int: ...
def place_indices(
    items: np.ndarray,
    offset: int,
    pieces: np.ndarray,
    source_type: int,
    wide: bool,
    n_columns: int,
    new_column: np.ndarray | None,
    itemsize: int,
) -> int: ...
def place_columns(
    items: np.ndarray, offset: int, pieces: np.ndarray, itemsize: int, new_column: np.ndarray
) -> None: ...
def count_kept(columns: np.ndarray, start: np.ndarray, kept: np.ndarray, low: int, high: int) -> None: ...
def compact(
    columns: np.ndarray,
    values: int,
    itemsize: int,
    start: np.ndarray,
    column_address: np.ndarray,
    value_address: np.ndarray,
    *,
    sort: bool,
    n_columns: int,
    low: int,
    high: int,
) -> None: ...
