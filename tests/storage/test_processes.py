"""Sources in other processes and threads."""

from __future__ import annotations

import io
import multiprocessing as mp
import pickle
import threading

import h5py
import numpy as np
import pytest
import zarr

from annbatch import storage
from tests.cells import csr_attrs, csr_parts, random_csr, write_h5, write_zarr

MATRIX = random_csr(100, 30, seed=0)
ROWS = np.random.default_rng(1).permutation(100)


def read(source):
    (block,) = storage.read_csr([storage.Part(source, ROWS, np.arange(100))], np.array([0, 100]), n_var=30)
    return block.to_scipy()


def send(source, queue):
    queue.put(read(source))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("form", ["h5", "zarr"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_source_reads_in_another_process(method, form, direct, used, tmp_path):
    if method not in mp.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {method}")
    path = (write_h5 if form == "h5" else write_zarr)(csr_parts(MATRIX), tmp_path / f"a.{form}", csr_attrs(MATRIX))
    handle = h5py.File(path, "r") if form == "h5" else zarr.open_group(path, mode="r")
    source = storage.open_matrix(handle["X"], direct=direct)
    if used:
        read(source)
    context = mp.get_context(method)
    queue = context.Queue()
    child = context.Process(target=send, args=(source, queue))
    child.start()
    assert (queue.get(timeout=200) != MATRIX[ROWS]).nnz == 0
    child.join(60)
    assert child.exitcode == 0
    assert (read(source) != MATRIX[ROWS]).nnz == 0


@pytest.mark.parametrize("form", ["h5", "zarr", "memory"])
def test_several_threads_read_from_one_source(form, tmp_path):
    if form == "memory":
        source = storage.open_matrix(MATRIX)
    else:
        path = (write_h5 if form == "h5" else write_zarr)(csr_parts(MATRIX), tmp_path / f"a.{form}", csr_attrs(MATRIX))
        handle = h5py.File(path, "r") if form == "h5" else zarr.open_group(path, mode="r")
        source = storage.open_matrix(handle["X"])
    wrong = []

    def work():
        wrong.extend(1 for _ in range(10) if (read(source) != MATRIX[ROWS]).nnz)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_object_is_read_here_and_cannot_travel():
    memory = io.BytesIO()
    with h5py.File(memory, "w") as f:
        f["X"] = np.arange(12.0).reshape(4, 3)
    source = storage.open_matrix(h5py.File(memory, "r")["X"])
    part = storage.Part(source, np.array([3, 1]), np.array([0, 1]))
    (batch,) = storage.read_dense([part], np.array([0, 2]))
    np.testing.assert_array_equal(batch, [[9, 10, 11], [3, 4, 5]])
    with pytest.raises(ValueError, match="BytesIO.*:: /X cannot be opened again.*it is in no file; open it by a path"):
        pickle.dumps(source)
    source.close()
    with pytest.raises(ValueError, match="cannot be opened again"):
        storage.read_dense([part], np.array([0, 2]))
