"""Scanpy itself is the judge of scale."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import storage
from annbatch.storage import Scale

scanpy = pytest.importorskip("scanpy")


def test_real_counts_are_scaled_as_scanpy_does():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(
        (rng.negative_binomial(0.3, 0.05, (60, 400)) * (rng.random((60, 400)) < 0.4)).astype("float32")
    )
    adata = ad.AnnData(counts.copy())
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    source = storage.open_matrix(counts)
    part = storage.Part(source, np.arange(60), np.arange(60))
    (block,) = storage.read_csr([part], np.array([0, 60]), n_var=400, scale=Scale(1e4, log1p=True))
    np.testing.assert_allclose(block.to_scipy().toarray(), adata.X.toarray(), rtol=1e-6)
    adata = ad.AnnData(counts.copy())
    scanpy.pp.normalize_total(adata)
    median = float(np.median(storage.row_totals([source])[0]))
    (block,) = storage.read_csr([part], np.array([0, 60]), n_var=400, scale=Scale(median))
    np.testing.assert_allclose(block.to_scipy().toarray(), adata.X.toarray(), rtol=1e-6)
