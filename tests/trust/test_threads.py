"""Several threads that take batches of one pass: every row is in exactly one of them, with what belongs to it."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from annbatch import Loader
from tests.cells import full_cells, write

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")

N_ROWS, N_THREADS = 500, 4


@pytest.fixture(scope="module")
def adata():
    adata = full_cells(N_ROWS)
    adata.obs["number"] = np.arange(N_ROWS)
    return adata


@pytest.fixture(scope="module")
def path(adata, tmp_path_factory):
    return write(adata, tmp_path_factory.mktemp("threads") / "a.zarr")


def take(batches, takers=N_THREADS):
    """Let threads take what there is; return all that they got."""
    got, wrong, begin = [[] for _ in range(takers)], [], threading.Barrier(takers)

    def consume(mine):
        begin.wait(30)
        try:
            mine.extend(batches)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shall see it
            wrong.append(error)

    threads = [threading.Thread(target=consume, args=(mine,)) for mine in got]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    return [batch for mine in got for batch in mine]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("with_obs", [False, True])
def test_every_row_comes_once_to_one_of_them(path, adata, prefetch, with_obs):
    loader = Loader(
        batch_size=7,
        chunk_size=7,
        preload_nchunks=3,
        prefetch=prefetch,
        layers=["twice"],
        return_index=True,
        preload_to_gpu=False,
        shuffle=True,
        rng=np.random.default_rng(0),
        obs_columns=["number", "label"] if with_obs else (),
    ).add_paths([path])
    batches = take(iter(loader))
    assert sorted(np.concatenate([batch["index"] for batch in batches]).tolist()) == list(range(N_ROWS))
    for batch in batches:
        rows = batch["index"]
        np.testing.assert_array_equal(batch["X"].toarray(), adata.X[rows].toarray())
        np.testing.assert_array_equal(batch["layers"]["twice"].toarray(), adata.layers["twice"][rows].toarray())
        if with_obs:
            assert batch["obs"]["number"].tolist() == rows.tolist()
