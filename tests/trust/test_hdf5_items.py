"""Texts and sequences of any length in all that HDF5 can hold: sound ones are read, damaged ones refused before HDF5 looks for ever."""

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
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch.storage.chunks.hdf5_chunks import check_chunks, text_places
from annbatch.storage.hdf5_headers import header_address, local_bytes
from annbatch.storage.hdf5_heap import check_attributes
from annbatch.storage.hdf5_items import TEXT_PLACE, places_in_header, stored_items

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are read by h5py alone there")

TEXT, NUMBERS = h5py.string_dtype(), h5py.vlen_dtype("i4")
# Takes a collection of its own, the last one of the file.
LONG = "t" * 9000
ROW = np.dtype([("number", "i1"), ("text", TEXT), ("again", "f8")])
NESTED = np.dtype([("flag", h5py.enum_dtype({"no": 0, "yes": 1})), ("of", [("a", "S3"), ("name of a member", TEXT)])])
TEXTS_OF_A_ROW = np.dtype([("number", "i4"), ("texts", TEXT, (2,))])


def sequences(*shape):
    values = np.empty(shape, object)
    for place in np.ndindex(*shape):
        values[place] = np.arange(3000 if not any(place) else 2, dtype="i4")
    return values


def nested():
    values = np.zeros(2, NESTED)
    values["of"]["name of a member"] = [LONG, "b"]
    return values


def texts_of_a_row():
    values = np.zeros(2, TEXTS_OF_A_ROW)
    values["texts"] = [["a", LONG], ["", "b"]]
    return values


def committed(group):
    group["type"] = np.dtype(TEXT)
    group.attrs.create("x", LONG, dtype=group["type"])


def large_header(group):
    for i in range(20):
        group.attrs[f"{i}"] = np.zeros(5000, "i1")
    group.attrs["x"] = LONG


def committed_dataset(group):
    group["type"] = np.dtype(ROW)
    group.create_dataset("x", data=np.array([(1, LONG, 2.0), (3, "b", 4.0)], ROW), dtype=group["type"])


def partly_written(group):
    made = group.create_dataset("x", (100,), TEXT, chunks=(10,), compression="gzip")
    made[35] = LONG


def tables_partly_written(group):
    made = group.create_dataset("x", (7, 5), TEXT, chunks=(2, 2), maxshape=(None, None))
    made[6, 4] = LONG


def with_empty_texts(group):
    group["x"] = np.array([""] * 300, dtype=object)


def filled(group):
    group.create_dataset("x", (4,), TEXT, chunks=(2,), fillvalue=LONG)


MADE = {
    "attribute: compound": lambda group: group.attrs.create("x", np.array([(1, LONG, 2.0), (3, "b", 4.0)], ROW)),
    "attribute: one compound": lambda group: group.attrs.create("x", np.array((1, LONG, 2.0), ROW)),
    "attribute: nested": lambda group: group.attrs.create("x", nested()),
    "attribute: array of texts": lambda group: group.attrs.create("x", texts_of_a_row()),
    "attribute: committed type": committed,
    "attribute: large header": large_header,
    "compound": lambda group: group.create_dataset("x", data=np.array([(1, LONG, 2.0), (3, "b", 4.0)], ROW)),
    "compound, nested, chunks": lambda group: group.create_dataset("x", data=nested(), chunks=(1,), compression="gzip"),
    "compound, array of texts": lambda group: group.create_dataset("x", data=texts_of_a_row()),
    "committed type": committed_dataset,
    "table": lambda group: group.create_dataset(
        "x", data=np.array([[LONG, ""], ["a", "b"], ["c", "d"]], object), chunks=(2, 1), compression="gzip"
    ),
    "partly written": partly_written,
    "table, partly written": tables_partly_written,
    "sequences": lambda group: group.create_dataset("x", data=sequences(2), dtype=NUMBERS),
    "sequences, chunks": lambda group: group.create_dataset("x", data=sequences(3, 2), dtype=NUMBERS, chunks=(2, 2)),
    "empty texts": with_empty_texts,
    "fill value": filled,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("items") / "a.h5ad"
    ad.AnnData(np.ones((2, 2), "f4")).write_h5ad(path)
    return path.read_bytes()


def damaged(path, at=None):
    """Zero the head of the first object of a collection: the last one, which is new."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"GCOL") if at is None else at
    data[at + 16 : at + 32] = bytes(16)
    path.write_bytes(data)


def said_by_a_process(command, paths):
    """What a process prints of each file, a line of JSON, which it reads one after the other."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(command), *map(str, paths)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    except subprocess.TimeoutExpired as error:
        n_done = len((error.stdout or b"").splitlines())
        pytest.fail(f"reading {paths[n_done].name} did not end")
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


VERIFY = """
    import json, sys
    from annbatch.collection.verify import verify
    for path in sys.argv[1:]:
        print(json.dumps([str(damage) for damage in verify(path, progress=False).damage]), flush=True)
"""


def test_verify_comes_to_the_end_of_everything(whole, tmp_path):
    """Sound and damaged, in files of old and new versions of HDF5, in one process."""
    paths = []
    for libver in ("earliest", "latest"):
        for name, make in MADE.items():
            if name == "attribute: large header" and libver == "latest":
                continue  # more than eight lie elsewhere there
            path = tmp_path / f"{name}, {libver}.h5ad".replace(":", "")
            path.write_bytes(whole)
            with h5py.File(path, "r+", libver=libver) as file:
                make(file["uns"])
            paths.append(path.with_suffix(".sound"))
            paths[-1].write_bytes(path.read_bytes())
            damaged(path)
            paths.append(path)
    for path, said in zip(paths, said_by_a_process(VERIFY, paths), strict=True):
        if path.suffix == ".sound":
            assert not said, path.name
        else:
            assert ["an object says that it has 0 bytes" in line for line in said] == [True], (path.name, said)


LOAD = """
    import json, sys
    from annbatch import Loader, MappedCollection
    from annbatch.storage import CorruptDataError

    def loaded(path):
        loader = Loader(chunk_size=2, preload_nchunks=1, batch_size=2, shuffle=False, obs_columns=["label"])
        return [label for batch in loader.add_paths([path]) for label in batch["obs"]["label"]]

    def mapped(path):
        with MappedCollection([path], obs_keys=["label"], encode_labels=False) as cells:
            return [str(cells[i]["label"]) for i in range(len(cells))]

    for path in sys.argv[1:]:
        found = []
        for read in (loaded, mapped):
            try:
                found.append(read(path))
            except CorruptDataError as error:
                found.append(f"damaged: {error}")
        print(json.dumps(found), flush=True)
"""


def test_old_tables_are_loaded_or_refused(tmp_path):
    """Of anndata before 0.7: obs and var are compound arrays, with texts of any length here."""
    long, gene = "l" * 70_000, "g" * 70_000  # too much for a collection of others
    labels = ["a", long, "", "b"]
    obs = np.array([(f"cell_{i}", label) for i, label in enumerate(labels)], [("index", TEXT), ("label", TEXT)])
    paths = [tmp_path / "sound.h5ad", *(tmp_path / f"{table}.h5ad" for table in ("obs", "var"))]
    for path in paths:
        with h5py.File(path, "w") as file:
            file["X"] = np.ones((4, 2), "f4")
            file.create_dataset("obs", data=obs, chunks=(3,), compression="gzip")
            file["var"] = np.array([(gene,), ("gene_1",)], [("index", TEXT)])
        if path != paths[0]:
            whole, text = path.read_bytes(), long if path.stem == "obs" else gene
            damaged(path, whole.rindex(b"GCOL", 0, whole.index(text.encode())))
    sound, *broken = said_by_a_process(LOAD, paths)
    assert sound == [labels, labels]
    for path, said in zip(paths[1:], broken, strict=True):
        for words in said:
            assert words.startswith(f"damaged: {path} :: "), words
            assert f"{path.stem}: the texts at byte" in words


# Types of all kinds, and values for them.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
LEAVES = {
    "i2": st.integers(-9, 9),
    ">f8": st.floats(allow_nan=False),
    "S3": st.binary(max_size=3).map(lambda value: value.rstrip(b"\0")),
    "c8": st.just(1j),
    "bool": st.booleans(),
    "enum": st.integers(0, 1),
    "text": WORDS,
    "numbers": st.lists(st.integers(0, 9), max_size=4),
}
SPECIAL = {"enum": h5py.enum_dtype({"no": 0, "a longer name": 1}, basetype="u2"), "text": TEXT, "numbers": NUMBERS}


@st.composite
def member(draw, depth):
    """What a member of a compound type is, and what draws a value of it: an array of two, perhaps."""
    dtype, values = draw(types(depth))
    if dtype.names is None and dtype != NUMBERS and draw(st.booleans()):
        return (dtype, (2,)), st.lists(values, min_size=2, max_size=2)
    return (dtype,), values


@st.composite
def types(draw, depth=2):
    """A dtype, and what draws a value of it."""
    if depth and draw(st.booleans()):
        names = draw(st.lists(st.text("aé", min_size=1, max_size=9), min_size=1, max_size=4, unique=True))
        members = [draw(member(depth - 1)) for _ in names]
        dtype = np.dtype([(name, *kind) for name, (kind, _) in zip(names, members, strict=True)])
        return dtype, st.tuples(*(values for _, values in members))
    name = draw(st.sampled_from(list(LEAVES)))
    dtype = SPECIAL.get(name, name)

    def item(value):
        if name != "numbers":
            return value
        return np.array(value, "i4")

    return np.dtype(dtype), LEAVES[name].map(item)


def places_written(data):
    """Collection and number of each object of the global heap in a file."""
    found, at = set(), data.find(b"GCOL")
    while at >= 0:
        (size,) = struct.unpack_from("<Q", data, at + 8)
        here = at + 16
        while here + 16 <= at + size:
            number, n_bytes = struct.unpack_from("<H6xQ", data, here)
            if number:
                found.add((at, number))
            here += 16 + -(-n_bytes // 8) * 8 if number else n_bytes
        at = data.find(b"GCOL", at + size)
    return found


def places_found(items):
    places = np.frombuffer(items, "<u4, <u8, <u4")
    return {(int(address), int(number)) for _, address, number in places if address}


@settings(max_examples=60)
@given(types(), st.sampled_from(["earliest", "v110", "latest"]), st.data())
def test_all_texts_of_a_sound_file_are_found_and_none_is_refused(tmp_path_factory, typed, libver, data):
    dtype, values = typed
    shape = data.draw(st.sampled_from([(1,), (3,), (2, 2), (5,)]))
    stored = np.empty(shape, dtype)
    for place in np.ndindex(*shape):
        stored[place] = data.draw(values)
    chunks = data.draw(st.sampled_from([None, (1,) * len(shape), (2,) * len(shape)]))
    if chunks and max(chunks) > min(shape):
        chunks = None
    is_attribute = data.draw(st.booleans())
    path = tmp_path_factory.getbasetemp() / "sound.h5"
    with h5py.File(path, "w", libver=libver) as file:
        if is_attribute:
            file.attrs.create("x", stored, dtype=dtype)
        else:
            file.create_dataset("x", data=stored, dtype=dtype, chunks=chunks)
    written = places_written(path.read_bytes())
    with h5py.File(path) as file:
        check_attributes(file)
        peek = local_bytes(file)
        if is_attribute:
            header = header_address(h5py.h5g.get_objinfo(file.id, b"."))
            found = b"".join(places_in_header(peek, header))
            read = file.attrs["x"]
        else:
            check_chunks(file["x"])
            item, _ = stored_items(peek, header_address(h5py.h5g.get_objinfo(file["x"].id, b".")))
            found = b"".join(places.tobytes() for places in text_places(file["x"], item))
            read = file["x"][()]
    assert places_found(found) == written
    assert np.array(read).shape == shape


@pytest.fixture(scope="module", params=["earliest", "latest"])
def headers(request, tmp_path_factory):
    """The bytes of a file with attributes and arrays of many kinds, and where their headers begin."""
    path = tmp_path_factory.mktemp("headers") / "a.h5"
    with h5py.File(path, "w", libver=request.param) as file:
        for name, make in MADE.items():
            make(file.create_group(name))
        addresses = []
        file.visit(lambda name: addresses.append(header_address(h5py.h5g.get_objinfo(file.id, name.encode()))))
    return path.read_bytes(), addresses


@settings(max_examples=100)
@given(st.integers(0, 99), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_headers_of_any_bytes_are_walked_to_an_end(headers, number, damage):
    """Nothing is raised, and no more is found than there are bytes."""
    whole, addresses = headers
    address = addresses[number % len(addresses)]
    changed = bytearray(whole)
    for at, value in damage:
        if address + at < len(changed):
            changed[address + at] = value

    def peek(start, n_bytes):
        assert start >= 0
        assert n_bytes >= 0
        return bytes(changed[start : start + n_bytes])

    for found in places_in_header(peek, address):
        assert len(found) % TEXT_PLACE.itemsize == 0
        assert len(found) < 1 << 17
    item, _ = stored_items(peek, address)
    assert item is None or len(item.offsets) * TEXT_PLACE.itemsize <= item.item_bytes
