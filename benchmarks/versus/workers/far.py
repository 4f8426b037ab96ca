"""Rows per second through a network, for annbatch, for its peer of the same name, and for scDataset.

Parameters: ``side`` ("ours", "peer" or "scdataset"), ``source`` ("collection" or "h5ad"), ``urls``, ``chunk_size``,
``preload_nchunks``, ``batch_size``, ``seconds``; for our side also ``cache``, a folder or None, and ``prefetch``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from stopwatch import parameters, rows_per_second

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def our_batches(given: dict[str, Any]) -> Iterable[Any]:
    from annbatch import Loader

    loader = Loader(
        **{key: given[key] for key in ("chunk_size", "preload_nchunks", "batch_size", "prefetch", "cache")},
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
    )
    return (
        loader.use_collection(given["urls"][0]) if given["source"] == "collection" else loader.add_paths(given["urls"])
    )


def peer_batches(given: dict[str, Any]) -> Iterable[Any]:
    """The peer on a zarr group of an fsspec store, with all the concurrency that zarr-python gives it."""
    import anndata as ad
    import zarr
    from zarr.storage import FsspecStore

    from annbatch import DatasetCollection, Loader

    zarr.config.set({"async.concurrency": 128})
    ad.settings.remove_unused_categories = False
    group = zarr.open_group(FsspecStore.from_url(given["urls"][0], read_only=True), mode="r")
    loader = Loader(
        **{key: given[key] for key in ("chunk_size", "preload_nchunks", "batch_size")},
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
    )
    return loader.use_collection(DatasetCollection(group, mode="r"))


def scdataset_batches(given: dict[str, Any]) -> Iterable[Any]:
    """What scDataset can be given of far files: h5py over fsspec's own file with its block cache."""
    import anndata as ad
    import fsspec
    import h5py
    from scdataset import BlockShuffling, scDataset
    from scdataset_h5ad import Files

    class FarFiles(Files):
        def __init__(self, urls: list[str]) -> None:
            groups = [h5py.File(fsspec.open(url, "rb").open(), "r") for url in urls]
            self.matrices = [ad.io.sparse_dataset(group["X"]) for group in groups]
            self.cell_type = np.concatenate(
                [np.asarray(ad.io.read_elem(group["obs"])["cell_type"]) for group in groups]
            )
            self.starts = np.cumsum([0, *(matrix.shape[0] for matrix in self.matrices)])

    return scDataset(
        FarFiles(given["urls"]),
        BlockShuffling(block_size=given["chunk_size"]),
        batch_size=64,
        fetch_factor=given["chunk_size"] * given["preload_nchunks"] // 64,
        fetch_callback=lambda files, rows: files[rows],
        seed=0,
    )


def main() -> None:
    given = parameters()
    batches = {"ours": our_batches, "peer": peer_batches, "scdataset": scdataset_batches}[given["side"]](given)
    if given.get("warm"):
        for _ in batches:  # a whole pass, which fills the cache
            pass

    def one_pass() -> Iterator[int]:
        for batch in batches:
            yield len(batch) if given["side"] == "scdataset" else batch["X"].shape[0]

    rows_per_second(one_pass, rows_per_request=given["chunk_size"] * given["preload_nchunks"], seconds=given["seconds"])


if __name__ == "__main__":
    main()
