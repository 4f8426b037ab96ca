"""MappedCollection: opening, single samples, whole batches."""

from __future__ import annotations

import numpy as np

from annbatch import MappedCollection

from .files import write_h5ad
from .sizes import levels

BATCH_SIZE = 128
N_CHOSEN_GENES = 2_000


class Samples:
    """Random rows, one by one and as a batch, with and without a choice of genes."""

    param_names = ("file", "genes")
    params = (levels(["h5ad", "gzip h5ad"]), ["all", "2000"])

    def setup_cache(self) -> dict[str, list[str]]:
        return {"h5ad": write_h5ad(), "gzip h5ad": write_h5ad("gzip")}

    def setup(self, paths: dict[str, list[str]], file: str, genes: str) -> None:
        rng = np.random.default_rng(0)
        self.mapped = MappedCollection(paths[file], obs_keys=["cell_type"])
        if genes == "2000":
            chosen = rng.permutation(np.asarray(self.mapped.var_joint))[:N_CHOSEN_GENES]
            self.mapped.close()
            self.mapped = MappedCollection(paths[file], obs_keys=["cell_type"], var_names=list(chosen))
        self.rows = rng.permutation(len(self.mapped))[:BATCH_SIZE].tolist()

    def teardown(self, paths: dict[str, list[str]], file: str, genes: str) -> None:
        self.mapped.close()

    def time_open(self, paths: dict[str, list[str]], file: str, genes: str) -> None:
        MappedCollection(paths[file], obs_keys=["cell_type"]).close()

    def time_one_by_one(self, paths: dict[str, list[str]], file: str, genes: str) -> None:
        for row in self.rows[:8]:
            self.mapped[row]

    def time_batch(self, paths: dict[str, list[str]], file: str, genes: str) -> None:
        self.mapped.__getitems__(self.rows)

    def peakmem_batch(self, paths: dict[str, list[str]], file: str, genes: str) -> None:
        self.mapped.__getitems__(self.rows)
