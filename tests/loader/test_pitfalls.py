"""What went wrong in other loaders, and what scvi-tools relies on."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import ClassSampler, DatasetCollection, Loader, RandomSampler, SequentialSampler, storage
from annbatch.storage.chunks.arrays import MemoryArray
from annbatch.storage.row_pointers import RowPointers
from tests.cells import as_array, full_cells, write

from .loaders import small_loader

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def test_row_pointers_and_indices_of_different_widths(tmp_path):
    # The type of the first data set must not be the type of all of them.
    parts = [full_cells(30, seed=i).X for i in range(3)]
    for part, dtype in zip(parts, ("int32", "int64", "int32"), strict=True):
        part.indices, part.indptr = part.indices.astype(dtype), part.indptr.astype(dtype)
    paths = [write(ad.AnnData(part), tmp_path / f"{i}.zarr") for i, part in enumerate(parts)]
    expected = sp.vstack(parts).toarray()
    for loader in (small_loader(shuffle=True).add_datasets(parts), small_loader(shuffle=True).add_paths(paths)):
        for batch in loader:
            np.testing.assert_array_equal(batch["X"].toarray(), expected[batch["index"]])


def test_counts_of_stored_values_beyond_int32():
    # 3 billion values in a matrix that does not exist: only its row pointer is real, and says where the last row lies.
    class Values(MemoryArray):
        def __init__(self, dtype):
            super().__init__(np.zeros(1, dtype), "huge matrix")
            self.shape, self.direct = (3_000_000_000,), False

        def _read(self, start, stop):
            return (np.arange(start, stop) % 5).astype(self.dtype)

    indptr = np.array([0, 2**31 + 5, 3_000_000_000 - 3, 3_000_000_000])
    source = storage.SparseSource(
        Values("float32"), Values("int64"), MemoryArray(indptr, "indptr"), (3, 5), "huge matrix"
    )
    (block,) = storage.read_csr([storage.Part(source, np.array([2]), np.array([0]))], np.array([0, 1]), n_var=5)
    assert block.data.tolist() == [number % 5 for number in range(3_000_000_000 - 3, 3_000_000_000)]


def test_zarrs_configuration_is_left_alone(tmp_path):
    path = write(full_cells(), tmp_path / "a.zarr")
    code = f"""
    import zarr
    before = zarr.config.to_dict() if hasattr(zarr.config, "to_dict") else str(zarr.config.config)
    from annbatch import Loader
    for batch in Loader(batch_size=10, chunk_size=10, preload_nchunks=1).add_paths([{str(path)!r}]):
        pass
    after = zarr.config.to_dict() if hasattr(zarr.config, "to_dict") else str(zarr.config.config)
    print(before == after)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_with_the_codec_pipeline_of_zarrs(tmp_path):
    pytest.importorskip("zarrs", reason="needs zarrs")
    adata = full_cells()
    path = write(adata, tmp_path / "a.zarr")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for batch in small_loader(shuffle=True).add_paths([path]):
            np.testing.assert_array_equal(batch["X"].toarray(), adata.X[batch["index"]].toarray())


def test_row_pointers_are_read_once_before_workers_are_forked(tmp_path, monkeypatch):
    # Memory multiplied by the number of workers: what is in memory before the fork is shared.
    paths = [write(full_cells(), tmp_path / name) for name in ("a.h5ad", "b.zarr")]
    loader = small_loader(layers=["twice"]).add_paths(paths)
    monkeypatch.setattr(RowPointers, "read", lambda *args: pytest.fail("read a row pointer again"))
    assert len(list(loader)) == len(loader)


def test_rows_without_values_at_the_start_and_the_end_of_every_dataset():
    parts = [full_cells(n, seed=n) for n in (3, 5)] + [ad.AnnData(sp.csr_matrix((4, 7), dtype="float32"))]
    loader = small_loader(shuffle=True).add_datasets([part.X for part in parts])
    expected = sp.vstack([part.X for part in parts]).toarray()
    for batch in loader:
        np.testing.assert_array_equal(batch["X"].toarray(), expected[batch["index"]])


def test_datasets_without_rows(tmp_path):
    parts = [full_cells(10)[:0].copy(), full_cells(10), full_cells(10)[:0].copy(), full_cells(10, seed=1)]
    paths = [
        write(part, tmp_path / f"{i}{suffix}")
        for i, (part, suffix) in enumerate(zip(parts, (".zarr", ".h5ad") * 2, strict=True))
    ]
    for loader in (small_loader(shuffle=True).add_adatas(parts), small_loader(shuffle=True).add_paths(paths)):
        assert sorted(row for batch in loader for row in batch["index"]) == list(range(20))
        assert [len(obs) for obs in loader._obs] == [0, 10, 0, 10]


@pytest.fixture
def collection(tmp_path):
    """A collection as scvi-tools builds one: from AnnData whose X is a dask array."""
    dask_array = pytest.importorskip("dask.array", reason="needs dask")

    paths = [write(full_cells(40, seed=i, prefix=f"{i}_"), tmp_path / f"{i}.h5ad") for i in range(2)]

    def load_adata(path):
        adata = ad.read_h5ad(path)
        adata.X = dask_array.from_array(adata.X, chunks=(10, -1), asarray=False)
        del adata.layers["twice"], adata.obsm["pca"], adata.obsm["tiles"]
        return adata

    group = zarr.open_group(tmp_path / "collection.zarr", mode="w")
    built = DatasetCollection(group)
    built.add_adatas(paths, load_adata=load_adata, shuffle=True, rng=np.random.default_rng(0), progress=False)
    return DatasetCollection(zarr.open_group(tmp_path / "collection.zarr", mode="r"))


def test_what_scvi_tools_does(collection):
    # setup_annbatch and AnnbatchDataModule of scvi-tools 1.5
    torch = pytest.importorskip("torch", reason="needs torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = Loader(
            to_torch=True, batch_size=8, chunk_size=4, preload_nchunks=4, shuffle=True, preload_to_gpu=False
        ).use_collection(collection)
    assert loader._batch_sampler.batch_size == 8
    assert (loader.n_obs, loader.n_var) == (80, 7)
    assert isinstance(loader._obs, list)
    obs = pd.concat(loader._obs)
    assert obs["label"].cat.categories.tolist() == ["B", "NK", "T"]
    assert len(loader._obs) == len(collection)

    train, validation, by_class = (copy.copy(loader) for _ in range(3))
    train._batch_sampler = RandomSampler(4, 4, 8, mask=slice(0, 60), rng=np.random.default_rng(0))
    validation._batch_sampler = SequentialSampler(4, 4, 8, mask=slice(60, 80))
    by_class._batch_sampler = ClassSampler(
        1, 16, 8, classes=pd.Categorical(obs["label"]), num_samples=40, mask=slice(0, 60), rng=np.random.default_rng(0)
    )
    counts = np.concatenate([as_array(ad.io.read_elem(group["X"])) for group in collection])
    for part, n_rows, rows in ((train, 60, range(60)), (validation, 20, range(60, 80)), (by_class, 40, range(60))):
        part._return_index = True
        batches = list(torch.utils.data.DataLoader(part, batch_size=None))
        index = np.concatenate([batch["index"] for batch in batches])
        assert len(index) == n_rows
        assert set(index.tolist()) <= set(rows)
        for batch in batches:
            assert batch["X"].layout == torch.sparse_csr
            # Stored compactly as integers, handed out as what they were.
            assert batch["X"].dtype == torch.float32
            np.testing.assert_array_equal(as_array(batch["X"]), counts[batch["index"]])
            assert batch["obs"].index.tolist() == obs.index[np.asarray(batch["index"])].tolist()
    assert loader._batch_sampler.batch_size == 8
    assert {len(set(batch["obs"]["label"])) for batch in by_class} == {1}


@pytest.mark.parametrize("h5ad", [False, True])
def test_collections_of_this_package(tmp_path, h5ad):
    paths = [write(full_cells(40, seed=i, prefix=f"{i}_"), tmp_path / f"{i}.h5ad") for i in range(2)]
    collection = DatasetCollection(tmp_path / "collection", is_collection_h5ad=h5ad)
    collection.add_adatas(paths, rng=np.random.default_rng(0), progress=False)
    loader = small_loader(layers=["twice"], obsm=["pca"], shuffle=True).use_collection(collection)
    rows = {f"{i}_cell_{row}": (i, row) for i in range(2) for row in range(40)}
    parts = [full_cells(40, seed=i) for i in range(2)]
    names = []
    for batch in loader:
        for place, name in enumerate(batch["obs"].index):
            part, row = rows[name]
            np.testing.assert_array_equal(batch["X"][place].toarray(), parts[part].X[row].toarray())
            np.testing.assert_array_equal(
                batch["layers"]["twice"][place].toarray(), parts[part].layers["twice"][row].toarray()
            )
            np.testing.assert_array_equal(batch["obsm"]["pca"][place], parts[part].obsm["pca"][row])
        names += batch["obs"].index.tolist()
        assert batch["X"].dtype == batch["layers"]["twice"].dtype == np.float32
    assert sorted(names) == sorted(rows)
