"""Seconds per epoch of SCVI: cells in memory, scvi-tools' own way to files, and ours; in turn, in one process.

    python -m benchmarks.scvi_epochs [--cells 20000] [--write docs/howto/scvi.md]

Needs scvi-tools (``pip install "annbatch[scvi]"``, Python 3.12). The files hold the 2,000 genes with the most counts, as such models
are trained on chosen genes. All three train the same model on batches of 128 rows on the CPU. Beside the epoch stands what its batches
take alone, as the model gets them: where a GPU trains, that is what is left to wait for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np

from benchmarks.suites.counts import thinned_cells
from benchmarks.versus.__main__ import commit
from benchmarks.versus.report import rewrite_section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH_SIZE = 128
# One load request is 128 x 64 rows for both readers of files.
SETTINGS = {"chunk_size": 32, "preload_nchunks": 256}
N_GENES = 2_000


def make_files(folder: Path, n_cells: int) -> list[str]:
    paths = []
    genes: Any = None
    for number in range(2):
        cells = thinned_cells(n_cells // 2, seed=number)
        if genes is None:
            genes = np.sort(np.argsort(-np.asarray(cells.X.sum(axis=0)).ravel())[:N_GENES])
        path = folder / f"{number}.h5ad"
        cells[:, genes].copy().write_h5ad(path)
        paths.append(str(path))
    return paths


def in_memory(paths: list[str]) -> tuple[Any, dict[str, Any]]:
    from scvi.model import SCVI

    cells = ad.concat([ad.read_h5ad(path) for path in paths])
    SCVI.setup_anndata(cells, batch_key="donor")
    return SCVI(cells), {"train_size": 1.0, "batch_size": BATCH_SIZE}


def setup_annbatch(paths: list[str]) -> tuple[Any, dict[str, Any]]:
    from scvi.model import SCVI

    module = SCVI.setup_annbatch(
        paths=paths, batch_key="donor", batch_size=BATCH_SIZE, preload_to_gpu=False, shuffle=True, **SETTINGS
    )
    return SCVI(registry=module.registry), {"datamodule": module, "train_size": 1.0}


def ours(paths: list[str]) -> tuple[Any, dict[str, Any]]:
    from scvi.model import SCVI

    from annbatch import Loader
    from annbatch.scvi import SCVIDataModule

    loader = Loader(
        batch_size=BATCH_SIZE, shuffle=True, to="torch", dense=True, labels=["donor"], obs_columns=[], **SETTINGS
    ).add_paths(paths)
    module = SCVIDataModule(loader, batch_key="donor")
    return SCVI(registry=module.registry), {"datamodule": module}


CANDIDATES: dict[str, Callable[[list[str]], tuple[Any, dict[str, Any]]]] = {
    "`SCVI.setup_anndata`, all cells in memory": in_memory,
    "`SCVI.setup_annbatch` on the h5ad files": setup_annbatch,
    "`annbatch.scvi.SCVIDataModule` on the h5ad files": ours,
}


def seconds_per_epoch(
    candidate: Callable[[list[str]], tuple[Any, dict[str, Any]]], paths: list[str]
) -> tuple[float, float]:
    """Time of an epoch, the mean of the second and third as the first one starts things up, and of its batches alone."""
    from lightning.pytorch.callbacks import Callback

    class Clock(Callback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_epoch_end(self, *unused: Any) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    model, arguments = candidate(paths)
    model.train(
        max_epochs=3,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[clock],
        **arguments,
    )
    began = time.perf_counter()
    for _ in range(2):
        for _ in tensors(model, arguments.get("datamodule")):
            pass
    return float(np.diff(clock.ends).mean()), (time.perf_counter() - began) / 2


def tensors(model: Any, module: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches of an epoch, as the model gets them."""
    if module is None:
        from scvi.dataloaders import AnnDataLoader

        yield from AnnDataLoader(model.adata_manager, batch_size=BATCH_SIZE, shuffle=True)
    else:
        for batch in module.train_dataloader():
            yield module.on_before_batch_transfer(batch, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CANDIDATES}
    # setup_annbatch writes a collection of its own into the working folder.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        paths = make_files(Path(folder), options.cells)
        for _ in range(options.rounds):
            for name, candidate in CANDIDATES.items():
                found[name].append(seconds_per_epoch(candidate, paths))
    base = found["`SCVI.setup_annbatch` on the h5ad files"]
    lines = ["| way | seconds per epoch | its batches alone |", "| --- | --- | --- |"]
    for name, seconds in found.items():
        shares = []
        for column in range(2):
            ratios = [one[column] / other[column] for one, other in zip(seconds, base, strict=True)]
            shares.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {name} | {' | '.join(shares)} |")
    lines += [
        "",
        (
            "Both as a share of what `setup_annbatch` takes: median of the rounds (lowest to highest). "
            f"`python -m benchmarks.scvi_epochs --cells {options.cells} --rounds {options.rounds}` at commit {commit()}: scvi-tools "
            f"{version('scvi-tools')}, {N_GENES:,} genes, batches of {BATCH_SIZE}, {os.cpu_count()} CPUs, load {load:.1f} at the start; "
            f"training on the CPU, where the model takes most of an epoch."
        ),
    ]
    print("\n".join(lines))
    print({name: [tuple(round(value, 2) for value in pair) for pair in seconds] for name, seconds in found.items()})
    if options.write:
        rewrite_section(options.write, "epochs", "\n".join(lines))


if __name__ == "__main__":
    main()
