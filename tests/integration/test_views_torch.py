"""Views inside torch's DataLoader: workers, resuming, ranks; and what torch itself offers for MappedCollection."""

from __future__ import annotations

import json

import numpy as np
import pytest

from annbatch import DistributedSampler, MappedCollection, RandomSampler
from tests.cells import as_array, full_cells, write
from tests.loader.loaders import small_loader

torch = pytest.importorskip("torch", reason="needs torch")

from torch.utils.data import DataLoader, Subset, random_split  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The '.*' option is deprecated"),
]


@pytest.fixture(scope="module")
def parts():
    return [full_cells(40, seed=seed, prefix=f"{seed}_") for seed in range(2)]


@pytest.fixture(scope="module")
def paths(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    return [write(part, folder / name) for part, name in zip(parts, ("a.h5ad", "b.zarr"), strict=True)]


@pytest.fixture(scope="module")
def values(parts):
    return np.concatenate([as_array(part.X) for part in parts])


def rows_of(batches):
    return np.concatenate([np.asarray(batch["index"]) for batch in batches]).tolist()


@pytest.mark.parametrize(("context", "sides"), [("fork", ["train", "test"]), ("spawn", ["test"])])
def test_workers_deal_the_rows_of_a_view_out(paths, values, context, sides):
    loader = small_loader(shuffle=True, rng=np.random.default_rng(0), obs_filter={"label": ["B", "T"]}).add_paths(paths)
    split = loader.split({"train": 0.7, "test": 0.3}, rng=np.random.default_rng(0))
    seen = []
    for name in sides:
        side = split[name]
        expected = rows_of(side)
        batches = list(DataLoader(side, batch_size=None, num_workers=2, multiprocessing_context=context))
        assert sorted(rows_of(batches)) == sorted(expected)
        for batch in batches:
            np.testing.assert_array_equal(as_array(batch["X"]), values[batch["index"]])
        seen += expected
    assert len(seen) == len(set(seen)) == sum(split[name].n_obs for name in sides)


def test_sides_of_a_loader_without_a_seed_are_no_pass_that_ranks_could_share(paths):
    """Each rank would draw its own, and two would see the same row."""
    side = small_loader(shuffle=True).add_paths(paths).split()["train"]
    with pytest.raises(ValueError, match="sampler must have an rng"):
        DistributedSampler(side.batch_sampler, dist_info=lambda: (0, 2))


@pytest.mark.filterwarnings("ignore")  # what torchdata says about torch
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_data_loader_resumes_a_view(paths, num_workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

    def make(seed):
        loader = small_loader(shuffle=True, rng=np.random.default_rng(seed)).add_paths(paths)
        view = loader.subset(np.random.default_rng(5).permutation(80)[:50])
        return stateful.StatefulDataLoader(view, batch_size=None, num_workers=num_workers)

    torch.manual_seed(0)
    original, batches = make(0), []
    for number, batch in enumerate(original, 1):
        batches.append(np.asarray(batch["index"]).tolist())
        if number == 3:
            state = original.state_dict()
    resumed = make(1)
    resumed.load_state_dict(state)
    assert [np.asarray(batch["index"]).tolist() for batch in resumed] == batches[3:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_a_side_and_see_no_row_of_another(paths, world_size):
    """As each rank's own script would: it opens the data, splits it, and wraps the sampler of its part."""
    seen = {"train": [], "test": []}
    for rank in range(world_size):
        split = small_loader().add_paths(paths).split({"train": 0.75, "test": 0.25}, stratify="label")
        for name, side in split.items():
            inner = RandomSampler(2, 3, 6, rng=np.random.default_rng(3))
            sampler = DistributedSampler(
                inner, dist_info=lambda rank=rank: (rank, world_size), enforce_equal_batches=False
            )
            seen[name].append(rows_of(side.subset(slice(None), batch_sampler=sampler)))
    of_side = {name: [row for rows in ranks for row in rows] for name, ranks in seen.items()}
    assert {name: len(rows) for name, rows in of_side.items()} == {"train": 60, "test": 20}
    assert sorted(of_side["train"] + of_side["test"]) == list(range(80))


def test_a_subset_of_a_loader_with_a_distributed_sampler_keeps_to_its_rank(paths):
    seen, again = [], []
    for rank in range(2):
        sampler = DistributedSampler(
            RandomSampler(2, 3, 6, rng=np.random.default_rng(3)), dist_info=lambda rank=rank: (rank, 2)
        )
        loader = small_loader(batch_sampler=sampler).add_paths(paths)
        next(iter(loader))
        view = loader.subset(np.arange(0, 80, 2))
        assert view.batch_sampler.rank == rank
        assert view.batch_sampler.n_batches(40) == len(view)
        assert view.state_dict()["sampler"]["pass"] == 0
        seen += rows_of(view)
        again += rows_of(view)
    for rows in (seen, again):
        assert len(rows) == len(set(rows)) >= 36
        assert not np.any(np.array(rows) % 2)
    assert seen != again


def test_lightning_trains_on_sides_of_a_split(paths):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(7, 1)
            self.seen = {"train": [], "validation": []}

        def training_step(self, batch, number):
            self.seen["train"].append(batch["index"])
            return self.layer(batch["X"]).square().mean()

        def validation_step(self, batch, number):
            self.seen["validation"].append(batch["index"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = small_loader(to="torch", dense=True, shuffle=True, rng=np.random.default_rng(0)).add_paths(paths)
    split = loader.split({"train": 0.6, "validation": 0.4}, by="batch")

    def matrices(side):
        return DataLoader(side, batch_size=None, collate_fn=lambda batch: {"X": batch["X"], "index": batch["index"]})

    model = Model()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # what Lightning says about our few workers
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **options)
        trainer.fit(model, matrices(split["train"]), matrices(split["validation"]))
    seen = {name: np.concatenate(rows).tolist() for name, rows in model.seen.items()}
    assert len(seen["train"]) == 2 * split["train"].n_obs
    assert len(seen["validation"]) == 2 * split["validation"].n_obs
    donors = {name: set(loader.obs(["batch"])["batch"].iloc[rows]) for name, rows in seen.items()}
    assert not donors["train"] & donors["validation"]


def test_torch_divides_a_mapped_collection(paths, values):
    mapped = MappedCollection(paths, obs_keys="label")
    asked = []
    getitems = MappedCollection.__getitems__

    class Noted(MappedCollection):
        def __getitems__(self, indices):
            asked.append(list(indices))
            return getitems(self, indices)

    mapped.__class__ = Noted
    train, test = random_split(mapped, [60, 20], generator=torch.Generator().manual_seed(0))
    assert sorted([*train.indices, *test.indices]) == list(range(80))
    for part in (train, test, Subset(mapped, list(range(0, 80, 3)))):
        asked.clear()
        batches = list(DataLoader(part, batch_size=7))
        # A batch at once, not row after row.
        assert [len(rows) for rows in asked] == [len(batch["X"]) for batch in batches]
        np.testing.assert_array_equal(torch.cat([batch["X"] for batch in batches]).numpy(), values[part.indices])


def test_a_state_of_a_view_goes_through_json(paths):
    view = small_loader(shuffle=True, rng=np.random.default_rng(0)).add_paths(paths).subset(np.arange(80) % 3 > 0)
    batches = iter(view)
    next(batches)
    state = json.loads(json.dumps(view.state_dict()))
    expected = rows_of(list(batches))
    view = small_loader(shuffle=True).add_paths(paths).subset(np.flatnonzero(np.arange(80) % 3))
    with pytest.raises(ValueError, match="rng"):
        view.load_state_dict({**state, "sampler": {**state["sampler"], "rng": None}})
    view.load_state_dict(state)
    assert rows_of(view) == expected
