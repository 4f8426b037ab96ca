"""The package as a whole: what importing it costs, that its names exist, that what its documentation shows is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import annbatch

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(module.name for module in pkgutil.walk_packages(annbatch.__path__, "annbatch."))


def test_importing_it_loads_nothing_that_takes_long():
    code = "import sys, annbatch; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"anndata", "cupy", "dask", "h5py", "jax", "numpy", "pandas", "scipy", "torch", "tqdm", "zarr", "zarrs"}
    assert heavy.isdisjoint(done.stdout.split())


def test_using_it_imports_no_optional_library_and_leaves_zarr_as_it_is():
    code = """
import sys, copy, zarr
before = copy.deepcopy(zarr.config.config)
import annbatch
for name in annbatch.__all__:
    getattr(annbatch, name)
annbatch.Loader()
assert zarr.config.config == before
print(*sorted({name.partition('.')[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"cupy", "distributed", "jax", "torch", "zarrs"}.isdisjoint(done.stdout.split())


def test_public_names_exist_and_are_listed():
    for name in annbatch.__all__:
        assert getattr(annbatch, name) is not None
        assert name in dir(annbatch)
    assert annbatch.samplers.RandomSampler is annbatch.RandomSampler
    with pytest.raises(AttributeError, match="no attribute 'Nonesuch'"):
        _ = annbatch.Nonesuch


def test_the_version_is_that_of_the_metadata():
    assert importlib.metadata.version("annbatch") == annbatch.__version__


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith(("annbatch.lightning", "annbatch.scvi")):
        pytest.importorskip("lightning", reason="needs lightning")
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


def test_every_public_class_has_an_example():
    for name in annbatch.__all__:
        value = getattr(annbatch, name)
        if callable(value):
            assert ">>>" in value.__doc__, name


def test_the_readme_runs(tmp_path, monkeypatch):
    # All Python blocks, in order, as a reader would paste them.
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    script = tmp_path / "readme.py"
    # A guard, since examples with worker processes are started by importing the script again.
    script.write_text(
        "if __name__ == '__main__':\n" + "\n".join("    " + line for block in blocks for line in block.splitlines())
    )
    # anndata 0.13 says it of itself under pandas 3.
    warnings = ["-W", "error", "-W", "ignore:The 'future.infer_string' option is deprecated"]
    done = subprocess.run(
        [sys.executable, *warnings, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_description_on_the_package_index_has_absolute_links():
    try:
        metadata = importlib.metadata.metadata("annbatch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("annbatch is not installed")
    # The backport of importlib.metadata, where something has imported it, holds the text as a header alone.
    links = re.findall(r"\]\(([^)\s]+)\)", metadata["Description"] or metadata.get_payload())
    assert len(links) > 5
    assert [link for link in links if not link.startswith("https://")] == []
