"""What every test of a sampler needs: the rows that a pass asks for, and how to compare passes."""

from __future__ import annotations

import numpy as np


def rows_of(request, n_obs=None):
    """Row numbers of a load request, in the order that its splits refer to."""
    requests = request["requests"]
    if isinstance(requests, np.ndarray):
        return requests
    return np.concatenate([np.arange(part.start, part.stop) for part in requests])


def batches_of(requests):
    """Row numbers of every batch."""
    return [rows_of(request)[split] for request in requests for split in request["splits"]]


def plain(requests):
    """Requests as nested lists of ints, which compare and print well."""
    return [
        (
            request["requests"].tolist()
            if isinstance(request["requests"], np.ndarray)
            else [(part.start, part.stop) for part in request["requests"]],
            [split.tolist() for split in request["splits"]],
        )
        for request in requests
    ]


def check_pass(sampler, n_obs, *, n_rows, drop_last):
    """Check what holds for one pass of every sampler; return its batches."""
    requests = list(sampler.sample(n_obs))
    batches = batches_of(requests)
    start, stop = sampler.mask.start, n_obs if sampler.mask.stop is None else sampler.mask.stop
    assert len(batches) == sampler.n_batches(n_obs)
    window = sampler.chunk_size * sampler.preload_nchunks
    for request in requests:
        rows = rows_of(request)
        assert len(rows) <= window
        assert rows.min() >= start
        assert rows.max() < stop
        assert request["splits"], "a request without batches would be read for nothing"
        positions = np.concatenate(request["splits"])
        assert len(np.unique(positions)) == len(positions)
        assert positions.max() < len(rows)
    sizes = [len(batch) for batch in batches]
    assert all(size == sampler.batch_size for size in sizes[:-1])
    expected = n_rows - n_rows % sampler.batch_size if drop_last else n_rows
    assert sum(sizes) == expected
    assert all(size > 0 for size in sizes)
    return batches
