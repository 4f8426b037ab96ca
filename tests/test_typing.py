"""What the README and the docs write is right for type checkers, too."""

from __future__ import annotations

import json
import re
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


README = REPOSITORY / "README.md"


@pytest.fixture
def scripts(tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    if not (REPOSITORY / "annbatch").is_dir():
        pytest.skip("the sources are not beside the tests")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    paths = [tmp_path / "use.py", tmp_path / "readme.py"]
    for path, code in zip(paths, [USE, "\n".join(blocks)], strict=True):
        path.write_text(code)
    return paths


@pytest.mark.slow
def test_mypy_accepts_what_the_readme_writes(scripts):
    pytest.importorskip("mypy", reason="needs mypy (extra 'dev')")
    settings = scripts[0].with_name("mypy.ini")
    settings.write_text(f"[mypy]\nmypy_path = {REPOSITORY}\nfollow_imports = silent\nignore_missing_imports = True\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--strict", *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=settings.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_accepts_what_the_readme_writes(scripts):
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("needs pyright")
    folder = scripts[0].parent
    (folder / "pyrightconfig.json").write_text(
        f'{{"extraPaths": ["{REPOSITORY}"], "reportMissingModuleSource": false}}'
    )
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, "-p", str(folder), *map(str, scripts)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=240)
        found = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        # The package on PyPI fetches the program itself from npm when it is first called.
        pytest.skip("pyright could not fetch itself")
    assert [
        (each["file"], each["range"]["start"]["line"], each["message"]) for each in found["generalDiagnostics"]
    ] == []
