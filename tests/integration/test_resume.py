"""Every sampler goes on at every batch of a pass in a new process, bit for bit, alone and in DataLoader workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cells import cells, write

pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")

CHILD = Path(__file__).with_name("resume_child.py")


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
def test_in_a_new_process(tmp_path, n_workers):
    path = write(cells(72, 9), tmp_path / "a.h5ad")
    for what in ("save", "check"):
        done = subprocess.run(
            [sys.executable, str(CHILD), what, str(path), str(n_workers), str(tmp_path / "passes")],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    # Twelve samplers, half of which do half a pass each.
    assert int(done.stdout) > 80
