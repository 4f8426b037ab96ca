"""AnnDataModule under a real Trainer: what it trains on, its length, checkpoints in mid-epoch, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from annbatch import Loader
from tests.cells import full_cells, write

torch = pytest.importorskip("torch", reason="needs torch")
lightning = pytest.importorskip("lightning", reason="needs lightning (extra 'lightning')")

from annbatch.lightning import AnnDataModule  # noqa: E402

# What Lightning says about our few workers, about its own use of torch, and about checkpoints in mid-epoch of loaders
# without a state; that ours have one is what the tests below show.
pytestmark = pytest.mark.filterwarnings("ignore")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    return [write(full_cells(30, seed=i, prefix=f"{i}_"), folder / name) for i, name in enumerate(("a.h5ad", "b.zarr"))]


def make_loader(paths, *, shuffle=True, seed=0):
    rng = np.random.default_rng(seed) if shuffle else None
    arguments = {"chunk_size": 2, "preload_nchunks": 6, "batch_size": 6, "shuffle": shuffle, "rng": rng}
    return Loader(**arguments, to="torch", dense=True, return_index=True).add_paths(paths)


class Model(lightning.LightningModule):
    """A linear model that notes the rows it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(7, 1)
        self.trained, self.validated, self.tested = [], [], []

    def training_step(self, batch, number):
        self.trained.append(batch["index"].tolist())
        return self.layer(batch["X"]).square().mean()

    def validation_step(self, batch, number):
        self.validated.append(batch["index"].tolist())

    def test_step(self, batch, number):
        self.tested.append(batch["index"].tolist())

    def predict_step(self, batch, number):
        return batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-5)


def flat(batches):
    return [row for batch in batches for row in batch]


def trainer(**arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return lightning.Trainer(**{**quiet, "enable_model_summary": False, "devices": 1, **arguments})


def test_every_epoch_trains_on_every_row_and_validates_on_its_own(paths):
    data = AnnDataModule(train=make_loader(paths), validation=make_loader(paths[:1], shuffle=False))
    model, runner = Model(), trainer(max_epochs=2)
    runner.fit(model, data)
    assert runner.num_training_batches == 10
    assert runner.sanity_checking is False
    assert [sorted(flat(model.trained[i : i + 10])) for i in (0, 10)] == [list(range(60))] * 2
    assert model.trained[:10] != model.trained[10:]
    # Two batches of the sanity check, then both epochs whole.
    assert len(model.validated) == 2 + 5 + 5
    assert flat(model.validated[2:7]) == list(range(30))


def test_limits_hold_and_the_next_epoch_begins_anew(paths):
    model, runner = Model(), trainer(max_epochs=2, limit_train_batches=3)
    runner.fit(model, AnnDataModule(train=make_loader(paths)))
    assert len(model.trained) == 6
    assert runner.num_training_batches == 3
    assert all(len(set(flat(model.trained[i : i + 3]))) == 18 for i in (0, 3))


def test_test_and_predict(paths):
    data = AnnDataModule(test=make_loader(paths, shuffle=False), predict=make_loader(paths, shuffle=False))
    model = Model()
    trainer().test(model, data, verbose=False)
    assert flat(model.tested) == list(range(60))
    assert flat(trainer().predict(model, data)) == list(range(60))


def test_a_checkpoint_in_mid_epoch_goes_on_bit_for_bit(paths, tmp_path):
    def run(checkpoint=None, callbacks=()):
        torch.manual_seed(0)
        model = Model()
        runner = trainer(max_epochs=3, enable_checkpointing=bool(callbacks), callbacks=list(callbacks))
        runner.fit(model, AnnDataModule(train=make_loader(paths)), ckpt_path=checkpoint)
        return model

    every = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(callbacks=[every])
    assert len(whole.trained) == 30
    for step in (1, 4, 10, 13, 29):
        resumed = run(str(tmp_path / f"step={step}.ckpt"))
        assert resumed.trained == whole.trained[step:], step
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


# Not 10, the end of an epoch: a Trainer that max_steps stopped there gives the next epoch one batch when it goes on, with a plain
# DataLoader of torch and with a StatefulDataLoader, too (docs/howto/lightning.md).
@pytest.mark.parametrize("steps", [1, 4, 13])
def test_a_checkpoint_of_a_trainer_that_was_stopped_by_max_steps_goes_on_too(paths, tmp_path, steps):
    def run(max_steps, checkpoint=None):
        torch.manual_seed(0)
        model, runner = Model(), trainer(max_steps=max_steps, max_epochs=10)
        runner.fit(model, AnnDataModule(train=make_loader(paths)), ckpt_path=checkpoint)
        return model, runner

    whole, _ = run(25)
    first, runner = run(steps)
    runner.save_checkpoint(tmp_path / "middle.ckpt")
    second, _ = run(25, str(tmp_path / "middle.ckpt"))
    assert first.trained + second.trained == whole.trained
    assert torch.equal(second.layer.weight, whole.layer.weight)


def test_what_is_wrong_is_said_at_once(paths):
    with pytest.raises(ValueError, match="at least one of train, validation, test and predict must be given, got none"):
        AnnDataModule()
    with pytest.raises(TypeError, match="validation must be a Loader or another data loader, got int"):
        AnnDataModule(train=make_loader(paths), validation=3)
    with pytest.raises(
        TypeError, match=r"train must be .*got Sides; pass its sides by name: AnnDataModule\(\*\*sides\)"
    ):
        AnnDataModule(make_loader(paths).split({"train": 0.5, "validation": 0.5}))
    with pytest.raises(RuntimeError, match="has no test loader: pass test= when it is made"):
        AnnDataModule(train=make_loader(paths)).test_dataloader()


def test_it_can_be_printed(paths):
    data = AnnDataModule(train=make_loader(paths), test=[1, 2])
    assert str(data) == repr(data) == f"AnnDataModule(train: {make_loader(paths)!r}, test: [1, 2])"


SCRIPT = """
    import json, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from annbatch.lightning import AnnDataModule
    from tests.integration.test_lightning import Model, make_loader, trainer

    if __name__ == "__main__":
        out, *paths = sys.argv[1:]

        def run(checkpoint=None, callbacks=()):
            torch.manual_seed(0)
            model = Model()
            ways = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
            runner = trainer(max_epochs=2, enable_checkpointing=bool(callbacks), callbacks=list(callbacks), **ways)
            runner.fit(model, AnnDataModule(train=make_loader(paths)), ckpt_path=checkpoint)
            return model, runner

        every = ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)
        whole, runner = run(callbacks=[every])
        second, runner = run(out + "/step=3.ckpt")
        same = bool(torch.equal(whole.layer.weight, second.layer.weight))
        with open(f"{out}/{runner.global_rank}.json", "w") as file:
            json.dump([whole.trained, second.trained, same], file)
"""


@pytest.mark.slow
def test_two_processes_share_the_rows_and_resume(paths, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), str(tmp_path), *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    # Five batches of six rows a rank and epoch: every row once in the first epoch.
    assert sorted(row for whole, *_ in ranks for batch in whole[:5] for row in batch) == list(range(60))
    for whole, second, same in ranks:
        assert whole[3:] == second
        assert same
