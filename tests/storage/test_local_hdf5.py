"""Files of HDF5 that are opened quickly: they say what h5py says, and forget nothing that could change."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import Loader, storage
from annbatch.storage.documents import read_by_anndata
from annbatch.storage.frames import FrameReader
from annbatch.storage.local_hdf5 import LocalDataset, LocalFile, LocalMembers, open_local_file, plain_hdf5, remembered
from tests.cells import cells, write


@pytest.fixture
def path(tmp_path):
    return write(cells(20, 6), tmp_path / "a.h5ad")


def test_groups_and_datasets_say_what_h5py_says(path):
    with open_local_file(str(path)) as file, h5py.File(path) as plain:
        names: list[str] = []
        plain.visit(names.append)
        for name in names:
            found, expected = file[name], plain[name]
            assert isinstance(found, LocalDataset if isinstance(expected, h5py.Dataset) else LocalMembers)
            assert found.file is file
            assert found.name == expected.name
            assert type(plain_hdf5(found)) is type(expected)
            if isinstance(expected, h5py.Dataset):
                assert (found.dtype, found.chunks, found.shape) == (expected.dtype, expected.chunks, expected.shape)
                np.testing.assert_array_equal(found[()], expected[()])
        for trait in ("filename", "driver", "mode", "userblock_size"):
            assert getattr(file, trait) == getattr(plain, trait)
        assert isinstance(file.get("obs"), LocalMembers)
        assert isinstance(file.get("X").get("data"), LocalDataset)
        assert file.get("no such") is None
        assert file.get("no such", 1) == 1
        assert file.get("obs", getclass=True) is h5py.Group
        assert isinstance(file[b"obs"], h5py.Group)


def test_what_is_not_there_is_a_key_error_as_of_h5py(path):
    with open_local_file(str(path)) as file, h5py.File(path) as plain:
        for name in ("no such", "obs/no such", "größe"):
            with pytest.raises(KeyError) as expected:
                plain[name]
            with pytest.raises(KeyError) as found:
                file[name]
            assert str(found.value) == str(expected.value)


def test_a_file_that_is_open_for_writing_is_not_remembered(path):
    with h5py.File(path, "r+"), open_local_file(str(path)) as file:
        assert type(file) is h5py.File
        assert file.mode == "r+"


def test_what_lies_behind_a_link_to_another_file_is_of_that_file(tmp_path, path):
    with h5py.File(tmp_path / "links.h5", "w") as links:
        links["X"] = h5py.ExternalLink(path.name, "X")
        links["own"] = np.arange(3)
        links["soft"] = h5py.SoftLink("/own")
    with open_local_file(str(tmp_path / "links.h5")) as file:
        assert file["X"].file.filename == str(path)
        assert not isinstance(file["X"], LocalMembers)
        assert isinstance(file["soft"], LocalDataset)


def test_what_is_remembered_is_asked_for_once_of_files_that_cannot_change(path):
    asked = []

    @remembered
    def name_of(elem):
        asked.append(elem.name)
        return elem.name

    with open_local_file(str(path)) as file, h5py.File(path) as plain:
        dataset, expected = file["X/data"], plain["X/data"]
        assert [name_of(dataset), name_of(dataset), name_of(file), name_of(file)] == ["/X/data", "/X/data", "/", "/"]
        assert asked == ["/X/data", "/"]
        assert [name_of(expected), name_of(expected)] == ["/X/data"] * 2
        assert asked == ["/X/data", "/", "/X/data", "/X/data"]


def test_a_group_that_only_anndata_knows_is_handed_over_as_h5py_has_it(path):
    with open_local_file(str(path)) as file:
        frame = read_by_anndata(file["obs"])
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 20


def test_a_loader_names_the_kind_of_matrix_as_h5py_does(tmp_path):
    path = write(cells(20, 6, dense=True), tmp_path / "dense.h5ad")
    with open_local_file(str(path)) as file:
        assert storage.public_type(file["X"]) is h5py.Dataset
    assert sum(batch["X"].shape[0] for batch in Loader(batch_size=8).add_paths([path])) == 20


def test_no_file_of_hdf5_is_named(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"something else")
    with pytest.raises(storage.CorruptDataError, match="neither an HDF5 file nor a Zarr group"):
        storage.open_group(tmp_path / "a.h5ad", quick=True)


def test_the_same_names_of_many_files_are_made_once(tmp_path):
    adata = cells(20, 6)
    adata.obs["kind"] = pd.Categorical(["a", "b"] * 10)
    paths = [write(adata, tmp_path / f"{number}.h5ad") for number in range(2)]
    adata.obs["kind"] = pd.Categorical(["a", "c"] * 10)
    other = write(adata, tmp_path / "other.h5ad")
    found = []
    for path in (*paths, other):
        with h5py.File(path) as file:
            found.append((FrameReader(file["var"]).index(), FrameReader(file["obs"]).labels("kind").categories))
    (names, kinds), (same_names, same_kinds), (_, other_kinds) = found
    assert same_kinds is kinds
    assert other_kinds.tolist() == ["a", "c"]
    assert same_names is not names  # whoever names one must not name the other
    assert same_names.equals(names)
    with pytest.raises(ValueError, match="read-only"):
        kinds.values[0] = "changed"


def test_a_file_is_not_held_by_what_was_read_of_it(path):
    file = open_local_file(str(path))
    assert isinstance(file, LocalFile)
    dataset = file["X/data"]
    file.close()
    assert not dataset
