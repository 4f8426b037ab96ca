"""Damage to the texts of h5ad files: an error of ours, before HDF5 looks at it, which would look for ever."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import storage
from annbatch.collection.verify import verify
from annbatch.storage.chunks.hdf5_table import text_table
from annbatch.storage.chunks.straight import read_straight
from annbatch.storage.frames import FrameReader
from annbatch.storage.hdf5_items import TEXT_PLACE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are read by h5py alone there")

N_OBS = 300
# Where the texts are that are damaged.
NAMES, CATEGORIES, ATTRIBUTES, VARM = "obs/_index", "obs/kind/categories", "attributes", "varm/t/note"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An h5ad file with all kinds of text."""
    path = tmp_path_factory.mktemp("heap") / "a.h5ad"
    names = [f"cell_{i:028}" for i in range(N_OBS)]
    kinds = [f"kind_{i % 150:060}" for i in range(N_OBS)]
    obs = pd.DataFrame({"kind": pd.Categorical(kinds)}, index=names)
    varm = {"t": pd.DataFrame({"note": [f"note_{i:2000}" for i in range(4)]}, index=list("abcd"))}
    adata = ad.AnnData(
        sp.eye(N_OBS, 4, format="csr", dtype="f4"), obs=obs, var=pd.DataFrame(index=list("abcd")), varm=varm
    )
    adata.write_h5ad(path)
    return path


def texts_of(file, what):
    """The array of text; anndata 0.13 writes a group, with a mask beside it."""
    elem = file[what]
    return elem["values"] if isinstance(elem, h5py.Group) else elem


def places_of(path, what):
    """Where texts lie (TEXT_PLACE) that share a collection; of attributes, where the first collection is."""
    if what == ATTRIBUTES:
        return np.array([(1, path.read_bytes().index(b"GCOL"), 1)], TEXT_PLACE)
    with h5py.File(path) as file:
        texts = texts_of(file, what)
        found = read_straight(text_table(texts), TEXT_PLACE, 0, texts.shape[0])
    addresses, counts = np.unique(found["address"], return_counts=True)
    return found[found["address"] == addresses[counts.argmax()]]  # full of them: nothing else is in it


class Collection:
    """A collection of the global heap, to be damaged."""

    def __init__(self, path, what):
        self.data = bytearray(path.read_bytes())
        self.at = int(places_of(path, what)["address"][0])
        (self.size,) = struct.unpack_from("<Q", self.data, self.at + 8)
        self.objects = []
        at = self.at + 16
        while at + 16 <= self.at + self.size:
            number, size = struct.unpack_from("<H6xQ", self.data, at)
            self.objects.append(at)
            at += 16 + -(-size // 8) * 8 if number else size

    @property
    def middle(self):
        return self.objects[len(self.objects) // 2]

    def put(self, at, form, *values):
        struct.pack_into(form, self.data, at, *values)


DAMAGE = {
    "head zeroed": lambda c: c.put(c.at, "16x"),
    "all zeroed": lambda c: c.put(c.at, f"{c.size}x"),
    "collection of size 0": lambda c: c.put(c.at + 8, "<Q", 0),
    "collection beyond the file": lambda c: c.put(c.at + 8, "<Q", 1 << 40),
    "collection of all that there is": lambda c: c.put(c.at + 8, "<Q", 2**64 - 1),
    "object zeroed": lambda c: c.put(c.middle, "16x"),
    "object and text zeroed": lambda c: c.put(c.middle, "48x"),
    "last object zeroed": lambda c: c.put(c.objects[-1], "16x"),
    "object of size 0": lambda c: c.put(c.middle + 8, "<Q", 0),
    "object beyond its collection": lambda c: c.put(c.middle + 8, "<Q", 1 << 20),
    "object of all that there is": lambda c: c.put(c.middle + 8, "<Q", 2**64 - 8),
    "free space of size 8": lambda c: c.put(c.middle, "<H6xQ", 0, 8),
    "number that is not there": lambda c: c.put(c.middle, "<H", 60_000),
}
# Where nobody asks for the object, and no object behind it is needed.
MAY_BE_READ = ("last object zeroed", "number that is not there")
TARGETS = (NAMES, CATEGORIES, ATTRIBUTES, VARM)

READ_ALL = """
    import json, sys, warnings
    from annbatch.collection.building.inputs.inputs import input_of_group
    from annbatch.storage import CorruptDataError, open_group
    from tests.trust.test_hostile import read_all
    warnings.simplefilter("ignore")

    def read(path):
        read_all(path)
        group = open_group(path)
        input_of_group(path, group, owned=True).close()

    for path in sys.argv[1:]:
        try:
            read(path)
            said = "read"
        except CorruptDataError as error:
            said = f"damaged: {error}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([path, said]), flush=True)
"""


def read_in_a_process(paths):
    """What a process says of each file, which reads one after the other."""
    command = [sys.executable, "-c", textwrap.dedent(READ_ALL), *map(str, paths)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=280, check=False, cwd=Path(__file__).parents[2]
        )
    except subprocess.TimeoutExpired as error:
        n_done = len((error.stdout or b"").splitlines())
        pytest.fail(f"reading {paths[n_done].name} did not end")
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(map(json.loads, done.stdout.splitlines()))


def test_damaged_texts_are_refused_and_never_looked_for_for_ever(sound, tmp_path):
    """All in one process."""
    paths = {}
    for target in TARGETS:
        for name, damage in DAMAGE.items():
            collection = Collection(sound, target)
            damage(collection)
            path = tmp_path / f"{target} {name}.h5ad".replace("/", " ")
            path.write_bytes(collection.data)
            paths[path] = name
    said = read_in_a_process([sound, *paths])
    assert said.pop(str(sound)) == "read"
    for path, name in paths.items():
        found = said[str(path)]
        if name in MAY_BE_READ and found == "read":
            continue
        assert found.startswith("damaged: "), found
        assert str(path) in found


def test_a_place_that_leads_nowhere_is_named_with_its_row(sound, tmp_path):
    with h5py.File(sound) as file:
        at = texts_of(file, NAMES).id.get_offset()
        assert at is not None
    for change, words in (
        (
            lambda data: struct.pack_into("<I", data, at + 16 * 70 + 12, 60_000),
            r"text 60000 in it, .* is not there \(row 70\)",
        ),
        (lambda data: struct.pack_into("<I", data, at + 16 * 60, 7), r", of 7 bytes, has 33 bytes \(row 60\)"),
        (lambda data: struct.pack_into("<Q", data, at + 16 * 50 + 4, 1 << 50), "the file ends at byte"),
        (lambda data: struct.pack_into("<Q", data, at + 16 * 40 + 4, 96), "no collection of texts is there"),
    ):
        data = bytearray(sound.read_bytes())
        change(data)
        (tmp_path / "b.h5ad").write_bytes(data)
        with (
            h5py.File(tmp_path / "b.h5ad") as file,
            pytest.raises(storage.CorruptDataError, match=rf"b\.h5ad :: obs/_index(/values)?: .*{words}"),
        ):
            FrameReader(file["obs"]).index()


def test_verify_names_damaged_texts_and_ends(sound, tmp_path):
    # (Where texts of attributes share the collection, as anndata 0.13 writes names, the damage is named as theirs.)
    for target, where in ((NAMES, "obs/"), (ATTRIBUTES, "attributes")):
        collection = Collection(sound, target)
        DAMAGE["object zeroed"](collection)
        path = tmp_path / "b.h5ad"
        path.write_bytes(collection.data)
        said = "\n".join(map(str, verify(path, progress=False).damage))
        assert f"the texts at byte {collection.at} of the file are damaged" in said
        assert where in said
    assert verify(sound, progress=False).is_sound


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_attributes_are_found_in_headers_of_all_kinds(libver, tmp_path):
    """Of old and new files; where there are more than eight in a new one, HDF5 keeps them elsewhere, and only HDF5 finds them."""
    path = tmp_path / "a.h5ad"
    with h5py.File(path, "w", libver=libver) as file:
        group = file.create_group("obs")
        group.attrs["number"], group.attrs["of one length"], group.attrs["none"] = 3, np.bytes_("abc"), h5py.Empty("f4")
        group.attrs["text"], group.attrs["texts"] = "é" * 50, np.array([["a", ""], ["b", "c" * 900]], dtype=object)
    assert storage.open_group(path)["obs"].attrs["texts"].tolist() == [["a", ""], ["b", "c" * 900]]
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL")
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(
        storage.CorruptDataError, match=r"a\.h5ad :: obs, attributes: .*no collection of texts is there"
    ):
        storage.open_group(path)


def test_members_that_are_not_read_may_be_damaged(sound, tmp_path):
    path = tmp_path / "b.h5ad"
    path.write_bytes(sound.read_bytes())
    with h5py.File(path, "r+") as file:
        file["uns"].attrs["long"] = "u" * 9000
    data = bytearray(path.read_bytes())
    at = data.rindex(b"GCOL")
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    storage.open_group(path)
    assert not verify(path, progress=False).is_sound


def test_a_datatype_in_place_of_a_column_is_damage(sound, tmp_path):
    """A changed byte of a header makes one of it: errors of other libraries named no file."""
    path = tmp_path / "b.h5ad"
    path.write_bytes(sound.read_bytes())
    with h5py.File(path, "r+") as file:
        for name in ("obs/kind/categories", "X/data"):
            del file[name]
            file[name] = np.dtype("f4")
    with h5py.File(path) as file:
        with pytest.raises(storage.CorruptDataError, match=r"b\.h5ad :: obs is neither an array nor a group"):
            FrameReader(file["obs"]).frame()
        with pytest.raises(storage.CorruptDataError, match=r"b\.h5ad :: /X: expected .* h5py.Dataset"):
            storage.open_matrix(file["X"])


def compact(group):
    """Texts whose places lie in the header."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.COMPACT)
    kind = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
    made = h5py.h5d.create(group.id, b"x", kind, h5py.h5s.create_simple((2,)), settings)
    h5py.Dataset(made)[:] = ["c" * 9000, "d"]


def test_single_texts_tables_of_texts_and_sequences_are_looked_at(tmp_path):
    path = tmp_path / "a.h5ad"
    ad.AnnData(np.ones((2, 2), "f4")).write_h5ad(path)
    sequence = np.empty(1, object)
    sequence[0] = np.arange(2000, dtype="i4")
    made = {
        "single": lambda uns: uns.create_dataset("x", data="s" * 9000),
        "table": lambda uns: uns.create_dataset("x", data=np.array([["t" * 9000, ""], ["a", "b"]], dtype=object)),
        "compact": compact,
        "sequence": lambda uns: uns.attrs.create("x", sequence, (1,), h5py.vlen_dtype("i4")),
    }
    paths = []
    for name, make in made.items():
        paths.append(tmp_path / f"{name}.h5ad")
        paths[-1].write_bytes(path.read_bytes())
        with h5py.File(paths[-1], "r+") as file:
            make(file["uns"])
        assert verify(paths[-1], progress=False).is_sound
        data = bytearray(paths[-1].read_bytes())
        at = data.rindex(b"GCOL")  # the new one: too much for the others
        data[at + 16 : at + 32] = bytes(16)
        paths[-1].write_bytes(data)
    command = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from annbatch.collection.verify import verify
        for path in sys.argv[1:]:
            print(*verify(path, progress=False).damage)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(command), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    said = done.stdout.splitlines()
    assert ["an object says that it has 0 bytes" in line for line in said] == [True] * 4, said
