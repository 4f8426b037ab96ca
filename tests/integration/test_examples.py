"""The example scripts run as a user would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import write_samples

pytest.importorskip("torch", reason="needs torch")

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"


# A thread of gloo that still holds a tensor while the interpreter ends is killed inside C++ code, and the rank aborts after
# its work is done: https://github.com/pytorch/pytorch/pull/179291. Rare, and nothing that a script can prevent.
GLOO_AT_EXIT = "terminate called without an active exception"


def run(folder, *command, known=None):
    """Return what a command prints. One that fails with the text `known` is run again, twice at most."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
        if done.returncode == 0 or known is None or known not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_with_plain_torch(tmp_path):
    write_samples(tmp_path)
    said = run(tmp_path, sys.executable, EXAMPLES / "torch_training.py", "a.h5ad", "b.h5ad")
    assert "named correctly" in said
    assert "200 cells" in said


def test_resuming_with_workers(tmp_path):
    pytest.importorskip("torchdata", reason="needs torchdata")
    write_samples(tmp_path)
    said = run(tmp_path, sys.executable, EXAMPLES / "stateful.py", "a.h5ad", "b.h5ad")
    assert "the 27 that were left came in the same order" in said


def test_two_ranks_under_torchrun(tmp_path):
    write_samples(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    said = run(tmp_path, *launch, EXAMPLES / "ddp.py", "a.h5ad", "b.h5ad", known=GLOO_AT_EXIT)
    assert "2 ranks, 4000 rows in 2 epochs, of 2000" in said
