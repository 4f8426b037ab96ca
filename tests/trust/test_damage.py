"""A damaged collection is noticed: never a wrong value, a crash, a hang, or an error of another kind."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest

from . import damage


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """One dataset of 96 rows in two shards: a try takes a few hundredths of a second."""
    root = tmp_path_factory.mktemp("damage") / "c.zarr"
    damage.make_collection(root, (50, 46))
    return root


@pytest.fixture(scope="module")
def expected(collection):
    return damage.values(collection)


def spread(tries, n):
    """As many of them, evenly."""
    tries = list(tries)
    return [tries[i] for i in np.linspace(0, len(tries) - 1, min(n, len(tries))).astype(int)]


def outcomes(collection, expected, tries):
    found = Counter()
    for each in tries:
        with damage.damaged(collection, each):
            result, text = damage.outcome(collection, expected)
        assert result in ("noticed", "same"), (each, text)
        found[result] += 1
    return found


def test_what_is_compared_depends_on_every_value(collection, expected):
    assert damage.values(collection) == expected
    again = damage.values(shutil.copytree(collection, collection.with_name("other")))
    assert again == expected
    found = collection.with_name("fewer")
    damage.make_collection(found, (50, 45))
    assert damage.values(found) != expected


def test_a_hundred_bytes(collection, expected):
    found = outcomes(collection, expected, damage.flips(collection, 100))
    assert found["noticed"] > 95


@pytest.mark.parametrize(
    ("tries", "n"),
    [
        (lambda root: damage.flips(root, 16, 1, "truncate"), 16),
        (lambda root: damage.flips(root, 4, 2, "grow"), 4),
        (lambda root: damage.flips(root, 16, 3, "zero"), 16),
        (damage.removals, 60),
        (damage.swaps, 16),
        (damage.folder_removals, 16),
        (damage.folder_swaps, 16),
        (lambda root: damage.fuzzed_documents(root, 16), 16),
    ],
    ids=["truncated", "grown", "zeroed", "removed", "swapped", "folders removed", "folders swapped", "documents"],
)
def test_damage_of_every_kind(collection, expected, tries, n):
    outcomes(collection, expected, spread(tries(collection), n))


@pytest.mark.slow
def test_two_thousand_tries_in_a_process_of_their_own(tmp_path):
    """On a collection of two datasets and 17 shards: bytes, ends and blocks by chance, every file and every pair."""
    root = tmp_path / "c.zarr"
    damage.make_collection(root)
    prover = damage.Prover(root)
    found = Counter()
    tries = [
        *damage.flips(root, 1000, seed=7),
        *damage.flips(root, 200, 8, "truncate"),
        *damage.flips(root, 200, 9, "zero"),
        *damage.removals(root),
        *damage.swaps(root),
        *damage.folder_removals(root),
        *damage.folder_swaps(root),
        *damage.fuzzed_documents(root, 200, 10),
    ]
    try:
        for each in tries:
            result, text = prover(each)
            assert result in ("noticed", "same"), (each, text)
            found[result] += 1
    finally:
        prover.close()
    assert found["noticed"] > 0.98 * len(tries)


def test_a_shard_of_the_same_sizes_in_place_of_another_is_noticed(tmp_path):
    """Their indexes are equal as well, so only the marks tell them apart."""
    import anndata as ad
    import pandas as pd

    from annbatch import DatasetCollection, storage

    rng = np.random.default_rng(0)
    X = rng.random((64, 4))
    adata = ad.AnnData(X, obs=pd.DataFrame(index=[f"c{i}" for i in range(64)]))
    root = tmp_path / "c.zarr"
    DatasetCollection(root).add_adatas(
        [adata], shuffle=False, shard_size=16, compact=False, zarr_compressor=(), progress=False
    )
    folder = root / "dataset_0/X/c"
    sizes = {path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert len(sizes) == 1
    indexes = {path.read_bytes()[-36:] for path in folder.rglob("*") if path.is_file()}
    assert len(indexes) == 1
    (folder / "0").rename(folder / "between")
    (folder / "1").rename(folder / "0")
    (folder / "between").rename(folder / "1")
    # Whoever opens the array alone, without the collection, is told as well.
    import zarr

    source = storage.open_matrix(zarr.open_array(root / "dataset_0/X", mode="r"))
    rows = np.arange(64)
    with pytest.raises(storage.CorruptDataError, match=r"dataset_0/X/c/0/0 is damaged, or another file stands"):
        storage.read_dense([storage.Part(source, rows, rows)], np.array([0, 64]))
