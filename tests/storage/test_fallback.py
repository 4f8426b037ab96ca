"""How the fallback asks a store that answers slowly: for many things at a time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore, WrapperStore

from annbatch import Loader, storage
from annbatch.storage.row_pointers import RowPointers
from tests.cells import csr_attrs, csr_parts, random_csr

MATRIX = random_csr(800, 60, seed=0)
# The other byte order, so that only zarr-python can read it.
BIG = zarr.codecs.BytesCodec(endian="big")
LAYOUTS = {
    "plain": {"chunks": (100,), "serializer": BIG},
    "shards": {"chunks": (100,), "shards": (4000,), "serializer": BIG},
}


class Patient(WrapperStore):
    """Answers nothing before `n_wanted` requests were in flight at once; gives up after a minute."""

    n_wanted = 0
    most = 0

    def __init__(self, store):
        super().__init__(store)
        self.in_flight = []
        self.arrays_together = set()

    async def get(self, key, prototype, byte_range=None):
        self.in_flight.append(key)
        self.most = max(self.most, len(self.in_flight))
        self.arrays_together.add(frozenset(name.split("/")[1] for name in self.in_flight if "/c/" in name))
        try:
            for _ in range(6000):
                if self.most >= self.n_wanted:
                    break
                await asyncio.sleep(0.01)
            return await self._store.get(key, prototype, byte_range)
        finally:
            self.in_flight.remove(key)


def slow_group(layout):
    store = Patient(MemoryStore())
    group = zarr.open_group(store, mode="w").create_group("X")
    group.attrs.update(csr_attrs(MATRIX))
    for name, array in csr_parts(MATRIX).items():
        group.create_array(name, data=array, **LAYOUTS[layout])
    return store, group


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_calls_are_in_flight(layout):
    store, group = slow_group(layout)
    loader = Loader(chunk_size=10, preload_nchunks=20, batch_size=50, shuffle=True, return_index=True, num_threads=1)
    loader.add_dataset(group)
    store.n_wanted, store.most = 16, 0
    for batch in loader:
        np.testing.assert_array_equal(batch["X"].toarray(), MATRIX[batch["index"]].toarray())
    assert store.most >= 16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_reads_of_values_and_column_numbers_overlap(layout):
    # One stretch of each array: read one after the other, there would never be two requests at a time.
    store, group = slow_group(layout)
    source = storage.open_matrix(group)
    first = int(np.flatnonzero(np.diff(MATRIX.indptr))[0])
    assert source.row_pointers.indptr()[first + 1] < 100  # within the first chunk
    store.n_wanted, store.most = 2, 0
    part = storage.Part(source, np.array([first]), np.array([0]))
    (block,) = storage.read_csr([part], np.array([0, 1]), n_var=60, num_threads=1)
    np.testing.assert_array_equal(block.to_scipy().toarray(), MATRIX[[first]].toarray())
    assert store.most >= 2
    assert frozenset({"data", "indices"}) in store.arrays_together


@pytest.mark.parametrize("read", [storage.read_csr, storage.read_dense])
def test_reads_of_several_datasets_overlap(read):
    store, group = slow_group("plain")
    first = int(np.flatnonzero(np.diff(MATRIX.indptr))[0])
    parts = [storage.Part(storage.open_matrix(group), np.array([first]), np.array([i])) for i in range(3)]
    assert all(part.source.row_pointers.indptr()[first + 1] < 100 for part in parts)  # one stretch of each array
    store.n_wanted, store.most = 6, 0
    (batch,) = read(parts, np.array([0, 3]), n_var=60, num_threads=1)
    dense = batch if isinstance(batch, np.ndarray) else batch.to_scipy().toarray()
    np.testing.assert_array_equal(dense, MATRIX[[first] * 3].toarray())
    assert store.most >= 6


def test_dense_rows_of_datasets_of_different_width():
    matrices = [random_csr(20, n, 0.4, seed=n) for n in (1, 7, 60, 0)]
    parts = [
        storage.Part(
            storage.open_matrix(matrix, direct=number == 2),
            np.arange(20),
            np.arange(20) + 20 * number,
            np.arange(matrix.shape[1])[::-1].copy(),
        )
        for number, matrix in enumerate(matrices)
    ]
    batches = storage.read_dense(parts, np.arange(0, 81, 20), n_var=60)
    for batch, matrix in zip(batches, matrices, strict=True):
        expected = np.zeros((20, 60), matrix.dtype)
        expected[:, : matrix.shape[1]] = matrix.toarray()[:, ::-1]
        np.testing.assert_array_equal(batch, expected)


def test_after_a_failure_nothing_more_is_asked_for():
    class Failing(Patient):
        n_asked = 0

        async def get(self, key, prototype, byte_range=None):
            if "/c/" in key:
                self.n_asked += 1
                if self.n_asked == 1:
                    msg = "no such bucket"
                    raise PermissionError(msg)
                await asyncio.sleep(0.05)
            return await super().get(key, prototype, byte_range)

    store, _ = slow_group("plain")
    failing = Failing(store._store)
    source = storage.open_matrix(zarr.open_group(failing, mode="r+")["X"])
    source._row_pointers = RowPointers.of_lengths(np.diff(MATRIX.indptr).astype(np.uint8))
    rows = np.flatnonzero(np.diff(MATRIX.indptr))[::16]  # each of them in other chunks than the one before it
    part = storage.Part(source, rows, np.arange(len(rows)))
    with pytest.raises(storage.CorruptDataError, match=r"X/data, rows \d+ to \d+: no such bucket"):
        storage.read_csr([part], np.array([0, len(rows)]), n_var=60, num_threads=1)
    assert len(rows) > 30
    assert failing.n_asked < len(rows)  # of twice as many reads
