"""Loader inside torch's DataLoader: fork and spawn workers, resuming, distributed training."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import ClassSampler, DistributedSampler, Loader, RandomSampler
from tests.cells import as_array, full_cells, write
from tests.loader.loaders import small_loader

torch = pytest.importorskip("torch", reason="needs torch")

from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [write(full_cells(30, seed=i, prefix=f"{i}_"), folder / name) for i, name in enumerate(("a.h5ad", "b.zarr"))]


@pytest.fixture(scope="module")
def counts():
    return sp.vstack([full_cells(30, seed=i).X for i in range(2)]).toarray()


def rows_of(batches):
    return np.concatenate([np.asarray(batch["index"]) for batch in batches]).tolist()


@pytest.mark.parametrize(("context", "to"), [("fork", None), ("fork", "torch"), ("spawn", "torch")])
def test_workers_deal_all_rows_out_among_them(paths, counts, context, to):
    loader = small_loader(shuffle=True, to=to, layers=["twice"], rng=np.random.default_rng(0)).add_paths(paths)
    workers = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context=context)
    batches = list(workers)
    assert sorted(rows_of(batches)) == list(range(60))
    for batch in batches:
        np.testing.assert_array_equal(as_array(batch["X"]), counts[batch["index"]])
        assert batch["obs"]["label"].dtype.categories.tolist() == ["B", "NK", "T"]
        if to == "torch":
            assert batch["X"].layout == torch.sparse_csr


def test_forked_workers_after_and_during_a_pass_in_the_parent(paths):
    # Threads that were started before a fork are what other loaders hang on.
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_paths(paths)
    list(loader)
    open_pass = iter(loader)
    next(open_pass)
    workers = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(rows_of(workers)) == list(range(60))
    assert len(rows_of(list(open_pass))) == 54


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_of_workers_differ_and_are_complete(paths, persistent):
    torch.manual_seed(0)
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_paths(paths)
    workers = DataLoader(loader, batch_size=None, num_workers=2, persistent_workers=persistent)
    epochs = [rows_of(workers) for _ in range(3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_without_workers_it_is_the_loader_itself(paths):
    alone, wrapped = (small_loader(shuffle=True, rng=np.random.default_rng(0)).add_paths(paths) for _ in range(2))
    wrapped = DataLoader(wrapped, batch_size=None)
    assert rows_of(wrapped) == rows_of(alone)
    assert len(wrapped) == len(alone)


def test_default_conversion_of_a_batch(paths):
    batch = next(iter(DataLoader(small_loader(dense=True).add_paths(paths), batch_size=None)))
    assert isinstance(batch["X"], torch.Tensor)
    assert isinstance(batch["index"], torch.Tensor)


def test_error_in_a_worker_reaches_the_user(paths):
    def fail(batch):
        msg = "in the worker"
        raise LookupError(msg)

    loader = small_loader(transform=fail).add_paths(paths)
    with pytest.raises(LookupError, match="in the worker"):
        list(DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork"))


def test_workers_share_the_pass_of_a_class_sampler(paths):
    loader = small_loader().add_paths(paths)
    classes = np.concatenate([obs["label"] for obs in loader._obs])
    sampler = ClassSampler(1, 12, 6, classes=pd.Categorical(classes), num_samples=60, rng=np.random.default_rng(0))
    loader = small_loader(batch_sampler=sampler).add_paths(paths)
    batches = [b["index"] for b in DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork")]
    assert [len(rows) for rows in batches] == [6] * 10
    assert all(len(set(classes[rows])) == 1 for rows in batches)
    assert len({tuple(rows.tolist()) for rows in batches}) == 10


def test_cpus_are_shared_out_among_workers(paths, monkeypatch):
    from annbatch.storage import cpus

    monkeypatch.setattr(cpus, "available_cpus", lambda: 7)

    def reported(n_workers, num_threads=None):
        def report(batch):
            return loader._reader(loader._table)._num_threads

        loader = small_loader(transform=report, num_threads=num_threads).add_paths(paths)
        return set(
            DataLoader(
                loader, batch_size=None, num_workers=n_workers, multiprocessing_context="fork" if n_workers else None
            )
        )

    assert reported(0) == {7}
    assert reported(2) == {3}
    assert reported(2, num_threads=5) == {5}


@pytest.mark.parametrize("when", ["before", "after"])
def test_counts_as_iterable_dataset_whenever_torch_is_imported(when):
    imports = "import torch.utils.data"
    code = f"""
    import sys
    {imports if when == "before" else ""}
    import numpy as np
    from annbatch import Loader
    assert ("torch" in sys.modules) is {when == "before"}
    loader = Loader(batch_size=2, chunk_size=2).add_dataset(np.ones((4, 3)))
    assert isinstance(loader, Loader)
    import copy, pickle
    other = pickle.loads(pickle.dumps(copy.copy(loader)))
    {imports}
    for each in (loader, other):
        assert isinstance(each, torch.utils.data.IterableDataset)
        assert not isinstance(each, torch.utils.data.IterDataPipe)
        assert type(each) is each.__class__ is Loader
    class Own(Loader):
        pass
    assert isinstance(Own(), torch.utils.data.IterableDataset)
    assert not isinstance(3, torch.utils.data.IterableDataset)
    batches = list(torch.utils.data.DataLoader(other, batch_size=None))
    print([tuple(batch["X"].shape) for batch in batches])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[(2, 3), (2, 3)]\n", "")


def test_is_an_iterable_dataset_here():
    assert isinstance(Loader(), IterableDataset)


@pytest.mark.filterwarnings("ignore")  # what torchdata says about torch
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("n_done", [1, 4, 7])
def test_stateful_data_loader_resumes(paths, num_workers, n_done):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def make(seed):
        loader = small_loader(shuffle=True, rng=np.random.default_rng(seed)).add_paths(paths)
        return stateful.StatefulDataLoader(loader, batch_size=None, num_workers=num_workers)

    torch.manual_seed(0)
    original, batches = make(0), []
    for number, batch in enumerate(original, 1):
        batches.append(np.asarray(batch["index"]).tolist())
        if number == n_done:
            state = copy.deepcopy(original.state_dict())
    resumed = make(1)
    resumed.load_state_dict(state)
    assert [np.asarray(batch["index"]).tolist() for batch in resumed] == batches[n_done:]


@pytest.mark.filterwarnings("ignore")  # what torchdata says about torch
@pytest.mark.parametrize("sampler", ["random", "distributed"])
def test_stateful_data_loader_goes_on_when_a_worker_has_run_out(sampler):
    # 5 load requests of 4 batches for 3 workers: the last worker has one, and is done after 12 batches in all. The state of a
    # worker that had run out was that of the next pass: 8 batches came instead of 4.
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def make():
        rows = RandomSampler(2, 4, 2, rng=np.random.default_rng(0))
        if sampler == "distributed":
            rows = DistributedSampler(rows, dist_info=lambda: (0, 1))
        loader = Loader(batch_sampler=rows, return_index=True).add_dataset(np.ones((40, 1)))
        return stateful.StatefulDataLoader(loader, batch_size=None, num_workers=3)

    torch.manual_seed(0)
    original, batches, states = make(), [], []
    for batch in original:
        batches.append(np.asarray(batch["index"]).tolist())
        states.append(copy.deepcopy(original.state_dict()))
    assert sorted(row for rows in batches for row in rows) == list(range(40))
    for n_done in (16, 19):
        resumed = make()
        resumed.load_state_dict(states[n_done - 1])
        assert [np.asarray(batch["index"]).tolist() for batch in resumed] == batches[n_done:]
        # The epoch after it is a whole one.
        assert sorted(rows_of(resumed)) == list(range(40))


@pytest.mark.filterwarnings("ignore")  # what Lightning says about torch and about our few workers
@pytest.mark.parametrize("at", ["the end of an epoch", "the middle"])
def test_lightning_goes_on_with_the_right_order(tmp_path, at):
    lightning = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen = []

        def training_step(self, batch, number):
            self.seen.append((self.current_epoch, np.asarray(batch["index"]).tolist()))
            return self.layer(batch["X"]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(max_epochs, resume=None, save=None):
        loader = Loader(
            chunk_size=2, preload_nchunks=4, batch_size=4, shuffle=True, to="torch", dense=True, return_index=True,
            rng=np.random.default_rng(0),
        ).add_dataset(np.ones((40, 1), dtype="float32"))  # fmt: skip
        callbacks = []
        if save is not None:
            every = (
                {"save_on_train_epoch_end": True, "every_n_epochs": 1}
                if at != "the middle"
                else {"every_n_train_steps": 13}
            )
            callbacks = [lightning.callbacks.ModelCheckpoint(dirpath=save, filename="at", save_top_k=1, **every)]
        model = Model()
        lightning.Trainer(
            max_epochs=max_epochs, logger=False, enable_checkpointing=save is not None, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        ).fit(model, loader, ckpt_path=resume)  # fmt: skip
        return model.seen

    expected = fit(4)
    assert len({str([rows for epoch, rows in expected if epoch == number]) for number in range(4)}) == 4
    fit(2, save=tmp_path)
    (checkpoint,) = tmp_path.glob("at*.ckpt")
    n_done = 13 if at == "the middle" else 20
    assert fit(4, resume=checkpoint) == expected[n_done:]


@pytest.mark.filterwarnings("ignore")  # what Lightning says about torch and about our few workers
def test_under_lightning(paths):
    lightning = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(7, 1)
            self.n_rows = 0

        def training_step(self, batch, number):
            self.n_rows += len(batch["X"])
            return self.layer(batch["X"]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = Loader(chunk_size=4, preload_nchunks=3, batch_size=6, to="torch", dense=True).add_paths(paths)
    model = Model()
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(model, DataLoader(loader, batch_size=None, collate_fn=lambda batch: {"X": batch["X"]}))
    assert model.n_rows == 120
