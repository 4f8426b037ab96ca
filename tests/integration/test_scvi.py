"""scvi-tools, unmodified, over our files: it knows annbatch by itself. Run by ``make test-integration``."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from annbatch import Loader
from tests.cells import cells, write
from tests.test_docs import DOCS, blocks, write_samples

scvi = pytest.importorskip("scvi", reason="needs scvi-tools (extra 'scvi')")
from scvi.model import SCVI  # noqa: E402

if not hasattr(SCVI, "setup_annbatch"):
    pytest.skip("needs scvi-tools >= 1.5, which needs Python 3.12", allow_module_level=True)

# What scvi-tools and Lightning say about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for number, name in enumerate("ab"):
        rng = np.random.default_rng(number)
        obs = {
            "cell_type": pd.Categorical(rng.choice(["B", "T"], 200)),
            "donor": pd.Categorical(rng.choice(["D1", "D2", "D3"], 200)),
            "age": rng.normal(50, 10, 200).astype("float32"),
        }
        found.append(str(write(cells(200, 30, seed=rng, prefix=name, obs=obs), tmp_path / f"{name}.h5ad")))
    return found


def trained(module, **arguments):
    model = SCVI(registry=module.registry, n_latent=3)
    model.train(max_epochs=2, datamodule=module, accelerator="cpu", enable_progress_bar=False, **arguments)
    return model


SMALL = {"batch_size": 64, "chunk_size": 16, "preload_nchunks": 8, "preload_to_gpu": False}


def test_training_and_latent_representation(paths):
    module = SCVI.setup_annbatch(paths=paths, batch_key="donor", **SMALL)
    model = trained(module)
    elbo = model.history["elbo_train"].to_numpy(dtype=float)
    assert len(elbo) == 2
    assert np.isfinite(elbo).all()
    latent = model.get_latent_representation(dataloader=module.inference_dataloader())
    assert latent.shape == (400, 3)
    assert np.isfinite(latent).all()


def test_covariates(paths):
    module = SCVI.setup_annbatch(
        paths=paths,
        batch_key="donor",
        categorical_covariate_keys=["cell_type"],
        continuous_covariate_keys=["age"],
        **SMALL,
    )
    assert np.isfinite(trained(module).history["elbo_train"].to_numpy(dtype=float)).all()


def test_validation(paths):
    module = SCVI.setup_annbatch(paths=paths, batch_key="donor", **SMALL)
    model = trained(module, train_size=0.75, check_val_every_n_epoch=1)
    assert np.isfinite(model.history["elbo_validation"].to_numpy(dtype=float)).all()


def test_class_sampler(paths):
    module = SCVI.setup_annbatch(
        paths=paths,
        batch_key="donor",
        labels_key="cell_type",
        use_class_sampler=True,
        **{**SMALL, "chunk_size": 1, "preload_nchunks": 64},
    )
    assert np.isfinite(trained(module).history["elbo_train"].to_numpy(dtype=float)).all()


# The better way: views, and labels as integers, by annbatch.scvi.


def loader(paths, **given):
    wanted = {"labels": ["donor", "cell_type"], "covariates": ["age"], **given}
    return Loader(
        chunk_size=8, preload_nchunks=8, batch_size=64, shuffle=True, rng=np.random.default_rng(0), to="torch", dense=True,
        obs_columns=[], **wanted,
    ).add_paths(paths)  # fmt: skip


def test_our_module_trains_and_validates_by_donor(paths):
    from annbatch.scvi import SCVIDataModule

    whole = loader(paths)
    module = SCVIDataModule(
        **whole.split({"train": 0.6, "validation": 0.4}, by="donor"),
        batch_key="donor",
        labels_key="cell_type",
        categorical_covariate_keys=["cell_type"],
    )
    model = trained(module, check_val_every_n_epoch=1)
    for name in ("elbo_train", "elbo_validation"):
        elbo = model.history[name].to_numpy(dtype=float)
        assert len(elbo) == 2
        assert np.isfinite(elbo).all()
    latent = model.get_latent_representation(dataloader=module.inference_dataloader(whole))
    assert latent.shape == (400, 3)
    assert np.isfinite(latent).all()


def test_our_module_without_keys(paths):
    from annbatch.scvi import SCVIDataModule

    module = SCVIDataModule(loader(paths, labels=(), covariates=()))
    assert np.isfinite(trained(module).history["elbo_train"].to_numpy(dtype=float)).all()


def test_our_tensors_are_those_that_scvi_makes_of_the_cells_in_memory(paths):
    from scvi.dataloaders import AnnDataLoader

    from annbatch.scvi import SCVIDataModule

    cells = ad.concat([ad.read_h5ad(path) for path in paths])
    given = {"batch_key": "donor", "labels_key": "cell_type", "categorical_covariate_keys": ["cell_type", "donor"]}
    SCVI.setup_anndata(cells, **given, continuous_covariate_keys=["age"])
    model = SCVI(cells)
    theirs = list(AnnDataLoader(model.adata_manager, batch_size=64, shuffle=False))
    module = SCVIDataModule(loader(paths), **given)
    ours = list(module.inference_dataloader())
    assert len(ours) == len(theirs) == len(module.inference_dataloader())
    for one, other in zip(ours, theirs, strict=True):
        assert {key: tuple(value.shape) for key, value in one.items()} == {key: tuple(other[key].shape) for key in one}
        for key, value in one.items():
            np.testing.assert_array_equal(value.numpy(), other[key].numpy(), err_msg=key)
    ours_of, theirs_of = (SCVI(registry=module.registry).summary_stats, model.summary_stats)
    for name in ("n_batch", "n_vars", "n_extra_categorical_covs", "n_extra_continuous_covs"):
        assert ours_of[name] == theirs_of[name]


def test_a_model_of_our_module_is_saved_and_loaded(paths, tmp_path):
    from annbatch.scvi import SCVIDataModule

    module = SCVIDataModule(loader(paths), batch_key="donor")
    model = trained(module)
    model.save(str(tmp_path / "model"), datamodule=module)
    again = SCVI.load(str(tmp_path / "model"), adata=False)
    latent = [m.get_latent_representation(dataloader=module.inference_dataloader()) for m in (model, again)]
    np.testing.assert_array_equal(*latent)


def test_the_how_to_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    exec(compile("\n".join(blocks(DOCS / "howto" / "scvi.md")), "scvi.md", "exec"), {"__name__": "page"})
