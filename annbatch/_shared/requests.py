"""Row numbers of a load request, with every way in which a sampler can get it wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_bounds", "requested_rows"]


def requested_rows(requests: Any, n_obs: int) -> np.ndarray:
    """Global row numbers (int64) of a load request, in its order.

    Raises
    ------
    TypeError
        When the requests are neither slices nor an integer array.
    ValueError
        When a slice is open, has a step, or ends before it starts.
    IndexError
        When a row is not in [0, n_obs).
    """
    if isinstance(requests, np.ndarray) and requests.dtype != object:
        if requests.ndim != 1 or requests.dtype.kind not in "iu":
            msg = f"requests must be a 1-d integer array, got {requests.ndim}-d {requests.dtype}"
            raise TypeError(msg)
        rows = requests.astype(np.int64, copy=False)
        if len(rows):
            check_bounds("requests", int(rows.min()), int(rows.max()), n_obs)
        return rows
    if not isinstance(requests, (list, tuple, np.ndarray)):
        msg = f"requests must be a list of slices or an integer array, got {type(requests).__name__}"
        raise TypeError(msg)
    for request in requests:
        if not isinstance(request, slice):
            msg = f"requests must be slices or an integer array, got a {type(request).__name__}"
            raise TypeError(msg)
        if (
            request.step not in (None, 1)
            or request.start is None
            or request.stop is None
            or request.start > request.stop
        ):
            msg = f"requests must be slices with a start, a stop >= start and no step, got {request}"
            raise ValueError(msg)
    starts = np.fromiter((request.start for request in requests), dtype=np.int64, count=len(requests))
    stops = np.fromiter((request.stop for request in requests), dtype=np.int64, count=len(requests))
    if len(starts):
        check_bounds("requests", int(starts.min()), int(stops.max()) - 1, n_obs)
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def check_bounds(what: str, lowest: int, highest: int, length: int) -> None:
    """Raise IndexError when numbers from `lowest` to `highest` are not all in [0, length)."""
    if lowest < 0 or highest >= length:
        msg = f"{what} must be in [0, {length}), got numbers from {lowest} to {highest}; look at the sampler"
        raise IndexError(msg)
