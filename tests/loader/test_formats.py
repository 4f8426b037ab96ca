"""Loader: batches as torch tensors, jax arrays and cupy arrays."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Loader
from annbatch.loader.exports import gpu_is_there
from tests.cells import as_array, full_cells

from .loaders import small_loader


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs torch")


@pytest.mark.parametrize("prefetch", [0, 1])
def test_torch_tensors(torch, prefetch):
    adata = full_cells()
    loader = small_loader(to="torch", layers=["twice"], obsm=["pca"], shuffle=True, prefetch=prefetch).add_adata(adata)
    for batch in loader:
        rows = np.asarray(batch["index"])
        for matrix, expected in ((batch["X"], adata.X), (batch["layers"]["twice"], adata.layers["twice"])):
            assert matrix.layout == torch.sparse_csr
            assert matrix.dtype == torch.float32
            assert matrix.shape == (len(rows), 7)
            np.testing.assert_array_equal(matrix.to_dense().numpy(), expected[rows].toarray())
        assert batch["obsm"]["pca"].layout == torch.strided
        np.testing.assert_array_equal(batch["obsm"]["pca"].numpy(), adata.obsm["pca"][rows])
        assert type(rows) is np.ndarray


def test_dense_torch_tensors(torch):
    adata = full_cells()
    for batch in small_loader(to="torch", dense=True, shuffle=True).add_adata(adata):
        assert batch["X"].layout == torch.strided
        np.testing.assert_array_equal(batch["X"].numpy(), adata.X[batch["index"].numpy()].toarray())


@pytest.mark.parametrize("n_rows", [1, 6])
def test_a_batch_of_rows_without_values(torch, n_rows):
    # https://github.com/pytorch/pytorch/issues/178309: torch and CSR tensors without values
    loader = Loader(to="torch", batch_size=n_rows, chunk_size=n_rows, preload_nchunks=1)
    (batch,) = loader.add_dataset(sp.csr_matrix((n_rows, 5), dtype="float32"))
    x = batch["X"]
    torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), x.values(), size=x.shape, check_invariants=True)
    assert x.layout == torch.sparse_csr
    assert x.crow_indices().tolist() == [0] * (n_rows + 1)
    assert torch.equal(x.to_dense(), torch.zeros(n_rows, 5))
    assert torch.equal(x @ torch.ones(5, 2), torch.zeros(n_rows, 2))


@pytest.mark.parametrize("var_names", [None, ["g4", "g1"]])
def test_torch_tensors_hold_torchs_invariants(torch, var_names):
    for batch in small_loader(to="torch", shuffle=True, var_names=var_names).add_adata(full_cells()):
        x = batch["X"]
        torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), x.values(), size=x.shape, check_invariants=True)


def test_torchs_warning_about_csr_does_not_reach_the_user(torch):
    # In a process of its own, since torch warns once.
    code = """
    import warnings
    warnings.simplefilter("error")
    import numpy as np, scipy.sparse as sp
    from annbatch import Loader
    (batch,) = Loader(to="torch", batch_size=2, chunk_size=2).add_dataset(sp.csr_matrix(np.eye(2, dtype="float32")))
    print(batch["X"].to_dense().tolist())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[[1.0, 0.0], [0.0, 1.0]]", "")


def test_deprecated_spelling(torch):
    with pytest.warns(DeprecationWarning, match='pass to="torch" instead'):
        loader = Loader(to_torch=True).add_dataset(np.ones((2, 2)))
    assert type(next(iter(loader))["X"]) is torch.Tensor
    with pytest.warns(DeprecationWarning, match="to_torch is deprecated"):
        assert type(next(iter(Loader(to_torch=False).add_dataset(np.ones((2, 2)))))["X"]) is np.ndarray


@pytest.mark.parametrize(
    ("kwargs", "library"),
    [({"to": "torch"}, "torch"), ({"to": "jax"}, "jax"), ({"preload_to_gpu": True}, "cupy")],
)
def test_missing_library_says_what_to_install(monkeypatch, kwargs, library):
    monkeypatch.setattr("annbatch.loader.exports.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=rf"needs {library}, which is not installed: pip install annbatch\[{library}\]"
    ):
        Loader(**kwargs)


def test_choosing_torch_does_not_import_it():
    pytest.importorskip("torch", reason="needs torch")
    code = "import sys, annbatch; annbatch.Loader(to='torch'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="needs jax")


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_jax_arrays(jax, dense, prefetch):
    from jax.experimental.sparse import CSR

    adata = full_cells()
    loader = small_loader(to="jax", dense=dense, obsm=["pca"], shuffle=True, prefetch=prefetch).add_adata(adata)
    for batch in loader:
        x, rows = batch["X"], np.asarray(batch["index"])
        assert isinstance(x, jax.Array if dense else CSR)
        assert x.dtype == "float32"
        np.testing.assert_array_equal(np.asarray(x if dense else x.todense()), adata.X[rows].toarray())
        assert isinstance(batch["obsm"]["pca"], jax.Array)
        np.testing.assert_array_equal(np.asarray(batch["obsm"]["pca"]), adata.obsm["pca"][rows])


@pytest.mark.parametrize("dense", [False, True])
def test_jax_arrays_keep_their_values_while_buffers_are_used_again(jax, dense):
    counts = np.random.default_rng(0).poisson(2.0, (4096, 200)).astype("float32")
    loader = Loader(to="jax", dense=dense, chunk_size=64, preload_nchunks=16, batch_size=512, return_index=True)
    for batch in list(loader.add_dataset(sp.csr_matrix(counts))) + list(loader):
        x = batch["X"] if dense else batch["X"].todense()
        np.testing.assert_array_equal(np.asarray(x), counts[np.asarray(batch["index"])])


def test_jax_that_would_cut_values_to_32_bits_is_refused(jax):
    loader = Loader(to="jax", batch_size=2, chunk_size=2).add_dataset(np.full((2, 2), 1e300))
    with pytest.raises(ValueError, match="to='jax' would cut float64 to 32 bits; pass dtype='float32'"):
        iter(loader)
    jax.config.update("jax_enable_x64", True)
    try:
        (batch,) = loader
        assert np.asarray(batch["X"]).tolist() == [[1e300] * 2] * 2
    finally:
        jax.config.update("jax_enable_x64", False)


needs_gpu = pytest.mark.skipif(not gpu_is_there(), reason="needs cupy and a GPU")


@needs_gpu
@pytest.mark.parametrize("dense", [False, True])
def test_cupy_arrays(dense):
    import cupy
    from cupyx.scipy.sparse import csr_matrix

    adata = full_cells()
    for batch in small_loader(preload_to_gpu=True, dense=dense, shuffle=True, obsm=["pca"]).add_adata(adata):
        assert isinstance(batch["X"], cupy.ndarray if dense else csr_matrix)
        np.testing.assert_array_equal(
            batch["X"].get() if dense else batch["X"].get().toarray(), adata.X[batch["index"]].toarray()
        )
        np.testing.assert_array_equal(batch["obsm"]["pca"].get(), adata.obsm["pca"][batch["index"]])


@needs_gpu
def test_cupy_cannot_hold_sparse_integers():
    loader = small_loader(preload_to_gpu=True).add_dataset(sp.csr_matrix(np.eye(3, dtype="int32")))
    with pytest.raises(ValueError, match="sparse matrices of cupy cannot hold int32; pass dtype='float32'"):
        iter(loader)


@pytest.mark.parametrize("dense", [False, True])
def test_torch_tensors_on_the_gpu(torch, dense):
    loader = small_loader(preload_to_gpu=True, to="torch", dense=dense).add_adata(adata := full_cells())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a torch that sees a GPU; pass preload_to_gpu=False"):
            iter(loader)
        return
    for batch in loader:
        assert batch["X"].is_cuda
        np.testing.assert_array_equal(as_array(batch["X"].cpu()), adata.X[batch["index"].cpu().numpy()].toarray())
