"""What a dataset says of itself: checksums on every array, a manifest of its files, and other readers who do not mind."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import DatasetCollection, Loader, storage, write_sharded
from annbatch.cli import main
from annbatch.collection.manifest import write_manifest
from annbatch.collection.verify import accept, verify
from annbatch.storage import CorruptDataError, manifest
from annbatch.storage.listing import LISTING
from annbatch.storage.reading import proving
from tests.cells import cells

from . import damage


@pytest.fixture
def collection(tmp_path):
    damage.make_collection(tmp_path / "c.zarr")
    return DatasetCollection(tmp_path / "c.zarr")


def arrays(root):
    for path in root.rglob("zarr.json"):
        document = json.loads(path.read_text())
        if document["node_type"] == "array":
            yield path.parent, document


def innermost(document):
    codecs = document["codecs"]
    return codecs[0]["configuration"]["codecs"] if codecs[0]["name"] == "sharding_indexed" else codecs


def everything():
    """An AnnData with all that write_sharded writes through anndata's own writers."""
    adata = cells(40, 10)
    adata.raw = adata.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["frame"] = pd.DataFrame({"a": np.arange(40)}, index=adata.obs_names)
    adata.varm["pcs"] = np.eye(10)
    adata.obsp["near"] = sp.csr_matrix(np.eye(40))
    adata.uns["about"] = {"text": "hello", "number": 3, "list": np.array(["a", "b"], object), "none": np.zeros(0)}
    return adata


def test_every_array_ends_its_chunks_with_a_checksum(collection, tmp_path):
    write_sharded(zarr.open_group(tmp_path / "one.zarr", mode="w"), everything())
    found = [*arrays(tmp_path / "c.zarr"), *arrays(tmp_path / "one.zarr")]
    assert len(found) > 50
    for path, document in found:
        assert innermost(document)[-1]["name"] == "crc32c", path
    assert verify(tmp_path / "one.zarr", progress=False).without_checksums == []


def test_a_checksum_is_not_added_twice(tmp_path):
    from zarr.codecs import Crc32cCodec, ZstdCodec

    DatasetCollection(tmp_path / "c.zarr").add_adatas(
        [cells(20)], zarr_compressor=[ZstdCodec(), Crc32cCodec()], progress=False
    )
    document = json.loads((tmp_path / "c.zarr/dataset_0/X/data/zarr.json").read_text())
    assert [codec["name"] for codec in innermost(document)] == ["bytes", "zstd", "crc32c"]


def test_other_readers_do_not_mind(tmp_path):
    adata = everything()
    write_sharded(zarr.open_group(tmp_path / "one.zarr", mode="w"), adata)
    back = ad.read_zarr(tmp_path / "one.zarr")
    assert (back.X != adata.X).nnz == 0
    assert (back.raw.X != adata.X).nnz == 0
    assert (back.obsp["near"] != adata.obsp["near"]).nnz == 0
    pd.testing.assert_frame_equal(back.obsm["frame"], adata.obsm["frame"], check_names=False)
    assert back.uns["about"]["text"] == "hello"
    assert set(back.uns) == {"about"}


@pytest.mark.filterwarnings("ignore")
def test_zarrs_reads_the_same(collection):
    pytest.importorskip("zarrs")
    before = ad.io.read_elem(next(iter(collection))["X"])
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        [group, *_] = DatasetCollection(collection._place.root, mode="r")
        assert (ad.io.read_elem(group["X"]) != before).nnz == 0


def test_a_caller_s_attributes_are_part_of_what_is_sealed(tmp_path):
    group = zarr.open_group(tmp_path / "one.zarr", mode="w", attributes={"mine": 1})
    write_sharded(group, cells(20))
    assert manifest.check_dataset(tmp_path / "one.zarr")
    assert storage.open_group(tmp_path / "one.zarr").attrs["mine"] == group.attrs["mine"] == 1


def test_a_collection_without_manifest_opens(collection):
    root = collection._place.root
    expected = damage.values(root)
    for folder, name in ((root, LISTING), *((dataset, manifest.MANIFEST) for dataset in root.glob("dataset_*"))):
        document = json.loads((folder / "zarr.json").read_text())
        del document["attributes"][name]
        (folder / "zarr.json").write_text(json.dumps(document))
    (root / "dataset_0/obs/zarr.json").write_text((root / "dataset_0/obs/zarr.json").read_text() + "\n")
    assert damage.values(root) == expected


def test_opening_names_the_document_that_was_changed(collection):
    root = collection._place.root
    zarr.open_group(root / "dataset_0", mode="r+", use_consolidated=False)["obs"].attrs["mine"] = 1
    with pytest.raises(
        storage.CorruptDataError, match=r"dataset_0/obs/zarr.json is damaged, or was changed .*--accept"
    ):
        collection.obs()
    with pytest.raises(storage.CorruptDataError, match=r"obs/zarr.json"):
        Loader(preload_to_gpu=False).use_collection(collection)
    with pytest.raises(storage.CorruptDataError, match=r"obs/zarr.json"):
        storage.open_group(root / "dataset_0")


def test_what_was_changed_on_purpose_can_be_accepted(collection, capsys):
    root = collection._place.root
    group = zarr.open_group(root / "dataset_0", mode="r+", use_consolidated=False)
    obs = ad.io.read_elem(group["obs"])
    obs["more"] = np.arange(len(obs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(group, "obs", obs)
    assert main(["verify", str(root), "--quiet"]) == 1
    assert "changed on purpose" in capsys.readouterr().out
    assert main(["verify", str(root), "--accept", "--quiet"]) == 0
    assert main(["verify", str(root), "--quiet"]) == 0
    np.testing.assert_array_equal(collection.obs(["more"])["more"].dropna(), np.arange(len(obs)))


def test_while_a_change_is_looked_at_nothing_is_written(collection, monkeypatch):
    """So a process that is killed then leaves the manifest as it was."""
    document = collection._place.root / "dataset_0/zarr.json"
    before, prove, seen = document.read_bytes(), proving.prove, []

    def looked_at(*arguments):
        seen.append(document.read_bytes())
        return prove(*arguments)

    monkeypatch.setattr("annbatch.collection.verify.prove", looked_at)
    assert accept(collection._place.root, progress=False).is_sound
    assert set(seen) == {before}


def test_damage_is_not_accepted(collection):
    root = collection._place.root
    before = (root / "dataset_0/zarr.json").read_bytes()
    damage.Damage("flip", "dataset_0/X/data/c/0", 1).apply(root)
    assert main(["verify", str(root), "--accept", "--quiet"]) == 1
    assert (root / "dataset_0/zarr.json").read_bytes() == before


@pytest.mark.parametrize("name", ["X/data/c/0", "obs/src_path/codes/c/0"])
def test_a_file_that_is_missing_is_not_accepted(collection, name, capsys):
    """Its chunks would be read as zeros from then on."""
    root = collection._place.root
    before = (root / "dataset_0/zarr.json").read_bytes()
    (root / "dataset_0" / name).unlink()
    with pytest.raises(storage.CorruptDataError, match=f"{name} is missing; .* copy it again"):
        collection.obs()
    with pytest.raises(storage.CorruptDataError) as caught:
        Loader().use_collection(root)
    assert str(caught.value).startswith(f"{root / 'dataset_0' / name} is missing")
    assert main(["verify", str(root), "--accept", "--quiet"]) == 1
    assert f"{name} is missing" in capsys.readouterr().out
    assert (root / "dataset_0/zarr.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_consolidated_metadata_changes_nothing(collection):
    root = collection._place.root
    zarr.consolidate_metadata(root / "dataset_0", zarr_format=3)
    assert manifest.check_dataset(root / "dataset_0")
    assert len(collection.obs()) == 400


def test_a_file_that_was_not_there_is_noticed(tmp_path):
    """All chunks of a column of fill values may be missing; one that appears later would be read."""
    array = zarr.create_array(tmp_path / "one.zarr/x", shape=(10,), chunks=(10,), dtype="i4", fill_value=0)
    zarr.open_group(tmp_path / "one.zarr", mode="a")
    write_manifest(tmp_path / "one.zarr")
    assert manifest.check_dataset(tmp_path / "one.zarr")
    array[:] = 1
    with pytest.raises(storage.CorruptDataError, match="was not there when the dataset was written"):
        manifest.check_dataset(tmp_path / "one.zarr")


def test_thousands_of_files_are_cheap(tmp_path):
    """Opening takes one look at each file: well below what opening the arrays takes."""
    array = zarr.create_array(tmp_path / "one.zarr/x", shape=(4_000,), chunks=(1,), dtype="u1", fill_value=0)
    for i in range(4_000):
        path = tmp_path / "one.zarr/x/c" / str(i)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x01")
    del array
    zarr.open_group(tmp_path / "one.zarr", mode="a")
    write_manifest(tmp_path / "one.zarr", add_checksums=False)
    assert (tmp_path / "one.zarr/x/zarr.json").stat().st_size < 100_000
    best = math.inf
    for _ in range(5):
        start = time.thread_time()
        assert manifest.check_dataset(tmp_path / "one.zarr")
        best = min(best, time.thread_time() - start)
    assert best < 0.5
    os.truncate(tmp_path / "one.zarr/x/c/777", 0)
    with pytest.raises(storage.CorruptDataError, match=r"x/c/777 is cut short: it had 1 bytes"):
        manifest.check_dataset(tmp_path / "one.zarr")


def test_a_collection_that_was_built_anew_is_not_read_with_old_labels(tmp_path):
    """By a loader that has read nothing yet, and by a pickle of it."""

    def build(seed):
        DatasetCollection(tmp_path / "c.zarr").add_adatas(
            [cells(50, seed=0)], rng=np.random.default_rng(seed), progress=False
        )

    build(0)
    loader = Loader(batch_size=10, labels=["cell_type"]).use_collection(tmp_path / "c.zarr")
    data = pickle.dumps(loader)
    shutil.rmtree(tmp_path / "c.zarr")
    build(1)
    for each in (loader, pickle.loads(data)):
        with pytest.raises(CorruptDataError, match="changed, replaced or removed after it was opened"):
            next(iter(each))
