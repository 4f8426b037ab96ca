"""A damaged collection is noticed: never a wrong value, a crash, a hang, or an error of another kind."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest

from . import damage


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    root = tmp_path_factory.mktemp("damage") / "c.zarr"
    damage.make_collection(root)
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
    found = shutil.copytree(collection, collection.with_name("other"))
    shutil.rmtree(found / "dataset_1")
    assert damage.values(found) != expected


def test_single_bytes(collection, expected):
    found = outcomes(collection, expected, damage.flips(collection, 40))
    assert found["noticed"] > 35


@pytest.mark.parametrize(
    ("tries", "n"),
    [
        (lambda root: damage.flips(root, 8, 1, "truncate"), 8),
        (lambda root: damage.flips(root, 4, 2, "grow"), 4),
        (lambda root: damage.flips(root, 6, 3, "zero"), 6),
        (damage.removals, 16),
        (damage.swaps, 10),
        (lambda root: damage.fuzzed_documents(root, 16), 16),
    ],
    ids=["truncated", "grown", "zeroed", "removed", "swapped", "documents"],
)
def test_damage_of_every_kind(collection, expected, tries, n):
    outcomes(collection, expected, spread(tries(collection), n))


@pytest.mark.slow
def test_a_thousand_tries_in_a_process_of_their_own(collection):
    prover = damage.Prover(collection)
    found = Counter()
    try:
        tries = chain(
            islice(damage.flips(collection, 1000, seed=7), 600),
            damage.flips(collection, 100, 8, "truncate"),
            damage.flips(collection, 50, 9, "zero"),
            spread(damage.removals(collection), 70),
            spread(damage.swaps(collection), 100),
            damage.fuzzed_documents(collection, 100, 10),
        )
        for each in tries:
            result, text = prover(each)
            assert result in ("noticed", "same"), (each, text)
            found[result] += 1
    finally:
        prover.close()
    assert found["noticed"] > 950


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
