"""Collections of annbatch 0.2 and 0.3 open here, ours open there. The other release runs as a black box, in its own environment.

ANNBATCH_PEER_PYTHON names the interpreter of an environment with annbatch 0.3 (the import name is the same, so it cannot be ours).
"""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest

from annbatch import DatasetCollection
from tests.cells import cells, read_all, write

PEER = os.environ.get("ANNBATCH_PEER_PYTHON", "")
pytestmark = pytest.mark.skipif(not PEER, reason="ANNBATCH_PEER_PYTHON is not set")

READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
import annbatch
collection = annbatch.DatasetCollection(sys.argv[1], mode="r")
loader = annbatch.Loader(batch_size=8, chunk_size=4, preload_nchunks=2, preload_to_gpu=False, to=None)
loader.use_collection(collection)
batches = [(b["X"].sum(), b["X"].shape[0]) for b in loader]
obs = collection.obs()
print(json.dumps([float(sum(s for s, _ in batches)), sum(n for _, n in batches), sorted(obs.index), collection.is_empty]))
"""
BUILD = """
import sys, warnings
warnings.simplefilter("ignore")
import annbatch
if __name__ == "__main__":
    annbatch.DatasetCollection(sys.argv[1]).add_adatas(sys.argv[2:], groupby="cell_type", dataset_size=60, shuffle_chunk_size=10)
"""


def peer(folder, code, *arguments):
    script = folder / "peer.py"
    script.write_text(code)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [PEER, str(script), *map(str, arguments)], check=True, capture_output=True, text=True, cwd=folder, env=env
    ).stdout


@pytest.fixture
def two(tmp_path):
    adatas = [cells(50, seed=1, prefix="a"), cells(40, seed=2, prefix="b")]
    return adatas, [write(adata, tmp_path / f"{i}.h5ad") for i, adata in enumerate(adatas)]


def test_ours_opens_there(tmp_path, two):
    adatas, paths = two
    DatasetCollection(tmp_path / "c.zarr").add_adatas(paths, dataset_size=60, progress=False)
    total, n_rows, names, empty = json.loads(peer(tmp_path, READ, tmp_path / "c.zarr").splitlines()[-1])
    assert total == sum(float(a.X.sum()) for a in adatas)
    assert n_rows == 90
    assert names == sorted([*adatas[0].obs_names, *adatas[1].obs_names])
    assert not empty


def test_theirs_opens_here_and_takes_more(tmp_path, two):
    adatas, paths = two
    peer(tmp_path, BUILD, tmp_path / "c.zarr", *paths)
    collection = DatasetCollection(tmp_path / "c.zarr")
    found = read_all(collection)
    expected = np.concatenate(
        [a[[n for n in found.obs_names if n in a.obs_names]].X.toarray().sum(axis=0) for a in adatas]
    )
    assert expected.sum() == found.X.sum()
    collection.add_adatas([cells(10, prefix="c")], progress=False)
    assert len(collection.obs()) == 100
    total, n_rows, *_ = json.loads(peer(tmp_path, READ, tmp_path / "c.zarr").splitlines()[-1])
    assert n_rows == 100
    assert total == sum(float(a.X.sum()) for a in [*adatas, cells(10, prefix="c")])
