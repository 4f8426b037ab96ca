"""The root document of a collection: whatever is done to it and to the datasets, what is written last is true of them."""

from __future__ import annotations

import json
import os
import shutil
import warnings

import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annbatch import DatasetCollection
from annbatch.collection import root as root_module
from annbatch.collection.root import read_root, root_text
from annbatch.storage.listing import LISTING
from tests.cells import cells

QUIET = {"progress": False}
COPIES = "annbatch-copies"


class Folder:
    """A collection of documents alone, with a clock of its own."""

    def __init__(self, path):
        self.path, self.ticks, self.listed = path, 0, {}
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        self.write("zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {"by": "others"}})

    def write(self, name, document, *, indent=None):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=indent))
        self.tick(path)

    def tick(self, path):
        self.ticks += 1
        os.utime(path, ns=(self.ticks * 10**9,) * 2)

    def add(self, number):
        """Write a dataset, or write it anew."""
        name = f"dataset_{number}"
        self.write(f"{name}/zarr.json", {"node_type": "group", "attributes": {"written": self.ticks}})
        self.write(f"{name}/X/zarr.json", {"node_type": "array", "shape": [self.ticks]})
        self.listed[name] = f"digest {self.ticks}"

    def remove(self, number):
        shutil.rmtree(self.path / f"dataset_{number}", ignore_errors=True)

    def edit(self, change, *, indent=None):
        """What someone else does to the root."""
        document = json.loads((self.path / "zarr.json").read_text())
        change(document)
        self.write("zarr.json", document, indent=indent)

    def publish(self):
        """Write what :func:`root_text` says; returns whether that was anything."""
        root = read_root(self.path / "zarr.json")
        names = sorted(path.parent.name for path in self.path.glob("dataset_*/zarr.json"))
        text = root_text(self.path, root, {**root.attributes, LISTING: dict(self.listed)}, names)
        if text is not None:
            (self.path / "zarr.json").write_text(text)
            self.tick(self.path / "zarr.json")
        return text is not None

    def check(self):
        """The root has copies of all documents as they are, and is well-formed."""
        text = (self.path / "zarr.json").read_text()
        root = json.loads(text)
        paths = self.path.glob("dataset_*/**/zarr.json")
        there = {path.parent.relative_to(self.path).as_posix(): json.loads(path.read_text()) for path in paths}
        assert root["consolidated_metadata"]["metadata"] == there
        assert root["attributes"][LISTING] == self.listed
        assert text == json.dumps(root)


def lose_a_copy(document):
    copies = document.get("consolidated_metadata", {}).get("metadata", {})
    if copies:
        del copies[max(copies)]


def nest(document):
    document["attributes"]["mine"] = {
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}}
    }


EDITS = [
    lambda document: document["attributes"].update(note='\u00e4 } { " consolidated_metadata'),
    lambda document: document.update(extra=[1]),  # behind the copies
    lose_a_copy,
    nest,
]
steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.integers(0, 3)),
    st.tuples(st.just("edit"), st.sampled_from(EDITS), st.sampled_from([None, 2])),
    st.tuples(st.just("publish")),
)


@given(done=st.lists(steps, max_size=12))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_done_before_the_root_is_true(done, tmp_path):
    folder = Folder(tmp_path / "c")
    for what, *arguments in done:
        if what == "edit":
            folder.edit(arguments[0], indent=arguments[1])
        else:
            getattr(folder, what)(*arguments)
        if what == "publish":
            folder.check()
    folder.publish()
    folder.check()
    attributes = json.loads((folder.path / "zarr.json").read_text())["attributes"]
    assert attributes["by"] == "others"
    # Where one is missing, or an attribute looks like copies, the root is written again with each call.
    if "mine" not in attributes and all((folder.path / name).exists() for name in folder.listed):
        assert not folder.publish(), "nothing has changed"


@pytest.fixture
def published(tmp_path):
    folder = Folder(tmp_path / "c")
    for number in range(3):
        folder.add(number)
    assert folder.publish()
    return folder


@pytest.fixture
def read(monkeypatch):
    """Nodes whose documents are read, in order."""
    keys, note = [], root_module._note_documents
    monkeypatch.setattr(root_module, "_note_documents", lambda *args: (keys.append(args[1]), note(*args)))
    return keys


def test_an_addition_reads_what_is_new_alone(published, read):
    published.add(3)
    assert published.publish()
    assert read == ["dataset_3", "dataset_3/X"]
    published.check()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: folder.add(0),
        lambda folder: folder.tick(folder.path / "dataset_1/zarr.json"),
        lambda folder: folder.edit(lose_a_copy),
        lambda folder: folder.edit(EDITS[0], indent=2),
        lambda folder: folder.listed.update(dataset_1="another"),
        lambda folder: folder.listed.update(dataset_1=""),
    ],
    ids=["written anew", "touched", "a copy is lost", "rewritten by others", "another listing", "no manifest"],
)
def test_all_are_read_where_one_may_be_another(change, published, read):
    change(published)
    published.add(3)
    published.publish()
    assert {"dataset_0", "dataset_1", "dataset_2", "dataset_3"} <= set(read)
    published.check()


def test_a_dataset_that_comes_back_is_copied_again(published):
    """It was gone while the root was written, and is put back with the times that it had."""
    aside = published.path.parent / "aside"
    (published.path / "dataset_1").rename(aside)
    published.add(3)
    published.publish()
    aside.rename(published.path / "dataset_1")
    published.publish()
    published.check()


@pytest.mark.parametrize("listed", [[], "dataset_0", None, 3])
def test_a_listing_that_is_none_is_replaced(listed, published):
    published.edit(lambda document: document["attributes"].update({LISTING: listed}))
    assert published.publish()
    published.check()


def test_copies_are_left_out_for_good_where_they_are_too_large(published, monkeypatch):
    copies = read_root(published.path / "zarr.json").copies
    monkeypatch.setattr(root_module, "MOST_BYTES", len(copies))
    for number in (3, 4):
        published.add(number)
        published.publish()
        root = json.loads((published.path / "zarr.json").read_text())
        assert "consolidated_metadata" not in root
        assert COPIES not in root["attributes"]
        assert len(root["attributes"][LISTING]) == number + 1
        assert not published.publish()


def test_of_a_real_collection(tmp_path):
    """After additions, and after zarr-python wrote the root, zarr-python finds every document in it."""
    place = tmp_path / "c.zarr"
    for seed in range(3):
        DatasetCollection(place).add_adatas([cells(20, seed=seed)], **QUIET)
        documents = {
            path.parent.relative_to(place).as_posix(): json.loads(path.read_text())
            for path in place.glob("dataset_*/**/zarr.json")
        }
        root = json.loads((place / "zarr.json").read_text())
        assert root["consolidated_metadata"]["metadata"] == documents
        if seed == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr: not part of the Zarr v3 specification yet
                zarr.consolidate_metadata(place)
            zarr.open_group(place).attrs["note"] = "mine"
    assert root["attributes"]["note"] == "mine"
    assert sorted(zarr.open_group(place, mode="r", use_consolidated=True).group_keys()) == [
        f"dataset_{number}" for number in range(3)
    ]
