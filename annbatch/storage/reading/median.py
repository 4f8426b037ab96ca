"""The median of the totals of rows: what ``normalize_total="median"`` takes for a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .totals import row_totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from annbatch.storage.sources import DenseSource, SparseSource

__all__ = ["totals_with_progress"]


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
