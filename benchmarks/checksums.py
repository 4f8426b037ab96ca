"""What checksums cost to read: the same cells stored with and without, read in turns in one process.

``python -m benchmarks.checksums`` makes both collections of thinned real cells, reads the same rows of each by turns, and prints for
each way of choosing rows the median, and the lowest and highest quarter, of the ratios of processor time of a pair (with, divided by
without). Processor time, because what else the machine does changes it less; one thread of the engine, then the whole Loader. At last the
engine reads the one with checksums, and the same files again while it passes over these: what checking alone takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from benchmarks.paired import ratios

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAYS = {"32 x 256": (32, 256), "1 x 8192": (1, 8192)}
BATCH = 4096


def make_pair(folder: Path, n_cells: int) -> tuple[Path, Path]:
    """The same collection with checksums and manifests, and without either."""
    from annbatch import DatasetCollection
    from annbatch.collection.building import assemble
    from annbatch.collection.building.output import sink
    from benchmarks.suites.counts import thinned_cells

    cells = thinned_cells(n_cells, seed=0)
    places = folder / "with.zarr", folder / "without.zarr"
    DatasetCollection(places[0]).add_adatas([cells], shuffle=False, progress=False)
    with mock.patch.object(sink, "with_checksums", tuple), mock.patch.object(assemble, "write_manifest"):
        DatasetCollection(places[1]).add_adatas([cells], shuffle=False, progress=False)
    return places


def by_engine(place: Path, chunk_size: int, n_chunks: int) -> Callable[[int], None]:
    """What reads one load request, told by its number, with the engine alone."""
    from annbatch import DatasetCollection, storage

    sources = [storage.open_matrix(group["X"]) for group in DatasetCollection(place, mode="r")]
    first = np.cumsum([0, *(source.shape[0] for source in sources)])
    pool = storage.BufferPool()

    def read(number: int) -> None:
        chunks = np.random.default_rng(number).permutation(first[-1] // chunk_size)[:n_chunks]
        rows = (chunks[:, None] * chunk_size + np.arange(chunk_size)).ravel()
        source_of = np.searchsorted(first, rows, side="right") - 1
        dest = [np.flatnonzero(source_of == i) for i in range(len(sources))]
        parts = [
            storage.Part(source, rows[at] - first[i], at)
            for i, (source, at) in enumerate(zip(sources, dest, strict=True))
            if len(at)
        ]
        edges = np.append(np.arange(0, len(rows), BATCH), len(rows))
        storage.read_csr(parts, edges, n_var=sources[0].shape[1], num_threads=1, pool=pool)

    return read


def by_loader(place: Path, chunk_size: int, n_chunks: int) -> Callable[[int], None]:
    """What reads one pass, told by its number, through the Loader."""
    from annbatch import DatasetCollection, Loader

    loader = Loader(
        chunk_size=chunk_size,
        preload_nchunks=n_chunks,
        batch_size=BATCH,
        shuffle=True,
        rng=np.random.default_rng(0),
        prefetch=0,
        num_threads=1,
        preload_to_gpu=False,
    ).use_collection(DatasetCollection(place, mode="r"))

    def read(number: int) -> None:
        loader.set_epoch(number)
        for _ in loader:
            pass

    return read


@contextmanager
def passing_over() -> Iterator[None]:
    """Within, arrays that are opened take the checksum behind each chunk for nothing that belongs to it."""
    from annbatch.storage.chunks import zarr_table

    codecs, note = zarr_table._codecs, zarr_table.ShardIndexes.note  # noqa: SLF001

    def others(steps: list[tuple[str, dict[str, Any]]], itemsize: int) -> Any:
        kept = [step for step in steps if step[0] != "crc32c"]
        return codecs(kept or steps, itemsize)  # the index of a shard is checked

    def note_shorter(self: Any, file: int, offset: np.ndarray, length: np.ndarray) -> None:
        note(self, file, offset, np.where(length > 4, length - 4, length).astype(length.dtype))

    with (
        mock.patch.object(zarr_table, "_codecs", others),
        mock.patch.object(zarr_table.ShardIndexes, "note", note_shorter),
    ):
        yield


def show(name: str, way: str, found: np.ndarray) -> None:
    """Print a row of the table."""
    low, median, high = np.quantile(found, [0.25, 0.5, 0.75])
    print(f"| {name} | {way} | **{median:.3f}** | {low:.3f} to {high:.3f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checksums", description=__doc__)
    parser.add_argument("--cells", type=int, default=30_000)
    parser.add_argument(
        "--rounds", type=int, default=100, help="pairs of load requests; of whole passes a third as many"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = make_pair(Path(folder), options.cells)
        sizes = [sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) for place in places]
        print(f"{options.cells} cells; bytes with and without: {sizes[0]:,}, {sizes[1]:,}\n")
        print("| read by | rows | median of paired ratios | quarters |\n| --- | --- | --- | --- |")
        for name, make, n_rounds in (
            ("engine", by_engine, options.rounds),
            ("Loader", by_loader, -(-options.rounds // 3)),
        ):
            for way, (chunk_size, n_chunks) in WAYS.items():
                show(name, way, ratios([make(place, chunk_size, n_chunks) for place in places], n_rounds))
        for way, (chunk_size, n_chunks) in WAYS.items():
            checked, unchecked = (by_engine(places[0], chunk_size, n_chunks) for _ in range(2))
            with passing_over():
                for number in range(options.rounds):  # all shards that are touched
                    unchecked(number)
            show("engine, checked or not", way, ratios([checked, unchecked], options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
