"""Filters and subsets: every batch of a view is numpy indexing of the data that was added."""

from __future__ import annotations

import copy
import json
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from annbatch import (
    ClassSampler,
    DatasetCollection,
    DistributedSampler,
    Loader,
    MappedCollection,
    RandomSampler,
    SequentialSampler,
)
from annbatch.abc import Sampler
from annbatch.storage.reading import request
from tests.cells import as_array, full_cells, open_cells, write

from .loaders import contents, small_loader, with_sorted_labels
from .test_view_rows import choices

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")

PARTS = [full_cells(n, seed=n, prefix=f"{n}_") for n in (23, 1, 30)]
N_OBS = 54


class Everything:
    """All rows of some datasets below each other, to be indexed by numpy."""

    def __init__(self, parts):
        self.values = np.concatenate([as_array(part.X) for part in parts])
        self.twice = np.concatenate([as_array(part.layers["twice"]) for part in parts])
        self.obsm = {key: np.concatenate([part.obsm[key] for part in parts]) for key in ("pca", "tiles")}
        self.obs = with_sorted_labels(pd.concat([part.obs for part in parts]))

    def check(self, loader, rows, *, in_order=False):
        """That one pass over `loader` is `rows`, each with all that belongs to it."""
        rows = np.asarray(rows)
        assert loader.n_obs == len(rows)
        batches = list(loader)
        assert len(batches) == len(loader)
        index = np.concatenate([batch["index"] for batch in batches])
        assert index.dtype == np.int64
        assert sorted(index.tolist()) == sorted(rows.tolist())
        if in_order:
            assert index.tolist() == rows.tolist()
        for batch in batches:
            np.testing.assert_array_equal(as_array(batch["X"]), self.values[batch["index"]])
            np.testing.assert_array_equal(as_array(batch["layers"]["twice"]), self.twice[batch["index"]])
            for key, expected in self.obsm.items():
                np.testing.assert_array_equal(batch["obsm"][key], expected[batch["index"]])
            pd.testing.assert_frame_equal(batch["obs"], self.obs.iloc[batch["index"]])
        pd.testing.assert_frame_equal(loader.obs(), self.obs.iloc[rows])


DATA = Everything(PARTS)
ALL = {"layers": ["twice"], "obsm": ["pca", "tiles"]}
SOURCES = ("memory", "backed", "h5ad", "zarr", "collection", "dense in memory", "dense zarr")


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory):
    """(function that makes a loader of all rows, what it must yield)."""
    dense = "dense" in request.param
    parts = [full_cells(n, seed=n, prefix=f"{n}_", dense=True) for n in (23, 1, 30)] if dense else PARTS
    if "memory" in request.param:
        return lambda **kwargs: small_loader(**ALL, **kwargs).add_adatas(parts), Everything(parts)
    folder = tmp_path_factory.mktemp("views")
    suffix = "zarr" if "zarr" in request.param else "h5ad"
    paths = [write(part, folder / f"{number}.{suffix}") for number, part in enumerate(parts)]
    if request.param == "backed":
        return lambda **kwargs: small_loader(**ALL, **kwargs).add_adatas(list(map(open_cells, paths))), DATA
    if request.param != "collection":
        return lambda **kwargs: small_loader(**ALL, **kwargs).add_paths(paths), Everything(parts)
    place = DatasetCollection(folder / "collection.zarr")
    place.add_adatas(paths, shuffle=True, rng=np.random.default_rng(0), progress=False, dataset_size=30)
    built = [ad.io.read_elem(group) for group in place]
    assert len(built) > 1
    for part in built:
        part.obs = part.obs.drop(columns="src_path")
    kwargs_of_all = ALL | {"obs_columns": ["label", "n_counts", "batch"]}
    return lambda **kwargs: small_loader(**kwargs_of_all, **kwargs).use_collection(place), Everything(built)


def test_views_of_every_source(source):
    make, data = source
    rng = np.random.default_rng(0)
    mask = rng.random(N_OBS) < 0.5
    data.check(make().subset(mask), np.flatnonzero(mask), in_order=True)
    shuffled = make(shuffle=True, rng=np.random.default_rng(0)).subset(mask)
    data.check(shuffled, np.flatnonzero(mask))
    repeated = rng.integers(-N_OBS, N_OBS, 70)
    view = make().subset(repeated)
    data.check(view, np.arange(N_OBS)[repeated], in_order=True)
    data.check(view.subset(slice(None, None, -3)), np.arange(N_OBS)[repeated][::-3], in_order=True)
    filtered = np.flatnonzero(data.obs["label"].isin(["B", "NK"]) & (data.obs["batch"] == 1))
    loader = make(obs_filter={"label": ["B", "NK"], "batch": 1})
    data.check(loader, filtered, in_order=True)
    data.check(loader.subset([2, 0]), filtered[[2, 0]], in_order=True)


@settings(max_examples=30)
@given(st.data())
def test_views_of_views_are_numpy_indexing(data):
    wanted = data.draw(st.sets(st.sampled_from(["B", "T", "NK"]), min_size=1))
    filtered = data.draw(st.booleans())
    loader = small_loader(
        **ALL,
        obs_filter={"label": sorted(wanted)} if filtered else None,
        dense=data.draw(st.booleans()),
        shuffle=data.draw(st.booleans()),
        prefetch=data.draw(st.integers(0, 2)),
        rng=np.random.default_rng(0),
    ).add_adatas(PARTS)
    rows = np.flatnonzero(DATA.obs["label"].isin(wanted)) if filtered else np.arange(N_OBS)
    for _ in range(data.draw(st.integers(0, 3))):
        chosen = data.draw(choices(len(rows)))
        rows = rows[list(chosen) if isinstance(chosen, range) else chosen]
        loader = loader.subset(chosen)
    DATA.check(loader, rows)
    DATA.check(pickle.loads(pickle.dumps(loader)), rows)
    DATA.check(copy.copy(loader), rows)


def test_labels_and_covariates_of_a_view_are_of_its_rows():
    loader = small_loader(labels=["label"], covariates=["n_counts"], obs_columns=[], obs_filter={"label": ["T", "B"]})
    view = loader.add_adatas(PARTS).subset(slice(None, None, -2))
    names = view.encoders["label"]
    for batch in view:
        expected = DATA.obs.iloc[batch["index"]]
        assert names[batch["labels"]["label"]].tolist() == expected["label"].tolist()
        assert batch["covariates"].ravel().tolist() == expected["n_counts"].tolist()


def test_a_sampler_cannot_reach_beyond_the_view():
    class Beyond(Sampler):
        batch_size, shuffle = 5, False

        def n_batches(self, n_obs):
            return 1

        def _sample(self, n_obs):
            yield {"requests": np.array([0, 30])}

    view = small_loader(batch_sampler=Beyond()).add_adatas(PARTS).subset(np.arange(0, 54, 2))
    with pytest.raises(IndexError, match=r"requests must be in \[0, 27\), got numbers from 0 to 30"):
        list(view)


# -- filters


def test_filters_mean_what_they_mean_for_mapped_collections(tmp_path):
    parts = [full_cells(20, seed=seed, prefix=f"{seed}_") for seed in range(3)]
    parts[0].obs["label"] = parts[0].obs["label"].cat.set_categories(["B", "T"])  # NK becomes missing
    parts[0].obs["sex"] = pd.Categorical(np.where(np.arange(20) % 2, "f", None))
    parts[1].obs["sex"] = pd.Categorical(np.where(np.arange(20) % 3, "f", "m"))
    parts[0].obs["age"] = np.where(np.arange(20) % 4, 1.5, np.nan)
    parts[2].obs["age"] = 1
    parts[1].obs["dead"] = np.arange(20) % 2 == 0
    paths = [write(part, tmp_path / name) for part, name in zip(parts, ("a.h5ad", "b.zarr", "c.h5ad"), strict=True)]
    for conditions in (
        {"label": ["B", np.nan]},
        {"label": None},
        {"sex": ["f", None]},
        {"sex": "m", "label": ["T", "NK"]},
        {"age": 1.5},
        {"age": [1, float("nan")]},
        {"dead": True},
        {"batch": range(2)},
    ):
        mapped = MappedCollection(paths, obs_filter=conditions)
        expected = np.cumsum([0, 20, 20])[mapped.storage_idx] + mapped.indices
        for loader in (
            small_loader(obs_filter=conditions).add_paths(paths),
            small_loader(obs_filter=conditions).add_adatas(parts),
            small_loader(obs_filter=conditions, obs_columns=["n_counts"]).add_paths(paths),
            small_loader(obs_filter=conditions, obs_columns=[]).add_adatas(parts),
        ):
            assert np.concatenate([batch["index"] for batch in loader]).tolist() == expected.tolist(), conditions


def test_a_filter_goes_on_when_data_is_added():
    loader = small_loader(obs_filter={"label": "T"})
    n_passing = 0
    for part in PARTS:
        loader.add_adata(part)
        n_passing += int((part.obs["label"] == "T").sum())
        assert loader.n_obs == n_passing
    index = np.concatenate([batch["index"] for batch in loader])
    assert index.tolist() == np.flatnonzero(DATA.obs["label"] == "T").tolist()
    assert repr(loader).startswith(f"Loader({n_passing} x 7, a view of 54 rows, 3 datasets")


def test_filters_that_are_wrong():
    with pytest.raises(TypeError, match="obs_filter must be a dict of column: value or values, got list"):
        Loader(obs_filter=["B"])
    with pytest.raises(TypeError, match=r"obs_filter\['label'\] must be a value or a list of values"):
        Loader(obs_filter={"label": [["B"]]})
    for conditions in ({"label": "C"}, {"celltype": "B"}, {"label": "B", "batch": 7}):
        loader = small_loader(obs_filter=conditions).add_adatas(PARTS)
        assert loader.n_obs == 0
        assert len(loader.obs()) == 0
        for use in (len, list, lambda loader: loader.subset([]), lambda loader: loader.split()):
            with pytest.raises(ValueError, match="obs_filter=.*: no row of the 3 datasets passes it"):
                use(loader)
    bare = small_loader(obs_filter={"label": "B"}).add_dataset(np.ones((3, 2)))
    assert bare.n_obs == 0


def test_a_filter_that_names_a_column_that_is_not_there_says_so(tmp_path):
    paths = [write(part, tmp_path / f"{number}.h5ad") for number, part in enumerate(PARTS[:2])]
    for loader in (
        small_loader(obs_filter={"celltype": "B"}).add_adatas(PARTS[:2]),
        small_loader(obs_filter={"celltype": "B"}, obs_columns=[]).add_paths(paths),
    ):
        with pytest.raises(ValueError, match=r"passes it; no dataset has 'celltype', there is \['label', .*\]"):
            len(loader)
    loader = small_loader(obs_filter={"label": "C"}).add_adatas(PARTS)
    with pytest.raises(ValueError, match="passes it; no row has 'C' in 'label', there is 'B', 'T', 'NK'$"):
        len(loader)


def test_a_filter_value_that_no_row_has_is_said_once_when_all_data_is_there():
    loader = small_loader(obs_filter={"label": ["B", "C"], "batch": [0, 1, 2, 7]})
    for part in PARTS:
        loader.add_adata(part)  # others may bring what the first ones lack
    with pytest.warns(UserWarning, match=r"^obs_filter: no row has 'C' in 'label', there is 'B', 'T', 'NK'") as caught:
        n_batches = len(loader)
    assert "no row has 7 in 'batch', there is 0, 1, 2" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert len(list(loader)) == n_batches  # a second warning would be an error
    assert loader.subset([0, 1]).n_obs == 2


def test_a_filter_value_that_the_last_data_set_has_is_nothing_to_say():
    loader = small_loader(obs_filter={"batch": [0, 2]})
    for part in PARTS:
        loader.add_adata(part)
    assert len(list(loader)) == len(loader)


def test_a_filter_that_all_rows_pass_costs_no_memory():
    loader = small_loader(obs_filter={"label": ["B", "T", "NK"]}).add_adatas(PARTS)
    assert loader._view.is_all
    assert loader._view.nbytes < 100
    assert loader.state_dict() == small_loader().add_adatas(PARTS).state_dict()


# -- what views share, and what is their own


def test_data_cannot_be_added_to_a_view(tmp_path):
    path = write(PARTS[0], tmp_path / "a.h5ad")
    loader = small_loader().add_adatas(PARTS)
    for view in (loader.subset(slice(None)), loader.subset([1]).subset([0]), copy.copy(loader.subset([1]))):
        for add in (
            lambda view: view.add_adata(PARTS[0]),
            lambda view: view.add_datasets([PARTS[0].X]),
            lambda view: view.add_paths([path]),
            lambda view: view.use_collection(path),
        ):
            with pytest.raises(RuntimeError, match="data must not be added to a view.*: add all data first"):
                add(view)
    before = loader.subset(slice(None))
    loader.add_adata(PARTS[0])
    assert (loader.n_obs, before.n_obs) == (77, 54)
    DATA.check(small_loader(**ALL).add_adatas(PARTS).subset(slice(None)), np.arange(54), in_order=True)


def test_a_view_shares_data_but_neither_sampler_nor_buffers(tmp_path):
    paths = [write(part, tmp_path / f"{number}.h5ad") for number, part in enumerate(PARTS)]
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_paths(paths)
    view = loader.subset(np.arange(0, 54, 2))
    assert view._table is loader._table
    assert view._pool is not loader._pool
    assert view.batch_sampler is not loader.batch_sampler
    assert type(view) is type(loader)
    # Passes go on beside each other.
    batches = zip(loader, view, loader.subset(slice(20)), strict=False)
    for all_rows, even, first in batches:
        for batch in (all_rows, even, first):
            np.testing.assert_array_equal(as_array(batch["X"]), DATA.values[batch["index"]])
        assert not (even["index"] % 2).any()
        assert first["index"].max() < 20


def test_the_sampler_of_a_view_is_a_copy_that_begins_afresh():
    rng = np.random.default_rng(0)
    sampler = RandomSampler(4, 3, 6, mask=slice(10, 50), drop_last=True, rng=rng)
    loader = small_loader(batch_sampler=sampler).add_adatas(PARTS)
    open_pass = iter(loader)
    next(open_pass)
    before = rng.bit_generator.state
    views = [loader.subset(slice(30)) for _ in range(2)]
    assert rng.bit_generator.state == before
    for view in views:
        own = view.batch_sampler
        assert (own.chunk_size, own.preload_nchunks, own.batch_size, own.drop_last) == (4, 3, 6, True)
        assert own.mask == slice(0, None)
        assert view.state_dict()["sampler"]["pass"] == 0
        assert sorted(np.concatenate([batch["index"] for batch in view]).tolist()) == list(range(30))
    assert len(list(open_pass)) == 5
    # Streams of their own, and the same in every run of a script.
    orders = [[batch["index"].tolist() for batch in view] for view in views]
    assert orders[0] != orders[1]
    again = small_loader(batch_sampler=RandomSampler(4, 3, 6, drop_last=True, rng=np.random.default_rng(0)))
    same = again.add_adatas(PARTS)
    next(iter(same))
    same = same.subset(slice(30))
    list(same)
    assert [batch["index"].tolist() for batch in same] == orders[0]


def test_a_sampler_that_is_given_is_taken_as_it_is():
    loader = small_loader().add_adatas(PARTS)
    sampler = SequentialSampler(5, 2, 10, mask=slice(5, 15))
    view = loader.subset(np.arange(54)[::-1], batch_sampler=sampler)
    assert view.batch_sampler is sampler
    assert [batch["index"].tolist() for batch in view] == [list(range(48, 38, -1))]
    with pytest.raises(TypeError, match=r"batch_sampler must be an annbatch.abc.Sampler, got int"):
        loader.subset([0], batch_sampler=3)
    view.batch_sampler.mask = slice(0, 60)
    with pytest.raises(ValueError, match="mask must lie within the 54 rows"):
        list(view)


def test_a_class_sampler_made_of_the_obs_of_a_view_fits_it():
    loader = small_loader(obs_columns=["label"]).add_adatas(PARTS).subset(np.random.default_rng(0).permutation(54)[:40])
    labels = loader.obs(["label"])["label"]
    sampler = ClassSampler(1, 12, 6, classes=labels.values, num_samples=1800, rng=np.random.default_rng(0))
    view = loader.subset(slice(None), batch_sampler=sampler)
    counts = {"B": 0, "NK": 0, "T": 0}
    for batch in view:
        (label,) = set(batch["obs"]["label"])
        assert (DATA.obs["label"].iloc[batch["index"]] == label).all()
        counts[label] += 1
    # Classes are drawn with the same chance: a chi-squared test that fails with a chance of 1e-9.
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < stats.chi2.isf(1e-9, 2)
    with pytest.raises(ValueError, match="classes"):
        list(loader.subset(slice(10), batch_sampler=sampler))
    assert len(list(view.subset(slice(None)))) == 300


@pytest.mark.parametrize("shared_out", [False, True])
def test_a_view_of_other_rows_says_how_to_give_it_a_class_sampler(shared_out):
    sampler = ClassSampler(1, 12, 6, classes=DATA.obs["label"].values, num_samples=18, rng=np.random.default_rng(0))
    if shared_out:
        sampler = DistributedSampler(sampler, dist_info=lambda: (0, 1))
    loader = small_loader(batch_sampler=sampler).add_adatas(PARTS)
    # As many rows, too: the classes of others were taken for theirs.
    for view in (loader.subset(slice(10)), loader.subset(slice(None, None, -1)), *loader.split().values()):
        for use in (list, len, lambda view: list(view.subset(slice(None)))):
            with pytest.raises(
                ValueError, match=r"batch_sampler must be given .* view.subset\(slice\(None\), .*ClassSampler\("
            ):
                use(view)
        assert "no sampler" in repr(view)
        assert len(list(view.subset(slice(None), batch_sampler=SequentialSampler(4, 3, 6)))) == -(-view.n_obs // 6)
    assert len(list(loader.subset(range(54)))) == 3


def test_what_scvi_tools_does_with_masks_works_in_a_view():
    loader = small_loader().add_adatas(PARTS).subset(np.arange(53, -1, -1))
    obs = pd.concat(loader._obs)
    assert obs.index.tolist() == DATA.obs.index[::-1].tolist()
    train, validation = copy.copy(loader), copy.copy(loader)
    train._batch_sampler = RandomSampler(4, 4, 8, mask=slice(0, 40), rng=np.random.default_rng(0))
    validation._batch_sampler = SequentialSampler(7, 2, 7, mask=slice(40, 54))
    rows = [np.concatenate([batch["index"] for batch in part]) for part in (train, validation)]
    assert sorted(rows[0]) == list(range(14, 54))
    assert rows[1].tolist() == list(range(13, -1, -1))


# -- obs


def test_obs_of_a_view():
    loader = small_loader().add_adatas(PARTS).subset([50, 3, 3])
    pd.testing.assert_frame_equal(loader.obs(), DATA.obs.iloc[[50, 3, 3]])
    pd.testing.assert_frame_equal(loader.obs(["batch", "label"]), DATA.obs[["batch", "label"]].iloc[[50, 3, 3]])
    assert loader.obs([]).shape == (3, 0)
    mine = loader.obs()
    mine.loc[:, "n_counts"] = -1.0
    pd.testing.assert_frame_equal(loader.obs(), DATA.obs.iloc[[50, 3, 3]])
    with pytest.raises(TypeError, match=r"columns must be a list of names, got the string 'label': pass \['label'\]"):
        loader.obs("label")
    with pytest.raises(
        KeyError,
        match=r"columns must be columns of obs, got \['celltype'\], which no dataset has; there is \['label', 'n_counts'",
    ):
        loader.obs(["celltype"])
    # Columns that batches do not have are read when they are asked for.
    few = small_loader(obs_columns=["label"]).add_adatas(PARTS).subset([50, 3, 3])
    pd.testing.assert_frame_equal(few.obs(["batch"]), DATA.obs[["batch"]].iloc[[50, 3, 3]])
    assert few.obs().columns.tolist() == ["label"]
    with pytest.raises(ValueError, match="the loader has no data"):
        small_loader().obs()
    with pytest.raises(ValueError, match="the data has no obs"):
        small_loader().add_dataset(np.ones((3, 2))).obs()


# -- resuming


def saved(loader):
    return json.loads(json.dumps(loader.state_dict()))


def test_resume_in_a_view():
    rows = np.random.default_rng(0).integers(0, 54, 40)

    def make(seed):
        return small_loader(shuffle=True, rng=np.random.default_rng(seed)).add_adatas(PARTS).subset(rows)

    original = make(0)
    states, batches = [saved(original)], []
    for batch in original:
        batches.append(contents(batch))
        states.append(saved(original))
    for n_done, state in enumerate(states):
        loader = make(1)
        loader.load_state_dict(state)
        assert [contents(batch) for batch in loader] == batches[n_done:]


def test_a_state_belongs_to_the_same_rows():
    loader = small_loader().add_adatas(PARTS)
    view = loader.subset(np.arange(54)[::-1])
    next(iter(view))
    state = saved(view)
    assert len(json.dumps(state)) < 1000
    loader.subset(np.arange(54)[::-1]).load_state_dict(state)
    small_loader().add_adatas(PARTS).subset(np.arange(53, -1, -1)).load_state_dict(state)
    for other in (loader, loader.subset(np.roll(np.arange(54), 1)), loader.subset(slice(40))):
        before = saved(other)
        with pytest.raises(ValueError, match="state belongs to another view of the same data: it was taken with"):
            other.load_state_dict(state)
        assert saved(other) == before
    with pytest.raises(ValueError, match="it was taken with all rows, this loader has .*'n_obs': 54"):
        view.load_state_dict(saved(loader))
    other_data = small_loader().add_adatas(PARTS[::-1]).subset(np.arange(54)[::-1])
    with pytest.raises(ValueError, match="state belongs to other data"):
        other_data.load_state_dict(state)
    # All rows in their order are no view, and a state from before there were views fits them.
    loader.subset(np.arange(54)).load_state_dict(saved(loader))
    filtered = small_loader(obs_filter={"label": "B"}).add_adatas(PARTS)
    filtered.load_state_dict(saved(filtered))
    with pytest.raises(ValueError, match="another view of the same data"):
        loader.load_state_dict(saved(filtered))


# -- what is read


def test_a_random_half_reads_each_stored_chunk_once_a_request(tmp_path, monkeypatch):
    """Of 32 rows of the view, spread over some 64 rows of the data, just the stored chunks are read that hold some of them."""
    adata = full_cells(2000, seed=3)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    sparse = adata.X
    with ad.settings.override(auto_shard_zarr_v3=False):
        for name, part in (("obs", adata.obs), ("var", adata.var)):
            ad.io.write_elem(group, name, part)
        ad.io.write_elem(group, "X", sparse, dataset_kwargs={"chunks": (50,)})
    settings = {"chunk_size": 32, "preload_nchunks": 4, "batch_size": 32, "return_index": True, "prefetch": 0}
    view = Loader(**settings).add_paths([tmp_path / "a.zarr"]).subset(np.random.default_rng(0).random(2000) < 0.5)
    read, run = [], request.run

    def noted(jobs, *arguments):
        read.append([job.plan.tasks["chunk"].tolist() for job in jobs])
        return run(jobs, *arguments)

    monkeypatch.setattr(request, "run", noted)
    index = np.concatenate([batch["index"] for batch in view])
    assert len(read) == -(-view.n_obs // 128)
    for number, jobs in enumerate(read):
        rows = index[number * 128 : (number + 1) * 128]
        touched = {
            chunk
            for start, stop in zip(sparse.indptr[rows].tolist(), sparse.indptr[rows + 1].tolist(), strict=True)
            for chunk in range(start // 50, -(-stop // 50))
            if stop > start
        }
        for chunks in jobs:
            assert chunks == sorted(touched)
