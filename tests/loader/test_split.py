"""Loader.split: disjoint, together everything, exact counts, whole groups."""

from __future__ import annotations

import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import Loader
from tests.cells import cells, write

from .loaders import small_loader

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")

DONORS = [f"D{number}" for number in range(12)]
TYPES = ["B", "NK", "T"]


def study(n_obs, *, seed=0, donors=DONORS, prefix="c", missing=0.0):
    """Cells of donors that gave different numbers of them, on plates."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(len(donors), 2.0))
    donor = np.array(donors, dtype=object)[rng.choice(len(donors), n_obs, p=shares)]
    donor[rng.random(n_obs) < missing] = None
    obs = {
        "donor": pd.Categorical(donor),
        "cell_type": pd.Categorical(rng.choice(TYPES, n_obs, p=[0.7, 0.25, 0.05])),
        "plate": rng.integers(0, 3, n_obs),
    }
    return cells(n_obs, 5, seed=seed, prefix=prefix, obs=obs)


PARTS = [study(300, seed=0, prefix="a"), study(200, seed=1, prefix="b", donors=DONORS[6:] + ["E1", "E2"], missing=0.05)]


@pytest.fixture(scope="module")
def loader():
    return small_loader(batch_size=6).add_adatas(PARTS)


def rows_of(loader):
    return np.concatenate([batch["index"] for batch in loader]).tolist()


def check_division(loader, split):
    """That sides are disjoint and together everything, in the order of the loader."""
    of_all = rows_of(loader.subset(slice(None)))
    sides = [rows_of(side) for side in split.values()]
    assert sorted(row for rows in sides for row in rows) == sorted(of_all)
    for first, rows in enumerate(sides):
        assert rows
        for other in sides[:first]:
            assert not set(rows) & set(other)
    if len(set(of_all)) == len(of_all):
        place = {row: number for number, row in enumerate(of_all)}
        assert all(rows == sorted(rows, key=place.__getitem__) for rows in sides)
    assert split.fractions == {name: len(rows) / len(of_all) for name, rows in zip(split, sides, strict=True)}


def test_fractions_are_exact(loader):
    split = loader.split({"train": 0.8, "validation": 0.1, "test": 0.1})
    check_division(loader, split)
    assert {name: side.n_obs for name, side in split.items()} == {"train": 400, "validation": 50, "test": 50}
    assert split.groups is None
    assert repr(split) == "Sides(train: 400 rows (0.8), validation: 50 rows (0.1), test: 50 rows (0.1))"
    assert type(split["train"]) is Loader
    again = pickle.loads(pickle.dumps(split))
    assert (again.fractions, again["test"].n_obs) == (split.fractions, 50)


def test_without_arguments_it_is_the_usual_split_and_always_the_same(loader):
    one, same = loader.split(by="donor"), loader.split(by="donor")
    assert list(one) == ["train", "validation", "test"]
    assert [rows_of(side) for side in one.values()] == [rows_of(side) for side in same.values()]


def test_seeds(loader):
    def split(seed):
        return rows_of(loader.split(rng=np.random.default_rng(seed))["test"])

    assert split(1) == split(1) != split(2)
    with pytest.warns(FutureWarning, match="rng=1 is taken as a seed"):
        assert rows_of(loader.split(rng=1)["test"]) == split(1)
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator, got 'a'"):
        loader.split(rng="a")


def test_donors_never_cross_sides(loader):
    for by in ("donor", ["donor", "plate"], ["plate"]):
        split = loader.split({"train": 0.6, "test": 0.4}, by=by, rng=np.random.default_rng(0))
        check_division(loader, split)
        names = [by] if isinstance(by, str) else by
        groups = [set(map(str, side.obs(names).itertuples(index=False, name=None))) for side in split.values()]
        assert not groups[0] & groups[1]
        assert [len(labels) for labels in split.groups.values()] == [len(group) for group in groups]
        assert abs(split.fractions["train"] - 0.6) < (0.05 if by == ["plate"] else 0.005)
    assert "nan" in repr(loader.split(by="donor").groups)  # rows without a donor are one group


def test_donors_are_where_they_are_whatever_the_order_of_files():
    sides = [
        small_loader().add_adatas(parts).split({"a": 0.5, "b": 0.5}, by="donor", rng=np.random.default_rng(0)).groups
        for parts in (PARTS, PARTS[::-1])
    ]
    assert repr(sides[0]) == repr(sides[1])


def test_strata_are_exact(loader):
    shares = {"train": 0.75, "validation": 0.15, "test": 0.1}
    split = loader.split(shares, stratify="cell_type", rng=np.random.default_rng(0))
    check_division(loader, split)
    of_all = loader.obs(["cell_type"])["cell_type"].value_counts()
    for name, side in split.items():
        assert abs(side.n_obs - 500 * shares[name]) < 1
        for label, n in side.obs(["cell_type"])["cell_type"].value_counts().items():
            assert abs(n - of_all[label] * shares[name]) < 1


def test_strata_with_groups_come_near(loader):
    split = loader.split({"train": 0.6, "test": 0.4}, by="donor", stratify="cell_type", rng=np.random.default_rng(0))
    check_division(loader, split)
    assert not set(map(str, split.groups["train"])) & set(map(str, split.groups["test"]))
    of_all = loader.obs(["cell_type"])["cell_type"].value_counts(normalize=True)
    for side in split.values():
        assert (side.obs(["cell_type"])["cell_type"].value_counts(normalize=True) - of_all).abs().max() < 0.05
    assert abs(split.fractions["train"] - 0.6) < 0.02


def test_named_groups_are_held_out(loader):
    split = loader.split({"test": {"donor": ["D3", "D7"]}, "train": ...})
    check_division(loader, split)
    assert set(split["test"].obs(["donor"])["donor"]) == {"D3", "D7"}
    assert not set(split["train"].obs(["donor"])["donor"]) & {"D3", "D7"}

    both = loader.split({"test": {"donor": "D3", "plate": [0, 1]}, "train": 0.9, "validation": 0.1})
    check_division(loader, both)
    obs = loader.obs()
    assert both["test"].n_obs == ((obs["donor"] == "D3") & obs["plate"].isin([0, 1])).sum()
    n_left = 500 - both["test"].n_obs
    assert abs(both["train"].n_obs - 0.9 * n_left) < 1

    by = loader.split({"test": {"donor": ["D3", None]}, "train": 0.8, "validation": ...}, by="donor")
    check_division(loader, by)
    assert repr(by.groups["test"]) == "[nan, 'D3']"
    plates = loader.split({str(plate): {"plate": plate} for plate in range(3)})
    check_division(loader, plates)


@settings(max_examples=40)
@given(st.data())
def test_splits_of_random_views(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    loader = small_loader().add_adatas(PARTS)
    if data.draw(st.booleans()):
        loader = loader.subset(rng.integers(0, 500, 120) if data.draw(st.booleans()) else rng.random(500) < 0.3)
    by = data.draw(st.sampled_from([None, "donor", "plate", ["donor", "plate"]]))
    stratify = data.draw(st.sampled_from([None, "cell_type", "plate", ["cell_type", "plate"]]))
    shares = data.draw(st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.6, 0.2, 0.2), (1,)]))
    split = loader.split(dict(zip("abc", shares, strict=False)), by, stratify, rng=rng)
    check_division(loader, split)
    if by is not None:
        names = [by] if isinstance(by, str) else by
        groups = [set(map(str, side.obs(names).itertuples(index=False))) for side in split.values()]
        assert sum(map(len, groups)) == len(set().union(*groups))
    elif not loader._view.repeats:
        for side, share in zip(split.values(), shares, strict=True):
            assert abs(side.n_obs - share * loader.n_obs) < 1


def test_a_row_that_comes_twice_does_not_cross_sides(loader):
    """Oversampling first and splitting then is how test rows get into training."""
    twice = loader.subset(np.concatenate([np.arange(500), np.arange(0, 500, 3)]))
    for kwargs in ({}, {"stratify": "cell_type"}, {"by": "donor"}):
        split = twice.split({"train": 0.7, "test": 0.3}, **kwargs)
        check_division(twice, split)
        assert abs(split.fractions["train"] - 0.7) < 0.05


def test_a_split_is_of_the_view_that_it_is_called_on(loader):
    filtered = small_loader(obs_filter={"cell_type": "NK"}).add_adatas(PARTS)
    split = filtered.split({"train": 0.5, "test": 0.5}, by="donor")
    check_division(filtered, split)
    assert set(split["test"].obs()["cell_type"]) == {"NK"}
    folds = loader.split({str(fold): 0.2 for fold in range(5)}, by="donor")
    inner = loader.subset(np.arange(250)).split(rng=np.random.default_rng(1))
    check_division(loader, folds)
    assert sum(side.n_obs for side in inner.values()) == 250


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sides": {"a": 0.999, "b": 0.001}}, ValueError, r"sides\['b'\] must not be empty, got 0.001 of 500 rows"),
        (
            {"by": "doner"},
            KeyError,
            r"by must be columns of obs, got 'doner', which no dataset has; there is \['donor', 'cell_type', 'plate'\]",
        ),
        ({"stratify": ["cell_type", "x"]}, KeyError, "stratify must be columns of obs"),
        ({"by": []}, ValueError, "by must name at least one column, got none"),
        ({"by": 3}, TypeError, "by must be a list of names, got 3"),
        ({"sides": dict.fromkeys("abcd", 0.25), "by": "plate"}, ValueError, "got 3 groups for"),
        (
            {"sides": {"a": {"donor": ["D3", "D99"]}, "b": ...}},
            ValueError,
            r"sides\['a'\]\['donor'\] must name values that occur, got 'D99', which no row has; there is 'D0', 'D1', 'D10'",
        ),
        ({"sides": {"a": {"plate": None}, "b": ...}}, ValueError, "got missing, which no row has"),
        (
            {"sides": {"a": {"doner": "D3"}, "b": ...}},
            KeyError,
            r"sides\['a'\] must be columns of obs, got 'doner'",
        ),
        ({"sides": {"a": {"donor": "D3"}, "b": {"plate": 0}}}, ValueError, "must not take the same rows"),
        ({"sides": {"a": {"donor": "D3"}, "b": {"donor": "D4"}}}, ValueError, "that are in none; pass ..."),
        ({"sides": {"a": {"plate": 0}, "b": ...}, "by": "donor"}, ValueError, "sides must not cut the groups of `by`"),
        ({"sides": 0.8}, TypeError, "sides must be a dict"),
    ],
)
def test_splits_that_cannot_be_meant(loader, arguments, error, message):
    with pytest.raises(error, match=message):
        loader.split(**arguments)


def test_data_that_cannot_be_split():
    with pytest.raises(ValueError, match="the loader has no data"):
        Loader().split()
    bare = small_loader().add_dataset(np.ones((10, 2)))
    assert {name: side.n_obs for name, side in bare.split().items()} == {"train": 8, "validation": 1, "test": 1}
    with pytest.raises(ValueError, match="the data has no obs"):
        bare.split(by="donor")


@pytest.mark.parametrize("settings", [{"by": "donor"}, {"stratify": "donor"}], ids=["by", "stratify"])
@pytest.mark.parametrize("obs_columns", [None, [], ["plate"]])
def test_donors_that_are_numbers_here_and_text_there_are_refused_by_the_name_of_the_file(
    tmp_path, settings, obs_columns
):
    """The same donor, once as a number and once as text, would be two groups."""
    paths = [tmp_path / f"{name}.h5ad" for name in ("one", "two", "three")]
    for seed, (path, donor) in enumerate(zip(paths, ([3, 4], [1, 2], ["1", "2"]), strict=True)):
        obs = {"donor": donor * 10, "plate": [0] * 20}
        write(cells(20, 5, seed=seed, prefix=str(seed), obs=obs), path)
    loader = small_loader(obs_columns=obs_columns).add_paths(paths)
    with pytest.raises(
        TypeError, match=r"'donor' holds numbers in \S*one.h5ad but text in \S*three.h5ad: make it one kind"
    ):
        loader.split({"a": 0.5, "b": 0.5}, **settings)


def test_donors_of_several_files(tmp_path):
    """Text and categorical, with other categories in every file: a donor is a donor."""
    parts = [study(100, seed=seed, prefix=f"{seed}_", donors=DONORS[seed : seed + 6]) for seed in range(4)]
    parts[1].obs["donor"] = parts[1].obs["donor"].astype(str)
    parts[2].obs["donor"] = parts[2].obs["donor"].cat.set_categories([*DONORS[::-1], "nobody"])
    paths = [
        write(part, tmp_path / f"{number}.{suffix}")
        for number, (part, suffix) in enumerate(zip(parts, ["h5ad", "zarr"] * 2, strict=True))
    ]
    expected = pd.concat([part.obs["donor"].astype(object) for part in parts])
    for loader in (small_loader().add_paths(paths), small_loader().add_adatas(parts), one_by_one(parts)):
        split = loader.split({"train": 0.7, "test": 0.3}, by="donor")
        check_division(loader, split)
        donors = [set(expected.iloc[rows_of(side)]) for side in split.values()]
        assert not donors[0] & donors[1]
        assert sorted(donors[0] | donors[1]) == sorted(set(expected))
        assert {name: set(labels) for name, labels in split.groups.items()} == dict(zip(split, donors, strict=True))


@pytest.mark.parametrize("obs_columns", [[], ["cell_type"]])
def test_columns_that_batches_do_not_have_serve_too(tmp_path, loader, obs_columns):
    paths = [write(part, tmp_path / name) for part, name in zip(PARTS, ("a.h5ad", "b.zarr"), strict=True)]
    expected = loader.split(by="donor", stratify="cell_type")
    for other in (
        small_loader(obs_columns=obs_columns).add_paths(paths),
        small_loader(obs_columns=obs_columns).add_adatas(PARTS),
    ):
        split = other.split(by="donor", stratify="cell_type")
        assert repr(split.groups) == repr(expected.groups)
        assert split["test"].obs(["donor"])["donor"].tolist() == expected["test"].obs(["donor"])["donor"].tolist()


def one_by_one(parts: list[ad.AnnData]) -> Loader:
    loader = small_loader()
    for part in parts:
        loader.add_adata(part)
    return loader
