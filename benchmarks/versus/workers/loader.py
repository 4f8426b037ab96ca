"""Rows per second out of annbatch's Loader, for annbatch and for its peer of the same name.

Parameters: ``side`` ("ours" or "peer"), ``source`` ("collection", "h5ad" or "memory") with ``paths``, the Loader's
``chunk_size``, ``preload_nchunks``, ``batch_size``; ``output`` ("csr"; "scaled", which is CSR normalised to 10,000 counts and logged; "dense" or "genes", as torch
tensors);
``step_per_row``, the seconds per row that a training step is made to take; ``seconds``, how long to measure.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from stopwatch import parameters, rows_per_second

from annbatch import DatasetCollection, Loader

if TYPE_CHECKING:
    from collections.abc import Iterator

N_CHOSEN_GENES = 2_000


def chosen_columns(n_var: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n_var)[:N_CHOSEN_GENES]


def in_memory(paths: list[str]) -> ad.AnnData:
    parts = [ad.read_h5ad(path) for path in paths]
    whole = ad.concat(parts)
    whole.X = sp.csr_matrix(whole.X)
    return whole


def make_loader(given: dict[str, Any], **options: Any) -> Loader:
    loader = Loader(
        chunk_size=given["chunk_size"],
        preload_nchunks=given["preload_nchunks"],
        batch_size=given["batch_size"],
        shuffle=True,
        rng=np.random.default_rng(0),
        preload_to_gpu=False,
        **options,
    )
    if given["source"] == "collection":
        return loader.use_collection(DatasetCollection(given["paths"][0], mode="r"))
    if given["source"] == "h5ad":
        return loader.add_paths(given["paths"])
    return loader.add_adata(in_memory(given["paths"]))


def our_batches(given: dict[str, Any]) -> Any:
    output = given["output"]
    if output == "csr":
        return make_loader(given)
    if output == "scaled":
        return make_loader(given, normalize_total=1e4, log1p=True)
    if output == "dense":
        return make_loader(given, to="torch", dense=True)
    genes = make_loader(given).var.index[chosen_columns(make_loader(given).n_var)]
    return make_loader(given, to="torch", dense=True, var_names=list(genes))


def scale_by_hand(counts: sp.csr_matrix) -> None:
    totals = np.asarray(counts.sum(axis=1)).ravel()
    factors = (1e4 / np.where(totals > 0, totals, 1e4)).astype(np.float32)
    counts.data = np.log1p(counts.data * np.repeat(factors, np.diff(counts.indptr)))


class PeerBatches:
    """The peer as its documentation sets it up: zarrs decodes, categories are kept, dense is made from a torch tensor.

    Counts are scaled by hand, as users do: in NumPy, on the values of the batch.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        import zarr

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        ad.settings.remove_unused_categories = False
        self.output = given["output"]
        self.loader = make_loader(given, **({} if self.output in ("csr", "scaled") else {"to": "torch"}))
        self.columns: Any = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            if self.output == "scaled":
                scale_by_hand(batch["X"])
            elif self.output != "csr":
                batch["X"] = batch["X"].to_dense()
            if self.output == "genes":
                if self.columns is None:
                    import torch

                    self.columns = torch.from_numpy(chosen_columns(batch["X"].shape[1]))
                batch["X"] = batch["X"][:, self.columns]
            yield batch


def main() -> None:
    given = parameters()
    batches = our_batches(given) if given["side"] == "ours" else PeerBatches(given)
    step_per_row = given.get("step_per_row", 0.0)

    def one_pass() -> Iterator[int]:
        for batch in batches:
            n_rows = batch["X"].shape[0]
            del batch
            if step_per_row:
                time.sleep(step_per_row * n_rows)
            yield n_rows

    rows_per_second(one_pass, rows_per_request=given["chunk_size"] * given["preload_nchunks"], seconds=given["seconds"])


if __name__ == "__main__":
    main()
