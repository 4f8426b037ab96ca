"""The data module for scvi-tools, without it: names, codes, and what is refused. tests/integration/test_scvi.py trains."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("lightning", reason="needs lightning")

from annbatch import Loader  # noqa: E402
from annbatch.loader import Sides  # noqa: E402
from annbatch.scvi import SCVIDataModule  # noqa: E402

DONORS = ["D2", "D1", "D3", "D1", "D2", "D3"]
TYPES = ["T", None, "B", "B", "T", "T"]


def loader(labels=("donor", "cell_type"), *, covariates=("age",), donors=DONORS, n_genes=4, **given):
    obs = pd.DataFrame({"donor": donors, "cell_type": TYPES, "age": np.arange(6.0)}, index=list("abcdef"))
    X = np.arange(6 * n_genes, dtype="float32").reshape(6, n_genes)
    options = {"to": "torch", "dense": True, "labels": labels, "covariates": covariates, **given}
    return Loader(chunk_size=1, preload_nchunks=6, batch_size=6, **options).add_adata(ad.AnnData(X, obs=obs))


def test_batches_have_the_names_shapes_and_codes_of_scvi():
    module = SCVIDataModule(
        loader(), batch_key="donor", labels_key="cell_type", categorical_covariate_keys=["donor", "donor"]
    )
    (batch,) = module.inference_dataloader()
    assert batch["X"].dtype == torch.float32
    assert batch["batch"][:, 0].tolist() == [1, 0, 2, 0, 1, 2]
    assert batch["labels"][:, 0].tolist() == [1, 2, 0, 0, 1, 1]  # a missing one is the last
    assert batch["extra_categorical_covs"].tolist() == [[1, 1], [0, 0], [2, 2], [0, 0], [1, 1], [2, 2]]
    assert batch["extra_continuous_covs"][:, 0].tolist() == list(range(6))
    assert list(module.batch_labels) == ["D1", "D2", "D3"]
    assert list(module.labels) == ["B", "T", "Unknown"]
    assert (module.n_batch, module.n_labels, module.n_vars, module.n_obs, module.n_val) == (3, 3, 4, 6, 0)
    assert (module.n_continuous_cov, module.n_cats_per_cov) == (1, (3, 3))


def test_without_keys_all_cells_are_alike():
    module = SCVIDataModule(loader((), covariates=()))
    (batch,) = module.inference_dataloader()
    assert set(batch) == {"X", "batch", "labels"}
    assert not batch["batch"].any()
    assert (module.n_batch, module.n_labels, module.n_cats_per_cov) == (1, 1, None)


@pytest.mark.parametrize("scale", [{"normalize_total": 1e4}, {"log1p": True}])
def test_counts_that_are_none_any_more_are_refused(scale):
    with pytest.raises(ValueError, match="validation must hand out raw counts.*leave out normalize_total"):
        SCVIDataModule(loader(), loader(**scale))


def test_an_unlabeled_category_among_the_labels_is_the_one():
    module = SCVIDataModule(loader(), labels_key="cell_type", unlabeled_category="B")
    (batch,) = module.inference_dataloader()
    assert batch["labels"][:, 0].tolist() == [1, 0, 0, 0, 1, 1]
    assert module.n_labels == 2


def test_sparse_batches_are_made_dense():
    (dense,), (sparse,) = (SCVIDataModule(loader(dense=d)).inference_dataloader() for d in (True, False))
    assert torch.equal(dense["X"], sparse["X"])


def test_views_are_validated_by_the_same_codes():
    whole = loader()
    sides = whole.split({"train": {"donor": ["D1", "D2"]}, "validation": ...})
    module = SCVIDataModule(**sides, batch_key="donor")
    assert (module.n_obs, module.n_val, module.n_batch) == (4, 2, 3)
    (batch,) = module.inference_dataloader(sides["validation"])
    assert batch["batch"][:, 0].tolist() == [2, 2]
    (batch,) = module.inference_dataloader(whole)
    assert len(batch["X"]) == 6


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"train": 3}, TypeError, "train must be a Loader, got int"),
        (
            {"train": Sides({}, {})},
            TypeError,
            r"train must be a Loader, got Sides; pass .*SCVIDataModule\(\*\*sides, ...\)",
        ),
        ({"validation": []}, TypeError, "validation must be a Loader, got list"),
        ({"batch_key": "sex"}, ValueError, r"train must be a Loader with labels=\['cell_type', 'donor', 'sex'\]"),
        (
            {"validation": loader(donors=["D4"] * 6), "batch_key": "donor"},
            ValueError,
            r"the same labels of 'donor', in the same order, got \['D1', 'D2', 'D3'\] and \['D4'\]",
        ),
        ({"validation": loader(covariates=())}, ValueError, r"the same covariates, got \('age',\) and \(\)"),
        ({"validation": loader(n_genes=5)}, ValueError, "the same variables, got 4 and 5 that differ"),
    ],
)
def test_what_is_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        SCVIDataModule(**{"train": loader(), **arguments})


def test_a_missing_batch_is_an_error_and_no_code():
    module = SCVIDataModule(loader(), batch_key="cell_type")
    with pytest.raises(ValueError, match="every row must have a label of 'cell_type', got 1 rows"):
        list(module.inference_dataloader())


def test_loaders_of_no_tensors_or_without_data_are_refused_at_once():
    for to in (None, "jax"):
        if to == "jax":
            pytest.importorskip("jax", reason="needs jax")
        with pytest.raises(ValueError, match=f'train must hand out torch tensors: .* to="torch" .*got to={to!r}'):
            SCVIDataModule(loader(to=to))
    with pytest.raises(ValueError, match="train must hold data"):
        SCVIDataModule(Loader(to="torch", dense=True))


def test_batches_without_a_tensor_are_refused():
    def without(batch):
        return {**batch, "X": batch["X"].numpy()}

    with pytest.raises(ValueError, match="must hold a torch tensor X, got ndarray"):
        list(SCVIDataModule(loader(transform=without)).inference_dataloader())


def test_a_split_of_three_sides_is_taken_as_it_is():
    whole = loader()
    sides = whole.split({"train": 0.34, "validation": 0.33, "test": 0.33}, by="donor")
    module = SCVIDataModule(**sides, batch_key="donor")
    assert module.test_dataloader() is sides["test"]
    assert module.n_obs == module.n_val == sides["test"].n_obs == 2
    (batch,) = module.inference_dataloader(sides["test"])
    assert batch["batch"].shape == (2, 1)
    with pytest.raises(ValueError, match="train and test must have the same labels of 'donor'"):
        SCVIDataModule(loader(), test=loader(donors=["D4"] * 6), batch_key="donor")


def test_it_can_be_printed():
    module = SCVIDataModule(**loader().split({"train": 0.5, "validation": 0.5}))
    assert str(module) == repr(module)
    assert repr(module).startswith("SCVIDataModule(train: Loader(3 x 4, a view of 6 rows, ")
    assert ", validation: Loader(" in repr(module)
