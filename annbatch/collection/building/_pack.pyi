import numpy as np
from numpy.typing import NDArray

def place_rows(
    source: NDArray[np.uint8],
    source_start: NDArray[np.int64],
    count: NDArray[np.int64],
    out: NDArray[np.uint8],
    out_start: NDArray[np.int64],
    itemsize: int,
) -> None: ...
def whole_range(values: NDArray[np.float32] | NDArray[np.float64]) -> tuple[bool, int, int]: ...
