"""Stores that several suites read, written into the folder that asv keeps for a suite's ``setup_cache``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .counts import thinned_cells
from .sizes import size

N_CELLS = size(25_000, 300)
N_FILES = 2


def write_h5ad(compression: str | None = None) -> list[str]:
    """Write N_FILES files of N_CELLS cells; return their absolute paths."""
    paths = [Path(f"{compression or 'plain'}_{seed}.h5ad").resolve() for seed in range(N_FILES)]
    for seed, path in enumerate(paths):
        thinned_cells(N_CELLS, seed).write_h5ad(path, compression=compression)
    return [str(path) for path in paths]


def write_collection(paths: list[str]) -> str:
    """Build a collection with the defaults of add_adatas; return its path."""
    from annbatch import DatasetCollection

    out = str(Path("collection.zarr").resolve())
    DatasetCollection(out).add_adatas(paths, rng=np.random.default_rng(0), progress=False)
    return out
