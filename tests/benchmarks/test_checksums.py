"""The benchmark of checksums reads a collection that has them, and one that has none."""

from __future__ import annotations

from annbatch import DatasetCollection
from benchmarks import checksums
from benchmarks.paired import ratios


def test_what_is_compared(tmp_path):
    places = checksums.make_pair(tmp_path, n_cells=64)
    checked, bare = (DatasetCollection(place).verify(progress=False) for place in places)
    assert checked.is_sound
    assert checked.without_checksums == []
    assert len(bare.without_checksums) > 10
    for make in (checksums.by_engine, checksums.by_loader):
        assert len(ratios([make(place, 4, 4) for place in places], 2)) == 2
