"""Groups and arrays of local Zarr stores that become zarr-python's only where it must look."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from annbatch import DatasetCollection, Loader, storage
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.local_zarr import LocalArray, LocalGroup, open_local_group
from tests.cells import cells, write


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One store as anndata writes it, one with shards and a manifest, one of format 2."""
    folder = tmp_path_factory.mktemp("stores")
    DatasetCollection(folder / "ours.zarr").add_adatas([cells(60, 12)], progress=False)
    return {
        "zarr3": write(cells(60, 12), folder / "three", "zarr3"),
        "zarr2": write(cells(60, 12), folder / "two", "zarr2"),
        "ours": folder / "ours.zarr/dataset_0",
    }


@pytest.mark.parametrize("kind", ["zarr3", "zarr2", "ours"])
def test_members_are_what_zarr_python_says(kind, stores):
    group, expected = open_local_group(stores[kind]), zarr.open_group(stores[kind], mode="r", use_consolidated=False)
    n_light = 0
    for path, theirs in expected.members(max_depth=None):
        ours = group[path]
        assert path in group
        assert ours.path == theirs.path
        assert dict(ours.attrs) == dict(theirs.attrs)
        if isinstance(theirs, zarr.Group):
            assert isinstance(ours, LocalGroup)
            assert sorted(ours) == sorted(theirs)
            assert ours.plain() == theirs
            continue
        n_light += isinstance(ours, LocalArray)
        for name in ("shape", "ndim", "dtype", "chunks", "shards", "fill_value"):
            assert getattr(ours, name) == getattr(theirs, name), (path, name)
        if isinstance(ours, LocalArray):
            assert ours.location == str(ours.store_path) == str(theirs.store_path)
            assert "_whole" not in ours.__dict__  # nothing of this asked zarr-python
        np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(ours))[...]), np.asarray(theirs[...]))
    assert (n_light > 5) == (kind != "zarr2")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [60.0]},
        {"shape": [True]},
        {"shape": [-1]},
        {"shape": [60, 1]},
        {"zarr_format": 4},
        {"node_type": "other"},
        {"data_type": "float17"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}}},
        {"chunk_grid": {"name": "odd", "configuration": {"chunk_shape": [60]}}},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "nobody knows it"}]},
        {"codecs": []},
        {"unknown": {"must_understand": True}},
    ],
    ids=str,
)
def test_what_zarr_python_refuses_is_refused(change, tmp_path, stores):
    """Whatever there is of a document that is alike and good."""
    shutil.copytree(stores["zarr3"], tmp_path / "a.zarr")
    group = open_local_group(tmp_path / "a.zarr")
    assert isinstance(group["obs/score"], LocalArray)
    path = tmp_path / "a.zarr/obs/score/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    try:
        expected = zarr.open_group(tmp_path / "a.zarr", mode="r", use_consolidated=False)["obs/score"]
    except Exception as error:  # noqa: BLE001 - whatever it is
        with pytest.raises((type(error), CorruptDataError)):
            group["obs/score"]
    else:
        assert group["obs/score"].metadata == expected.metadata


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are files elsewhere only")
@pytest.mark.parametrize("what", ["obs/score/zarr.json", "X/zarr.json", "var/zarr.json"])
@pytest.mark.parametrize("kind", ["pipe", "damaged"])
def test_documents_are_looked_at_where_they_are_read(kind, what, tmp_path, stores):
    shutil.copytree(stores["zarr3"], tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / what
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.write_text("{")
    with pytest.raises(storage.CorruptDataError, match=what):
        Loader(preload_to_gpu=False).add_paths([tmp_path / "a.zarr"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are files elsewhere only")
def test_zarr_python_is_not_asked_about_a_pipe(tmp_path, stores):
    shutil.copytree(stores["zarr2"], tmp_path / "a.zarr")
    (tmp_path / "a.zarr/obs/score/.zarray").unlink()
    os.mkfifo(tmp_path / "a.zarr/obs/score/.zgroup")
    with pytest.raises(storage.CorruptDataError, match="not a regular file"):
        open_local_group(tmp_path / "a.zarr")["obs/score"]


@pytest.mark.parametrize("damage", ["cut", "missing", "document"])
def test_a_collection_that_is_opened_by_its_path_is_compared_with_its_manifests(damage, tmp_path, stores):
    root = tmp_path / "c.zarr"
    shutil.copytree(stores["ours"].parent, root)
    path = root / ("dataset_0/obs/score/zarr.json" if damage == "document" else "dataset_0/X/data/c/0")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(storage.CorruptDataError, match=str(path.relative_to(root))):
        Loader(preload_to_gpu=False, obs_columns=[]).use_collection(root)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files")
@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_hundreds_of_datasets_need_few_handles_and_no_objects_of_zarr_python(suffix, tmp_path, stores, monkeypatch):
    first = stores["zarr3"] if suffix == ".zarr" else write(cells(60, 12), tmp_path / "first.h5ad")
    paths = [tmp_path / f"{number}{suffix}" for number in range(120)]
    for path in paths:
        shutil.copytree(first, path) if suffix == ".zarr" else shutil.copy(first, path)
    made = []
    original = zarr.AsyncArray.from_dict.__func__
    monkeypatch.setattr(
        zarr.AsyncArray, "from_dict", classmethod(lambda cls, *args: made.append(args) or original(cls, *args))
    )
    loader = Loader(preload_to_gpu=False, batch_size=32, chunk_size=1, preload_nchunks=960, shuffle=True)
    loader.add_paths(paths)
    assert len(made) < 30  # one for each kind of array, not for each array
    before = len(list(Path("/proc/self/fd").iterdir()))
    open_now = []
    for batch in loader:
        assert batch["X"].shape == (32, 12) or len(open_now) == 120 * 60 // 32
        open_now.append(len(list(Path("/proc/self/fd").iterdir())))
    assert max(open_now) - before < 80
