"""How well batches are mixed, beside batches of the same size that were drawn at random; needs row numbers and codes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from annbatch._shared.requests import requested_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

__all__ = ["ShuffleQuality", "ideal_entropy", "ideal_gap", "rows_of_batches", "shuffle_quality"]


class ShuffleQuality(NamedTuple):
    """How well batches are mixed: 1.0 is as well as random draws.

    Attributes
    ----------
    entropy
        Mean entropy of the classes of the rows of a batch, as a share of what random draws have. None where no draw has any
        (one class, or batches of one row), and where no codes were given.
    gap
        Median distance, in rows, between a row of a batch and the next one in the order of the data, averaged over batches, as
        a share of what random draws have. None for batches of one row.
    """

    entropy: float | None
    gap: float | None


def shuffle_quality(batches: Iterable[npt.ArrayLike], codes: npt.ArrayLike | None, n_rows: int) -> ShuffleQuality:
    """Compare batches with random draws without replacement.

    Parameters
    ----------
    batches
        The row numbers of each batch, integers from 0 to ``n_rows - 1`` in any order.
    codes
        The class of every row, `n_rows` integers from -1 on; -1 (a missing label) is a class, too. None: rows have no class.
    n_rows
        Number of rows that the batches are drawn from.

    Returns
    -------
    ShuffleQuality

    Examples
    --------
    Two classes, one after the other; batches of neighbours have one class each:

    >>> import numpy as np
    >>> codes = np.repeat([0, 1], 50)
    >>> found = shuffle_quality(np.arange(100).reshape(10, 10), codes, 100)
    >>> round(found.entropy, 2), round(found.gap, 2)
    (0.0, 0.14)
    """
    classes = None if codes is None else np.asarray(codes)
    totals = None if classes is None else counts_of(classes)
    ideals: dict[int, tuple[float, float]] = {}  # of a size of batch, of which there are two at most
    sums = np.zeros(4)
    for batch in batches:
        rows = np.sort(np.asarray(batch).ravel())
        n = len(rows)
        if n == 0:
            continue
        if n not in ideals:
            ideals[n] = (0.0 if totals is None else ideal_entropy(totals, n), ideal_gap(n_rows, n))
        found = 0.0 if classes is None else entropy(counts_of(classes[rows]))
        gap = float(np.median(np.diff(rows))) if n > 1 else 0.0
        sums += (found, ideals[n][0], gap, ideals[n][1])
    return ShuffleQuality(
        float(sums[0] / sums[1]) if sums[1] > 0 else None,
        float(sums[2] / sums[3]) if sums[3] > 0 else None,
    )


def counts_of(codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """Count every class, -1 first."""
    return np.bincount(codes.astype(np.intp) + 1)


def entropy(counts: npt.NDArray[np.integer[Any]]) -> float:
    """Entropy of shares, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def ideal_entropy(totals: npt.NDArray[np.integer[Any]], n: int) -> float:
    """Return the expected entropy, in nats, of ``n`` rows drawn without replacement from classes of these sizes.

    It is below that of the shares themselves: a small batch cannot hold every class.
    """
    from scipy.special import gammaln

    n_rows = int(totals.sum())
    n = min(n, n_rows)
    expected = np.log(n)

    def log_choose(whole: Any, part: Any) -> Any:
        return gammaln(whole + 1) - gammaln(part + 1) - gammaln(whole - part + 1)

    for total in totals[totals > 0]:
        # E[k log k] / n, where k, the number of rows of the class in a batch, is hypergeometric.
        # What is further from its mean than 12 standard deviations does not show in the sum.
        mean = n * total / n_rows
        spread = 12 * np.sqrt(mean) + 25
        low, high = max(1, n - (n_rows - int(total)), int(mean - spread)), min(n, int(total), int(mean + spread))
        k = np.arange(low, high + 1)
        chances = np.exp(log_choose(total, k) + log_choose(n_rows - total, n - k) - log_choose(n_rows, n))
        expected -= float((chances * k * np.log(k)).sum()) / n
    return max(float(expected), 0.0)


def ideal_gap(n_rows: int, n: int) -> float:
    """Return the median distance between neighbours among ``n`` of ``n_rows`` rows that were drawn without replacement."""
    if n < 2:
        return 0.0
    if n >= n_rows:
        return 1.0
    from scipy.special import gammaln

    # The chance that the next row is more than d rows away is C(n_rows - d, n) / C(n_rows, n), a falling product.
    low, high = 1, n_rows - n + 1

    def chance_of_more(d: int) -> float:
        if n_rows - d < n:
            return 0.0
        log = gammaln(n_rows - d + 1) - gammaln(n_rows - d - n + 1) - gammaln(n_rows + 1) + gammaln(n_rows - n + 1)
        return float(np.exp(log))

    while low < high:
        middle = (low + high) // 2
        if chance_of_more(middle) <= 0.5:
            high = middle
        else:
            low = middle + 1
    return float(low)


def rows_of_batches(requests: Iterable[Any], n_rows: int) -> Iterable[npt.NDArray[np.int64]]:
    """Yield the row numbers of each batch of a sampler's pass over ``n_rows`` rows, without reading anything."""
    for request in requests:
        rows = requested_rows(request["requests"], n_rows)
        yield from (rows[split] for split in request["splits"])
