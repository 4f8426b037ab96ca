"""Memory of a build does not grow with its inputs, however wide their obs is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc"),
]

CHILD = """
import re, sys
from pathlib import Path
import numpy as np, pandas as pd
from annbatch import DatasetCollection
options = {"groupby": sys.argv[3]} if len(sys.argv) > 3 else {}
DatasetCollection(sys.argv[1]).add_adatas(
    sys.argv[2].split(","), rng=np.random.default_rng(0), max_memory="150MB", progress=False, **options
)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
N_TEXT, N_NUMBERS, N_LABELS, N_NULLABLE = 10, 20, 5, 5


def wide_obs(n_obs: int, start: int = 0) -> pd.DataFrame:
    """40 columns; as objects in memory a row takes about 1,000 bytes."""
    rows = range(start, start + n_obs)
    numbers = np.arange(start, start + n_obs)
    obs = {f"text{i}": np.array([f"text {i} of row {k}" for k in rows], dtype=object) for i in range(N_TEXT)}
    obs |= {f"number{i}": numbers * (i + 0.5) for i in range(N_NUMBERS)}
    obs |= {f"label{i}": pd.Categorical.from_codes(numbers % 7, list("abcdefg")) for i in range(N_LABELS)}
    obs |= {f"maybe{i}": pd.array(numbers, dtype="Int64").copy() for i in range(N_NULLABLE)}
    for i in range(N_NULLABLE):
        obs[f"maybe{i}"][::3] = pd.NA
    return pd.DataFrame(obs, index=[f"row {k}" for k in rows])


def write_wide(path: Path, n_obs: int) -> Path:
    """Few genes: obs is nearly all there is."""
    X = sp.csr_matrix((np.ones(n_obs, np.float32), np.arange(n_obs) % 5, np.arange(n_obs + 1)), shape=(n_obs, 5))
    adata = ad.AnnData(X, obs=wide_obs(n_obs))
    if path.suffix == ".zarr":
        group = zarr.open_group(path, mode="w", zarr_format=3)
        with ad.settings.override(auto_shard_zarr_v3=False):
            ad.io.write_elem(group, "/", adata)
    else:
        with h5py.File(path, "w") as file:
            ad.io.write_elem(file, "/", adata)
    return path


def peak(place: Path, inputs: list[Path], *more: str) -> int:
    """Peak of resident memory of a process that builds a collection."""
    command = [sys.executable, "-c", CHILD, str(place), ",".join(map(str, inputs)), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(("suffix", "row_bytes"), [("h5ad", 0), ("zarr", 200)])
def test_wide_obs_of_one_input(tmp_path, suffix, row_bytes):
    """180,000 more rows of obs would take 180 MB if they were in memory together.

    anndata writes a column of text of a Zarr store as one chunk, which is decoded whole, one at a time.
    """
    few = peak(tmp_path / "few_out.zarr", [write_wide(tmp_path / f"few.{suffix}", 60_000)], "label0")
    many = peak(tmp_path / "many_out.zarr", [write_wide(tmp_path / f"many.{suffix}", 240_000)], "label0")
    assert many - few < 40e6 + 180_000 * row_bytes
