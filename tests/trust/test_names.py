"""Any name that an h5ad file can hold comes back equal, or is refused before any work."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import DatasetCollection, write_sharded

# Characters that a path, Zarr or JSON might take for something else.
ODD = "\\/.:*?\"<>| '\n\t\x01~%#äß漢\U0001f9ec"
NAMES = st.text(st.one_of(st.sampled_from(ODD), st.sampled_from("ab_c0")), min_size=1, max_size=6)


def named(column, key, gene_column):
    matrix = sp.csr_matrix(np.arange(6, dtype="f4").reshape(3, 2))
    adata = ad.AnnData(
        matrix,
        obs=pd.DataFrame({column: [1, 2, 3]}, index=list("xyz")),
        var=pd.DataFrame({gene_column: [7, 8]}, index=["g", "h"]),
    )
    adata.layers[key] = matrix * 2
    adata.obsm[key] = np.arange(6.0).reshape(3, 2) + 1
    return adata


def stored_and_found(adata, column, key, gene_column, folder):
    """Whether all comes back equal; False when the names are refused, with nothing written."""
    place = folder / "c.zarr"
    try:
        collection = DatasetCollection(place).add_adatas([adata], shuffle=False, progress=False)
    except ValueError as error:
        assert "rename it" in str(error)  # noqa: PT017
        assert not list(place.glob("dataset_*"))
        return False
    np.testing.assert_array_equal(collection.obs()[column], [1, 2, 3])
    [group] = collection
    back = ad.io.read_elem(group)
    np.testing.assert_array_equal(back.obs[column], [1, 2, 3])
    np.testing.assert_array_equal(back.var[gene_column], [7, 8])
    assert (back.layers[key] != adata.layers[key]).nnz == 0
    np.testing.assert_array_equal(back.obsm[key], adata.obsm[key])
    assert collection.verify(progress=False).is_sound
    return True


@given(column=NAMES, key=NAMES, gene_column=NAMES)
@settings(max_examples=8, deadline=None)
def test_any_name_of_an_h5ad_comes_back_or_is_refused(column, key, gene_column, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            named(column, key, gene_column).write_h5ad(folder / "a.h5ad")
            adata = ad.read_h5ad(folder / "a.h5ad")
            assert (adata.obs.columns == [column]).all()
            assert list(adata.layers) == [key]
        except (ValueError, KeyError, TypeError, OSError, AttributeError, AssertionError):
            return  # h5ad does not hold such a name
        stored_and_found(adata, column, key, gene_column, folder)


@pytest.mark.parametrize("name", ["a\\b", "a\\", "\\", "c\\0"])
@pytest.mark.parametrize("where", ["column", "key", "gene_column"])
def test_a_backslash_is_refused(name, where, tmp_path):
    """Zarr takes it for a slash: such columns came back as zeros."""
    names = {"column": "n", "key": "n", "gene_column": "n", where: name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not stored_and_found(named(**names), **names, folder=tmp_path)


@pytest.mark.parametrize(
    "name", [" a", "a ", "a\nb", ".a", "a.", "c", "0", "codes", "zarr", "ä漢", "a:b", "~", "a'\"b"]
)
def test_odd_names_come_back(name, tmp_path):
    assert stored_and_found(named(name, name, name), name, name, name, tmp_path)


@pytest.mark.parametrize("name", ["a\\b", "zarr.json", "..", "x" * 300, "half \ud800"])
@pytest.mark.parametrize("part", ["uns", "obsp", "varp", "uns in uns"])
def test_write_sharded_refuses_names_of_other_parts(name, part, tmp_path):
    adata = named("n", "n", "n")
    if part == "uns in uns":
        adata.uns["a"] = {name: 1}
    elif part == "uns":
        adata.uns[name] = 1
    else:
        getattr(adata, part)[name] = sp.csr_matrix(np.eye(3 if part == "obsp" else 2))
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    with pytest.raises(ValueError, match="under which nothing can be stored; rename it"):
        write_sharded(group, adata)
    assert not list(group)
