"""What is measured: one case for every row of the table.

A goal is a factor: how many times better than the peer annbatch wants to be in that figure. It is written down here and
compared with what was measured; nothing else in this folder knows about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CASES", "Case", "Measure", "Side"]


@dataclass(frozen=True)
class Side:
    """One side of a case: which environment runs which worker with which arguments, on which data."""

    environment: str
    worker: str
    arguments: dict[str, Any] = field(default_factory=dict)
    data: str | None = None


@dataclass(frozen=True)
class Measure:
    """A figure that the workers of a case report, by its key there; ``limit`` is a goal for our figure by itself."""

    key: str
    unit: str
    goal: float | None = None
    title: str = ""
    limit: float | None = None

    @property
    def more_is_better(self) -> bool:
        return self.unit == "rows/s"


@dataclass(frozen=True)
class Case:
    """A comparison. ``step_of`` names the case whose peer sets the pace of the training step."""

    name: str
    title: str
    ours: Side
    peer: Side
    measures: tuple[Measure, ...]
    rounds: int = 5
    step_of: str | None = None


def _sampler(name: str, title: str, goal: float, *, rounds: int = 5, **arguments: Any) -> Case:
    given = {"n_obs": 20_000_000, "n_runs": 75_000, **arguments}
    return Case(
        f"sampler-{name}",
        title,
        ours=Side("ours", "sampler.py", given),
        peer=Side("annbatch", "sampler.py", given),
        measures=(Measure("seconds", "s", goal), Measure("peak_memory", "bytes", title="peak memory")),
        rounds=rounds,
    )


def _loader(
    name: str,
    title: str,
    goal: float,
    chunk_size: int,
    preload_nchunks: int,
    *,
    output: str = "csr",
    source: str = "collection",
    ours: str = "peer collection",
    peer: str = "peer collection",
    step_of: str | None = None,
) -> Case:
    given = {
        "chunk_size": chunk_size,
        "preload_nchunks": preload_nchunks,
        "batch_size": 4096,
        "output": output,
        "source": source,
    }
    return Case(
        f"loader-{name}",
        title,
        ours=Side("ours", "loader.py", {**given, "side": "ours"}, ours),
        peer=Side("annbatch", "loader.py", {**given, "side": "peer"}, peer),
        measures=(Measure("rate", "rows/s", goal), Measure("peak_memory", "bytes", title="peak memory")),
        step_of=step_of,
    )


def _straight_from_files(name: str, title: str, goal: float, data: str) -> Case:
    ours = {
        "chunk_size": 32,
        "preload_nchunks": 256,
        "batch_size": 4096,
        "output": "csr",
        "source": "h5ad",
        "side": "ours",
    }
    peer = {"block_size": 64, "batch_size": 64, "fetch_factor": 64}
    return Case(
        name,
        title,
        ours=Side("ours", "loader.py", ours, data),
        peer=Side("scdataset", "scdataset_h5ad.py", peer, data),
        measures=(Measure("rate", "rows/s", goal), Measure("peak_memory", "bytes", title="peak memory")),
    )


def _mapped(name: str, title: str, goal: float, output: str) -> Case:
    return Case(
        f"mapped-{name}",
        title,
        ours=Side("ours", "mapped.py", {"side": "ours", "output": output}, "h5ad"),
        peer=Side("lamindb", "mapped.py", {"side": "peer", "output": output}, "h5ad"),
        measures=(Measure("rate", "rows/s", goal), Measure("peak_memory", "bytes", title="peak memory")),
    )


_CHUNKED = {"chunk_size": 64, "preload_nchunks": 64}
_SINGLE = {"chunk_size": 1, "preload_nchunks": 4096}

CASES: tuple[Case, ...] = (
    _sampler("build", "ClassSampler: build over 20 million int8 codes in 75,000 runs", 5, measure="build", **_CHUNKED),
    _sampler("mask", "ClassSampler: assign a mask over half of them", 10, measure="mask", **_CHUNKED),
    _sampler(
        "pass-64x64",
        "ClassSampler: pass of 5 million rows, chunk 64 x 64, batch 256",
        5,
        measure="pass",
        num_samples=5_000_000,
        **_CHUNKED,
    ),
    _sampler(
        "pass-1x4096",
        "ClassSampler: pass of 1 million rows, chunk 1 x 4,096, batch 256",
        20,
        measure="pass",
        num_samples=1_000_000,
        **_SINGLE,
    ),
    _sampler(
        "first-request",
        "RandomSampler: first request over 20 million rows, chunk 1 x 4,096",
        50,
        measure="first_request",
        rounds=3,
    ),
    Case(
        "import",
        "`import annbatch`",
        ours=Side("ours", "startup.py"),
        peer=Side("annbatch", "startup.py"),
        measures=(
            Measure("seconds", "s", 4),
            Measure("seconds_with_classes", "s", title="and touch Loader and DatasetCollection"),
        ),
    ),
    _loader("32x256", "Loader: CSR, chunk 32 x 256, the same store", 2.7, 32, 256),
    _loader("512x32", "Loader: CSR, chunk 512 x 32, the same store", 2.3, 512, 32),
    _loader("1x8192", "Loader: CSR, chunk 1 x 8,192, the same store", 5, 1, 8192),
    _loader("32x256-own", "Loader: CSR, chunk 32 x 256, each on its own store", 6, 32, 256, ours="own collection"),
    _loader("1x8192-own", "Loader: CSR, chunk 1 x 8,192, each on its own store", 15, 1, 8192, ours="own collection"),
    _loader(
        "dense", "Loader: dense torch batches, all genes, each on its own store", 4, 32, 256,
        output="dense", ours="own collection",
    ),
    _loader(
        "2000-genes", "Loader: dense torch batches of 2,000 chosen genes, each on its own store", 15, 32, 256,
        output="genes", ours="own collection",
    ),
    _loader(
        "scaled", "Loader: CSR normalised and logged; the peer's by NumPy, batch by batch; each on its own store", 8, 32, 256,
        output="scaled", ours="own collection",
    ),
    _loader(
        "memory", "Loader: CSR in memory, chunk 1 x 8,192", 2.5, 1, 8192, source="memory", ours="h5ad", peer="h5ad"
    ),
    _loader(
        "training", "Training loop, a step as long as the peer needs for its batch, the same store", 1.9, 32, 256,
        step_of="loader-32x256",
    ),
    _straight_from_files("h5ad", "Loader straight on h5ad, chunk 32 x 256; scDataset, blocks of 64", 5, "h5ad"),
    _straight_from_files("h5ad-gzip", "Loader straight on gzip-compressed h5ad, the same settings", 8, "gzip h5ad"),
    _mapped("batches", "MappedCollection in a DataLoader, batch 128, shuffled, h5ad", 15, "all"),
    _mapped("2000-genes", "MappedCollection with m.collate and 2,000 chosen genes", 60, "genes"),
    Case(
        "add-adatas",
        "add_adatas: build a collection from the files",
        ours=Side("ours", "build.py", {"side": "ours"}, "h5ad"),
        peer=Side("annbatch", "build.py", {"side": "peer"}, "h5ad"),
        measures=(
            Measure("seconds", "s", 3),
            Measure("peak_memory", "bytes", title="peak memory", limit=2.5e9),
            Measure("size_on_disk", "bytes", 1 / 0.75, title="size on disk"),
        ),
        rounds=3,
    ),
    Case(
        "add-adatas-half",
        "add_adatas: from half of the files",
        ours=Side("ours", "build.py", {"side": "ours"}, "half of h5ad"),
        peer=Side("annbatch", "build.py", {"side": "peer"}, "half of h5ad"),
        measures=(Measure("peak_memory", "bytes", title="peak memory", limit=2.5e9),),
        rounds=1,
    ),
)  # fmt: skip
