"""A MappedCollection holds what anndata.concat of the same files holds, row for row and label for label."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from annbatch import MappedCollection
from tests.cells import FORMATS, as_array, cells, write

GENES = [f"gene_{letter}" for letter in "hcagebdf"]
TYPES = ["b_cell", "t_cell", "nk", "unknown"]


@st.composite
def collections_of_files(draw):
    """What lies in each file: its AnnData and its format. At least one gene is in all files."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    same_genes = draw(st.booleans())
    files = []
    for number in range(draw(st.integers(1, 3))):
        shared = GENES[0]
        others = [gene for gene in GENES[1:] if same_genes or rng.random() < 0.6]
        genes = [shared, *others]
        if not same_genes:
            rng.shuffle(genes)
        n_obs = draw(st.integers(0 if number else 1, 5))
        obs = {"number": rng.integers(0, 4, n_obs)}
        kind = draw(st.sampled_from(["category", "text", "lacking"])) if number else "category"
        labels = rng.choice([*TYPES, None] if kind == "category" else TYPES, n_obs)
        if kind == "category":
            obs["cell_type"] = pd.Categorical(labels, rng.permutation(TYPES))
        elif kind == "text":
            obs["cell_type"] = labels.astype(object)
        dtype = draw(st.sampled_from(["float32", "int32", "uint16"]))
        adata = cells(n_obs, genes, seed=rng, dense=not draw(st.booleans()), dtype=dtype, obs=obs)
        adata.layers["counts"] = adata.X * 2
        adata.obsm["X_pca"] = rng.random((n_obs, 3)).astype("float32")
        files.append((adata, draw(st.sampled_from(FORMATS))))
    return files


def expected_rows(files, join):
    """The plain model: one AnnData in memory, and which file each row is from."""
    adatas = [adata for adata, _ in files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas, on the dtype that a file without rows should not have a say in
        joined = ad.concat(adatas, join=join, fill_value=0, index_unique="-")
    return joined, np.repeat(np.arange(len(files)), [adata.n_obs for adata in adatas])


def labels_of(files):
    """The cell type of each row as plain objects, None where it is missing."""
    labels = []
    for adata, _ in files:
        column = adata.obs.get("cell_type")
        labels += [None] * adata.n_obs if column is None else [None if pd.isna(x) else x for x in column]
    return labels


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=collections_of_files(), join=st.sampled_from(["inner", "outer"]), data=st.data())
def test_rows_and_labels(tmp_path_factory, files, join, data):
    folder = tmp_path_factory.mktemp("files")
    paths = [write(adata, folder / str(number), fmt) for number, (adata, fmt) in enumerate(files)]
    joined, store = expected_rows(files, join)
    event(f"{len(files)} files, {len({fmt for _, fmt in files})} formats, join={join}")
    unknown = data.draw(st.sampled_from([None, "unknown"]))

    with MappedCollection(
        paths,
        layers_keys=["X", "counts"],
        obs_keys=["cell_type", "number"],
        obsm_keys="X_pca",
        join=join,
        encode_labels=["cell_type"],
        unknown_label=unknown,
    ) as m:
        assert m.shape == joined.shape == (len(m), len(m.var_joint))
        assert set(m.var_joint) == set(joined.var_names)
        X, counts = (as_array(matrix) for matrix in (joined[:, m.var_joint].X, joined[:, m.var_joint].layers["counts"]))
        rows = data.draw(st.lists(st.integers(-len(m), len(m) - 1), max_size=12))
        batch = m.__getitems__(rows)
        assert len(batch) == len(rows)

        used = sorted({label for label in labels_of(files) if label not in (None, unknown)})
        for row, sample in zip(rows, batch, strict=True):
            assert list(sample) == ["X", "counts", "obsm_X_pca", "cell_type", "number", "_store_idx"]
            np.testing.assert_array_equal(sample["X"], X[row])
            np.testing.assert_array_equal(sample["counts"], counts[row])
            np.testing.assert_array_equal(sample["obsm_X_pca"], joined.obsm["X_pca"][row])
            assert sample["_store_idx"] == store[row]
            assert sample["number"] == joined.obs["number"].iloc[row]
            label = labels_of(files)[row]
            if label is None:
                assert sample["cell_type"] is np.nan
            else:
                assert sample["cell_type"] == m.encoders["cell_type"][label]
            single = m[row]
            assert list(single) == list(sample)
            for key in single:
                np.testing.assert_array_equal(single[key], sample[key])
        assert [label for label, code in m.encoders["cell_type"].items() if code >= 0] == sorted(
            m.get_merged_categories("cell_type") - {unknown}
        )
        assert set(used) <= m.get_merged_categories("cell_type")


# Some of the values that are drawn are in no file.
@pytest.mark.filterwarnings("ignore:obs_filter. no row has")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=collections_of_files(), wanted=st.lists(st.sampled_from([*TYPES, None]), min_size=1), data=st.data())
def test_a_filter_keeps_the_rows_that_pandas_keeps(tmp_path_factory, files, wanted, data):
    folder = tmp_path_factory.mktemp("files")
    paths = [write(adata, folder / str(number), fmt) for number, (adata, fmt) in enumerate(files)]
    numbers = data.draw(st.sets(st.integers(0, 3), min_size=1))
    keep = [
        (adata.obs["cell_type"].isin([w for w in wanted if w]) | (adata.obs["cell_type"].isna() & (None in wanted)))
        & adata.obs["number"].isin(numbers)
        if "cell_type" in adata.obs
        else pd.Series(data=False, index=adata.obs_names)
        for adata, _ in files
    ]
    obs_filter = {"cell_type": [np.nan if w is None else w for w in wanted], "number": tuple(numbers)}
    if not any(k.any() for k in keep):
        with pytest.raises(ValueError, match=r"no row of the .* files passes"):
            MappedCollection(paths, obs_filter=obs_filter, join="outer")
        return
    with MappedCollection(paths, obs_filter=obs_filter, join="outer", obs_keys="number", encode_labels=False) as m:
        np.testing.assert_array_equal(m.indices, np.concatenate([np.flatnonzero(k) for k in keep]))
        np.testing.assert_array_equal(m.storage_idx, np.repeat(np.arange(len(files)), [k.sum() for k in keep]))
        assert m.original_shapes == [(k.sum(), adata.n_vars) for k, (adata, _) in zip(keep, files, strict=True)]
        for i, sample in enumerate(m.__getitems__(range(len(m)))):
            adata = files[m.storage_idx[i]][0]
            row = m.indices[i]
            there = np.isin(m.var_joint, adata.var_names)
            values = pd.Series(as_array(adata.X)[row], index=adata.var_names)
            np.testing.assert_array_equal(sample["X"][there], values[m.var_joint[there]])
            assert not sample["X"][~there].any()
            assert sample["number"] == adata.obs["number"].iloc[row]
