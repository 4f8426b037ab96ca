"""To which total rows are scaled: ``normalize_total``, a number or the median of the totals of all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .scale import Scale
from .totals import row_totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annbatch.storage.sources import DenseSource, SparseSource

__all__ = ["as_normalize_total", "check_scaled_dtype", "median_total", "totals_with_progress"]


def as_normalize_total(value: Any) -> float | Literal["median"] | None:
    """Return the argument ``normalize_total``, checked: a finite number > 0, "median" or None."""
    if value is None:
        return None
    if isinstance(value, str) and value == "median":
        return "median"
    rule = 'normalize_total must be a finite number > 0, "median" or None'
    if isinstance(value, str):
        msg = f"{rule}, got {value!r}"
        raise ValueError(msg)
    try:
        return Scale(target_sum=value).target_sum
    except (TypeError, ValueError) as error:
        msg = f"{rule}, got {value!r}"
        raise type(error)(msg) from None


def check_scaled_dtype(dtype: np.dtype[Any] | None) -> None:
    """Refuse a dtype that scaled values cannot have."""
    if dtype is not None and dtype.name not in ("float32", "float64"):
        msg = f"dtype must be float32 or float64 where values are normalised, got {dtype}"
        raise ValueError(msg)


def median_total(totals: Sequence[np.ndarray]) -> float:
    """Return the median of the totals of all rows, as ``scanpy.pp.normalize_total`` takes it of a CSR matrix.

    1 where it would be 0: where most rows are empty there is no such thing as a typical row.

    Raises
    ------
    ValueError
        When it is negative or not finite: rows cannot be scaled to that.
    """
    every = np.concatenate(totals) if len(totals) else np.empty(0)
    median = (float(np.median(every)) if len(every) else 0.0) or 1.0
    if not 0 < median < np.inf:
        msg = f'normalize_total="median" needs totals with a finite median > 0, got {median}: are these counts?'
        raise ValueError(msg)
    return median


def totals_with_progress(
    sources: Sequence[SparseSource | DenseSource], *, num_threads: int | None = None
) -> list[np.ndarray]:
    """Return the total of each row of each source (float32), showing a progress bar where it takes more than a second."""
    from tqdm import tqdm

    n_rows = sum(source.n_obs for source in sources)

    def done(n_done: int) -> None:
        bar.update(n_done)

    with tqdm(total=n_rows, desc="Adding up counts", unit="row", unit_scale=True, delay=1, leave=False) as bar:
        totals = row_totals(sources, num_threads=num_threads, progress=done)
    for source in sources:
        source.close()  # no open file is carried into a fork
    return totals
