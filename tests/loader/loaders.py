"""Small loaders, and their batches as plain data."""

from __future__ import annotations

import numpy as np

from annbatch import Loader
from tests.cells import as_array


def small_loader(**kwargs):
    """A loader whose load requests hold 12 rows in 2 batches."""
    arguments = {} if "batch_sampler" in kwargs else {"chunk_size": 4, "preload_nchunks": 3, "batch_size": 6}
    return Loader(**({"return_index": True} | arguments | kwargs))


def contents(batch):
    """A batch as plain data, to compare with another."""
    plain = {"X": as_array(batch["X"]).tolist()}
    plain["index"] = None if batch["index"] is None else np.asarray(batch["index"]).tolist()
    plain["obs"] = None if batch["obs"] is None else batch["obs"].reset_index().astype(object).to_dict("list")
    for part in ("layers", "obsm"):
        plain[part] = {key: as_array(value).tolist() for key, value in batch.get(part, {}).items()}
    return plain


def with_sorted_labels(obs):
    """The obs as a loader hands it out: the categories of every column sorted."""
    return obs.assign(label=obs["label"].cat.reorder_categories(sorted(obs["label"].cat.categories)))
