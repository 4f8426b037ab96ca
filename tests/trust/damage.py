"""Ways to damage a collection, and what the faces say of it.

``python -m tests.trust.damage`` makes the table of docs/trust.md: for each part and kind of damage how many tries were
noticed, changed nothing, gave wrong values, another error, a crash, or a hang.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from tests.cells import cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUIET = {"progress": False}
# A try takes some 50 ms.
HANG_SECONDS = 30
# What can become of a try. "same": all values came as they were written.
OUTCOMES = ("noticed", "same", "wrong", "other error", "crash", "hang")


@dataclass(frozen=True)
class Damage:
    """One try: what is done to which file."""

    kind: str
    file: str
    number: int = 0
    other: str = ""

    @property
    def part(self) -> str:
        """What the file belongs to, as the table names it."""
        if self.file.endswith("zarr.json"):
            return "documents"
        names = self.file.split("/")
        if names[1] in ("X", "layers", "raw", "obsm"):
            array = "/".join(name for name in names[1:] if name not in ("c", "counts") and not name.isdecimal())
            return array.replace("layers", "layers/*") if names[1] == "layers" else array
        return names[1]

    def apply(self, root: Path) -> None:
        """Do it."""
        path = root / self.file
        size = path.stat().st_size
        rng = np.random.default_rng([self.number, size])
        match self.kind:
            case "flip":
                data = bytearray(path.read_bytes())
                data[rng.integers(size)] ^= int(rng.integers(1, 256))
                path.write_bytes(data)
            case "truncate":
                os.truncate(path, int(rng.integers(size)))
            case "grow":
                with path.open("ab") as file:
                    file.write(rng.bytes(int(rng.integers(1, 100))))
            case "zero":
                data = bytearray(path.read_bytes())
                start = int(rng.integers(max(1, size - 4096)))
                n = min(4096, size - start)
                data[start : start + n] = bytes(n)
                path.write_bytes(data)
            case "remove":
                path.unlink()
            case "swap":
                other, between = root / self.other, path.with_name("between")
                path.rename(between)
                other.rename(path)
                between.rename(other)
            case "copy":
                shutil.copyfile(root / self.other, path)
            case "replace byte of JSON":
                data = bytearray(path.read_bytes())
                data[rng.integers(size)] = int(rng.choice(list(b'0123456789{}[]",:- abcx\x00\xff')))
                path.write_bytes(data)
            case _:
                raise AssertionError(self.kind)


def make_collection(root: Path, sizes: tuple[int, int] = (260, 140)) -> None:
    """A small collection with everything in it that faces read: several shards, layers, obsm, all kinds of columns.

    Parameters
    ----------
    root
        Where it goes.
    sizes
        Rows of its two inputs; a dataset has 200.
    """
    from annbatch import DatasetCollection

    both = []
    for i, n_obs in enumerate(sizes):
        adata = cells(n_obs, 30, seed=i, prefix=f"c{i}")
        rng = np.random.default_rng(i)
        adata.layers["counts"] = sp.csr_matrix(adata.X * 2)
        adata.obsm["pca"] = rng.normal(size=(n_obs, 4)).astype("f4")
        adata.obs["few"] = pd.array(rng.integers(0, 5, n_obs), dtype="Int64")
        adata.obs.loc[adata.obs_names[::7], "few"] = pd.NA
        adata.var["length"] = np.arange(30) * 10
        adata.var["kind"] = pd.Categorical(["a", "b", "c"] * 10)
        both.append(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DatasetCollection(root).add_adatas(both, dataset_size=200, shard_size=48, rng=np.random.default_rng(0), **QUIET)


def values(root: Path) -> str:
    """Digest of all values that the faces give: batches of the loader, obs of the collection."""
    from annbatch import DatasetCollection, Loader, SequentialSampler

    found = hashlib.sha256()

    def add(*arrays: Any) -> None:
        for array in arrays:
            found.update(
                np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array.tolist()).encode()
            )

    def add_frame(frame: pd.DataFrame) -> None:
        found.update(repr([(name, str(dtype)) for name, dtype in frame.dtypes.items()]).encode())
        add(np.asarray(frame.index, object), *(np.asarray(frame[name].astype(object), object) for name in frame))

    collection = DatasetCollection(root, mode="r")
    add_frame(collection.obs())
    sampler = SequentialSampler(chunk_size=64, preload_nchunks=2, batch_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = Loader(
            batch_sampler=sampler,
            layers=["counts"],
            obsm=["pca"],
            return_index=True,
            preload_to_gpu=False,
            num_threads=2,
        ).use_collection(collection)
        for batch in loader:
            X, layer = batch["X"], batch["layers"]["counts"]
            add(X.data, X.indices, X.indptr, layer.data, layer.indices, layer.indptr, batch["obsm"]["pca"])
            add(batch["index"])
            add_frame(batch["obs"])
    add_frame(loader.var)
    return f"{len(loader)} {found.hexdigest()}"


def outcome(root: Path, expected: str, read: Callable[[Path], str] = values) -> tuple[str, str]:
    """What becomes of reading it now, and the error's text."""
    from annbatch.storage import CorruptDataError

    try:
        return ("same" if read(root) == expected else "wrong"), ""
    except CorruptDataError as error:
        return "noticed", str(error)
    except Exception as error:  # noqa: BLE001 - that is what is counted
        return "other error", f"{type(error).__name__}: {error}"


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def flips(root: Path, n: int, seed: int = 0, kind: str = "flip") -> Iterator[Damage]:
    """Single bytes, in files drawn evenly, so that small ones get as many as large ones."""
    files = files_of(root)
    rng = np.random.default_rng(seed)
    for number in range(n):
        yield Damage(kind, files[rng.integers(len(files))], number)


def removals(root: Path) -> Iterator[Damage]:
    for file in files_of(root):
        yield Damage("remove", file)


def swaps(root: Path) -> Iterator[Damage]:
    """Every pair of files of one size that differ."""
    by_size = defaultdict(list)
    for file in files_of(root):
        by_size[(root / file).stat().st_size].append(file)
    for files in by_size.values():
        for one, other in combinations(files, 2):
            if (root / one).read_bytes() != (root / other).read_bytes():
                yield Damage("swap", one, other=other)


def fuzzed_documents(root: Path, n: int, seed: int = 0) -> Iterator[Damage]:
    files = [file for file in files_of(root) if file.endswith("zarr.json")]
    rng = np.random.default_rng(seed)
    for number in range(n):
        yield Damage("replace byte of JSON", files[rng.integers(len(files))], number)


@contextlib.contextmanager
def damaged(root: Path, damage: Damage) -> Iterator[None]:
    """The collection with a damage, which is mended afterwards."""
    before = {file: (root / file).read_bytes() for file in (damage.file, damage.other) if file}
    damage.apply(root)
    try:
        yield
    finally:
        for file, data in before.items():
            (root / file).write_bytes(data)


def _work(root: Path, tasks: Any, results: Any) -> None:
    expected = values(root)
    results.put(("ready", ""))
    while (damage := tasks.get()) is not None:
        with damaged(root, damage):
            results.put(outcome(root, expected))


class Prover:
    """A process of its own in which damaged files are read, so that a crash or a hang is seen and survived."""

    def __init__(self, root: Path) -> None:
        self._root, self._context = root, multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="annbatch-damage-"))
        shutil.copytree(self._root, self._folder / "c.zarr")
        self._tasks, self._results = self._context.SimpleQueue(), self._context.Queue()
        self._process = self._context.Process(
            target=_work, args=(self._folder / "c.zarr", self._tasks, self._results), daemon=True
        )
        self._process.start()
        assert self._results.get(timeout=120)[0] == "ready"

    def __call__(self, damage: Damage) -> tuple[str, str]:
        self._tasks.put(damage)
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline:
            try:
                result: tuple[str, str] = self._results.get(timeout=0.5)
            except Exception:  # noqa: BLE001 - nothing yet
                if not self._process.is_alive():
                    self._restart()
                    return "crash", ""
            else:
                return result
        self._restart()
        return "hang", ""

    def _restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder)


def tries(root: Path, scale: float) -> Iterator[Damage]:
    """All that the table shows; ``scale=1``: as many as spec says."""
    yield from flips(root, int(10_000 * scale))
    yield from flips(root, int(1000 * scale), 1, "truncate")
    yield from flips(root, int(300 * scale), 2, "grow")
    yield from flips(root, int(1000 * scale), 3, "zero")
    yield from removals(root)
    yield from swaps(root)
    yield from fuzzed_documents(root, int(2000 * scale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the tries to make (default: all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "c.zarr"
        make_collection(root)
        prover = Prover(root)
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        strange: list[str] = []
        start = time.perf_counter()
        planned = list(tries(root, options.scale))
        # In another order, so that a part of them says something of all.
        for i in np.random.default_rng(4).permutation(len(planned)):
            if time.perf_counter() - start > options.seconds:
                break
            damage = planned[i]
            result, text = prover(damage)
            counts[damage.kind, damage.part][result] += 1
            if result not in ("noticed", "same"):
                strange.append(f"{result}: {damage} {text}")
        prover.close()
    print("| damage | part | tries |", " | ".join(OUTCOMES), "|")
    print("|---|---|", "---|" * (1 + len(OUTCOMES)), sep="")
    totals: Counter[str] = Counter()
    for (kind, part), found in sorted(counts.items()):
        totals += found
        print(f"| {kind} | {part} | {found.total()} |", " | ".join(str(found[o]) for o in OUTCOMES), "|")
    print(f"| all | | {totals.total()} |", " | ".join(str(totals[o]) for o in OUTCOMES), "|")
    print(f"\n{totals.total()} of {len(planned)} tries in {time.perf_counter() - start:.0f} seconds")
    print(*strange[:40], sep="\n")


if __name__ == "__main__":
    main()
