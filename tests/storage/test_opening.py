"""open_group, is_store and available_cpus."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
import zarr

from annbatch import DatasetCollection, Loader, storage


@pytest.fixture
def stores(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as f:
        f["X"] = np.ones((3, 2), "float32")
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    zarr.open_group(tmp_path / "v2", mode="w", zarr_format=2)
    return tmp_path


def test_stores_are_known_by_content(stores):
    assert storage.is_store(stores / "a.h5ad")
    assert storage.is_store(str(stores / "a.zarr"))
    assert storage.is_store(stores / "v2")
    (stores / "empty.h5ad").touch()
    assert not storage.is_store(stores / "empty.h5ad")
    assert not storage.is_store(stores)
    assert not storage.is_store(stores / "none")


def test_groups_open_for_reading(stores):
    with storage.open_group(stores / "a.h5ad") as f:
        assert isinstance(f, h5py.Group)
        assert f.mode == "r"
        assert "X" in f
    group = storage.open_group(stores / "a.zarr")
    assert isinstance(group, zarr.Group)
    assert group.read_only


def test_bad_paths_say_what_is_wrong(stores):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        storage.open_group(stores / "none.h5ad")
    (stores / "empty.h5ad").touch()
    (stores / "cut.h5ad").write_bytes((stores / "a.h5ad").read_bytes()[:1000])
    (stores / "text.h5ad").write_text("hello")
    (stores / "a.zarr" / "zarr.json").write_text("{")
    (stores / "v2" / ".zgroup").write_text("")
    for name in ("empty.h5ad", "cut.h5ad", "text.h5ad", "a.zarr", "v2"):
        with pytest.raises(storage.CorruptDataError, match=name):
            storage.open_group(stores / name)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"proc/self/cgroup": "3:cpu:/x\n", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_a_cpu_quota_of_the_container_counts(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    allowed = len(os.sched_getaffinity(0))
    assert storage.available_cpus(root=tmp_path) == (allowed if expected is None else min(allowed, expected))


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: storage.open_group(""),
        lambda: Loader(batch_size=1).add_paths([""]),
        lambda: DatasetCollection(""),
        lambda: DatasetCollection("c.zarr").add_adatas([""], progress=False),
    ):
        with pytest.raises(ValueError, match=r"must name a file, a folder or a URL, got ''; write '\.'"):
            call()


@pytest.mark.parametrize("url", ["s3://", "s3:///a.zarr", "s3://Bad_Bucket!/a.zarr", "gs://a b/c.h5ad"])
def test_a_url_of_no_possible_bucket_is_refused_at_once(url):
    """Libraries say that the connection failed, after six tries."""
    with pytest.raises(
        ValueError, match=r"must be (s3|gs)://BUCKET/PATH, with a bucket of letters.*, got the bucket '"
    ):
        Loader(batch_size=1).add_paths([url])
