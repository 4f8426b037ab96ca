"""Memory that ranges are fetched to: kept as long as it is needed again soon, and within its bound."""

from __future__ import annotations

import time

from annbatch.storage.far import fetch
from annbatch.storage.far.fetch import Buffers

MB = 1 << 20


def test_what_is_given_back_is_used_again():
    buffers = Buffers(64 * MB)
    taken = [buffers.take(8 * MB) for _ in range(8)]
    addresses = {buffer.ctypes.data for buffer in taken}
    for buffer in taken:
        buffers.give_back(buffer)
    assert buffers.n_free == 64 * MB
    assert {buffers.take(8 * MB).ctypes.data for _ in range(8)} == addresses


def test_what_is_kept_and_what_is_in_use_are_together_within_the_bound():
    buffers = Buffers(20 * MB)
    taken = [buffers.take(8 * MB) for _ in range(3)]  # whoever takes minds the bound, not the buffers
    for buffer in taken:
        buffers.give_back(buffer)
    assert buffers.n_free == 16 * MB
    large = buffers.take(18 * MB)
    assert buffers.n_free == 0
    buffers.lose(large)
    buffers.give_back(buffers.take(8 * MB))
    assert buffers.n_free == 8 * MB


def test_memory_is_freed_when_nobody_needs_it(server, monkeypatch):
    monkeypatch.setattr(fetch, "BUFFERS_KEPT_S", 0.05)
    queue = fetch.fetcher(7, 10 * MB)
    queue.give_back(queue.buffers.take(MB))
    deadline = time.monotonic() + 30
    while queue.buffers.n_free and time.monotonic() < deadline:
        time.sleep(0.01)
    assert queue.buffers.n_free == 0
