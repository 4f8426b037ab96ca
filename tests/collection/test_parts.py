"""The parts that a collection is built from, each against its plain twin."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annbatch._shared.args import as_bytes, as_rows_or_bytes
from annbatch._shared.running_sum import starts_of
from annbatch.collection.building._pack import place_rows, whole_range
from annbatch.collection.building.columns import sort_keys
from annbatch.collection.building.fields import Ragged, WholeRange, decode_text, encode_text, place_ragged
from annbatch.collection.building.output.sink import Layout, ZarrSink, _slice
from annbatch.collection.building.plan import block_edges, cut_by_bytes, dataset_edges, destinations, plan_bytes
from tests.reference import pack as twins


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(0, 20),
        elements=st.one_of(
            st.integers(-(2**20), 2**20).map(float), st.floats(width=32), st.sampled_from([-0.0, 2.0**62, -(2.0**63)])
        ),
    )
)
def test_whole_range_equals_its_twin(values):
    whole, low, high = whole_range(values)
    expected = twins.whole_range(values)
    assert whole == expected[0]
    if whole:
        assert (low, high) == expected[1:]


@given(st.data())
def test_smallest_type_holds_the_range_and_no_smaller_one_does(data):
    low = data.draw(st.integers(-(2**63), 2**63))
    high = data.draw(st.integers(low, 2**64 - 1 if low >= 0 else 2**63 - 1)) if low < 2**63 else low
    dtype = WholeRange(low=low, high=high).smallest_type(np.dtype(object))
    info = np.iinfo(dtype)
    assert info.min <= low <= high <= info.max
    for smaller in ("u1", "i1", "u2", "i2", "u4", "i4"):
        if np.dtype(smaller).itemsize < dtype.itemsize and (low < 0) == (smaller[0] == "i"):
            assert not (np.iinfo(smaller).min <= low and high <= np.iinfo(smaller).max)


def test_union_of_ranges():
    union = WholeRange.union([WholeRange(low=-3, high=4), WholeRange(low=0, high=900), WholeRange()])
    assert union == WholeRange(low=-3, high=900)
    assert not WholeRange.union([WholeRange(), WholeRange(whole=False)]).whole
    assert WholeRange.union([]).whole


@given(
    st.lists(st.integers(0, 5), max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from(["u1", "u2", "f4", "f8"]),
)
def test_place_ragged_equals_a_loop(lengths, random, dtype):
    n = len(lengths)
    section = Ragged(starts_of(np.array(lengths, np.int64)), (np.arange(sum(lengths)).astype(dtype),))
    places = np.array(random.sample(range(n), n), np.int64)
    counts = np.zeros(n, np.int64)
    counts[places] = lengths
    out = Ragged(starts_of(counts), (np.full(sum(lengths), 99, dtype),))
    place_ragged(section, places, out)
    for i, place in enumerate(places):
        expected = section.values[0][section.indptr[i] : section.indptr[i + 1]]
        np.testing.assert_array_equal(out.values[0][out.indptr[place] : out.indptr[place + 1]], expected)


def test_place_ragged_widens():
    section = Ragged(np.array([0, 2]), (np.array([1, 255], np.uint8),))
    out = Ragged(np.array([0, 2]), (np.zeros(2, np.float32),))
    place_ragged(section, np.array([0]), out)
    assert out.values[0].tolist() == [1, 255]


def test_place_rows_with_nothing_to_do():
    empty, numbers = np.zeros(0, np.uint8), np.zeros(0, np.int64)
    place_rows(empty, numbers, numbers, empty, numbers, 4)
    place_rows(empty, np.zeros(3, np.int64), np.zeros(3, np.int64), empty, np.zeros(3, np.int64), 4)


@given(st.lists(st.one_of(st.none(), st.text()), max_size=10))
def test_text_round_trip(texts):
    field, missing = encode_text(texts)
    assert missing.tolist() == [text is None for text in texts]
    assert decode_text(field).tolist() == [text or "" for text in texts]


@given(st.integers(1, 500), st.integers(1, 100))
def test_dataset_edges(n_obs, most):
    sizes = np.diff(dataset_edges(n_obs, most))
    assert sizes.sum() == n_obs
    assert sizes.max() <= most
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == -(-n_obs // most)


@given(st.integers(1, 60), st.integers(1, 30), st.booleans(), st.integers(0, 2**32))
def test_destinations_equal_a_sort(n_obs, most, shuffle, seed):
    edges = dataset_edges(n_obs, most)
    keys = np.random.default_rng(seed).integers(0, 4, n_obs)
    plain = destinations(n_obs, edges, shuffle=shuffle, rng=np.random.default_rng(seed))
    assert sorted(plain) == list(range(n_obs))
    if not shuffle:
        assert plain.tolist() == list(range(n_obs))
    grouped = destinations(n_obs, edges, shuffle=shuffle, rng=np.random.default_rng(seed), sort_keys=keys)
    order = sorted(range(n_obs), key=lambda row: plain[row])
    for start, stop in pairwise(edges):
        expected = sorted(order[start:stop], key=lambda row: keys[row])
        assert [int(np.flatnonzero(grouped == place)[0]) for place in range(start, stop)] == expected


@pytest.mark.parametrize("position", [0, 3, 9])
def test_every_row_is_as_likely_in_every_place(position):
    """Chi-square with 9 degrees of freedom, P(> 45) < 1e-6; the seed is fixed."""
    rng = np.random.default_rng(11)
    edges = dataset_edges(10, 5)
    hits = [int(destinations(10, edges, shuffle=True, rng=rng)[position]) for _ in range(4000)]
    counts = np.bincount(hits, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 45


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120), st.integers(1, 7))
def test_block_edges(row_bytes, most, step):
    before = starts_of(np.array(row_bytes, np.int64))
    edges = block_edges(before, most, step).tolist()
    assert edges[0] == 0
    assert edges[-1] == len(row_bytes)
    assert edges == sorted(set(edges))
    for start, stop in pairwise(edges):
        assert stop - start == 1 or before[stop] - before[start] <= most
    assert cut_by_bytes(np.array(row_bytes, np.int64), most).tolist() == block_edges(before, most).tolist()


def test_block_edges_keep_to_chunks():
    before = np.arange(101, dtype=np.int64) * 10
    assert block_edges(before, 350, 16).tolist() == [0, 32, 64, 96, 100]


def test_plan_stays_small():
    assert plan_bytes(100_000_000, 100_000_000) == 400_000_000


@pytest.mark.parametrize("most", [300_000, 50_000])
@pytest.mark.parametrize("n_labels", [None, 9, 1000, 100_000])
def test_a_plan_takes_no_more_memory_than_is_counted(most, n_labels):
    n_obs = 300_000
    edges = dataset_edges(n_obs, most)
    rng = np.random.default_rng(0)
    keys = None
    if n_labels is not None:
        keys = rng.integers(0, n_labels, n_obs).astype(np.min_scalar_type(n_labels))
    tracemalloc.start()
    places = destinations(n_obs, edges, shuffle=True, rng=rng, sort_keys=keys)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    key_bytes = 0 if keys is None else keys.itemsize
    assert 0.9 * places.nbytes < kept
    # tracemalloc sees what is allocated from here on, so the keys come on top.
    assert peak + n_obs * key_bytes <= plan_bytes(n_obs, most, key_bytes) + 50_000


COLUMNS_OF_LABELS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8)


@given(st.lists(COLUMNS_OF_LABELS, min_size=1, max_size=3), st.booleans())
def test_sort_keys_sort_as_the_labels_do(inputs, few):
    """Two columns: the labels, and numbers from the other end; ``few``: so many labels that only ranks fit into an integer."""
    first = [pd.Categorical(labels) for labels in inputs]
    second = [pd.Categorical([7 - i for i in range(len(labels))]) for labels in inputs]
    unions = [pd.Index(["a", "b", "c"], dtype=object), pd.Index(range(8))]
    columns = [list(pair) for pair in zip(first, second, strict=True)]
    if few:
        many = pd.Index(range(2**20))
        columns = [[*pair, *[pd.Categorical([0] * len(pair[0]))] * 3] for pair in columns]
        unions += [many] * 3
    keys = sort_keys(columns, unions)
    rows = [(label or "z", 7 - i) for labels in inputs for i, label in enumerate(labels)]
    expected = sorted(range(len(rows)), key=lambda row: rows[row])
    assert np.argsort(keys, kind="stable").tolist() == expected


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 kb", 1500), ("3MiB", 3 * 2**20), ("7", None), (7, 7), ("12 bytes", 12)]
)
def test_sizes(text, size):
    if size is None:
        with pytest.raises(ValueError, match="must be a size"):
            as_bytes("n", text)
    else:
        assert as_bytes("n", text) == size
    assert as_rows_or_bytes("n", 5) == (5, None)
    assert as_rows_or_bytes("n", "5kB") == (None, 5000)


@pytest.mark.parametrize("bad", [0, -1, "0GB"])
def test_sizes_below_one(bad):
    with pytest.raises(ValueError, match="n must be >= 1, got"):
        as_bytes("n", bad)


@pytest.mark.parametrize("n_rows", [1, 4096, 10_000])
def test_text_is_written_as_zarr_writes_it(n_rows, tmp_path):
    """Chunk for chunk and byte for byte, the padding of the last chunk and a chunk of nothing but empty texts included."""
    texts = np.array([f"té€xt {row}" * (row % 5) for row in range(n_rows)], object)
    texts[4096:8192] = ""
    field, _ = encode_text(texts.tolist())
    layout = Layout(n_obs_per_chunk=10, shard_rows=100, shard_bytes=None, compressors=None, h5ad_compression=None)
    with ZarrSink(tmp_path / "ours.zarr", layout, obs_row_bytes=10**6) as sink:
        stream = sink.text("text", n_rows, {})
        for start in range(0, n_rows, 3000):
            stream.append(_slice(field, start, min(start + 3000, n_rows)))
        stream.close()
    ours = zarr.open_group(tmp_path / "ours.zarr", mode="r")["text"]
    assert ours.chunks == (min(n_rows, 4096),)
    theirs = zarr.create_array(
        tmp_path / "theirs.zarr",
        shape=n_rows,
        chunks=ours.chunks,
        dtype=str,
        fill_value="",
        compressors=ours.compressors,
    )
    theirs[:] = texts
    assert ours[:].tolist() == texts.tolist()
    for number in range(-(-n_rows // 4096)):
        one, other = tmp_path / f"ours.zarr/text/c/{number}", tmp_path / f"theirs.zarr/c/{number}"
        assert one.exists() == other.exists() == any(texts[number * 4096 : (number + 1) * 4096])
        assert not one.exists() or one.read_bytes() == other.read_bytes()
