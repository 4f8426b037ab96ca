"""Text of HDF5 files that is read past h5py: what h5py reads, left to h5py, or refused where it is damaged."""

from __future__ import annotations

import re
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.storage import hdf5_heap
from annbatch.storage.chunks import hdf5_text
from annbatch.storage.chunks.hdf5_chunks import check_chunks
from annbatch.storage.chunks.hdf5_text import HeapTexts
from annbatch.storage.engine._ragged import first_broken, heap_texts
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.frames import FrameReader
from tests.reference import ragged as twins

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the engine reads no files there")

TEXT = h5py.string_dtype()
VALUES = ["é", "", "c" * 300, "d", "é", "漢字", "g" * 5_000, "h", "i"]


def collection_of(objects, damage):
    """A collection of the global heap."""
    data = b"".join(
        number.to_bytes(2, "little") + bytes(6) + len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)
        for number, text in objects
    )
    free = bytes(8) + (16).to_bytes(8, "little")
    whole = bytearray(b"GCOL\1\0\0\0" + (32 + len(data)).to_bytes(8, "little") + data + free)
    for place, byte in damage:
        whole[16 + place % (len(whole) - 16)] = byte
    return bytes(whole)


OBJECTS = st.lists(st.tuples(st.integers(1, 9), st.binary(max_size=9)), max_size=8)
DAMAGE = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=2)


@given(st.lists(st.tuples(OBJECTS, DAMAGE), min_size=1, max_size=3), st.data())
def test_texts_are_found_in_the_heap_or_refused(contents, data):
    collections = {1000 * (k + 1): collection_of(*content) for k, content in enumerate(contents)}
    there = [(len(text), 1000 * (k + 1), number) for k, (objects, _) in enumerate(contents) for number, text in objects]
    anywhere = st.tuples(st.integers(0, 9), st.sampled_from([0, *collections]), st.integers(0, 70_000))
    references = data.draw(st.lists(st.sampled_from(there) | anywhere if there else anywhere, max_size=12))
    stored = np.array(references, hdf5_text.TEXT_PLACE)
    lengths, out = np.empty(len(stored), np.int64), np.empty(stored["n_bytes"].sum(dtype=int), np.uint8)
    ends = np.cumsum([len(collection) for collection in collections.values()])
    begins = ends - [len(collection) for collection in collections.values()]
    n_bytes = heap_texts(
        np.frombuffer(b"".join(collections.values()), np.uint8),
        stored,
        np.array(list(collections), np.uint64),
        begins,
        ends,
        np.full(1 << 16, -1, np.int64),
        lengths,
        out,
    )
    expected = twins.heap_texts(collections, references)
    if expected is None:
        assert n_bytes == -1
    elif n_bytes == -1:  # walked too often
        assert sum(map(len, collections.values())) + 8 * len(references) < 40 * len(references)
    else:
        assert lengths.tolist() == [len(text) for text in expected]
        assert out[:n_bytes].tobytes() == b"".join(expected)


@pytest.fixture(params=["earliest", "latest"])
def write(tmp_path, request):
    """Writes a dataset of text; its file is then open for reading."""

    def write(values, **options):
        with h5py.File(tmp_path / "a.h5", "w", libver=request.param) as file:
            file.create_dataset("names", data=np.array(values, dtype=object), dtype=TEXT, **options)
        return h5py.File(tmp_path / "a.h5")["names"]

    return write


def texts_of(pair):
    data, lengths = pair
    ends = np.cumsum(lengths)
    return [data[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (4,)}, {"chunks": (4,), "compression": "gzip", "shuffle": True}],
    ids=["contiguous", "chunks", "filters"],
)
def test_text_is_read_without_h5py(options, write):
    dataset = write(VALUES, **options)
    texts = HeapTexts.of(dataset)
    for rows in (slice(0, 9), slice(3, 7), slice(8, 9), slice(2, 2)):
        assert texts_of(texts.read(rows)) == dataset[rows].tolist()


@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
def test_many_texts_in_many_collections(at_once, write, monkeypatch):
    monkeypatch.setattr(hdf5_text, "_ROWS_AT_ONCE", at_once)
    dataset = write([f"cell_{i:020}" for i in range(3_000)], chunks=(500,))
    assert texts_of(HeapTexts.of(dataset).read(slice(0, 3_000))) == dataset[:].tolist()


def test_text_written_again_here_and_there(tmp_path):
    values = np.array([f"cell_{i}" for i in range(2_000)], dtype=object)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("names", data=values, dtype=TEXT, chunks=(100,))
        for row in np.random.default_rng(0).permutation(2_000)[:700]:
            dataset[row] = f"another_{row}" * (row % 3)
    dataset = h5py.File(tmp_path / "a.h5")["names"]
    assert texts_of(HeapTexts.of(dataset).read(slice(0, 2_000))) == dataset[:].tolist()


def test_what_h5py_has_to_read_is_left_to_it(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("names", data=["a"], dtype=TEXT)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        assert HeapTexts.of(file.create_dataset("text", data=["a"], dtype=TEXT)) is None
        file.create_dataset("of_one_length", data=np.array([b"a"]))
        file.create_dataset("numbers", data=[1])
        file.create_dataset("none", shape=(0,), dtype=TEXT)
        file.create_dataset("not_stored", shape=(5,), dtype=TEXT, chunks=(2,))[:2] = ["a", "b"]
        file.create_dataset("many_axes", shape=(2, 2), dtype=TEXT)
    with h5py.File(tmp_path / "a.h5") as first, h5py.File(tmp_path / "b.h5") as second:
        assert HeapTexts.of(first["names"]) is None
        assert [name for name in second if HeapTexts.of(second[name]) is not None] == [
            "text"
        ]  # not open for writing any more


def test_damage_is_refused(tmp_path, write):
    """Whatever byte of the heap changes, the same texts come out as through HDF5 itself, or none. (HDF5 may loop: it is not asked.)"""
    write(VALUES).file.close()
    path = tmp_path / "a.h5"
    whole = path.read_bytes()
    collection = whole.index(b"GCOL")
    for place in range(collection, collection + 120):
        for byte in (0, 1, 0xFF):
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            with h5py.File(path) as file:
                try:
                    pair = HeapTexts.of(file["names"]).read(slice(0, 9))
                except CorruptDataError as error:
                    assert str(path) in str(error)  # noqa: PT017
                    continue
                if pair is not None:
                    assert texts_of(pair) == file["names"][:].tolist(), (place - collection, byte)


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_sizes_that_are_too_large_take_no_memory(size, tmp_path, write):
    write(VALUES).file.close()
    path = tmp_path / "a.h5"
    whole = bytearray(path.read_bytes())
    at = whole.index(b"GCOL") + 8
    whole[at : at + 8] = size.to_bytes(8, "little")
    path.write_bytes(whole)
    with (
        h5py.File(path) as file,
        pytest.raises(CorruptDataError, match=rf"a\.h5 :: names: .* it says that it has {size} bytes"),
    ):
        HeapTexts.of(file["names"]).read(slice(0, 9))


@given(st.lists(st.tuples(OBJECTS, DAMAGE), min_size=1, max_size=3))
def test_collections_are_walked_as_hdf5_does(contents):
    collections = [collection_of(*content) for content in contents]
    ends = np.cumsum([len(collection) for collection in collections])
    begins = ends - [len(collection) for collection in collections]
    found = first_broken(np.frombuffer(b"".join(collections), np.uint8), begins, ends)
    assert found == twins.first_broken(collections)


@pytest.mark.parametrize("at_once", [100, 70_000, 150_000, 1 << 26])
def test_all_collections_are_walked_however_many_at_a_time(at_once, tmp_path, write, monkeypatch):
    monkeypatch.setattr(hdf5_heap, "MOST_BYTES", at_once)
    write([f"cell_{i:0130}" for i in range(3_000)]).file.close()
    path = tmp_path / "a.h5"
    whole = path.read_bytes()
    heads = [m.start() for m in re.finditer(b"GCOL", whole)]
    assert len(heads) > 4
    for head in [None, *heads]:
        damaged = bytearray(whole)
        if head is not None:
            damaged[head + 16 : head + 32] = bytes(16)  # the first object
        path.write_bytes(damaged)
        with h5py.File(path) as file:
            if head is None:
                check_chunks(file["names"])
                continue
            with pytest.raises(CorruptDataError, match=rf"a\.h5 :: /names: the texts at byte {head} "):
                check_chunks(file["names"])


def test_texts_of_a_chunk_beside_one_that_cannot_be_read_are_looked_at(tmp_path, write):
    """HDF5 would read those of the first before it comes to the second."""
    dataset = write(VALUES[:8], chunks=(4,), compression="gzip")
    at = dataset.id.get_chunk_info(1).byte_offset
    dataset.file.close()
    path = tmp_path / "a.h5"
    whole = bytearray(path.read_bytes())
    whole[at : at + 8] = bytes(8)
    path.write_bytes(whole)
    with h5py.File(path) as file:
        assert HeapTexts.of(file["names"]).read(slice(0, 8)) is None
        check_chunks(file["names"])
    head = whole.index(b"GCOL")
    whole[head + 16 : head + 32] = bytes(16)
    path.write_bytes(whole)
    with h5py.File(path) as file, pytest.raises(CorruptDataError, match="an object says that it has 0 bytes"):
        check_chunks(file["names"])


def test_a_table_gives_its_text_as_bytes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        obs.attrs["column-order"] = np.array(["text", "nullable", "number"], dtype=TEXT)
        for name in ("_index", "text", "nullable/values"):
            obs.create_dataset(name, data=np.array(["a", "bé", "c"], dtype=object), dtype=TEXT)
        obs["nullable/mask"] = [False, True, False]
        obs["nullable"].attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        obs["number"] = [1, 2, 3]
    with h5py.File(tmp_path / "a.h5") as file:
        reader = FrameReader(file["obs"])
        data, lengths, missing = reader.texts(None, slice(1, 3))
        assert (data.tobytes(), lengths.tolist(), missing.tolist()) == ("béc".encode(), [3, 1], [False, False])
        data, lengths, missing = reader.texts("nullable")
        assert (data.tobytes(), lengths.tolist(), missing.tolist()) == (b"ac", [1, 0, 1], [False, True, False])
        assert reader.texts("number") is None
        assert reader.texts("text", slice(2, 2)) is None
