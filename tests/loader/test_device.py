"""Batches on a device. The same code runs on "cpu", and a fake stream notes what is ordered after what."""

from __future__ import annotations

import pickle
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import DatasetCollection, Loader
from tests.cells import as_array, full_cells, write

from .loaders import small_loader

torch = pytest.importorskip("torch", reason="needs torch")

from annbatch.loader import device as on_device  # noqa: E402 (torch decides whether there is a test here)

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


def adata_of(dtype, *, dense=False, n_var=7):
    adata = full_cells(40, n_var, dtype=dtype, dense=dense)
    adata.X = np.abs(adata.X) if dense else adata.X
    return adata


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32", "int64", "float32", "float64"])
@pytest.mark.parametrize("stored", ["sparse", "dense"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("out", [None, "float32"])
def test_values_equal_those_of_torch(dtype, stored, dense, out):
    adata = adata_of(dtype, dense=stored == "dense")
    adata.layers.pop("twice")
    settings = {"dense": dense, "dtype": out, "return_index": True, "obsm": ["pca", "tiles"], "labels": ["label"]}
    settings |= {"covariates": ["n_counts"], "shuffle": True}
    try:
        expected = list(
            Loader(
                batch_size=8, chunk_size=4, preload_nchunks=4, to="torch", rng=np.random.default_rng(0), **settings
            ).add_adata(adata)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"torch itself: {error}")
    found = list(
        Loader(
            batch_size=8, chunk_size=4, preload_nchunks=4, device="cpu", rng=np.random.default_rng(0), **settings
        ).add_adata(adata)
    )
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for path in (["X"], ["obsm", "pca"], ["obsm", "tiles"], ["labels", "label"], ["covariates"], ["index"]):
            a, b = one, other
            for key in path:
                a, b = a[key], b[key]
            assert a.dtype == b.dtype
            assert a.layout == b.layout
            if a.layout == torch.sparse_csr:
                for half in ("crow_indices", "col_indices", "values"):
                    x, y = getattr(a, half)(), getattr(b, half)()
                    assert x.dtype == y.dtype
                    np.testing.assert_array_equal(x.numpy(), y.numpy())
            else:
                np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert one["obs"].equals(other["obs"])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("stored", ["sparse", "dense"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("chosen", [None, ["g5", "g0"]])
@pytest.mark.parametrize("out", [None, "float64"])
def test_scaled_values_equal_those_of_torch(dtype, stored, dense, chosen, out):
    adata = adata_of(dtype, dense=stored == "dense")
    settings = {
        "dense": dense,
        "var_names": chosen,
        "normalize_total": 1e3,
        "log1p": True,
        "library_size": True,
        "dtype": out,
    }
    there = list(small_loader(device="cpu", **settings).add_adata(adata))
    here = list(small_loader(to="torch", **settings).add_adata(adata))
    for one, other in zip(there, here, strict=True):
        assert one["X"].dtype == other["X"].dtype
        np.testing.assert_allclose(
            as_array(one["X"].to(torch.float64)), as_array(other["X"].to(torch.float64)), rtol=1e-6
        )
        np.testing.assert_array_equal(one["library_size"].numpy(), other["library_size"].numpy())


@pytest.mark.parametrize("where", [{"to": "torch"}, {"device": "cpu"}], ids=["torch", "device"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_sparse_tensors_that_torch_makes_no_dense_rows_of_become_dense_as_the_docs_say(where, dtype):
    adata = adata_of(dtype)
    expected = as_array(adata.X)[:5]
    (bare, *_), (cast, *_), (dense, *_) = (
        list(Loader(batch_size=5, **where, **how).add_adata(adata))
        for how in ({}, {"dtype": "float32"}, {"dense": True})
    )
    np.testing.assert_array_equal(bare["X"].to(torch.float32).to_dense().numpy(), expected)
    np.testing.assert_array_equal(cast["X"].to_dense().numpy(), expected)
    np.testing.assert_array_equal(dense["X"].numpy(), expected)


def test_a_collection_comes_out_in_its_source_dtype_and_repeated_columns_add_up(tmp_path):
    adata = full_cells(60)
    DatasetCollection(tmp_path / "c.zarr").add_adatas(
        [write(adata, tmp_path / "a.h5ad")], progress=False, shuffle=False
    )
    for dense in (False, True):
        for batch in small_loader(device="cpu", dense=dense).use_collection(tmp_path / "c.zarr"):
            assert batch["X"].dtype == torch.float32
            np.testing.assert_array_equal(as_array(batch["X"]), as_array(adata.X)[batch["index"].numpy()])
    twice = sp.csr_matrix((np.ones(3, "uint8"), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    (batch,) = Loader(batch_size=2, device="cpu", dense=True).add_dataset(twice)
    assert batch["X"].tolist() == [[0, 2], [1, 0]]


def test_few_bytes_travel(monkeypatch):
    counts = sp.random(64, 30_000, 0.05, format="csr", dtype="float32", rng=np.random.default_rng(0))
    counts.data[:] = 3
    sent = []
    original = on_device.OnDevice._send

    def counting(self, arrays):
        sent.append(sum(array.nbytes for array in arrays))
        return original(self, arrays)

    monkeypatch.setattr(on_device.OnDevice, "_send", counting)
    loader = Loader(
        batch_size=64,
        device="cpu",
        dense=True,
        normalize_total=1e4,
        log1p=True,
        prefetch=0,
        chunk_size=64,
        preload_nchunks=1,
    ).add_dataset(counts.astype("uint8"))
    batch = next(iter(loader))
    assert batch["X"].shape == (64, 30_000)
    # A value and its column, and what rows take; dense rows would be 7.7 MB.
    assert sent[0] <= 3 * counts.nnz + 64 * 8 + 100


def test_batches_are_the_callers_and_staging_memory_is_used_again():
    adata = full_cells(200)
    batches = list(small_loader(device="cpu", labels=["label"]).add_adata(adata))
    for batch in batches:
        np.testing.assert_array_equal(as_array(batch["X"]), as_array(adata.X)[batch["index"].numpy()])
        batch["X"].values().fill_(-1)
        batch["labels"]["label"].fill_(-7)
    first = batches[0]["index"].clone()
    batches[1]["index"].fill_(0)
    assert torch.equal(batches[0]["index"], first)


# -- the order of events


class FakeStreams:
    """Notes who does what in which order; an event is the number of what was put on the own stream before it."""

    def __init__(self):
        self.log = []
        self.n_marks = 0
        self.working_threads = []
        self._of_thread = threading.local()

    @property
    def inside(self):
        return getattr(self._of_thread, "inside", False)

    @contextmanager
    def working(self):
        assert not self.inside
        self._of_thread.inside = True
        self.working_threads.append(threading.current_thread().name)
        try:
            yield
        finally:
            self._of_thread.inside = False

    def staging(self, n_bytes):
        assert self.inside
        memory = torch.zeros(n_bytes, dtype=torch.uint8)
        self.log.append(("new", memory.data_ptr()))
        return memory

    def mark(self):
        assert self.inside, "events are recorded on the loader's own stream"
        self.n_marks += 1
        self.log.append(("mark", self.n_marks))
        return self.n_marks

    def wait(self, event):
        self.log.append(("wait", event))

    def hand_over(self, event, tensors):
        assert not self.inside, "the consumer's stream is not the loader's"
        self.log.append(
            ("hand over", event, [tensor.data_ptr() for tensor in tensors], threading.current_thread().name)
        )


@pytest.fixture
def streams(monkeypatch):
    fake = FakeStreams()
    monkeypatch.setattr(on_device, "streams_of", lambda device: fake)
    return fake


@pytest.mark.parametrize("prefetch", [0, 2])
def test_work_is_on_an_own_stream_and_consumers_wait_for_an_event(streams, prefetch):
    adata = full_cells(80)
    seen = []

    def transform(batch):
        assert streams.inside
        batch["made"] = batch["X"].to_dense() * 2
        return batch

    loader = Loader(
        batch_size=8,
        chunk_size=8,
        preload_nchunks=2,
        device="cpu",
        prefetch=prefetch,
        transform=transform,
        return_index=True,
    )
    for batch in loader.add_adata(adata):
        handed = [entry for entry in streams.log if entry[0] == "hand over"]
        seen.append(batch)
        assert len(handed) == len(seen)
        _, event, pointers, thread = handed[-1]
        # Handed over in the consumer's thread, after an event that comes after all of the batch, transform included.
        assert thread == threading.current_thread().name
        marks = [place for place, entry in enumerate(streams.log) if entry == ("mark", event)]
        assert marks
        assert marks[0] < streams.log.index(handed[-1])
        X = batch["X"]
        wanted = [X.values(), X.crow_indices(), X.col_indices(), batch["made"], batch["index"]]
        assert {tensor.data_ptr() for tensor in wanted if tensor.numel()} <= set(pointers)
    assert len(seen) == 10
    mine = threading.current_thread().name
    assert set(streams.working_threads) == ({mine} if not prefetch else {"annbatch-read-ahead"})


def test_a_staging_buffer_is_written_again_only_after_it_was_copied_from(streams):
    loader = Loader(batch_size=8, chunk_size=8, preload_nchunks=2, device="cpu", prefetch=0).add_adata(full_cells(200))
    n_batches = len(list(loader))
    kinds = [entry[0] for entry in streams.log]
    assert kinds.count("new") <= 5  # three, and larger ones in their place
    waits = [entry[1] for entry in streams.log if entry[0] == "wait"]
    # Every batch has two events: when it was copied, and when it was made. From the fourth on the copy of three batches ago is waited for.
    assert waits == [1 + 2 * number for number in range(n_batches - 3)]


def test_leaving_early_and_errors_leave_the_stream(streams):
    loader = Loader(batch_size=8, device="cpu", prefetch=0).add_adata(full_cells(80))
    batches = iter(loader)
    next(batches)
    assert not streams.inside
    batches.close()

    def fails(batch):
        msg = "no"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="no"):
        list(Loader(batch_size=8, device="cpu", prefetch=1, transform=fails).add_adata(full_cells(80)))


# -- arguments


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"device": "cpu", "to": "jax"}, ValueError, "device needs torch tensors, got to='jax'"),
        (
            {"device": "cpu", "preload_to_gpu": True},
            ValueError,
            "device needs torch tensors, got .*preload_to_gpu=True",
        ),
        ({"device": "toaster"}, ValueError, "device must be a torch device of this machine, got 'toaster'"),
        ({"device": [1]}, TypeError, "device must be a torch device, such as 'cuda', got"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        Loader(**kwargs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_refused_at_once():
    with pytest.raises(ValueError, match="device must be a torch device of this machine, got 'cuda'"):
        Loader(device="cuda")


def test_a_loader_with_a_device_can_be_pickled_and_resumed():
    loader = small_loader(device=torch.device("cpu"), shuffle=True, rng=np.random.default_rng(0)).add_adata(
        full_cells()
    )
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    expected = next(batches)["index"].tolist()
    batches.close()
    again = pickle.loads(pickle.dumps(loader))
    again.load_state_dict(state)
    assert next(iter(again))["index"].tolist() == expected


def test_dense_batches_on_meta():
    batch = next(iter(Loader(batch_size=4, device="meta", dense=True, normalize_total=1.0).add_adata(full_cells())))
    assert batch["X"].device.type == "meta"
    assert batch["X"].shape == (4, 7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dense", [False, True])
def test_on_a_gpu(dense):
    adata = full_cells(2000, 500, dtype="uint16")
    settings = {"dense": dense, "normalize_total": 1e4, "log1p": True, "return_index": True}
    for batch, other in zip(
        Loader(batch_size=64, chunk_size=8, preload_nchunks=64, device="cuda", **settings).add_adata(adata),
        Loader(batch_size=64, chunk_size=8, preload_nchunks=64, to="torch", **settings).add_adata(adata),
        strict=True,
    ):
        assert batch["X"].is_cuda
        np.testing.assert_allclose(as_array(batch["X"].cpu()), as_array(other["X"]), rtol=1e-6)
