"""Which requests are made: ranges that are merged, of a bounded length, none twice, and decoded as they come."""

from __future__ import annotations

import threading

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from annbatch import Loader
from annbatch.storage.far import reading
from annbatch.storage.far.hdf5 import FarFile
from annbatch.storage.far.ranges import Located, merged
from benchmarks.far.server import Fault, RangeServer

from .test_same_batches import check, loader_at

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")

ITEMS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(0, 12)), max_size=20)


@given(ITEMS, st.integers(0, 9))
def test_ranges_are_merged_as_their_twin_does_it(items, gap):
    file, start, length = np.array(items, np.int64).reshape(-1, 3).T
    found = merged(Located(file, start, start + length), gap)
    for item, of in enumerate(found.of_item.tolist()):
        assert found.file[of] == file[item]
        assert found.start[of] <= start[item]
        assert start[item] + length[item] <= found.stop[of]
    expected: list[list[int]] = []
    for at, low, n_bytes in sorted(items):
        if expected and expected[-1][0] == at and low <= expected[-1][2] + gap:
            expected[-1][2] = max(expected[-1][2], low + n_bytes)
        else:
            expected.append([at, low, low + n_bytes])
    assert np.stack(found[:3], axis=1).tolist() == expected


def test_no_request_is_longer_than_its_bound(server, folder, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    far = loader_at(f"{server.url}/cells_0.h5ad")
    server.requests.clear()
    check(far, loader_at(folder / "cells_0.h5ad"))
    assert server.requests
    assert max(stop - start for _, _, (start, stop) in server.requests) <= 1000


def test_an_index_of_a_shard_is_asked_for_once_and_not_before_it_is_needed(server):
    far = loader_at(f"{server.url}/cells.zarr", prefetch=3)
    ends = [path for _, path, bounds in server.requests if bounds is not None and bounds[0] < 0 and "/X/" in path]
    assert [path for path in ends if "indptr" not in path] == []
    server.requests.clear()
    for _ in range(2):
        list(far)
    ends = [path for _, path, bounds in server.requests if bounds is not None and bounds[0] < 0]
    assert len(ends) == len(set(ends)) > 6


def test_hdf5_is_not_asked_again(server, folder, monkeypatch):
    far = loader_at(f"{server.url}/gzip.h5ad")
    monkeypatch.setattr(FarFile, "open", None)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    for _ in range(2):
        assert len(list(far)) == len(far)


def test_decoding_starts_while_others_are_on_their_way(tmp_path, monkeypatch):
    """What is needed first is decoded while the server has not answered about the rest."""
    for number in range(2):
        counts = sp.random(1000, 200, 0.5, format="csr", dtype=np.float32, random_state=number)
        ad.AnnData(counts).write_h5ad(tmp_path / f"{number}.h5ad")
    decoded = threading.Event()
    finish = reading._Wave.finish

    def watched(wave):
        finish(wave)
        decoded.set()

    monkeypatch.setattr(reading._Wave, "finish", watched)
    with RangeServer(tmp_path) as server:
        far = Loader(chunk_size=2000, preload_nchunks=1, batch_size=2000, shuffle=False, max_in_flight="2MB")
        far.add_paths([f"{server.url}/{number}.h5ad" for number in range(2)])
        server.faults.append(Fault("hang", "1.h5ad", times=10**6))
        batches = iter(far)
        waiting = threading.Thread(target=lambda: next(batches, None), daemon=True)
        waiting.start()
        is_decoded = decoded.wait(100)
        batches.close()
        waiting.join(100)
        assert not waiting.is_alive()
    assert is_decoded
