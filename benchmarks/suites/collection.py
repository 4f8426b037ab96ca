"""DatasetCollection: building one, its peak memory, its size, and reading obs back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from annbatch import DatasetCollection

from .files import write_collection, write_h5ad
from .sizes import levels


class Build:
    """add_adatas with its defaults on one file and on two: peak memory must not grow with the input."""

    param_names = ("files",)
    params = (levels([2, 1]),)
    timeout = 300

    def setup_cache(self) -> list[str]:
        return write_h5ad()

    def setup(self, paths: list[str], files: int) -> None:
        self.out = Path("built.zarr").resolve()

    def teardown(self, paths: list[str], files: int) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def add(self, paths: list[str], files: int) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        DatasetCollection(self.out).add_adatas(paths[:files], rng=np.random.default_rng(0), progress=False)

    def time_add_adatas(self, paths: list[str], files: int) -> None:
        self.add(paths, files)

    def peakmem_add_adatas(self, paths: list[str], files: int) -> None:
        self.add(paths, files)

    def track_bytes_on_disk(self, paths: list[str], files: int) -> int:
        self.add(paths, files)
        return sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())

    track_bytes_on_disk.unit = "bytes"


class Obs:
    """Annotations of all rows, from which the samplers take their classes."""

    def setup_cache(self) -> str:
        return write_collection(write_h5ad())

    def time_all_columns(self, path: str) -> None:
        DatasetCollection(path, mode="r").obs()

    def time_one_column(self, path: str) -> None:
        DatasetCollection(path, mode="r").obs(columns=["cell_type"])
