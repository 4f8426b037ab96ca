"""Batches in a model's scale: totals over all stored genes, whatever genes, rows and threads come out."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from annbatch import DatasetCollection, Loader
from annbatch.collection.verify import accept
from annbatch.storage import Scale
from tests.cells import as_array, full_cells, write
from tests.reference.rows import scaled_rows

from .loaders import small_loader

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def scaled(counts, target_sum=None, *, log1p=False):
    return scaled_rows(np.asarray(counts), Scale(target_sum, log1p=log1p))[0]


def in_order(loader, part=lambda batch: as_array(batch["X"])):
    batches = list(loader)
    order = np.argsort(np.concatenate([batch["index"] for batch in batches]))
    return np.concatenate([part(batch) for batch in batches])[order]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("stored", ["sparse", "dense"])
@pytest.mark.parametrize("genes", ["all", "chosen", "joined"])
@pytest.mark.parametrize(("target_sum", "log1p"), [(1e4, True), (None, True), (100, False)])
def test_scale_is_over_all_stored_genes(dense, stored, genes, target_sum, log1p):
    parts = [full_cells(30, 9, seed=seed, dense=stored == "dense", prefix=f"{seed}_") for seed in range(2)]
    if genes == "joined":
        parts[1] = parts[1][:, [4, 2, 0, 8]].copy()
    chosen = (
        ["g3", "g1"] if genes == "chosen" else ["g0", "g2", "g4", "g8"] if genes == "joined" else parts[0].var_names
    )
    loader = small_loader(
        shuffle=True,
        dense=dense,
        normalize_total=target_sum,
        log1p=log1p,
        library_size=True,
        join="inner" if genes == "joined" else None,
        var_names=["g3", "g1"] if genes == "chosen" else None,
    ).add_adatas(parts)
    expected = np.concatenate(
        [scaled(as_array(part.X), target_sum, log1p=log1p)[:, part.var_names.get_indexer(chosen)] for part in parts]
    )
    found = in_order(loader)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    sizes = in_order(loader, lambda batch: batch["library_size"])
    assert sizes.dtype == np.float32
    np.testing.assert_array_equal(sizes, np.concatenate([as_array(part.X).sum(axis=1) for part in parts]))


def test_library_size_alone_leaves_values_as_they_are():
    adata = full_cells(dtype="int32")
    loader = small_loader(library_size=True).add_adata(adata)
    assert in_order(loader).dtype == np.int32
    np.testing.assert_array_equal(in_order(loader), as_array(adata.X))
    np.testing.assert_array_equal(in_order(loader, lambda b: b["library_size"]), as_array(adata.X).sum(axis=1))


def test_layers_are_scaled_instead_of_x():
    adata = full_cells()
    adata.raw = full_cells(50, 11)
    loader = small_loader(
        layers=["twice", "raw.X"], normalize_layers=["raw.X", "twice"], normalize_total=10, library_size=True
    ).add_adata(adata)
    np.testing.assert_array_equal(in_order(loader), as_array(adata.X))
    for name, matrix in (("twice", adata.layers["twice"]), ("raw.X", adata.raw.X)):
        found = in_order(loader, lambda batch, name=name: as_array(batch["layers"][name]))
        np.testing.assert_allclose(found, scaled(as_array(matrix), 10), rtol=1e-6)
    np.testing.assert_array_equal(in_order(loader, lambda b: b["library_size"]), as_array(adata.raw.X).sum(axis=1))
    alone = small_loader(x=False, layers=["twice"], normalize_layers=["twice"], log1p=True).add_adata(adata)
    found = in_order(alone, lambda batch: as_array(batch["layers"]["twice"]))
    np.testing.assert_allclose(found, np.log1p(as_array(adata.layers["twice"])), rtol=1e-6)


@pytest.mark.parametrize("settings", [{"prefetch": 0}, {"num_threads": 1}, {"num_threads": 3}], ids=str)
def test_values_do_not_depend_on_threads(settings):
    def batches(**more):
        loader = small_loader(normalize_total=1e4, log1p=True, library_size=True, **more).add_adata(full_cells(seed=4))
        return in_order(loader)

    np.testing.assert_array_equal(batches(**settings), batches())


def test_a_pass_goes_on_with_the_same_values():
    def fresh():
        rng = np.random.default_rng(0)
        return small_loader(shuffle=True, rng=rng, normalize_total="median", log1p=True).add_adata(full_cells(seed=4))

    whole = [as_array(batch["X"]) for batch in fresh()]
    loader = fresh()
    batches = iter(loader)
    next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    batches.close()
    resumed = fresh()
    resumed.load_state_dict(state)
    for expected, batch in zip(whole[1:], resumed, strict=True):
        np.testing.assert_array_equal(as_array(batch["X"]), expected)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        (
            {"normalize_total": "mean"},
            ValueError,
            "normalize_total must be a finite number > 0, \"median\" or None, got 'mean'",
        ),
        ({"normalize_total": 0}, ValueError, "normalize_total must be a finite number > 0"),
        ({"normalize_total": float("inf")}, ValueError, "normalize_total must be a finite number > 0"),
        ({"normalize_total": [1]}, TypeError, "normalize_total must be a finite number > 0"),
        ({"log1p": 1}, TypeError, "log1p must be True or False"),
        (
            {"log1p": True, "dtype": "int32"},
            ValueError,
            "dtype must be float32 or float64 where values are normalised, got int32",
        ),
        ({"normalize_layers": ["a"]}, ValueError, "normalize_layers must name layers that normalize_total, log1p"),
        ({"normalize_layers": ["a"], "log1p": True}, ValueError, r"layers that are read, got layers\['a'\]"),
        (
            {"log1p": True, "x": False, "layers": ["a"]},
            ValueError,
            "which x=False does not read: pass normalize_layers",
        ),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        Loader(**kwargs)


# -- the median


def median_of(*parts):
    return np.median(np.concatenate([as_array(part.X).sum(axis=1) for part in parts]))


def test_the_median_is_over_all_rows_however_they_were_added():
    parts = [full_cells(n, seed=n) for n in (10, 25, 31)]
    expected = np.concatenate([scaled(as_array(part.X), median_of(*parts)) for part in parts])
    at_once = small_loader(normalize_total="median").add_adatas(parts)
    one_by_one = small_loader(normalize_total="median")
    for part in parts:
        one_by_one.add_adata(part)
    for loader in (at_once, one_by_one):
        np.testing.assert_allclose(in_order(loader), expected, rtol=1e-6)


def test_rows_without_counts_do_not_make_a_median_of_zero():
    counts = np.zeros((5, 2), "float32")
    counts[0] = 3
    found = in_order(small_loader(normalize_total="median").add_dataset(counts))
    np.testing.assert_allclose(found, scaled(counts, 1.0))


@pytest.fixture
def paths(tmp_path):
    return [write(full_cells(40, seed=seed, prefix=f"{seed}_"), tmp_path / f"{seed}.h5ad") for seed in range(3)]


@pytest.mark.parametrize("h5ad", [False, True])
def test_the_median_of_a_collection_is_kept_beside_it_until_data_is_added(tmp_path, paths, monkeypatch, h5ad):
    place = tmp_path / "cells.zarr"
    make = {"is_collection_h5ad": h5ad}
    rng = np.random.default_rng(0)
    DatasetCollection(place, **make).add_adatas(paths[:2], rng=rng, progress=False)
    counted = []
    from annbatch.loader import scaling

    def counting(sources, **kwargs):
        counted.append(len(sources))
        return original(sources, **kwargs)

    original = scaling.totals_with_progress
    monkeypatch.setattr(scaling, "totals_with_progress", counting)

    def batches(*more):
        loader = small_loader(normalize_total="median", join="outer").use_collection(
            DatasetCollection(place, mode="r", **make)
        )
        for path in more:
            loader.add_paths([path])
        return in_order(loader)

    parts = [ad.read_h5ad(path) for path in paths]
    first = batches()
    assert len(counted) == 1
    np.testing.assert_array_equal(batches(), first)
    assert len(counted) == 1
    kept = json.loads((tmp_path / "cells.zarr.totals.json").read_text())
    assert kept["X"]["median"] == median_of(*parts[:2])
    # More data than the collection: its rows are added up after all.
    assert np.allclose(batches(paths[2]).sum(axis=1).max(), median_of(*parts))
    assert counted == [1, 2]
    np.testing.assert_array_equal(batches(), first)
    DatasetCollection(place, **make).add_adatas(paths[2:], rng=rng, progress=False)
    assert np.allclose(batches().sum(axis=1).max(), median_of(*parts))
    assert len(counted) == 3


def test_a_damaged_file_of_medians_is_not_trusted(tmp_path, paths):
    place = tmp_path / "cells.zarr"
    DatasetCollection(place).add_adatas(paths, progress=False, rng=np.random.default_rng(0))

    def batches():
        return in_order(small_loader(normalize_total="median").use_collection(place))

    first = batches()
    kept = tmp_path / "cells.zarr.totals.json"
    good = json.loads(kept.read_text())
    for text in ("", "[]", "{}", json.dumps({"X": {**good["X"], "median": -1}}), json.dumps({"X": {"median": 7}})):
        kept.write_text(text)
        np.testing.assert_array_equal(batches(), first)
    assert json.loads(kept.read_text()) == good


def test_a_median_of_values_that_were_changed_is_not_trusted(tmp_path, paths):
    """Values may be changed on purpose, which leaves the documents of the matrix as they are."""
    place = tmp_path / "cells.zarr"
    DatasetCollection(place).add_adatas(paths, progress=False, rng=np.random.default_rng(0))
    small_loader(normalize_total="median").use_collection(place)
    first = json.loads((tmp_path / "cells.zarr.totals.json").read_text())["X"]["median"]
    for dataset in place.glob("dataset_*"):
        values = zarr.open_group(dataset, mode="r+")["X/data"]
        values[:] = values[:] * 2
    accept(place, progress=False)
    small_loader(normalize_total="median").use_collection(place)
    assert json.loads((tmp_path / "cells.zarr.totals.json").read_text())["X"]["median"] == 2 * first


def test_sparse_arrays_and_empty_data():
    loader = small_loader(normalize_total="median").add_dataset(sp.csr_array((0, 3), dtype="float32"))
    loader.add_dataset(sp.csr_array(np.array([[1.0, 0, 3]], dtype="float32")))
    assert as_array(next(iter(loader))["X"]).tolist() == [[1, 0, 3]]
