"""Any name that an h5ad file can hold comes back equal, or is refused before any work."""

from __future__ import annotations

import re
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
from annbatch.collection.building import build

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


# Whatever a Python string can be: zeros and halves of surrogate pairs inside, too.
TEXTS = st.text(st.one_of(st.sampled_from("\0\ud800" + ODD), st.characters()), max_size=4)


@given(
    names=st.lists(TEXTS, min_size=3, max_size=3, unique=True),
    labels=st.lists(TEXTS, min_size=3, max_size=3, unique=True),
    texts=st.lists(TEXTS, min_size=3, max_size=3),
    genes=st.lists(TEXTS, min_size=2, max_size=2, unique=True),
    suffix=st.sampled_from(["zarr", "h5ad"]),
)
@settings(max_examples=25, deadline=None)
def test_any_text_comes_back_or_is_refused_before_any_work(names, labels, texts, genes, suffix, tmp_path_factory):
    obs = pd.DataFrame({"label": pd.Categorical(labels), "text": np.array(texts, dtype=object)}, index=names)
    adata = ad.AnnData(sp.csr_matrix(np.eye(3, 2, dtype="f4")), obs=obs, var=pd.DataFrame(index=genes))
    place = tmp_path_factory.mktemp("texts") / "c"
    collection = DatasetCollection(place, is_collection_h5ad=suffix == "h5ad")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worked = []
        original = build.deal_inputs
        patch.setattr(build, "deal_inputs", lambda *args: worked.append(1) or original(*args))
        try:
            collection.add_adatas([adata], shuffle=False, progress=False)
        except ValueError:
            assert not worked
            assert re.search("[\0\ud800-\udfff]", "".join([*names, *labels, *texts, *genes]))
            return
    found = collection.obs()
    assert found.index.tolist() == names
    assert (
        found["label"].tolist() == obs["label"].tolist()
    )  # pandas takes labels that differ only after a NUL for the same
    assert found["text"].tolist() == texts
    [group] = collection
    assert ad.io.read_elem(group["var"]).index.tolist() == genes
    assert collection.verify(progress=False).is_sound


@pytest.mark.parametrize("part", ["label", "gene", "gene_column", "varm"])
def test_a_nul_in_a_label_or_gene_is_refused_with_the_part(part, tmp_path):
    adata = named("n", "n", "n")
    bad = np.array(["a\0b", "c"], dtype=object)
    if part == "label":
        adata.obs["label"] = pd.Categorical(["a\0b", "c", "c"])
    elif part == "gene":
        adata.var_names = bad
    elif part == "gene_column":
        adata.var["gene"] = bad
    else:
        adata.varm["table"] = pd.DataFrame({"gene": bad}, index=adata.var_names)
    what = {"label": r"categories of obs\['label'\]", "gene": "names of var", "gene_column": r"var\['gene'\]"}
    with pytest.raises(ValueError, match=what.get(part, r"varm\['table'\]\['gene'\]") + r" must be .*got 'a\\x00b'"):
        DatasetCollection(tmp_path / "c.zarr").add_adatas([adata], progress=False)


def test_a_nul_in_stored_text_is_no_text_of_an_h5ad_collection(tmp_path):
    adata = named("n", "n", "n")
    adata.obs["text"] = ["a\0b", "c", "d"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "a.zarr", convert_strings_to_categoricals=False)
    with pytest.raises(ValueError, match=r"obs/text must be text without NUL characters.*got 'a\\x00b'"):
        DatasetCollection(tmp_path / "c", is_collection_h5ad=True).add_adatas([tmp_path / "a.zarr"], progress=False)
    collection = DatasetCollection(tmp_path / "c.zarr").add_adatas([tmp_path / "a.zarr"], shuffle=False, progress=False)
    assert collection.obs()["text"].tolist() == ["a\0b", "c", "d"]
