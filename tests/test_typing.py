"""What the README and the docs write is right for type checkers, too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
USE = """
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset, random_split

from annbatch import ClassSampler, DatasetCollection, DistributedSampler, Loader, MappedCollection, RandomSampler

loader = Loader(batch_size=128, chunk_size=32, preload_nchunks=16, shuffle=True, to="torch", dense=True)
loader.add_paths(["a.h5ad"]).use_collection("cells.zarr")
for batch in loader:
    print(batch["X"], batch["obs"])
iterable: DataLoader[Any] = DataLoader(loader, batch_size=None, num_workers=2)

cells = MappedCollection(["a.h5ad"], obs_keys="cell_type")
map_style: DataLoader[Any] = DataLoader(cells, batch_size=128, shuffle=True)
some: DataLoader[Any] = DataLoader(Subset(cells, [1, 2]), batch_size=2)
train, test = random_split(cells, [0.8, 0.2])

sampler = RandomSampler(32, 16, 128, rng=np.random.default_rng(0))
Loader(batch_sampler=DistributedSampler(sampler, dist_info="torch"))
DatasetCollection("cells.zarr").add_adatas(["a.h5ad"])
"""


@pytest.fixture
def script(tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    if not (REPOSITORY / "annbatch").is_dir():
        pytest.skip("the sources are not beside the tests")
    path = tmp_path / "use.py"
    path.write_text(USE)
    return path


@pytest.mark.slow
def test_mypy_accepts_what_the_readme_writes(script):
    pytest.importorskip("mypy", reason="needs mypy (extra 'dev')")
    settings = script.with_name("mypy.ini")
    settings.write_text(f"[mypy]\nmypy_path = {REPOSITORY}\nfollow_imports = silent\nignore_missing_imports = True\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--strict", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_accepts_what_the_readme_writes(script):
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("needs pyright")
    script.with_name("pyrightconfig.json").write_text(
        f'{{"extraPaths": ["{REPOSITORY}"], "reportMissingModuleSource": false}}'
    )
    command = [pyright, "--pythonpath", sys.executable, "-p", str(script.parent), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent)
    if "getaddrinfo" in done.stderr or "npm" in done.stderr:
        pytest.skip("pyright could not fetch itself")
    assert done.returncode == 0, done.stdout + done.stderr
