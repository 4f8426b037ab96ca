"""What a collection says of its datasets: one that is gone, or another one in its place, is noticed; those of others are welcome."""

from __future__ import annotations

import json
import shutil
import warnings

import anndata as ad
import numpy as np
import pytest
import zarr

from annbatch import DatasetCollection, Loader
from annbatch.cli import main
from annbatch.collection import root as collection_root
from annbatch.collection.building import journal
from annbatch.collection.building.journal import BusyError, WorkFolder
from annbatch.collection.verify import accept, verify
from annbatch.storage import CorruptDataError
from annbatch.storage.listing import LISTING
from annbatch.storage.manifest import MANIFEST
from tests.cells import cells

QUIET = {"progress": False, "shuffle": False}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Three datasets that differ."""
    root = tmp_path_factory.mktemp("listing") / "c.zarr"
    DatasetCollection(root).add_adatas([cells(60, seed=1)], dataset_size=20, **QUIET)
    return root


@pytest.fixture
def root(built, tmp_path):
    return shutil.copytree(built, tmp_path / "c.zarr")


def n_rows(collection):
    return len(Loader(preload_to_gpu=False, batch_size=1).use_collection(collection))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document["attributes"])
    path.write_text(json.dumps(document))


def lose(root):
    shutil.rmtree(root / "dataset_1")


def swap(root):
    (root / "dataset_1").rename(root / "other")
    (root / "dataset_0").rename(root / "dataset_1")
    (root / "other").rename(root / "dataset_0")


def unseal(root):
    edit(root / "dataset_1/zarr.json", lambda attributes: attributes.pop(MANIFEST))


CHANGES = {
    "lose": (lose, "dataset_1 is missing; copy"),
    "swap": (swap, "dataset_. is not the dataset"),
    "unseal": (unseal, "none"),
}
READERS = {
    "a path": n_rows,
    "a group": lambda root: n_rows(zarr.open_group(root, mode="r", use_consolidated=False)),
    "a group that knows copies of metadata": lambda root: n_rows(zarr.open_group(root, mode="r")),
    "a collection": lambda root: n_rows(DatasetCollection(root, mode="r")),
    "obs": lambda root: DatasetCollection(root).obs(),
    "obs of no columns": lambda root: DatasetCollection(root).obs([]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_dataset_that_is_not_what_was_written_is_refused(change, reader, root):
    READERS[reader](root)
    do, said = CHANGES[change]
    do(root)
    with pytest.raises(CorruptDataError, match=f"{said}.*annbatch verify PATH --accept"):
        READERS[reader](root)


@pytest.mark.parametrize("change", CHANGES)
def test_verify_says_so_and_accepts_it(change, root, capsys):
    CHANGES[change][0](root)
    assert main(["verify", str(root), "--quiet"]) == 1
    assert "c.zarr/dataset_1 is" in capsys.readouterr().out
    assert main(["verify", str(root), "--accept", "--quiet"]) == 0
    assert main(["verify", str(root), "--quiet"]) == 0
    assert n_rows(root) == len(DatasetCollection(root).obs()) == (40 if change == "lose" else 60)
    assert not (root / ".annbatch").exists()
    root_document = json.loads((root / "zarr.json").read_text())
    for name, copy in root_document["consolidated_metadata"]["metadata"].items():
        assert copy == json.loads((root / name / "zarr.json").read_text())


@pytest.mark.filterwarnings("ignore:Object at dataset_1")
@pytest.mark.parametrize("listed", [True, False])
def test_a_dataset_of_zarr_format_2_is_refused_and_not_left_out(listed, root):
    if not listed:  # as in collections of others
        edit(root / "zarr.json", lambda attributes: attributes.pop(LISTING))
    rewritten(root, zarr_format=2)
    for reader in READERS.values():
        with pytest.raises(CorruptDataError, match="dataset_1 was written in Zarr format 2.*zarr_write_format = 3"):
            reader(root)


@pytest.mark.filterwarnings("ignore:Object at dataset_1")
def test_a_dataset_of_zarr_format_2_is_accepted_once_it_is_of_format_3(root, capsys):
    rewritten(root, zarr_format=2)
    for arguments in (["verify"], ["verify", "--accept"]):
        assert main([*arguments, str(root), "--quiet"]) == 1
        assert capsys.readouterr().out.count("written in Zarr format 2") == 1
    rewritten(root, zarr_format=3)
    assert main(["verify", "--accept", str(root), "--quiet"]) == 0
    with pytest.warns(
        UserWarning, match="uint8 in dataset_1 of the collection"
    ):  # anndata keeps no note of the dtype there was
        assert n_rows(root) == 60


def rewritten(root, zarr_format):
    """What anndata makes of a dataset that it read, after a column was added."""
    adata = ad.read_zarr(root / "dataset_1")
    adata.obs["mine"] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what anndata is going to change
        ad.io.write_elem(zarr.open_group(root / "dataset_1", mode="w", zarr_format=zarr_format), "/", adata)


def test_a_root_without_its_document_says_what_to_copy(root):
    (root / "zarr.json").unlink()
    for reader in ("a path", "a collection"):
        with pytest.raises(
            CorruptDataError, match=r"c.zarr holds datasets .* zarr.json is missing.*copy that file again"
        ):
            READERS[reader](root)


def test_a_dataset_that_is_accepted_by_its_own_path_is_listed_anew(root, monkeypatch):
    """An error about a document of it names its path, so that is what is passed."""
    zarr.open_group(root / "dataset_1", mode="r+", use_consolidated=False).attrs["lab"] = "ours"
    lose_another = root / "dataset_2"
    monkeypatch.chdir(root / "dataset_1")
    assert accept(".", progress=False).is_sound
    assert n_rows(root) == 60
    assert verify(root, progress=False).is_sound
    shutil.rmtree(lose_another)
    assert accept("../dataset_1/", progress=False).is_sound
    with pytest.raises(CorruptDataError, match="dataset_2 is missing"):
        n_rows(root)


def test_accepted_where_no_manifest_is_left(root):
    lose(root)
    for name in ("dataset_0", "dataset_2"):
        edit(root / name / "zarr.json", lambda attributes: attributes.pop(MANIFEST))
    assert accept(root, progress=False).is_sound
    assert verify(root, progress=False).is_sound
    assert n_rows(root) == len(DatasetCollection(root).obs()) == 40


def test_accepted_where_no_dataset_is_left(root):
    for number in range(3):
        shutil.rmtree(root / f"dataset_{number}")
    assert len(verify(root, progress=False).damage) == 3
    assert accept(root, progress=False).is_sound
    assert DatasetCollection(root).is_empty
    DatasetCollection(root).add_adatas([cells(10, seed=2)], **QUIET)
    assert n_rows(root) == 10


def test_what_is_missing_is_found_before_anything_is_added(root):
    lose(root)
    with pytest.raises(CorruptDataError, match="dataset_1 is missing"):
        DatasetCollection(root).add_adatas([cells(10, seed=2)], **QUIET)
    assert not (root / "dataset_3").exists()


def test_an_addition_does_not_accept_what_was_exchanged(root):
    swap(root)
    DatasetCollection(root).add_adatas([cells(10, seed=2)], **QUIET)
    assert [str(damage) for damage in verify(root, progress=False).damage if "dataset_1 is not" in str(damage)]


def test_datasets_of_others_are_welcome_and_listed_with_the_next_addition(root):
    shutil.copytree(root / "dataset_0", root / "dataset_7")
    assert n_rows(root) == 80
    DatasetCollection(root).add_adatas([cells(10, seed=2)], **QUIET)
    assert n_rows(root) == 90
    shutil.rmtree(root / "dataset_7")
    with pytest.raises(CorruptDataError, match="dataset_7 is missing"):
        n_rows(root)


def test_of_a_dataset_without_manifest_it_is_known_that_it_was_there(root):
    unseal(root)
    edit(root / "zarr.json", lambda attributes: attributes.pop(LISTING))
    DatasetCollection(root).add_adatas([cells(10, seed=2)], **QUIET)
    assert json.loads((root / "zarr.json").read_text())["attributes"][LISTING]["dataset_1"] == ""
    assert n_rows(root) == 70
    lose(root)
    with pytest.raises(CorruptDataError, match="dataset_1 is missing"):
        n_rows(root)


def test_one_of_a_later_annbatch_is_not_compared(root):
    edit(
        root / "dataset_1/zarr.json",
        lambda attributes: attributes[MANIFEST].update(version=2, digest="of another kind"),
    )
    assert n_rows(root) == 60


@pytest.mark.parametrize("value", [3, ["dataset_0"], {"dataset_0": 1}, {"../dataset_0": ""}, None])
def test_a_listing_that_is_none_is_damage(value, root):
    edit(root / "zarr.json", lambda attributes: attributes.update({LISTING: value}))
    for read in READERS.values():
        with pytest.raises(CorruptDataError, match=f"the attribute {LISTING} is damaged"):
            read(root)
    assert not verify(root, progress=False).is_sound


def test_elsewhere_than_in_a_folder(tmp_path):
    store = zarr.storage.MemoryStore()
    group = zarr.create_group(store)
    for seed in range(2):
        DatasetCollection(group).add_adatas([cells(20, seed=seed)], **QUIET)
    assert n_rows(zarr.open_group(store, mode="r")) == 40
    del zarr.open_group(store, mode="r+")["dataset_0"]
    with pytest.raises(CorruptDataError, match="dataset_0 is missing"):
        n_rows(zarr.open_group(store, mode="r"))
    with pytest.raises(CorruptDataError, match="dataset_0 is missing"):
        DatasetCollection(group).add_adatas([cells(20, seed=3)], **QUIET)


def test_what_is_taken_as_it_is_now_is_not_written_under_a_writer(root, monkeypatch):
    monkeypatch.setattr(journal, "_PATIENCE_SECONDS", 0.0)
    lose(root)
    with WorkFolder(root), pytest.raises(BusyError, match="being written to by another process"):
        accept(root, progress=False)
    assert accept(root, progress=False).is_sound


def test_a_root_never_grows_larger_than_what_is_read(root, monkeypatch):
    """Of hundreds of datasets with many columns, copies of all metadata would make a document that readers refuse."""
    expected = DatasetCollection(root).obs()
    monkeypatch.setattr(collection_root, "MOST_BYTES", (root / "zarr.json").stat().st_size + 1000)
    for seed in (2, 3):
        DatasetCollection(root).add_adatas([cells(10, seed=seed)], **QUIET)
        assert (root / "zarr.json").stat().st_size < 1000
        assert n_rows(root) == n_rows(zarr.open_group(root, mode="r")) == 60 + 10 * (seed - 1)
    assert len(json.loads((root / "zarr.json").read_text())["attributes"][LISTING]) == 5
    np.testing.assert_array_equal(DatasetCollection(root).obs().index[:60], expected.index)
    lose(root)
    with pytest.raises(CorruptDataError, match="dataset_1 is missing"):
        n_rows(root)
