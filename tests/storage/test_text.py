"""Text without a Python object per row: the same texts, in little more memory than their bytes."""

from __future__ import annotations

import json
from contextlib import suppress

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from annbatch.storage import CorruptDataError
from annbatch.storage import frames as frames_module
from annbatch.storage import text as text_module
from annbatch.storage.chunks.zarr_text import TextChunks
from annbatch.storage.columns import CodedText, LongText
from annbatch.storage.engine._ragged import decode_texts, unpack_texts
from annbatch.storage.frames import FrameReader
from annbatch.storage.text import CompactText, TextWriter, is_utf8, numbered, packed
from tests.reference import ragged as twins

# Whatever a Python string can be: empty, zeros inside, four-byte characters, half of a surrogate pair.
texts = st.lists(st.text(st.characters(), max_size=5), max_size=200)
STORABLE = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=50)


def compact(pieces):
    writer = TextWriter(sum(map(len, pieces)))
    for piece in pieces:
        writer.write(*packed(np.array([*piece, None], dtype=object)[:-1]))
    return writer.written()


@given(st.lists(texts, max_size=4), st.randoms(use_true_random=False))
def test_takes_what_was_put_in(pieces, random):
    everything = [text for piece in pieces for text in piece]
    rows = np.array([random.randrange(len(everything)) for _ in range(100 * bool(everything))], dtype=np.int64)
    expected = [everything[row] for row in rows]
    for kept in (compact(pieces), CompactText.stacked([compact([piece]) for piece in pieces] or [compact([])])):
        assert len(kept) == len(everything)
        assert kept.take(rows).tolist() == expected
        start, length = kept.places.extents(rows)
        assert twins.decode_texts(kept.data, start, length) == expected


def test_long_texts_beside_short_ones():
    kept = compact([["a", "b" * 70_000], ["c" * 300, ""]])
    assert [len(text) for text in kept.take(np.arange(4))] == [1, 70_000, 300, 0]


@pytest.mark.parametrize("n", [1, 100_000])
def test_memory_is_little_more_than_the_bytes(n):
    kept = compact([[f"cell_{i:020d}" for i in range(n)]])
    assert kept.data.nbytes + kept.places.nbytes <= 25 * n * 1.2 + 8
    assert not any(array.flags.writeable for array in (kept.data, kept.places.lengths, kept.places.block_start))


@given(texts)
def test_distinct_texts_are_numbered_as_they_come(values):
    data, lengths = packed(np.array([*values, None], dtype=object)[:-1])
    codes, distinct = numbered(data, lengths)
    twin_codes, twin_distinct = twins.number_texts(data, lengths)
    np.testing.assert_array_equal(codes, twin_codes)
    assert [text.encode("utf-8", "surrogatepass") for text in distinct] == twin_distinct


def vlen_chunk(values):
    encoded = [value.encode() for value in values]
    lines = b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
    return np.frombuffer(len(values).to_bytes(4, "little") + lines, np.uint8)


@given(STORABLE, st.data())
def test_chunks_are_unpacked_or_refused(values, data):
    chunk = vlen_chunk(values)
    damage = data.draw(st.sampled_from(["none", "cut", "count", "byte"]))
    if damage == "cut":
        chunk = chunk[: data.draw(st.integers(0, len(chunk) - 1))]
    elif damage != "none":
        chunk = chunk.copy()
        place = data.draw(st.integers(0, (4 if damage == "count" else len(chunk)) - 1))
        chunk[place] = data.draw(st.integers(0, 255))
    n_texts = data.draw(st.integers(0, len(values) + 1))
    lengths, out = np.empty(n_texts, np.int64), np.empty(len(chunk), np.uint8)
    n_bytes = unpack_texts(chunk, lengths, out)
    expected = twins.unpack_texts(chunk, n_texts)
    if expected is None:
        assert n_bytes == -1
    else:
        assert out[:n_bytes].tobytes() == expected[0].tobytes()
        np.testing.assert_array_equal(lengths, expected[1])
        if damage == "none":
            assert is_utf8(out[:n_bytes], lengths)


def test_a_text_that_begins_inside_a_character_is_no_utf8():
    data = np.frombuffer("aé".encode(), np.uint8)
    assert is_utf8(data, np.array([3]))
    assert is_utf8(data, np.array([1, 0, 2, 0]))
    assert not is_utf8(data, np.array([2, 1]))
    assert not is_utf8(data[:2], np.array([2]))


def test_bytes_that_are_no_utf8_are_not_decoded():
    with pytest.raises(UnicodeDecodeError):
        packed(np.array([b"a", b"\xff"], dtype=object))
    with pytest.raises(UnicodeDecodeError):
        decode_texts(np.array([0xFF], np.uint8), np.zeros(1, np.int64), np.ones(1, np.int64), np.empty(1, object))


@pytest.mark.parametrize(
    "values", [np.array(["a", "é"]), np.array([b"a", "é".encode()]), np.array(["a", b"\xc3\xa9"], dtype=object)]
)
def test_text_of_any_kind_of_array_is_taken(values):
    data, lengths = packed(values)
    assert data.tobytes() == "aé".encode()
    assert lengths.tolist() == [1, 2]


def test_what_is_no_text_is_not_taken():
    assert packed(np.array(["a", None], dtype=object)) is None
    assert packed(np.array([1, 2])) is None


def text_array(folder, values, kind, name="names"):
    """A column of text as it is stored; HDF5 or Zarr of either format, in chunks of 4."""
    values = np.array(values, dtype=object)
    if kind == "h5":
        file = h5py.File(folder / "a.h5", "w")
        return file.create_dataset(name, data=values, dtype=h5py.string_dtype(), chunks=(4,))
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=int(kind[-1]))
    array = group.create_array(name, shape=values.shape, chunks=(4,), dtype=str)
    array[:] = values.astype("T")
    return zarr.open_group(folder / "a.zarr", mode="r")[name]


NAMES = ["é", "", "c" * 300, "d", "é", "x\0y", "g", "h", "i"]


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_zarr_text_is_decoded_without_zarr(tmp_path, kind):
    chunks = TextChunks.of(text_array(tmp_path, NAMES, kind))
    data, lengths = chunks.read(slice(4, 9))
    assert data.tobytes() == "".join(NAMES[4:]).encode()
    assert lengths.tolist() == [len(name.encode()) for name in NAMES[4:]]


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_a_chunk_that_is_missing_or_damaged_is_left_to_zarr(tmp_path, kind):
    array = text_array(tmp_path, NAMES, kind)
    chunks = TextChunks.of(array)
    path = tmp_path / "a.zarr/names" / array.metadata.encode_chunk_key((1,))
    stored = path.read_bytes()
    for damaged in (stored[:-3], b"", stored[:10]):
        path.write_bytes(damaged)
        with suppress(CorruptDataError):  # of blosc, whose decoder does not see it
            assert chunks.read(slice(4, 8)) is None
    path.unlink()
    assert chunks.read(slice(4, 8)) is None
    assert chunks.read(slice(0, 4)) is not None


def table(folder, columns, kind):
    """A stored table; what it is in memory, where nothing is missing."""
    import anndata as ad

    frame = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(next(iter(columns.values()))))])
    with ad.settings.override(allow_write_nullable_strings=True, auto_shard_zarr_v3=False):
        if kind == "h5":
            file = h5py.File(folder / "a.h5", "w")
            ad.io.write_elem(file, "obs", frame)
            return file["obs"], frame
        group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=int(kind[-1]))
        ad.io.write_elem(group, "obs", frame)
        return group["obs"], frame


@pytest.mark.parametrize("kind", ["h5", "zarr2", "zarr3"])
@pytest.mark.filterwarnings("ignore")
def test_few_texts_become_codes_and_many_become_bytes(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(frames_module, "_ROWS_AT_ONCE", 50)
    monkeypatch.setattr("annbatch.storage.columns._ALWAYS_FEW", 10)
    n = 400
    elem, frame = table(
        tmp_path,
        {
            "few": [f"donor_{i % 7}" for i in range(n)],
            "many": [f"read_{i}" for i in range(n)],
            # Few to begin with.
            "more": [f"é_{i % 5 if i < 200 else i}" for i in range(n)],
            "missing": pd.array([None if i % 3 == 0 else f"x{i % 4}" for i in range(n)], dtype="string"),
        },
        kind,
    )
    compact_frame = FrameReader(elem).compact()
    assert [type(text) for text in compact_frame.texts.values()] == [CodedText, LongText, LongText, CodedText]
    pd.testing.assert_frame_equal(compact_frame.frame(), FrameReader(elem).frame())
    pd.testing.assert_frame_equal(compact_frame.frame(), frame)
    assert FrameReader(elem).compact(["few"], names=False).frame(np.array([9])).index.tolist() == [9]


@pytest.mark.parametrize("form", ["plain", "nullable"])
@pytest.mark.filterwarnings("ignore")
def test_text_that_is_no_utf8_names_file_and_array(form, tmp_path):
    import anndata as ad

    texts = ["aaaa", "bbbb"]
    table(tmp_path, {"x": [1, 2]}, "zarr3")
    values = np.array(texts, dtype=object) if form == "plain" else pd.array(texts, dtype="string")
    with ad.settings.override(allow_write_nullable_strings=True, auto_shard_zarr_v3=False):
        ad.io.write_elem(zarr.open_group(tmp_path / "a.zarr")["obs"], "x", values)
    array = tmp_path / "a.zarr/obs/x" / ("" if form == "plain" else "values")
    document = json.loads((array / "zarr.json").read_text())
    document["codecs"] = [{"name": "vlen-utf8", "configuration": {}}]
    (array / "zarr.json").write_text(json.dumps(document))
    chunk = next(path for path in array.rglob("*") if path.is_file() and path.suffix != ".json")
    good = vlen_chunk(texts).tobytes()
    for bad in (good.replace(b"aaaa", b"a\xffaa"), good.replace(b"\x04", b"\xf4", 1), good[:-2]):
        chunk.write_bytes(bad)
        reader = FrameReader(zarr.open_group(tmp_path / "a.zarr", mode="r")["obs"])
        for read in (reader.compact, reader.frame):
            with pytest.raises(CorruptDataError, match=r"a\.zarr.*obs/x"):
                read()
    chunk.write_bytes(good)
    frame = FrameReader(zarr.open_group(tmp_path / "a.zarr", mode="r")["obs"]).compact().frame()
    assert frame["x"].tolist() == texts


def test_names_of_rows_that_are_no_utf8_name_file_and_table(tmp_path):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        group = file.create_group("obs")
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        group.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
        group.create_dataset("_index", data=np.array([b"a", b"\xff"], dtype=object), dtype=h5py.string_dtype())
        with pytest.raises(CorruptDataError, match=r"b\.h5 :: obs.*UTF-8"):
            FrameReader(group).compact()


def test_the_hash_table_takes_any_number_of_texts():
    for n in (0, 1, 2, 3, 64, 1000):
        codes, distinct = numbered(*packed(np.array([*map(str, range(n)), None], dtype=object)[:-1]))
        assert codes.tolist() == list(range(n))
        assert distinct == list(map(str, range(n)))
    assert text_module.ROWS_AT_ONCE < 2**30
