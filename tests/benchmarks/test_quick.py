"""The quick pass over the benchmarks must see every way in which one can be broken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytest.importorskip("asv", reason="asv is not installed (extra 'bench')")

WORKING = "def time_nothing(): pass\n"
BROKEN = {
    "a benchmark that raises": "def time_it(): raise ValueError('broken')\n",
    "one of several parameters": (
        "class Suite:\n    params = [1, 2]\n    def time_it(self, n):\n        if n == 2: raise ValueError('broken')\n"
    ),
    "a setup_cache that raises": (
        "class Suite:\n    def setup_cache(self): raise KeyError('broken')\n    def time_it(self, cache): pass\n"
    ),
    "a setup that raises": "def setup(): raise OSError('broken')\ndef time_it(): pass\n",
    "a suite that cannot be imported": "import a_module_that_is_not_there\n",
}


def quick_pass(folder: Path, suite: str) -> subprocess.CompletedProcess[str]:
    config = json.loads((REPOSITORY / "benchmarks" / "asv.conf.json").read_text())
    (folder / "asv.conf.json").write_text(json.dumps({**config, "repo": str(REPOSITORY)}))
    suites = folder / config["benchmark_dir"]
    suites.mkdir()
    (suites / "__init__.py").touch()
    (suites / "working.py").write_text(WORKING)
    (suites / "suite.py").write_text(suite)
    command = [sys.executable, "-m", "benchmarks.quick", "--folder", str(folder)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_working_benchmarks_pass(tmp_path):
    answer = quick_pass(tmp_path, WORKING)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "suite.time_nothing" in answer.stdout


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_benchmark_is_seen(tmp_path, how):
    answer = quick_pass(tmp_path, BROKEN[how])
    assert answer.returncode == 1, answer.stdout
    assert "broken benchmarks" in answer.stderr
