"""BufferPool: memory is used again exactly when nobody can see it any more."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import scipy.sparse as sp

from annbatch.storage import BufferPool

N = 100_000


def address(array):
    return array.ctypes.data


@pytest.mark.parametrize(
    "keep",
    [
        lambda a: a[5:],
        lambda a: a.reshape(10, -1)[3],
        lambda a: a.view(np.uint8),
        lambda a: memoryview(a),
        lambda a: sp.csr_matrix((a, np.zeros(N, np.int32), np.array([0, N])), shape=(1, 1)),
        lambda a: np.asarray(memoryview(a[2:].view("int8")))[::2],
    ],
)
def test_a_view_keeps_the_memory_from_being_reused(keep):
    pool = BufferPool()
    array = pool.empty(N, "float32")
    where, kept = address(array), keep(array)
    del array
    assert address(pool.empty(N, "float32")) != where
    del kept
    gc.collect()
    assert where in {address(a) for a in [pool.empty(N, "float32") for _ in range(3)]}


def test_nearly_equal_sizes_share_memory():
    pool = BufferPool()
    array = pool.empty((1000, 100), "float32")
    where = address(array)
    del array
    assert address(pool.empty(100_100, "float32")) == where


def test_shape_dtype_and_order_are_those_asked_for():
    pool = BufferPool()
    for shape, dtype in [((300, 200, 3), "float64"), (5, "int8"), ((0, 4), "float32"), ((), "int64"), (N, "bool")]:
        array = pool.empty(shape, dtype)
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_unused_memory_never_exceeds_what_was_in_use_at_once():
    pool = BufferPool()
    for n in (1_000_000, 2_000_000, 3_000_000, 500_000):
        array = pool.empty(n, "uint8")
        del array
        assert pool.used_bytes == 0
        assert pool.free_bytes <= 3_500_000
    kept = pool.empty(3_000_000, "uint8")
    assert kept.nbytes == 3_000_000
    assert pool.free_bytes + pool.used_bytes <= 3_500_000


def test_max_bytes_and_clear_bound_unused_memory():
    pool = BufferPool(max_bytes=0)
    del_me = pool.empty(N, "float32")
    del del_me
    assert pool.free_bytes == 0
    pool = BufferPool()
    del_me = pool.empty(N, "float32")
    del del_me
    assert pool.free_bytes > 0
    pool.clear()
    assert pool.free_bytes == 0
    with pytest.raises(ValueError, match="max_bytes must be >= 0 or None, got -1"):
        BufferPool(max_bytes=-1)


def test_arrays_outlive_their_pool():
    pool = BufferPool()
    array = pool.empty(N, "float32")
    array[:] = 7
    del pool
    gc.collect()
    assert (array == 7).all()


def test_objects_are_refused():
    with pytest.raises(TypeError, match="dtype must hold plain values, got object"):
        BufferPool().empty(3, object)


def test_a_pool_travels_empty():
    assert pickle.loads(pickle.dumps(BufferPool(max_bytes=5)))._max_bytes == 5


def test_threads_never_share_an_array():
    pool = BufferPool()
    failures = []

    def work(number):
        for _ in range(300):
            array = pool.empty(20_000, "int64")
            array[:] = number
            array[::100] += 0
            if not (array == number).all():
                failures.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_thread_of_its_parent():
    """A worker of a DataLoader that was forked while the books were being changed waited for ever."""
    pool = BufferPool()
    kept = pool.empty(N, "float32")
    del kept
    held, may_end = threading.Event(), threading.Event()

    def hold():
        with pool._books:
            held.set()
            may_end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # ends one that waits
            whole = pool.empty(N, "float32").nbytes == 4 * N and pool.free_bytes + pool.used_bytes < 8 * N
            os._exit(0 if whole else 1)
    finally:
        may_end.set()
        thread.join(60)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.free_bytes > 0
