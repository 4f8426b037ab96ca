"""``annbatch verify``: says file, array, chunks and rows of all that is damaged, in any AnnData file."""

from __future__ import annotations

import gc
import json
import os
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import DatasetCollection, storage
from annbatch.cli import main
from annbatch.collection.verify import verify
from tests.cells import FORMATS, cells, write

from . import damage

QUIET = {"progress": False}


def flipped(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_sound_collection(tmp_path):
    damage.make_collection(tmp_path / "c.zarr")
    report = DatasetCollection(tmp_path / "c.zarr").verify(**QUIET)
    assert report.is_sound
    assert report.without_checksums == []
    assert report.n_arrays >= 34


def test_rows_of_a_damaged_chunk(tmp_path):
    adata = cells(100, 12)
    adata.X = adata.X.astype("f4")
    root = tmp_path / "c.zarr"
    collection = DatasetCollection(root).add_adatas([adata], shuffle=False, n_obs_per_chunk=10, shard_size=50, **QUIET)
    shard = root / "dataset_0/X/data/c/0"
    flipped(shard, 12)
    flipped(root / "dataset_0/obs/score/c/0", 30)
    report = collection.verify(**QUIET)
    first, second = report.damage
    assert (first.array, first.chunks) == ("X/data", (0, 0))
    assert first.rows[0] == 0
    assert 9 <= first.rows[1] <= 12
    assert "checksum" in first.what
    assert str(shard) in str(first)
    assert (second.array, second.rows) == ("obs/score", (0, 100))


def test_all_damage_is_listed_at_once(tmp_path):
    root = tmp_path / "c.zarr"
    damage.make_collection(root)
    (root / "dataset_0/X/data/c/1").unlink()
    os.truncate(root / "dataset_0/obs/score/c/0", 20)
    flipped(root / "dataset_1/zarr.json", 200)
    (root / "dataset_1/obs/note/zarr.json").unlink()
    text = "\n".join(map(str, DatasetCollection(root).verify(**QUIET).damage))
    for place in ("dataset_0/X/data/c/1 is missing", "obs/score/c/0 is cut short", "dataset_1/zarr.json", "note"):
        assert place in text


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_anyone(form, tmp_path):
    path = write(cells(50, 12), tmp_path / "a", form)
    report = verify(path, **QUIET)
    assert report.is_sound
    assert report.n_arrays >= 8
    # What h5py compresses by gzip ends with a checksum; nothing else of these does.
    names = [name for name in report.without_checksums if "/X/" in name]
    assert len(names) == (0 if form == "gzip" else 3)


def test_a_null_in_an_h5ad(tmp_path):
    """As anndata writes None in uns."""
    path = tmp_path / "a.h5ad"
    cells(10).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["uns"].create_dataset("nothing", data=h5py.Empty("f4"))
    assert verify(path, progress=False).is_sound


def test_damage_in_an_h5ad(tmp_path):
    cells(200, 30).write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(tmp_path / "a.h5ad") as file:
        info = file["X/indices"].id.get_chunk_info(0)
    flipped(tmp_path / "a.h5ad", info.byte_offset + info.size // 2)
    [found] = verify(tmp_path / "a.h5ad", **QUIET).damage
    assert (found.array, found.chunks) == ("X/indices", (0, 0))


@pytest.mark.parametrize("compression", ["gzip", pytest.param("lzf", marks=pytest.mark.slow), None])
def test_numbers_in_an_h5ad_collection_have_checksums(tmp_path, compression):
    """All of them; without gzip, all but the values of matrices, which it would make slower to read."""
    adata = cells(60, 12)
    adata.obs["few"] = pd.array([1, None, 3] * 20, dtype="Int64")
    adata.obs["yes"] = [True, False] * 30
    adata.var["length"] = np.arange(12) * 10
    adata.varm["loadings"] = sp.csr_matrix(np.eye(12))
    root = tmp_path / "c"
    DatasetCollection(root, is_collection_h5ad=True).add_adatas([adata], h5ad_compressor=compression, **QUIET)
    (path,) = root.glob("*.h5ad")
    report = DatasetCollection(root, mode="r").verify(**QUIET)
    assert report.is_sound
    bare = {name.removeprefix(f"{path.name}/") for name in report.without_checksums}
    text = {"obs/_index", "obs/note", "obs/cell_type/categories", "obs/src_path/categories", "var/_index"}
    # anndata writes text as an array, or, from 0.13 on, as one of values beside one that says which are missing.
    arrays = {name.removesuffix("/values") for name in bare}
    assert arrays == text | (set() if compression == "gzip" else {"X/data", "X/indices"})
    original, places = path.read_bytes(), {}
    with h5py.File(path) as file:

        def note(name, item):
            if isinstance(item, h5py.Dataset) and item.chunks and name not in bare:
                places[name] = item.id.get_chunk_info(0)

        file.visititems(note)
    assert {"obs/few/values", "obs/few/mask", "obs/yes", "var/length", "varm/loadings/indptr", "X/indptr"} <= set(
        places
    )
    for name, chunk in places.items():
        flipped(path, chunk.byte_offset + chunk.size // 2)
        found = DatasetCollection(root, mode="r").verify(**QUIET).damage
        assert name in {damage.array for damage in found}, name
        path.write_bytes(original)
        if name.startswith("obs/") and "src_path" not in name:
            flipped(path, chunk.byte_offset + chunk.size // 2)
            with pytest.raises(storage.CorruptDataError, match=re.escape(str(path))):
                DatasetCollection(root, mode="r").obs()
            gc.collect()  # HDF5 keeps chunks of a file for as long as it is open, and the traceback may keep it so
            path.write_bytes(original)


def test_codes_without_categories_and_columns_without_genes(tmp_path):
    write(cells(50, 12), tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["obs/cell_type/codes"][3] = 7
        file["X/indices"][5] = 12
    text = "\n".join(map(str, verify(tmp_path / "a.h5ad", **QUIET).damage))
    assert "has codes from 0 to 7 but 3 categories" in text
    assert "a column number is outside 0 <= column < 12" in text


def test_what_is_no_store(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"")
    assert not verify(tmp_path / "a.h5ad", **QUIET).is_sound
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*b\.h5ad"):
        verify(tmp_path / "b.h5ad", **QUIET)


def test_the_command(tmp_path, capsys):
    root = tmp_path / "c.zarr"
    damage.make_collection(root)
    assert main(["verify", str(root), "--quiet"]) == 0
    assert "everything is as it was written" in capsys.readouterr().out
    flipped(root / "dataset_0/X/data/c/0", 20)
    assert main(["verify", str(root), "--quiet"]) == 1
    assert "damaged: " in capsys.readouterr().out
    assert main(["verify", str(root), "--quiet", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["is_sound"]
    assert found["damage"][0]["array"] == "X/data"
    assert main(["verify", str(tmp_path / "nothing"), "--quiet"]) == 1


def test_a_collection_of_h5ad_files(tmp_path):
    collection = DatasetCollection(tmp_path / "c", is_collection_h5ad=True).add_adatas([cells(50)], **QUIET)
    assert collection.verify(**QUIET).is_sound
    data = bytearray((tmp_path / "c/dataset_0.h5ad").read_bytes())
    with h5py.File(tmp_path / "c/dataset_0.h5ad") as file:
        info = file["X/data"].id.get_chunk_info(0)
    data[info.byte_offset + info.size // 2] ^= 1
    (tmp_path / "c/dataset_0.h5ad").write_bytes(data)
    assert [found.array for found in collection.verify(**QUIET).damage] == ["X/data"]
    assert np.isfinite(collection.verify(**QUIET).seconds)
