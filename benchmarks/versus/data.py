"""The files that the cases read, made once and kept; the collections are built by the packages that read them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from .environments import REPOSITORY, Environments
from .running import WorkerError, run_worker

__all__ = ["Data", "read_through"]

BLOCK = 1 << 24


def _n_cells(path: Path) -> int:
    with h5py.File(path) as file:
        return len(file["X/indptr"]) - 1


def read_through(path: Path) -> None:
    """Bring a file, or all files of a folder, into the page cache, where both sides find them."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                while stream.read(BLOCK):
                    pass


@dataclass
class Data:
    """Data of ``n_files`` files of ``n_cells`` cells under ``folder``.

    Files that are there already are used when they have that many cells. Our own collection is built anew in every run,
    since its layout belongs to what is measured; the peer's depends on its version alone and is kept.
    """

    folder: Path
    environments: Environments
    n_cells: int
    n_files: int
    timeout: float = 900.0
    _ready: dict[str, list[str]] = field(default_factory=dict, init=False)
    _failed: dict[str, str] = field(default_factory=dict, init=False)

    def paths(self, name: str) -> list[str]:
        """Paths of "h5ad", "half of h5ad", "gzip h5ad", "own collection" or "peer collection".

        WorkerError when they cannot be made.
        """
        if name in self._failed:
            raise WorkerError(self._failed[name])
        if name not in self._ready:
            try:
                paths = self._make(name)
            except WorkerError as error:
                self._failed[name] = f"{name}: {error}"
                raise WorkerError(self._failed[name]) from error
            self._ready[name] = [str(path) for path in paths]
        # Before every measurement: what was read once may have left the page cache since.
        for path in self._ready[name]:
            read_through(Path(path))
        return self._ready[name]

    def _make(self, name: str) -> list[Path]:
        if name == "h5ad":
            return [self._counts("counts", seed, None) for seed in range(self.n_files)]
        if name == "half of h5ad":
            return [Path(path) for path in self.paths("h5ad")[: max(1, self.n_files // 2)]]
        if name == "gzip h5ad":
            return [self._counts("gzip", seed, "gzip") for seed in range(self.n_files)]
        environment, side = ("ours", "ours") if name == "own collection" else ("annbatch", "peer")
        out = self.folder / f"collection_of_{side}.zarr"
        complete = out.with_suffix(".complete")
        if side == "peer" and complete.exists():
            return [out]
        print(f"building the {name}", flush=True)
        given = {"side": side, "paths": self.paths("h5ad"), "out": str(out), "keep": True}
        run_worker(self.environments, environment, "build.py", given, self.timeout)
        if side == "peer":
            complete.touch()
        return [out]

    def _counts(self, stem: str, seed: int, compression: str | None) -> Path:
        path = self.folder / f"{stem}_{seed}.h5ad"
        if not path.exists():
            print(f"making {path}", flush=True)
            command = [sys.executable, "-m", "benchmarks.suites.counts", str(path), "--cells", str(self.n_cells)]
            command += ["--seed", str(seed), *(["--compression", compression] if compression else [])]
            answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
            if answer.returncode:
                raise WorkerError(answer.stderr.strip().splitlines()[-1])
        if (found := _n_cells(path)) != self.n_cells:
            msg = f"{path} must have {self.n_cells} cells, has {found}; delete it, or choose another --data folder"
            raise WorkerError(msg)
        return path
