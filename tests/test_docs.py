"""The documentation is true: its code runs, what it links to is there, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from .cells import cells, write

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
# Not what a build of the site left there: copies of the pages, without the pictures beside them.
SOURCES = [page for page in DOCS.rglob("*.md") if DOCS / "_build" not in page.parents]
PAGES = sorted([*SOURCES, REPOSITORY / "README.md", *REPOSITORY.glob("CONTRIBUTING.md")])
OPTIONAL = (
    "dask",
    "grain",
    "jax",
    "lightning",
    "moto",
    "obstore",
    "s3fs",
    "scanpy",
    "scvi",
    "torch",
    "torchdata",
    "zarrs",
)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page that run: all but those after a line ``<!-- not run: the reason -->``."""
    text = page.read_text()
    found = re.findall(r"(<!-- not run: .+? -->\n+)?^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [code for marked, code in found if not marked]


def lacking(code: str) -> list[str]:
    named = re.findall(r"^\s*(?:import|from) (\w+)|to=\"(torch|jax)\"", code, flags=re.MULTILINE)
    names = {a or b for a, b in named}
    if "annbatch.lightning" in code or "annbatch.scvi" in code:
        names.add("lightning")
    return sorted(name for name in names & set(OPTIONAL) if importlib.util.find_spec(name) is None)


def write_samples(folder: Path) -> None:
    """The files that the pages speak of: a.h5ad and b.h5ad."""
    for number, name in enumerate("ab"):
        rng = np.random.default_rng(number)
        n_obs = 1000
        obs = {
            "cell_type": pd.Categorical(rng.choice(["B", "NK", "T"], n_obs, p=[0.45, 0.1, 0.45])),
            "donor": pd.Categorical(rng.choice(["D1", "D2", "D3", "D4"], n_obs)),
            "condition": pd.Categorical(rng.choice(["KLF1", "TP53", "control"], n_obs, p=[0.25, 0.25, 0.5])),
            "batch": pd.Categorical([f"batch {number}"] * n_obs),
        }
        adata = cells(n_obs, [f"gene_{i}" for i in range(100)], seed=rng, prefix=f"{name}_cell", obs=obs)
        adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
        write(adata, folder / f"{name}.h5ad")


@pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")
# Lightning on its own use of torch, on few workers, and on loaders that it does not know.
@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning", "ignore:.*isinstance.treespec")
# jax and forked processes; grain on its own use of others.
@pytest.mark.filterwarnings("ignore:os.fork", "ignore::DeprecationWarning:grain")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_every_block_of_code_runs(page, tmp_path, monkeypatch):
    code = blocks(page)
    if missing := lacking("\n".join(code)):
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(code))
    # A real module, so that what it defines can be pickled for worker processes.
    spec = importlib.util.spec_from_file_location("page", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec.loader.exec_module(module)


def test_blocks_that_do_not_run_say_why():
    marked = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("<!-- not run")]
    assert all(re.fullmatch(r"<!-- not run: .{10,} -->", line) for line in marked)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.is_relative_to(REPOSITORY / "annbatch") and not (REPOSITORY / "annbatch").is_dir():
            continue  # the sources are not beside the tests, which run against an installed package
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_every_path_that_the_developers_page_names_is_there():
    text = (DOCS / "internals.md").read_text()
    named = set(re.findall(r"`((?:annbatch|tests|benchmarks|docs|licenses)/[\w./-]*|\.ci/run|setup\.py)`", text))
    assert len(named) > 40
    if not (REPOSITORY / "annbatch").is_dir():
        named = {name for name in named if not name.startswith("annbatch/")}
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()


def test_the_words_of_the_glossary_are_said_once():
    rows = re.findall(r"^\| \*\*(.+?)\*\*(.*?) \|", (DOCS / "internals.md").read_text(), flags=re.MULTILINE)
    words = ["".join(row) for row in rows]
    assert len(words) > 30
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("page", sorted((DOCS / "howto").glob("*.md")), ids=name_of)
def test_every_how_to_page_is_listed(page):
    listed = (DOCS / "howto" / "index.md").read_text()
    assert page.stem == "index" or f"\n{page.stem}\n" in listed


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for name in ("sphinx", "myst_parser", "sphinx_book_theme", "sphinx_copybutton"):
        pytest.importorskip(name, reason="needs the extra 'docs'")
    if not (REPOSITORY / "CHANGELOG.md").exists():
        pytest.skip("a copy without the change notes")
    # In a copy, since Sphinx reads whatever lies in the folder.
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "site"]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "howto" / "h5ad.html").exists()
