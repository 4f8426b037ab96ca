"""scvi-tools, unmodified, over our files: it knows annbatch by itself. Run by ``make test-integration``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.cells import cells, write

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
