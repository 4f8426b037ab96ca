"""Arrays that have pages to themselves."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from annbatch.storage.pages import is_worth_pages, own_pages

STATM = Path("/proc/self/statm")


@pytest.mark.parametrize("n", [0, 1, 1 << 19, (1 << 20) + 3])
@pytest.mark.parametrize("dtype", ["int8", "bool", "<f4", ">i8"])
def test_it_is_an_array_as_any_other(n, dtype):
    array = own_pages(n, dtype)
    array[:] = 1
    assert (array.shape, array.dtype, array.flags.writeable) == ((n,), np.dtype(dtype), True)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)), np.ones(n, dtype))


def test_only_what_is_large_and_plain_is_worth_it():
    assert is_worth_pages(1 << 20, "int8")
    assert not is_worth_pages((1 << 20) - 1, "int8")
    assert not is_worth_pages(1 << 20, object)
    assert own_pages(1 << 20, object)[0] is None


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux")
def test_the_system_gets_them_back_though_others_came_later():
    def resident() -> int:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    held, n_bytes = [], 4 << 20
    arrays = []
    for _ in range(8):
        arrays.append(own_pages(n_bytes, np.uint8))
        arrays[-1][:] = 1
        held.append(np.ones(100, np.uint8))  # what glibc would keep them for
    before = resident()
    arrays.clear()
    assert resident() < before - 6 * n_bytes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_writes_to_its_own():
    array = own_pages(1 << 20, np.uint8)
    array[:] = 1
    child = os.fork()
    if not child:
        array[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (array == 1).all()
