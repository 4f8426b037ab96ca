"""Files that were made to hurt: refused in words, at once, without much memory, and nothing of them is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import annbatch
from annbatch import Loader, storage
from annbatch.collection.verify import verify
from annbatch.storage.chunks.arrays import stored_array
from annbatch.storage.frames import FrameReader
from tests.cells import cells, csr_attrs, csr_parts, write, write_h5

from .test_bombs import try_all

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are files elsewhere only")


def write_text(path):
    """Write columns of text in both ways that there are, whichever is usual for the anndata that is installed."""
    group = zarr.open_group(path)["obs"]
    texts = [f"note {i}" for i in range(group["score"].shape[0])]
    with ad.settings.override(allow_write_nullable_strings=True, auto_shard_zarr_v3=False):
        ad.io.write_elem(group, "note", np.array(texts, dtype=object))
        ad.io.write_elem(group, "maybe", pd.array([None, *texts[1:]], dtype="string"))
    group.attrs["column-order"] = [*group.attrs["column-order"], "maybe"]
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An AnnData of anyone: no manifest."""
    return write_text(write(cells(60, 12), tmp_path_factory.mktemp("sound") / "a.zarr"))


@pytest.fixture
def store(sound, tmp_path):
    """One to hurt."""
    return shutil.copytree(sound, tmp_path / "a.zarr")


def read_all(path):
    group = storage.open_group(path)
    FrameReader(group["obs"]).frame()
    FrameReader(group["var"]).frame()
    source = storage.open_matrix(group["X"])
    rows = np.arange(source.n_obs)
    return storage.read_csr([storage.Part(source, rows, rows)], np.array([0, len(rows)]), n_var=source.shape[1])


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
@pytest.mark.parametrize(
    "what",
    [
        "zarr.json",
        "X/zarr.json",
        "X/data/c/0",
        "X/indptr/c/0",
        "obs/score/c/0",
        "obs/note/c/0",
        "obs/maybe/values/c/0",
        "obs/maybe/mask/c/0",
    ],
)
def test_what_is_no_regular_file_is_not_opened(kind, what, store):
    path = store / what
    assert path.is_file()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        try:
            os.mknod(path, stat.S_IFSOCK | 0o600)
        except OSError:
            pytest.skip("this system makes sockets in another way")
    else:
        path.mkdir()
    with pytest.raises(storage.CorruptDataError):
        read_all(store)
    if kind == "pipe":
        assert not verify(store, progress=False).is_sound


def test_links_to_regular_files_are_followed(store, tmp_path):
    shutil.move(store / "X/data", tmp_path / "elsewhere")
    (store / "X/data").symlink_to(tmp_path / "elsewhere")
    read_all(store)


@pytest.mark.parametrize("form", ["zarr3", "h5ad"])
def test_links_that_lead_back_are_followed_once(form, tmp_path):
    """Two of them in one group: as many paths as there are numbers of forty bits."""
    path = write(cells(60, 12), tmp_path / "a", form)
    n_arrays = verify(path, progress=False).n_arrays
    if form == "h5ad":
        with h5py.File(path, "r+") as file:
            file["obs/p"], file["obs/q"], file["uns/r"] = h5py.SoftLink("/obs"), h5py.SoftLink("/"), file["/"]
    else:
        for name in "pq":
            (path / "obs" / name).symlink_to(".")
    read_all(path)
    report = verify(path, progress=False)
    assert report.is_sound
    assert report.n_arrays == n_arrays


def test_a_pipe_in_place_of_an_h5ad(tmp_path):
    os.mkfifo(tmp_path / "a.h5ad")
    with pytest.raises(storage.CorruptDataError, match="neither an HDF5 file nor a Zarr group"):
        storage.open_group(tmp_path / "a.h5ad")


def test_a_document_without_end(store):
    with (store / "obs/zarr.json").open("ab") as file:
        file.truncate(2**40)  # a hole: takes no room
    with pytest.raises(storage.CorruptDataError, match="a metadata document has at most"):
        storage.open_group(store)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"attributes": 3}', b"[" * 100_000])
def test_a_document_that_is_none(text, store):
    (store / "obs/zarr.json").write_bytes(text)
    with pytest.raises(storage.CorruptDataError, match=r"obs/zarr\.json is damaged"):
        storage.open_group(store)


def change(path, **changes):
    document = json.loads(path.read_text())
    for key, value in changes.items():
        document[key] = value
    path.write_text(json.dumps(document))


def grid(n):
    return {"name": "regular", "configuration": {"chunk_shape": [n]}}


HUGE = 10**15


def claim_rows(store):
    """10^15 cells."""
    for path in [*store.glob("obs/*/zarr.json"), *store.glob("obs/*/codes/zarr.json")]:
        document = json.loads(path.read_text())
        if document["node_type"] == "array":
            change(path, shape=[HUGE])
    change(store / "X/indptr/zarr.json", shape=[HUGE + 1])
    document = json.loads((store / "X/zarr.json").read_text())
    document["attributes"]["shape"] = [HUGE, 12]
    (store / "X/zarr.json").write_text(json.dumps(document))


def claim_values(store):
    """10^15 values, and as many chunks."""
    for name in ("data", "indices"):
        change(store / f"X/{name}/zarr.json", shape=[HUGE])


def claim_chunk(store):
    """One chunk of 10^15 values."""
    change(store / "X/data/zarr.json", chunk_grid=grid(HUGE))


def claim_row_pointer_chunk(store):
    change(store / "X/indptr/zarr.json", chunk_grid=grid(HUGE))


def put_claim(group, name, shape):
    """Put a dataset in place of one, with the same attributes and of the same dtype; nothing of it is stored."""
    attributes, dtype = dict(group[name].attrs), group[name].dtype
    del group[name]
    group.create_dataset(name, shape, dtype, chunks=(1000,)).attrs.update(attributes)


def claim_hdf5_rows(file):
    for name in [name for name, item in file["obs"].items() if isinstance(item, h5py.Dataset)]:
        put_claim(file["obs"], name, (HUGE,))


def claim_hdf5_row_pointers(file):
    put_claim(file["X"], "indptr", (HUGE + 1,))
    file["X"].attrs["shape"] = [HUGE, 12]


def claim_hdf5_values(file):
    for name in ("data", "indices"):
        put_claim(file["X"], name, (HUGE,))


@pytest.mark.parametrize(
    "claim", [claim_hdf5_rows, claim_hdf5_row_pointers, claim_hdf5_values], ids=lambda f: f.__name__
)
def test_a_claim_of_an_h5ad_is_refused(claim, tmp_path):
    path = write(cells(60, 12), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        claim(file)
    with pytest.raises(ValueError, match="claims to hold|must have 60 rows|one value per row"):
        list(Loader(preload_to_gpu=False).add_paths([path]))
    assert "claims to hold" in "\n".join(map(str, verify(path, progress=False).damage))


@pytest.mark.parametrize(
    "claim", [claim_rows, claim_values, claim_chunk, claim_row_pointer_chunk], ids=lambda f: f.__name__
)
def test_verify_refuses_claims(claim, store):
    claim(store)
    assert "claim" in "\n".join(map(str, verify(store, progress=False).damage))


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/score"])
def test_another_type_of_another_size_is_refused(name, store):
    path = store / name / "zarr.json"
    data_type = json.loads(path.read_text())["data_type"]
    change(path, data_type={"int32": "int64", "int64": "int32", "float32": "float64", "float64": "float32"}[data_type])
    with pytest.raises(storage.CorruptDataError, match=name):
        read_all(store)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("obs/note", {"chunk_grid": grid(0)}),
        ("obs/score", {"chunk_grid": grid(0)}),
        ("X/data", {"chunk_grid": grid(0)}),
        ("obs/cell_type/categories", {"shape": [HUGE]}),
    ],
)
def test_what_cannot_be_is_refused(name, changes, store):
    change(store / name / "zarr.json", **changes)
    with pytest.raises(storage.CorruptDataError, match="holds nothing|claims to hold|chunk sizes must be"):
        read_all(store)


def test_categories_that_are_the_same_are_refused(store):
    """So they are when their chunk is gone."""
    (store / "obs/cell_type/categories/c/0").unlink()
    with pytest.raises(storage.CorruptDataError, match="'cell_type' of .* has categories that are the same"):
        read_all(store)


@pytest.mark.parametrize("name", ["layers/counts", "obsm/pca"])
def test_a_document_that_zarr_python_does_not_take_is_damage(name, store):
    """Not an error of its own, which names nothing."""
    group = zarr.open_group(store)
    for part, key in (("layers", "counts"), ("obsm", "pca")):
        with ad.settings.override(auto_shard_zarr_v3=False):
            ad.io.write_elem(group.require_group(part), key, np.ones((60, 12)))
    change(store / name / "zarr.json", node_type="row")
    with pytest.raises(storage.CorruptDataError, match=name.partition("/")[2]):
        Loader(layers=["counts"], obsm=["pca"], preload_to_gpu=False).add_paths([store])


def test_hdf5_chunks_outside_of_their_dataset_are_refused(tmp_path):
    path = write_h5(csr_parts(sp.eye(6, format="csr")), tmp_path / "a.h5", {}, chunks=(3,), compression="gzip")
    with h5py.File(path) as file:
        at = path.read_bytes().find(struct.pack("<IIQ", file["X/data"].id.get_chunk_info(1).size, 0, 3))
    assert at > 0  # the key of a chunk in its B-tree: size, filter mask, offset
    data = bytearray(path.read_bytes())
    data[at + 8 : at + 16] = struct.pack("<Q", 3000)
    path.write_bytes(data)
    with h5py.File(path) as file, pytest.raises(storage.CorruptDataError, match="lies outside the dataset"):
        stored_array(file["X/data"]).table  # noqa: B018


@pytest.mark.parametrize("name", ["X/indices", "X/indptr"])
def test_another_order_of_bytes_is_refused_where_numbers_have_a_range(name, store):
    """Sizes are the same: of values, the format's word is believed."""
    path = store / name / "zarr.json"
    document = json.loads(path.read_text())
    document["codecs"][0]["configuration"]["endian"] = "big"
    path.write_text(json.dumps(document))
    with pytest.raises(storage.CorruptDataError, match=name):
        read_all(store)


def test_another_order_of_bytes_of_values_is_the_format_s_word(sound, store):
    path = store / "X/data/zarr.json"
    document = json.loads(path.read_text())
    document["codecs"][0]["configuration"]["endian"] = "big"
    path.write_text(json.dumps(document))
    [found], [expected] = read_all(store), read_all(sound)
    np.testing.assert_array_equal(found.to_scipy().data, expected.to_scipy().data.byteswap())


@pytest.mark.parametrize("name", ["X/data", "X/indptr", "obs/score", "obs/note", "obs/cell_type/codes", "var/_index"])
@pytest.mark.parametrize(
    "key",
    [
        {"name": "default", "configuration": {"separator": "."}},
        {"name": "v2", "configuration": {"separator": "."}},
        {"name": "v2", "configuration": {"separator": "/"}},
    ],
    ids=["dots", "2 dots", "2 slashes"],
)
def test_other_names_of_chunks_than_there_are_is_refused(name, key, store):
    """Zarr would take all of them as absent, and give fill values."""
    if (store / name / "values").is_dir():  # text, as newer versions of anndata write it
        name += "/values"
    change(store / name / "zarr.json", chunk_key_encoding=key)
    with pytest.raises(storage.CorruptDataError, match=rf"{name}.*holds 'c', but chunks are named like"):
        read_all(store)
    assert not verify(store, progress=False).is_sound


def test_other_names_of_chunks_in_format_2_are_refused(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((4, 4)), chunks=(2, 2), zarr_format=2)
    change(tmp_path / "a.zarr/.zarray", dimension_separator="/")
    source, rows = storage.open_matrix(zarr.open_array(tmp_path / "a.zarr", mode="r")), np.arange(4)
    with pytest.raises(storage.CorruptDataError, match=r"holds '\d\.\d', but chunks are named like '0'"):
        storage.read_dense([storage.Part(source, rows, rows)], np.array([0, 4]))


def test_a_column_that_stands_twice_in_a_row_adds_up(tmp_path):
    """Where rows become dense; see docs/trust.md."""
    twice = sp.csr_matrix((np.array([1, 2, 4], "float32"), np.array([3, 3, 0]), np.array([0, 3, 3])), shape=(2, 5))
    path = write_h5(csr_parts(twice), tmp_path / "a.h5", csr_attrs(twice))
    source, rows = storage.open_matrix(storage.open_group(path)["X"]), np.arange(2)
    [found] = storage.read_csr([storage.Part(source, rows, rows)], np.array([0, 2]), n_var=5)
    np.testing.assert_array_equal(found.to_scipy().toarray(), [[4, 0, 0, 3, 0], [0] * 5])
    loader = Loader(preload_to_gpu=False, batch_size=2, dense=True).add_dataset(sp.csr_matrix(twice))
    np.testing.assert_array_equal(next(iter(loader))["X"], [[4, 0, 0, 3, 0], [0] * 5])


def test_nothing_that_a_file_says_is_run():
    """No pickle is read but those that a process made for itself or another of its own, and nothing is evaluated."""
    package = Path(annbatch.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py*")
        if path.suffix in (".py", ".pyx")
        and re.search(r"pickle\.loads?\(|Unpickler|allow_pickle=True|\beval\(|\bexec\(|__import__\(", path.read_text())
    }
    # Parts of a loader's own pickle, and a copy of a client for a forked process.
    assert found <= {"storage/columns.py", "storage/far/stores.py", "storage/shared_arrays.py"}


CLAIMS = (claim_rows, claim_values, claim_chunk, claim_row_pointer_chunk)


def test_claims_beyond_what_is_stored_cost_nothing(sound, tmp_path):
    """What a process says of each, which tries one after the other."""
    for claim in CLAIMS:
        claim(shutil.copytree(sound, tmp_path / claim.__name__))
    for name, (said, seconds, megabytes) in try_all(sound, [tmp_path / claim.__name__ for claim in CLAIMS]).items():
        # Nothing needs the values that are not there: no row points to them.
        assert (said == "read") == (name == "claim_values"), said
        assert not said.startswith("MemoryError"), said
        assert megabytes < 64, said
        assert seconds < 5, said  # of processor time


def test_headers_that_claim_gigabytes(store):
    """Only the header claims it; what follows is noise."""
    noise = np.random.default_rng(0).bytes(200)
    blosc = struct.pack("<BBBBIII", 2, 1, 0x21, 4, 2**31 - 16, 2**20, 216) + noise
    zstd = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + noise
    for data in (blosc, zstd):
        (store / "X/data/c/0").write_bytes(data)
        with pytest.raises(storage.CorruptDataError, match=r"X/data, chunk 0"):
            read_all(store)


@pytest.mark.parametrize("column", ["note", "maybe/values"])
def test_objects_in_a_file_are_not_made(column, tmp_path):
    """A pickle as the codec of an array: refused by name, and nothing of it is run."""
    path = write_text(write(cells(20, 5), tmp_path / "a", "zarr2"))
    array = path / "obs" / column
    document = json.loads((array / ".zarray").read_text())
    document["filters"] = [{"id": "pickle", "protocol": 5}]
    trap = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "trapped") + b"'\ntR."
    for chunk in array.glob("[0-9]*"):
        chunk.write_bytes(trap)
    document["compressor"] = None
    (array / ".zarray").write_text(json.dumps(document))
    with pytest.raises((storage.CorruptDataError, TypeError), match="pickle"):
        FrameReader(storage.open_group(path)["obs"]).frame()
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("column", ["note", "maybe/values"])
def test_a_disk_that_fails_is_no_damage(column, store, monkeypatch):
    """EIO stays an OSError that names the file."""
    original = zarr.storage.LocalStore.get

    async def failing(self, key, *args, **kwargs):
        if key.endswith(f"{column}/c/0"):
            raise OSError(5, "Input/output error")
        return await original(self, key, *args, **kwargs)

    def failing_too(path, original=Path.read_bytes):
        if path.as_posix().endswith(f"{column}/c/0"):
            raise OSError(5, "Input/output error")
        return original(path)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", failing)
    monkeypatch.setattr(Path, "read_bytes", failing_too)  # text is read without zarr-python first
    with pytest.raises(OSError, match=rf"obs/{column}.*Input/output error") as caught:
        FrameReader(storage.open_group(store)["obs"]).frame()
    assert not isinstance(caught.value, storage.CorruptDataError)
    assert caught.value.errno == 5


def test_a_file_that_may_not_be_read_is_no_damage(store):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (store / "X/data/c/0").chmod(0)
    with pytest.raises(PermissionError, match="X/data/c/0"):
        read_all(store)


@pytest.mark.parametrize("place", [0, 8, 512, 2048])
def test_plain_hdf5_with_zeroed_blocks_of_its_values(place, tmp_path):
    """HDF5 has no checksums where it does not compress: numbers or an error, never a crash. See docs/trust.md."""
    path = write(cells(60, 12), tmp_path / "a.h5ad")
    with h5py.File(path) as file:
        start = file["X/data"].id.get_chunk_info(0).byte_offset + place
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(64))
    try:
        list(Loader(preload_to_gpu=False, batch_size=10, chunk_size=10, preload_nchunks=1).add_paths([path]))
    except storage.CorruptDataError as error:
        assert str(path) in str(error)  # noqa: PT017


LIMITED = """
import os, resource, sys
from annbatch import DatasetCollection, Loader
from annbatch.loader import read_ahead

root, *prefetches = sys.argv[1:]
collection = DatasetCollection(root, mode="r")
settings = dict(batch_size=64, chunk_size=8, preload_nchunks=8, preload_to_gpu=False)
infinite = resource.RLIM_INFINITY

before = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
loader = Loader(**settings, prefetch=1, num_threads=2).use_collection(collection)
for _ in range(3):
    assert sum(batch["X"].shape[0] for batch in loader) == 400
assert collection.verify(progress=False).is_sound
resource.setrlimit(resource.RLIMIT_NOFILE, before)
print("files")

patience = read_ahead._START_PATIENCE_S
for prefetch in map(int, prefetches):
    loader = Loader(**settings, prefetch=prefetch, num_threads=1, dense=True).use_collection(collection)
    assert sum(batch["X"].shape[0] for batch in loader) == 400
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    read_ahead._START_PATIENCE_S = 0.5
    for more in range(0, 2**22, 2**18):
        resource.setrlimit(resource.RLIMIT_AS, (used + more, infinite))
        try:
            for batch in loader:
                pass
        except MemoryError:
            pass
    resource.setrlimit(resource.RLIMIT_AS, (infinite, infinite))
    read_ahead._START_PATIENCE_S = patience
    assert sum(batch["X"].shape[0] for batch in loader) == 400
    print("memory", prefetch)
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    from . import damage

    root = tmp_path_factory.mktemp("limited") / "c.zarr"
    damage.make_collection(root)
    return root


def limited(root, *prefetches):
    command = [sys.executable, "-c", LIMITED, str(root), *map(str, prefetches)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-3000:])
    return done.stdout.splitlines()


def test_few_file_handles_are_enough_and_too_little_memory_is_a_memory_error(collection):
    prefetches = [0] if os.path.exists("/proc/self/statm") else []  # noqa: PTH110
    assert limited(collection, *prefetches) == ["files", *(f"memory {n}" for n in prefetches)]


@pytest.mark.slow
def test_too_little_memory_for_a_thread_is_a_memory_error(collection):
    """That was waited for, for ever."""
    if not os.path.exists("/proc/self/statm"):  # noqa: PTH110
        pytest.skip("needs /proc")
    assert limited(collection, 1) == ["files", "memory 1"]
