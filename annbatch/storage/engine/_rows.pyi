import numpy as np

from ._plan import ArrayCut, Placing, Plan, RowScaling, StretchPlan

def ascending(rows: np.ndarray, n_obs: int) -> np.ndarray: ...
def plan_ranges(
    rows: np.ndarray,
    first_value: np.ndarray,
    n_values: np.ndarray,
    address: np.ndarray,
    itemsize: int,
    chunk_size: int,
    *,
    by_row: bool = False,
) -> Plan: ...
def plan_stretches(
    rows: np.ndarray,
    first_value: np.ndarray,
    n_values: np.ndarray,
    n_wanted: int,
    row_work: int,
    value_cut: ArrayCut,
    column_cut: ArrayCut,
) -> StretchPlan: ...
def plan_rows(
    rows: np.ndarray,
    address: np.ndarray,
    itemsize: int,
    chunk_rows: int,
    row_stride: int,
    spans: np.ndarray,
    *,
    mapped: bool,
    by_row: bool = False,
) -> Plan: ...
def place(items: np.ndarray, offset: int, pieces: np.ndarray, placing: Placing) -> int: ...
def count_kept(columns: np.ndarray, start: np.ndarray, kept: np.ndarray, low: int, high: int) -> None: ...
def compact(
    columns: np.ndarray,
    values: int,
    itemsize: int,
    start: np.ndarray,
    kept: np.ndarray,
    column_address: np.ndarray,
    value_address: np.ndarray,
    *,
    sort: bool,
    n_columns: int,
    low: int,
    high: int,
    totals: np.ndarray | None = None,
    scaling: RowScaling | None = None,
    value_type: int = -1,
) -> None: ...
