"""The training script of the documentation runs as it is."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs/examples/weighted_training.py"


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_the_training_script_runs_and_learns():
    run = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    accuracy = run.stdout.split()[-1]
    # The largest class holds 82 % of the cells: less would mean that nothing was learned.
    assert int(accuracy.removesuffix("%")) >= 90, run.stdout
