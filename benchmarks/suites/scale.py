"""How opening and pickling grow with the number of rows; see benchmarks/scale for the page about it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from benchmarks.scale.measure import make
from benchmarks.scale.stores import write_collection, write_h5ad

from .sizes import levels, size

N_ROWS = [size(100_000, 1_000), size(1_000_000, 2_000)]
FACES = ["labels", "all columns", "MappedCollection"]


def write_all() -> dict[str, str]:
    """Write the stores, row by row."""
    paths = {}
    for n_obs in N_ROWS:
        for write, suffix in ((write_collection, "zarr"), (write_h5ad, "h5ad")):
            paths[f"{n_obs} {suffix}"] = str(write(Path(f"{n_obs}.{suffix}").resolve(), n_obs))
    return paths


class Open:
    """A Loader on a collection, and a MappedCollection on an h5ad file: until they are there."""

    param_names = ("rows", "face")
    params = (levels(N_ROWS), FACES)
    timeout = 300

    def setup_cache(self) -> dict[str, str]:
        return write_all()

    def setup(self, paths: dict[str, str], rows: int, face: str) -> None:
        self.path = paths[f"{rows} {'h5ad' if face == 'MappedCollection' else 'zarr'}"]

    def open(self, face: str) -> Any:
        return make(face, self.path, 0)

    def time_open(self, paths: dict[str, str], rows: int, face: str) -> None:
        self.open(face)

    def peakmem_open(self, paths: dict[str, str], rows: int, face: str) -> None:
        self.opened = self.open(face)

    def track_bytes_of_pickle(self, paths: dict[str, str], rows: int, face: str) -> int:
        return len(pickle.dumps(self.open(face)))

    track_bytes_of_pickle.unit = "bytes"
