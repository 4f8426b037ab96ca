"""MappedCollection under torch's DataLoader: batches, samplers, worker processes."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np
import pandas as pd
import pytest

from annbatch import MappedCollection
from annbatch.mapped.samples import Sample
from tests.cells import cells, write

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch.utils.data import (  # noqa: E402
    DataLoader,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three files of different formats that share two of three genes; labels are missing in the second."""
    folder = tmp_path_factory.mktemp("torch")
    rng = np.random.default_rng(0)
    found = []
    for number, fmt in enumerate(["h5ad", "gzip", "zarr3"]):
        labels = ["T", "B", None] if number == 1 else ["T", "B"]
        adata = cells(
            20,
            ["a", "b", "cde"[number]],
            seed=rng,
            obs={
                "cell_type": pd.Categorical(rng.choice(labels, 20)),
                "donor": rng.choice(list("xyz"), 20).astype(object),
                "age": rng.integers(0, 90, 20).astype("int32"),
            },
        )
        if number == 0:
            adata.layers["counts"] = adata.X.copy()
        adata.obsm["pca"] = rng.random((20, 2)).astype("float32")
        found.append(write(adata, folder / str(number), fmt))
    return found


@pytest.fixture
def m(paths):
    with MappedCollection(
        paths, obs_keys=["cell_type", "donor", "age"], obsm_keys="pca", join="outer", encode_labels=["cell_type"]
    ) as collection:
        yield collection


def assert_same_batch(a, b):
    assert list(a) == list(b)
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, b[key], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == b[key]


def test_batches_equal_stacked_rows(m):
    for batch in (
        next(iter(DataLoader(m, batch_size=7))),
        next(iter(DataLoader(m, batch_size=7, collate_fn=m.collate))),
    ):
        assert list(batch) == ["X", "obsm_pca", "cell_type", "donor", "age", "_store_idx"]
        assert batch["X"].shape == (7, 5)
        assert batch["X"].dtype == torch.float32
        assert batch["age"].dtype == torch.int32
        assert batch["_store_idx"].dtype == torch.int64
        for i in range(7):
            row = m[i]
            np.testing.assert_array_equal(batch["X"][i].numpy(), row["X"])
            np.testing.assert_array_equal(batch["obsm_pca"][i].numpy(), row["obsm_pca"])
            assert batch["cell_type"][i].item() == row["cell_type"]
            assert batch["donor"][i] == row["donor"]
            assert batch["age"][i].item() == row["age"]


@pytest.mark.parametrize("collate", [default_collate, MappedCollection.collate])
def test_the_block_is_handed_out_without_a_copy(m, collate):
    samples = m.__getitems__([50, 3, 25, 3])
    batch = collate(samples)
    assert batch["X"].data_ptr() == samples[0]["X"].ctypes.data
    assert batch["obsm_pca"].data_ptr() == samples[0]["obsm_pca"].ctypes.data
    assert type(batch) is dict


@pytest.mark.parametrize("collate", [default_collate, MappedCollection.collate])
@pytest.mark.parametrize(
    "change",
    [
        lambda samples: samples[::-1],
        lambda samples: samples[:2],
        lambda samples: [samples[0], samples[0], samples[1]],
        lambda samples: [sample | {"X": sample["X"] + 1} for sample in samples],
        lambda samples: [dict(sample) for sample in samples],
    ],
    ids=["reversed", "fewer", "repeated", "copied with another X", "plain dicts"],
)
def test_changed_samples_are_stacked_anew(m, collate, change):
    samples = change(m.__getitems__([50, 3, 25]))
    batch = collate(samples)
    np.testing.assert_array_equal(batch["X"].numpy(), np.stack([sample["X"] for sample in samples]))
    assert batch["_store_idx"].tolist() == [sample["_store_idx"] for sample in samples]


@pytest.mark.parametrize("collate", [default_collate, MappedCollection.collate])
def test_samples_changed_in_place_are_seen(m, collate):
    samples = m.__getitems__([50, 3, 25])
    for sample in samples:
        sample["X"] = np.log1p(sample["X"])
        sample["new"] = 1
        del sample["donor"]
    batch = collate(samples)
    np.testing.assert_array_equal(batch["X"].numpy(), np.stack([sample["X"] for sample in samples]))
    assert "donor" not in batch
    assert batch["new"].tolist() == [1, 1, 1]


def test_other_rules_of_collating_are_followed(m):
    from torch.utils.data._utils.collate import collate, default_collate_fn_map

    rules = default_collate_fn_map | {np.ndarray: lambda rows, *, collate_fn_map: [row.sum() for row in rows]}
    samples = m.__getitems__([50, 3])
    assert collate(samples, collate_fn_map=rules)["X"] == [sample["X"].sum() for sample in samples]


def test_what_is_no_sample_is_left_to_torch(m):
    assert m.collate([1, 2]).tolist() == [1, 2]
    with pytest.raises(TypeError):
        m.collate([m.__getitems__([1])[0], 2])


def test_values_that_moved_to_another_key_are_seen(m):
    samples = m.__getitems__([50, 3])
    for sample in samples:
        sample["store"] = sample.pop("_store_idx")
    assert m.collate(samples)["store"].tolist() == [2, 0]


def test_a_column_with_missing_labels_is_float_in_every_batch(m):
    batches = list(DataLoader(m, batch_size=20))
    assert {batch["cell_type"].dtype for batch in batches} == {torch.float64}
    assert [bool(batch["cell_type"].isnan().any()) for batch in batches] == [False, True, False]


def test_codes_are_int64_where_no_label_is_missing(paths):
    with MappedCollection([paths[0], paths[2]], obs_keys="cell_type") as m:
        assert {batch["cell_type"].dtype for batch in DataLoader(m, batch_size=8)} == {torch.int64}


@pytest.mark.parametrize("collate", [default_collate, MappedCollection.collate])
def test_text_labels_are_a_list_wherever_one_is_missing(paths, collate):
    with MappedCollection(paths[1:2], obs_keys="cell_type", encode_labels=False) as m:
        missing = np.flatnonzero(pd.isna(m.get_merged_labels("cell_type"))).tolist()
        there = np.flatnonzero(~pd.isna(m.get_merged_labels("cell_type"))).tolist()
        for rows in (missing[:1] + there[:1], there[:1] + missing[:1], missing[:2], there[:2]):
            samples = m.__getitems__(rows)
            assert collate(samples)["cell_type"] == [sample["cell_type"] for sample in samples]


@pytest.mark.parametrize("collate", [default_collate, MappedCollection.collate])
def test_rows_of_different_length_are_named(paths, tmp_path, collate):
    longer = write(cells(2, list("abcd"), seed=1), tmp_path / "longer.h5ad")
    with (
        MappedCollection([paths[0], longer], join=None) as m,
        pytest.raises(ValueError, match=r"'X' must have rows of one shape to be stacked, got \(3,\) and \(4,\)"),
    ):
        collate(m.__getitems__([0, 20]))


def test_a_key_that_only_some_files_have(paths):
    with MappedCollection(paths, layers_keys=["X", "counts"]) as m:
        with pytest.raises(KeyError, match=r"\['counts'\] is only in some samples of the batch"):
            m.collate(m.__getitems__([0, 30]))
        assert m.collate(m.__getitems__([0, 1]))["counts"].shape == (2, 2)
        assert "counts" not in m.collate(m.__getitems__([30, 31]))


def test_rows_of_one_file_are_a_batch_without_a_join(paths):
    with MappedCollection(paths[:2], layers_keys="X", join=None) as m:
        assert m.collate(m.__getitems__([3, 1]))["X"].shape == (2, 3)
        assert m.collate(m.__getitems__([3, 30]))["X"].shape == (2, 3)


def test_shuffled_epochs_hold_every_row_once(m):
    epoch = torch.cat([batch["X"] for batch in DataLoader(m, batch_size=8, shuffle=True)])
    expected = np.stack([sample["X"] for sample in m.__getitems__(range(len(m)))])
    assert len(epoch) == len(m)
    np.testing.assert_array_equal(np.sort(epoch.numpy(), axis=0), np.sort(expected, axis=0))


def test_weighted_sampling_evens_out_the_labels(paths):
    with MappedCollection(paths, obs_keys="cell_type") as m:
        weights = m.get_label_weights("cell_type")
        assert weights.shape == (len(m),)
        sampler = WeightedRandomSampler(weights, 3000, generator=torch.Generator().manual_seed(0))
        drawn = torch.cat([batch["cell_type"] for batch in DataLoader(m, batch_size=100, sampler=sampler)])
        counts = np.array([(drawn == 0).sum(), (drawn == 1).sum(), drawn.isnan().sum()])
        # Multinomial with three equal shares: chi-squared with 2 degrees of freedom exceeds 27.6 with p = 1e-6.
        assert ((counts - 1000) ** 2 / 1000).sum() < 27.6


def test_subsets_and_splits_stay_fast(m):
    """torch's Subset passes a batch on as a batch."""
    part, rest = random_split(m, [40, 20], generator=torch.Generator().manual_seed(0))
    assert len(part) + len(rest) == len(m)
    batch = Subset(m, [59, 0, 30]).__getitems__([2, 0])
    assert type(batch[0]) is Sample
    assert [sample["_store_idx"] for sample in batch] == [1, 2]


def test_single_samples_without_batching(m):
    samples = list(DataLoader(m, batch_size=None))
    np.testing.assert_array_equal(samples[30]["X"].numpy(), m[30]["X"])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("context", "read_before", "parallel"),
    [
        ("fork", False, False),
        ("fork", True, False),
        ("fork", True, True),
        # A new process shares nothing that could be open, and each start takes seconds: one case each.
        ("spawn", True, False),
        ("forkserver", True, True),
    ],
)
def test_workers_give_the_same_batches(paths, context, read_before, parallel):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{sys.platform} has no {context}")
    with MappedCollection(
        paths, obs_keys=["cell_type", "donor"], join="outer", encode_labels=["cell_type"], parallel=parallel
    ) as m:
        if read_before:
            m.__getitems__([0, 25, 45])
        loader = DataLoader(
            m, batch_size=9, num_workers=2, multiprocessing_context=context, worker_init_fn=m.torch_worker_init_fn
        )
        in_workers = list(loader)
        for a, b in zip(in_workers, DataLoader(m, batch_size=9), strict=True):
            assert_same_batch(a, b)
