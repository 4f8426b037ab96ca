"""Interpreters: this one for annbatch, a virtual environment of its own for every other package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Environments"]

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements")
OLDEST_PYTHON = {
    "annbatch": (3, 12), "annloader": (3, 12), "lamindb": (3, 11), "scdataset": (3, 11), "scdl": (3, 12),
    "tiledbsoma": (3, 12),
}  # fmt: skip
PACKAGES = (
    "annbatch", "anndata", "dask", "h5py", "lamindb", "numba", "numpy", "pandas", "scdataset", "scipy", "torch", "zarr", "zarrs",
)  # fmt: skip

_DESCRIBE = """
import importlib.metadata as metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def _python_version(python: str) -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return tuple(map(int, answer.stdout.split())) if answer.returncode == 0 else (0, 0)


def find_python(oldest: tuple[int, int], other: str | None = None) -> str:
    """Find an interpreter that is new enough: this one if it is, then ``other``, then the oldest on the search path."""
    names = [sys.executable, other or "", *(f"python3.{minor}" for minor in range(oldest[1], 15))]
    for python in filter(None, map(shutil.which, names)):
        if _python_version(python) >= oldest:
            return python
    msg = f"Python {'.'.join(map(str, oldest))} or later not found; install it, or pass --python PATH"
    raise RuntimeError(msg)


@dataclass
class Environments:
    """Makes environments on first use under ``folder`` and knows how to run a script in each.

    ``given`` maps names to interpreters to use instead of making an environment; ``python`` is an interpreter to make
    environments with where this one is too old.
    """

    folder: Path
    given: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    _ready: dict[str, str] = field(default_factory=dict, init=False)

    def interpreter(self, name: str) -> str:
        """Return the path of the interpreter of an environment; RuntimeError when it cannot be made."""
        if name not in self._ready:
            self._ready[name] = self.given.get(name) or (sys.executable if name == "ours" else self._make(name))
        return self._ready[name]

    def variables(self, name: str) -> dict[str, str]:
        """Environment variables of a worker. Only our own side may see this repository's package."""
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if name == "ours":
            variables["PYTHONPATH"] = str(REPOSITORY)
        return variables

    def versions(self, name: str) -> dict[str, str]:
        """Return the versions of Python and of the packages that matter."""
        answer = subprocess.run(
            [self.interpreter(name), "-c", _DESCRIBE, *PACKAGES],
            capture_output=True,
            text=True,
            check=True,
            env=self.variables(name),
            cwd=self.folder,
        )
        return json.loads(answer.stdout)

    def version_of(self, name: str, package: str) -> str:
        """Return the version of one package, or "" where it has none."""
        code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
        answer = subprocess.run(
            [self.interpreter(name), "-c", code, package],
            capture_output=True, text=True, check=False, env=self.variables(name), cwd=self.folder,
        )  # fmt: skip
        return answer.stdout.strip()

    def _make(self, name: str) -> str:
        requirements = REQUIREMENTS / f"{name}.txt"
        folder = self.folder / f"env_{name}"
        python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        stamp = folder / "installed.txt"
        if stamp.exists() and stamp.read_text() == requirements.read_text():
            return str(python)
        print(f"making the environment of {name} in {folder} (once)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [find_python(OLDEST_PYTHON[name], self.python), "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)],
        ):
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                msg = f"{' '.join(command)} failed: {answer.stderr.strip()[-400:]}"
                raise RuntimeError(msg)
        stamp.write_text(requirements.read_text())
        return str(python)
