"""Rows per second out of MappedCollection in a torch DataLoader, for annbatch and for lamindb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stopwatch import parameters, rows_per_second
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_SIZE = 128
N_CHOSEN_GENES = 2_000


def make_batches(given: dict[str, Any]) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {"batch_size": BATCH_SIZE, "shuffle": True, "generator": generator}
    if given["side"] == "peer":
        from lamindb.core import MappedCollection

        return DataLoader(MappedCollection(given["paths"], obs_keys=["cell_type"]), **arguments)

    from annbatch import MappedCollection

    mapped = MappedCollection(given["paths"], obs_keys=["cell_type"])
    if given["output"] == "genes":
        chosen = np.random.default_rng(0).permutation(mapped.n_vars)[:N_CHOSEN_GENES]
        genes = np.asarray(mapped.var_joint)[chosen]
        mapped = MappedCollection(given["paths"], obs_keys=["cell_type"], var_names=list(genes))
        arguments["collate_fn"] = mapped.collate
    return DataLoader(mapped, **arguments)


def main() -> None:
    given = parameters()
    batches = make_batches(given)
    chosen = None
    if given["side"] == "peer" and given["output"] == "genes":
        chosen = torch.from_numpy(
            np.random.default_rng(0).permutation(next(iter(batches))["X"].shape[1])[:N_CHOSEN_GENES]
        )

    def one_pass() -> Iterator[int]:
        for batch in batches:
            X = batch["X"] if chosen is None else batch["X"][:, chosen]
            yield X.shape[0]

    rows_per_second(one_pass, rows_per_request=BATCH_SIZE, seconds=given["seconds"])


if __name__ == "__main__":
    main()
