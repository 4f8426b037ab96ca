"""The house: which wing may import which, no circles, one name for one class, and no folder that the linter skips.

The order is that of docs/internals.md: commands on top, then the faces (loader, mapped, collection), then samplers and
storage, then kernels; ``_shared`` and ``types`` lie below all of them. What does not hold yet is listed in the sets
``NOT_YET_...``: nothing may be added to them, and an entry that has been mended must go, or a test here fails.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "annbatch"

if not PACKAGE.is_dir():
    pytest.skip("the sources are not beside the tests, which run against an installed package", allow_module_level=True)

# Wing -> the wings that it may import besides itself; "" is the package's own __init__, which names all that is public.
BELOW = {
    "__main__": {"cli"},
    "cli": {"", "commands", "loader", "mapped", "collection", "abc", "samplers", "storage", "_shared", "types"},
    "commands": {"", "loader", "mapped", "collection", "abc", "samplers", "storage", "_shared", "types"},
    "loader": {"abc", "samplers", "storage", "_shared", "types"},
    "mapped": {"abc", "samplers", "storage", "_shared", "types"},
    "collection": {"abc", "samplers", "storage", "_shared", "types"},
    "scvi": {"lightning", "loader", "abc", "samplers", "_shared", "types"},
    "lightning": {"loader", "abc", "samplers", "_shared", "types"},
    "abc": {"samplers"},
    "samplers": {"_rle", "_shared", "types"},
    "storage": {"_shared", "types"},
    "_rle": set(),
    "_shared": {"types"},
    "types": set(),
}

# Modules that import each other in a circle.
NOT_YET_FREE_OF_CIRCLES: set[frozenset[str]] = set()

# (from, to) of imports that run against the order.
NOT_YET_IN_ORDER: set[tuple[str, str]] = set()

# Names that two classes share.
NOT_YET_ONE_NAME: set[str] = set()


class Import(NamedTuple):
    """An import of a module of this package by another one."""

    source: str
    target: str
    only_for_types: bool


@dataclass(frozen=True)
class House:
    """Every module of the package, where it lies, and what it imports of the package."""

    modules: dict[str, Path]
    imports: tuple[Import, ...]

    @classmethod
    def of(cls, package: Path) -> House:
        modules = {}
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyx"), *package.rglob("*.pxd")]):
            parts = path.relative_to(package.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if path.suffix != ".pxd" or name not in modules:
                modules[name] = path
        for path in list(modules.values()):
            modules.setdefault(".".join(path.parent.relative_to(package.parent).parts), path.parent)
        found = set()
        for path in {*filter(Path.is_file, modules.values()), *package.rglob("*.pxd")}:
            parts = path.relative_to(package.parent).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            source = ".".join(parts[:-1] if is_package else parts)
            statements = _of_python(path) if path.suffix == ".py" else _of_cython(path)
            for statement in statements:
                for target in _targets(statement, source, is_package, modules):
                    if target != source:
                        found.add(Import(source, target, statement.only_for_types))
        return cls(modules, tuple(sorted(found)))

    def circles(self) -> set[frozenset[str]]:
        """Groups of modules that import each other, directly or around, in a function or for types alone, too."""
        ahead: dict[str, set[str]] = defaultdict(set)
        for arrow in self.imports:
            if "." in arrow.source:  # the package's own __init__ hands out what every wing holds
                ahead[arrow.source].add(arrow.target)
        reached = {}
        for name in list(ahead):
            reached[name], left = set(), [name]
            while left:
                new = ahead[left.pop()] - reached[name]
                reached[name] |= new
                left += new
        return {
            frozenset(other for other in reached[name] if name in reached.get(other, ()))
            for name in reached
            if name in reached[name]
        }

    def against_the_order(self) -> set[tuple[str, str]]:
        """Imports, those for types included, of a wing that does not lie below."""
        return {
            (arrow.source, arrow.target)
            for arrow in self.imports
            if "." in arrow.source
            and wing(arrow.source) != wing(arrow.target)
            and wing(arrow.target) not in BELOW.get(wing(arrow.source), set())
        }


def wing(module: str) -> str:
    """The part of a module's name that says its wing: annbatch.loader.batches -> loader; the package itself is ''."""
    return module.split(".")[1] if "." in module else ""


class Statement(NamedTuple):
    """One import statement: ``from base import names`` (level dots before the base), or ``import base``."""

    level: int
    base: str
    names: tuple[str, ...]
    only_for_types: bool


def _of_python(path: Path) -> Iterator[Statement]:
    tree = ast.parse(path.read_text(), path)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Statement(node.level, node.module or "", names, id(node) in for_types)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield Statement(0, alias.name, (), id(node) in for_types)


def _of_cython(path: Path) -> Iterator[Statement]:
    text = re.sub(r"\(\s*([^()]*?)\s*\)", lambda m: " ".join(m[1].split()), path.read_text())
    for line in text.splitlines():
        if found := re.match(r"\s*from\s+(\.*)([\w.]*)\s+c?import\s+(.*)", line):
            names = tuple(part.split()[0] for part in found[3].split("#")[0].split(",") if part.strip())
            yield Statement(len(found[1]), found[2], names, only_for_types=False)
        elif found := re.match(r"\s*c?import\s+([\w.]+)", line):
            yield Statement(0, found[1], (), only_for_types=False)


def _targets(statement: Statement, source: str, is_package: bool, modules: Iterable[str]) -> Iterator[str]:
    base = statement.base
    if statement.level:
        home = source.split(".")
        home = home[: len(home) - statement.level + is_package]
        base = ".".join([*home, base] if base else home)
    if base.split(".")[0] != source.split(".")[0]:
        return
    for name in statement.names or ("",):
        inner = f"{base}.{name}"
        yield inner if name and inner in modules else base


@pytest.fixture(scope="module")
def house() -> House:
    return House.of(PACKAGE)


def written(folder: Path, **files: str) -> House:
    """A house of modules with these texts; two underscores stand for a folder."""
    for name, text in {"__init__": "", **files}.items():
        path = folder.joinpath("annbatch", *(name.split("__") if name != "__init__" else [name])).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return House.of(folder / "annbatch")


def test_every_wing_has_its_place_in_the_order(house):
    assert {wing(module) for module in house.modules} - {""} <= set(BELOW), "say in BELOW what a new wing may import"


def test_no_import_runs_against_the_order(house):
    assert house.against_the_order() - NOT_YET_IN_ORDER == set()


def test_imports_that_run_in_order_again_leave_the_list(house):
    assert NOT_YET_IN_ORDER - house.against_the_order() == set()


def test_no_modules_import_each_other_in_a_circle(house):
    assert [sorted(circle) for circle in house.circles() - NOT_YET_FREE_OF_CIRCLES] == []


def test_circles_that_are_gone_leave_the_list(house):
    assert [sorted(circle) for circle in NOT_YET_FREE_OF_CIRCLES - house.circles()] == []


def test_benchmarks_have_no_circles():
    assert [sorted(circle) for circle in House.of(REPOSITORY / "benchmarks").circles()] == []


def test_faces_do_not_know_each_other_nor_samplers_storage():
    faces = {"loader", "mapped", "collection"}
    assert not any(BELOW[face] & faces for face in faces)
    assert "storage" not in BELOW["samplers"]
    assert "samplers" not in BELOW["storage"]
    assert BELOW["_shared"] <= {"types"}


def test_kernels_import_kernels_alone(house):
    compiled = {module for module, path in house.modules.items() if path.suffix in (".pyx", ".pxd")}
    # What the records of a plan are called in Python stands beside the header that lays them out.
    below = compiled | {"annbatch.storage.engine._plan"}
    assert {arrow for arrow in house.imports if arrow.source in compiled and arrow.target not in below} == set()


def test_the_walk_sees_every_kind_of_import(tmp_path):
    found = written(
        tmp_path,
        loader__batches="from ..storage.pool import Pool\ndef later():\n    from annbatch.mapped import files\n",
        mapped__files="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import annbatch.samplers.chunked\n",
        samplers__chunked="from annbatch import storage\n",
        storage__pool="from . import cpus\n",
        storage__cpus="from .pool import Pool\n",
    )
    assert set(found.imports) >= {
        Import("annbatch.loader.batches", "annbatch.storage.pool", only_for_types=False),
        Import("annbatch.loader.batches", "annbatch.mapped.files", only_for_types=False),
        Import("annbatch.mapped.files", "annbatch.samplers.chunked", only_for_types=True),
        Import("annbatch.storage.pool", "annbatch.storage.cpus", only_for_types=False),
    }
    assert found.against_the_order() == {
        ("annbatch.loader.batches", "annbatch.mapped.files"),
        ("annbatch.samplers.chunked", "annbatch.storage"),
    }
    assert found.circles() == {frozenset({"annbatch.storage.pool", "annbatch.storage.cpus"})}


def classes(package: Path) -> dict[str, list[str]]:
    """Name of every class, compiled ones and their structs included -> the files that define it."""
    found = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(package)))
    for path in sorted([*package.rglob("*.pyx"), *package.rglob("*.pxd")]):
        for name in re.findall(
            r"^\s*(?:ctypedef\s+|cdef\s+)?(?:packed\s+)?(?:class|struct)\s+(\w+)", path.read_text(), re.M
        ):
            found[name].append(str(path.relative_to(package)))
    return found


def shared_names() -> dict[str, list[str]]:
    return {name: files for name, files in classes(PACKAGE).items() if len(files) > 1}


def test_no_two_classes_share_a_name():
    assert {name: files for name, files in shared_names().items() if name not in NOT_YET_ONE_NAME} == {}


def test_names_that_are_one_again_leave_the_list():
    assert NOT_YET_ONE_NAME - set(shared_names()) == set()


def test_the_linter_sees_every_file_of_the_package():
    """Ruff skips folders by name, silently: once `annbatch/_build` was one of them."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if any(part.startswith(".venv") for part in REPOSITORY.parts):
        pytest.skip("a copy of the sources in a virtual environment, which ruff leaves out")
    if ruff is None:
        pytest.skip("ruff is not installed (extra 'dev'); `make lint` has it and runs this test")
    answer = subprocess.run([ruff, "check", "--show-files", "."], cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    seen = {Path(line) for line in answer.stdout.splitlines()}
    for folder in ("annbatch", "tests", "benchmarks"):
        assert {path for path in (REPOSITORY / folder).rglob("*.py") if path not in seen} == set()
