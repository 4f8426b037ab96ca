"""Two ways to do the same, in turns in one process: ratios of what they take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ratios"]


def ratios(readers: Sequence[Callable[[int], None]], n_rounds: int) -> np.ndarray:
    """Processor time of the first divided by that of the second, for every pair.

    Parameters
    ----------
    readers
        Two, each called with the number of the pair.
    n_rounds
        Pairs that are counted; two before them warm up.
    """

    def seconds(read: Callable[[int], None], number: int) -> float:
        start = time.process_time()
        read(number)
        return time.process_time() - start

    found = []
    for number in range(-2, n_rounds):
        order = (0, 1) if number % 2 else (1, 0)
        took = {side: seconds(readers[side], max(number, 0)) for side in order}
        if number >= 0:
            found.append(took[0] / max(took[1], 1e-9))
    return np.array(found)
