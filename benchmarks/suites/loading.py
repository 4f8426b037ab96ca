"""Loader: whole passes, by source, by layout, by what comes out; and their peak memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import anndata as ad
import numpy as np

from annbatch import DatasetCollection, Loader

from .files import write_collection, write_h5ad
from .sizes import levels, size

LAYOUTS = {"32 x 256": (32, 256), "512 x 32": (512, 32), "1 x 8192": (1, 8192)}
BATCH_SIZE = size(4096, 64)
N_CHOSEN_GENES = 2_000


def make_loader(layout: str, **options: Any) -> Loader:
    chunk_size, preload_nchunks = LAYOUTS[layout]
    return Loader(
        chunk_size=chunk_size,
        preload_nchunks=preload_nchunks,
        batch_size=BATCH_SIZE,
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
        **options,
    )


def drain(loader: Loader) -> None:
    for batch in loader:
        del batch


class Sources:
    """CSR batches from every kind of source."""

    param_names = ("source", "layout")
    params = (["memory", "collection", "h5ad", "gzip h5ad"], levels(list(LAYOUTS)))

    def setup_cache(self) -> dict[str, list[str]]:
        plain = write_h5ad()
        return {"collection": [write_collection(plain)], "h5ad": plain, "gzip h5ad": write_h5ad("gzip")}

    def setup(self, paths: dict[str, list[str]], source: str, layout: str) -> None:
        loader = make_loader(layout)
        if source == "memory":
            self.loader = loader.add_adatas([ad.read_h5ad(path) for path in paths["h5ad"]])
        elif source == "collection":
            self.loader = loader.use_collection(DatasetCollection(paths["collection"][0], mode="r"))
        else:
            self.loader = loader.add_paths(paths[source])

    def time_pass(self, paths: dict[str, list[str]], source: str, layout: str) -> None:
        drain(self.loader)

    def peakmem_pass(self, paths: dict[str, list[str]], source: str, layout: str) -> None:
        drain(self.loader)


def collection_loader(path: str, output: str) -> Loader:
    """Loader on a collection; ``output`` says what its rows are made into."""
    options: dict[str, Any] = {"dense": "dense" in output}
    if "torch" in output:
        options["to"] = "torch"
    if "genes" in output:
        genes = make_loader("32 x 256").use_collection(DatasetCollection(path, mode="r")).var.index
        options["var_names"] = list(np.random.default_rng(0).permutation(genes)[:N_CHOSEN_GENES])
    if "without" in output:
        options["prefetch"] = 0
    return make_loader("32 x 256", **options).use_collection(DatasetCollection(path, mode="r"))


class Outputs:
    """What the rows of a collection are made into."""

    param_names = ("output",)
    params = (["csr", "dense", "2000 genes dense", "csr without read-ahead"],)

    def setup_cache(self) -> str:
        return write_collection(write_h5ad())

    def setup(self, path: str, output: str) -> None:
        self.loader = collection_loader(path, output)

    def time_pass(self, path: str, output: str) -> None:
        drain(self.loader)

    def peakmem_pass(self, path: str, output: str) -> None:
        drain(self.loader)


class TorchOutputs:
    """The same as torch tensors."""

    param_names = ("output",)
    params = (["torch csr", "torch dense"],)

    def setup_cache(self) -> str:
        return write_collection(write_h5ad())

    def setup(self, path: str, output: str) -> None:
        if find_spec("torch") is None:
            msg = "torch is not installed"
            raise NotImplementedError(msg)
        self.loader = collection_loader(path, output)
        drain(self.loader)  # imports torch

    def time_pass(self, path: str, output: str) -> None:
        drain(self.loader)


class Opening:
    """What happens before the first batch."""

    def setup_cache(self) -> str:
        return write_collection(write_h5ad())

    def time_open(self, path: str) -> None:
        make_loader("32 x 256").use_collection(DatasetCollection(path, mode="r"))

    def time_first_batch(self, path: str) -> None:
        loader = make_loader("32 x 256").use_collection(DatasetCollection(path, mode="r"))
        next(iter(loader))
