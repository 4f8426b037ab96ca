"""Shuffled batches with one obs column, from any of the loaders: rows per second, or which rows were in each batch.

Parameters: ``side`` (a name in LOADERS), ``paths`` (h5ad files) and ``folder`` (what the side made of them); ``task``: "convert" makes
that, "rate" measures for ``seconds`` with the column "cell_type", "rows" writes the row numbers of ``n_batches`` batches, from the
column "row", into ``out``; ``batch_size``, and whatever else the loader takes, in ``options``.

Every loader is used as its documentation shows, with its default settings, but for the batch size.
"""

from __future__ import annotations

import shutil
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stopwatch import parameters, report, rows_per_second

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SEED = 0


def annbatch_ours(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    from annbatch import Loader

    # A column of labels comes as codes, one of numbers as a covariate.
    wanted = {"labels": [column]} if column == "cell_type" else {"covariates": [column]}
    settings = {"shuffle": True, "rng": np.random.default_rng(SEED), "obs_columns": [], **given["options"]}
    loader = Loader(batch_size=given["batch_size"], **settings, **wanted)
    if given["folder"]:
        loader.use_collection(str(Path(given["folder"]) / "ours.zarr"))
    else:
        loader.add_paths(given["paths"])
    while True:
        for batch in loader:
            yield batch["X"].shape[0], batch["labels"][column] if "labels" in batch else batch["covariates"][:, 0]
        yield 0, ()


def annbatch_peer(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    import anndata as ad
    import zarr

    from annbatch import DatasetCollection, Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    ad.settings.remove_unused_categories = False
    loader = Loader(shuffle=True, rng=np.random.default_rng(SEED), batch_size=given["batch_size"], preload_to_gpu=False)
    loader.use_collection(DatasetCollection(Path(given["folder"]) / "peer.zarr", mode="r"))
    while True:
        for batch in loader:
            yield batch["X"].shape[0], batch["obs"][column]
        yield 0, ()


def scdataset(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    from scdataset import BlockShuffling, scDataset
    from scdataset_h5ad import Files

    dataset = scDataset(
        Files(given["paths"], column),
        BlockShuffling(),
        batch_size=given["batch_size"],
        fetch_callback=lambda files, rows: files[rows],
        seed=SEED,
    )
    while True:
        for batch in dataset:
            yield len(batch), batch.cell_type
        yield 0, ()


def lamindb(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    from lamindb.core import MappedCollection
    from torch.utils.data import DataLoader

    dataset = MappedCollection(given["paths"], obs_keys=[column])
    while True:
        for batch in DataLoader(dataset, batch_size=given["batch_size"], shuffle=True):
            yield batch["X"].shape[0], batch[column]
        yield 0, ()


def annloader(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    import anndata as ad
    from anndata.experimental import AnnCollection, AnnLoader

    backed = [ad.read_h5ad(path, backed="r") for path in given["paths"]]
    collection = AnnCollection(backed, join_vars="inner", join_obs="inner")
    while True:
        for batch in AnnLoader(collection, batch_size=given["batch_size"], shuffle=True):
            yield batch.X.shape[0], batch.obs[column]
        yield 0, ()


def tiledbsoma(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    import tiledbsoma
    from tiledbsoma_ml import ExperimentDataset, experiment_dataloader

    uri = str(Path(given["folder"]) / "soma")
    with (
        tiledbsoma.Experiment.open(uri) as experiment,
        experiment.axis_query(measurement_name="RNA") as query,
    ):
        dataset = ExperimentDataset(
            query,
            layer_name="data",
            obs_column_names=[column],
            batch_size=given["batch_size"],
            shuffle=True,
            seed=SEED,
            return_sparse_X=True,
        )
        for epoch in range(1_000_000):
            dataset.set_epoch(epoch)
            for X, obs in experiment_dataloader(dataset):
                yield X.shape[0], obs[column]
            yield 0, ()


class _ScdlRows:
    """Rows of an SCDL data set with one of their obs features, for a DataLoader."""

    def __init__(self, folder: Path, column: str) -> None:
        from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

        self.dataset = SingleCellMemMapDataset(str(folder))
        self.column = column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        import torch

        (values, columns), _, features = self.dataset.get_row(
            row, return_obs_features=True, obs_feature_names=[self.column]
        )
        return torch.stack([torch.from_numpy(values).float(), torch.from_numpy(columns).float()]), features[0]


def scdl(given: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
    from torch.utils.data import DataLoader

    def collate(samples: list[tuple[Any, Any]]) -> tuple[Any, list[Any]]:
        return collate_sparse_matrix_batch([X for X, _ in samples]), [label for _, label in samples]

    rows = _ScdlRows(Path(given["folder"]) / "scdl", column)
    while True:
        for X, labels in DataLoader(rows, batch_size=given["batch_size"], shuffle=True, collate_fn=collate):
            yield X.shape[0], labels
        yield 0, ()


LOADERS = {
    "ours": annbatch_ours,
    "annbatch": annbatch_peer,
    "scdataset": scdataset,
    "lamindb": lamindb,
    "annloader": annloader,
    "tiledbsoma": tiledbsoma,
    "scdl": scdl,
}


def convert(given: dict[str, Any]) -> None:
    """Make what the side reads of the h5ad files."""
    folder, paths = Path(given["folder"]), given["paths"]
    if given["side"] in ("ours", "annbatch"):
        from annbatch import DatasetCollection

        if given["side"] == "annbatch":
            import zarr

            zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        out = folder / ("ours.zarr" if given["side"] == "ours" else "peer.zarr")
        DatasetCollection(out).add_adatas(paths, rng=np.random.default_rng(SEED))
    elif given["side"] == "tiledbsoma":
        import tiledbsoma.io

        names = {"measurement_name": "RNA", "obs_field_name": "obs_id", "var_field_name": "var_id"}
        uri = str(folder / "soma")
        tiledbsoma.io.from_h5ad(uri, paths[0], measurement_name="RNA", ingest_mode="write")
        registered = tiledbsoma.io.register_h5ads(uri, paths[1:], **names)
        registered.prepare_experiment(uri)
        for path in paths[1:]:
            tiledbsoma.io.from_h5ad(uri, path, measurement_name="RNA", registration_mapping=registered)
    elif given["side"] == "scdl":
        from bionemo.scdl.io.single_cell_collection import SingleCellCollection

        collection = SingleCellCollection(str(folder / "parts"))
        collection.load_h5ad_multi(str(Path(paths[0]).parent), use_X_not_raw=True)
        collection.flatten(str(folder / "scdl"), destroy_on_copy=True)


def main() -> None:
    given = parameters()
    if given["task"] == "convert":
        shutil.rmtree(given["folder"], ignore_errors=True)
        Path(given["folder"]).mkdir(parents=True)
        start = time.perf_counter()
        convert(given)
        size = sum(path.stat().st_size for path in Path(given["folder"]).rglob("*") if path.is_file())
        report(seconds=time.perf_counter() - start, size_on_disk=size)
        return
    column = "cell_type" if given["task"] == "rate" else "row"
    batches = LOADERS[given["side"]](given, column)
    if given["task"] == "rows":
        found = [np.asarray(labels).ravel() for n_rows, labels in islice(batches, given["n_batches"]) if n_rows]
        np.savez(given["out"], *[labels.astype(np.int64) for labels in found])
        report()
        return

    def one_pass() -> Iterable[int]:
        for n_rows, labels in batches:
            if n_rows == 0:
                return
            if len(labels) != n_rows:
                msg = f"{n_rows} rows came with {len(labels)} labels"
                raise RuntimeError(msg)
            yield n_rows

    rows_per_second(one_pass, rows_per_request=given["rows_per_request"], seconds=given["seconds"])


if __name__ == "__main__":
    main()
