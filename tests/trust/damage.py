"""Ways to damage a collection or a file of anyone, and what the faces say of it.

``python -m tests.trust.damage`` makes the table of docs/trust.md: for each part and kind of damage how many tries were
noticed, changed nothing, gave wrong values, another error, a crash, or a hang. With ``--others`` also that of stores that we did
not write, where there are no checksums to notice it by: they must neither crash nor hang nor fill the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import pandas as pd
import scipy.sparse as sp

from tests.cells import cells, write

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUIET = {"progress": False}
# A try takes some 50 ms.
HANG_SECONDS = 100
# What can become of a try. "same": all values came as they were written.
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
# A process that takes more address space than this ends by a MemoryError, which is another error.
MEMORY_BYTES = 6 * 2**30
# "refused": another error, in words that name the file.
OUTCOMES = ("noticed", "refused", "same", "wrong", "other error", "crash", "hang")


@dataclass(frozen=True)
class Damage:
    """One try: what is done to which file, or folder."""

    kind: str
    file: str
    number: int = 0
    other: str = ""

    @property
    def is_of_folders(self) -> bool:
        return self.kind.endswith(("folder", "folders"))

    @property
    def part(self) -> str:
        """What the file belongs to, as the table names it."""
        if self.is_of_folders:
            return "folders"
        if self.file.endswith(DOCUMENTS):
            return "documents"
        if self.file.endswith(".h5ad"):
            return "h5ad"
        names = self.file.split("/")
        if names[1] in ("X", "layers", "raw", "obsm"):
            array = "/".join(
                name for name in names[1:] if name not in ("c", "counts") and not name.replace(".", "").isdecimal()
            )
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
            case "zero" | "zero 64 bytes":
                most = 4096 if self.kind == "zero" else 64
                data = bytearray(path.read_bytes())
                start = int(rng.integers(max(1, size - most)))
                n = min(most, size - start)
                data[start : start + n] = bytes(n)
                path.write_bytes(data)
            case "remove":
                path.unlink()
            case "remove folder":
                shutil.rmtree(path)
            case "swap" | "swap folders":
                other, between = root / self.other, root.with_name("between")
                path.rename(between)
                other.rename(path)
                between.rename(other)
            case "copy":
                shutil.copyfile(root / self.other, path)
            case "replace byte of JSON":
                data = bytearray(path.read_bytes())
                data[rng.integers(size)] = int(rng.choice(list(b'0123456789{}[]",:- abcx\x00\xff')))
                path.write_bytes(data)
            case "change JSON":
                document = json.loads(path.read_bytes())
                leaves = list(_leaves(document))
                if leaves:
                    holder, key = leaves[rng.integers(len(leaves))]
                    holder[key] = _another(holder[key], rng)
                path.write_text(json.dumps(document))
            case _:
                raise AssertionError(self.kind)


def _leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a JSON document, as the container and the key or number in it."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, dict | list):
            yield from _leaves(value)


# What stands elsewhere in such documents, and what an enemy would write.
_WORDS = ["int32", "int64", "uint32", "float32", "float64", "int8", "bool", "string", "<f4", ">f4", "<i8", "|O", "big", "little",
          "default", "v2", ".", "/", "blosc", "zstd", "gzip", "crc32c", "bytes", "vlen-utf8", "sharding_indexed", "end", "start",
          "csr_matrix", "csc_matrix", "array", "categorical", "nullable-integer", "string-array", "NaN", "F", "C", "..", ""]  # fmt: skip


def _another(value: Any, rng: np.random.Generator) -> Any:
    """A value to stand in the place of another."""
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.8:
        return [value + 1, value - 1, 2 * value, -value, 0, 1, 2**31, 2**63, 10**15, 0.5][rng.integers(10)]
    if isinstance(value, str) and rng.random() < 0.8:
        return _WORDS[rng.integers(len(_WORDS))]
    return [None, True, [], {}, [0], [10**9, 10**9], "", 0, -1, _WORDS[rng.integers(len(_WORDS))]][rng.integers(10)]


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


class Digest:
    """A digest of values, types and names."""

    def __init__(self) -> None:
        self._code = hashlib.sha256()

    def __str__(self) -> str:
        return self._code.hexdigest()

    def add(self, *arrays: Any) -> None:
        for array in arrays:
            self._code.update(
                np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array.tolist()).encode()
            )

    def add_frame(self, frame: pd.DataFrame) -> None:
        self.add_text(repr([(name, str(dtype)) for name, dtype in frame.dtypes.items()]))
        self.add(np.asarray(frame.index, object), *(np.asarray(frame[name].astype(object), object) for name in frame))

    def add_text(self, text: str) -> None:
        self._code.update(text.encode())

    def add_batch(self, batch: Any) -> None:
        X, layer = batch["X"], batch["layers"]["counts"]
        self.add(X.data, X.indices, X.indptr, layer.data, layer.indices, layer.indptr, batch["obsm"]["pca"])
        self.add(batch["index"])


def values(root: Path) -> str:
    """Digest of all values that the faces give: batches of the loader, obs of the collection."""
    from annbatch import DatasetCollection, Loader, SequentialSampler

    found = Digest()
    collection = DatasetCollection(root, mode="r")
    found.add_frame(collection.obs())
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
            found.add_batch(batch)
            found.add_frame(batch["obs"])
    found.add_frame(loader.var)
    return f"{len(loader)} {found}"


def make_stranger(root: Path, form: str) -> None:
    """A folder with a file as others write it: no manifest.

    Parameters
    ----------
    root
        The folder.
    form
        One of STRANGERS.
    """
    import zarr

    adata = cells(90, 20, seed=3)
    adata.layers["counts"] = sp.csr_matrix(adata.X * 2)
    adata.obsm["pca"] = np.random.default_rng(3).normal(size=(90, 4)).astype("f4")
    adata.obs["few"] = pd.array([*range(89), None], dtype="Int64")
    root.mkdir()
    if form.startswith("h5ad"):
        write(adata, root / "s", "gzip" if "gzip" in form else "h5ad")
        return
    write(adata, root / "s", "zarr2" if "2" in form else "zarr3")
    if "blosc" not in form:
        return
    # As an older zarr wrote, or other libraries do: Blosc, of format 3 in shards without checksums.
    old, new = (
        zarr.open_group(root / "s.zarr", mode="r"),
        zarr.open_group(root / "n.zarr", mode="w", zarr_format=2 if "2" in form else 3),
    )
    new.attrs.update(old.attrs)
    for name, member in sorted(old.members(max_depth=None)):
        if isinstance(member, zarr.Group):
            new.require_group(name).attrs.update(member.attrs)
            continue
        options: dict[str, Any] = {}
        if np.dtype(member.dtype).kind in "biuf":
            packer: Any = numcodecs.Blosc("zstd") if "2" in form else zarr.codecs.BloscCodec(cname="zstd")
            chunk = [-(-n // 4) for n in member.shape]
            options = {"chunks": chunk, "compressors": packer}
            if "2" not in form:
                options["shards"] = [2 * n for n in chunk]
                options["serializer"] = "auto"
        else:
            options = {"compressors": numcodecs.Blosc("lz4") if "2" in form else zarr.codecs.BloscCodec(cname="lz4")}
        array = new.create_array(name, shape=member.shape, dtype=member.dtype, **options)
        array.attrs.update(member.attrs)
        array[...] = member[...]
    shutil.rmtree(root / "s.zarr")
    (root / "n.zarr").rename(root / "s.zarr")


STRANGERS = ("zarr 3", "zarr 3 blosc in shards", "zarr 2", "zarr 2 blosc", "h5ad plain", "h5ad gzip")


def values_of_stranger(root: Path) -> str:
    """Digest of all values that the faces give of the one file in a folder; no damage, if it is refused."""
    from annbatch import Loader, MappedCollection, SequentialSampler, storage
    from annbatch.storage.errors import damage_named
    from annbatch.storage.frames import FrameReader

    [path] = root.iterdir()
    found = Digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = storage.open_group(path)
        for name in ("obs", "var"):
            with damage_named(f"{path} :: {name}"):
                table = group[name]
            found.add_frame(FrameReader(table).frame())
        if hasattr(group, "close"):
            group.close()
        sampler = SequentialSampler(chunk_size=32, preload_nchunks=1, batch_size=32)
        loader = Loader(
            batch_sampler=sampler,
            layers=["counts"],
            obsm=["pca"],
            return_index=True,
            preload_to_gpu=False,
            num_threads=2,
        ).add_paths([path])
        for batch in loader:
            found.add_batch(batch)
        mapped = MappedCollection([path])
        found.add_text(repr(mapped[5]))
    return f"{len(loader)} {found}"


def outcome(root: Path, expected: str, read: Callable[[Path], str] = values) -> tuple[str, str]:
    """What becomes of reading it now, and the error's text."""
    from annbatch.storage import CorruptDataError

    try:
        return ("same" if read(root) == expected else "wrong"), ""
    except CorruptDataError as error:
        return "noticed", str(error)
    except Exception as error:  # noqa: BLE001 - that is what is counted
        is_ours = isinstance(error, ValueError | TypeError | KeyError) and str(root) in str(error)
        return "refused" if is_ours else "other error", f"{type(error).__name__}: {error}"


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


def folders_of(root: Path) -> list[str]:
    """Folders of datasets, groups and arrays."""
    return [folder for folder in sorted({str(Path(file).parent) for file in files_of(root)}) if folder != "."]


def folder_removals(root: Path) -> Iterator[Damage]:
    for folder in folders_of(root):
        yield Damage("remove folder", folder)


def folder_swaps(root: Path) -> Iterator[Damage]:
    """Every pair of folders that differ, and lie in one folder, or have one name in different ones."""
    contents = {
        folder: [(file, (root / folder / file).read_bytes()) for file in files_of(root / folder)]
        for folder in folders_of(root)
    }
    for one, other in combinations(contents, 2):
        near = Path(one).parent == Path(other).parent or Path(one).parts[1:] == Path(other).parts[1:]
        if near and contents[one] != contents[other]:
            yield Damage("swap folders", one, other=other)


def fuzzed_documents(root: Path, n: int, seed: int = 0) -> Iterator[Damage]:
    files = [file for file in files_of(root) if file.endswith(DOCUMENTS)]
    rng = np.random.default_rng(seed)
    for number in range(n if files else 0):
        yield Damage("replace byte of JSON", files[rng.integers(len(files))], number)


def changed_documents(root: Path, n: int, seed: int = 0) -> Iterator[Damage]:
    """JSON that is still JSON, one value of which is another."""
    files = [file for file in files_of(root) if file.endswith(DOCUMENTS)]
    rng = np.random.default_rng(seed)
    for number in range(n if files else 0):
        yield Damage("change JSON", files[rng.integers(len(files))], number)


@contextlib.contextmanager
def _copied(root: Path) -> Iterator[None]:
    """What is below a folder is put back afterwards; times stay, so that nobody sees a change that is none."""
    kept = root.with_name("kept")
    shutil.copytree(root, kept)
    try:
        yield
    finally:
        shutil.rmtree(root)
        kept.rename(root)


@contextlib.contextmanager
def damaged(root: Path, damage: Damage) -> Iterator[None]:
    """The collection with a damage, which is mended afterwards."""
    if damage.is_of_folders:
        with _copied(root):
            damage.apply(root)
            yield
        return
    before = {file: (root / file).read_bytes() for file in (damage.file, damage.other) if file}
    damage.apply(root)
    try:
        yield
    finally:
        for file, data in before.items():
            (root / file).write_bytes(data)


def _work(root: Path, read: Callable[[Path], str], tasks: Any, results: Any) -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    expected = read(root)
    results.put(("ready", ""))
    while (damage := tasks.get()) is not None:
        with damaged(root, damage):
            results.put(outcome(root, expected, read))


class Prover:
    """A process of its own in which damaged files are read, so that a crash or a hang is seen and survived."""

    def __init__(self, root: Path, read: Callable[[Path], str] = values, patience_s: float = HANG_SECONDS) -> None:
        self._root, self._read, self._context = root, read, multiprocessing.get_context("spawn")
        self._patience_s = patience_s
        self._start()

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="annbatch-damage-"))
        shutil.copytree(self._root, self._folder / "c.zarr")
        self._tasks, self._results = self._context.SimpleQueue(), self._context.Queue()
        self._process = self._context.Process(
            target=_work, args=(self._folder / "c.zarr", self._read, self._tasks, self._results), daemon=True
        )
        self._process.start()
        assert self._results.get(timeout=240)[0] == "ready"

    def __call__(self, damage: Damage) -> tuple[str, str]:
        self._tasks.put(damage)
        deadline = time.monotonic() + self._patience_s
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


def parts_of_h5ad(path: Path) -> Callable[[Damage], str]:
    """Return what says in which part of an HDF5 file a flip or zeroed block begins."""
    import h5py

    data, ranges = path.read_bytes(), []

    def note(_: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.chunks:
            item.id.chunk_iter(lambda info: ranges.append((info.byte_offset, info.byte_offset + info.size, "values")))
        elif item.id.get_offset() is not None:
            at = item.id.get_offset()
            ranges.append((at, at + item.id.get_storage_size(), "values"))

    with h5py.File(path) as file:
        file.visititems(note)
    at = data.find(b"GCOL")
    while at >= 0:
        ranges.append((at + 16, at + int.from_bytes(data[at + 8 : at + 16], "little"), "text"))
        at = data.find(b"GCOL", at + 1)

    def part(damage: Damage) -> str:
        size = len(data)
        rng = np.random.default_rng([damage.number, size])
        most = {"zero": 4096, "zero 64 bytes": 64}.get(damage.kind)
        if most is None and damage.kind != "flip":
            return "h5ad"
        start = int(rng.integers(size if most is None else max(1, size - most)))
        return next((name for low, high, name in ranges if low <= start < high), "structure")

    return part


def tries(root: Path, scale: float, seed: int = 0) -> Iterator[Damage]:
    """All that the table shows; ``scale=1``: as many as spec says."""
    yield from flips(root, int(10_000 * scale), seed)
    yield from flips(root, int(1000 * scale), seed + 1, "truncate")
    yield from flips(root, int(300 * scale), seed + 2, "grow")
    yield from flips(root, int(1000 * scale), seed + 3, "zero")
    yield from flips(root, int(500 * scale), seed + 4, "zero 64 bytes")
    yield from removals(root)
    yield from swaps(root)
    yield from folder_removals(root)
    yield from folder_swaps(root)
    yield from fuzzed_documents(root, int(2000 * scale), seed)
    yield from changed_documents(root, int(2000 * scale), seed)


def _planned(root: Path, scale: float, seed: int) -> list[Damage]:
    """In another order, so that a part of them says something of all; numbers differ from seed to seed."""
    found = [replace(damage, number=damage.number + 1_000_000 * seed) for damage in tries(root, scale, seed)]
    return [found[i] for i in np.random.default_rng([seed, 4]).permutation(len(found))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the tries to make (default: all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=0, help="of what is damaged, and where (default: 0)")
    parser.add_argument("--others", action="store_true", help="also files that we did not write")
    parser.add_argument("--only", default="", help='only files whose kind begins so ("ours", "zarr 2", "h5ad")')
    options = parser.parse_args()
    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    strange: list[str] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[Damage], str]] = {}
        plans: dict[str, tuple[Prover, list[Damage]]] = {}
        every = {"ours": 1}
        if "ours".startswith(options.only):
            root = Path(folder) / "c.zarr"
            make_collection(root)
            plans["ours"] = Prover(root), _planned(root, options.scale, options.seed)
        forms = [form for form in STRANGERS if form.startswith(options.only)] if options.others or options.only else []
        for form in forms:
            root = Path(folder) / form
            make_stranger(root, form)
            is_hdf5 = form.startswith("h5ad")
            # A hang takes as long as many tries.
            every[form] = 5 if is_hdf5 and not options.only else 1
            if is_hdf5:
                parts[form] = parts_of_h5ad(root / "s.h5ad")
            # HDF5 loops for ever over some damage: see docs/trust.md.
            prover = Prover(root, values_of_stranger, HANG_SECONDS / 10 if is_hdf5 else HANG_SECONDS)
            plans[form] = prover, _planned(root, options.scale / every[form], options.seed)
        n_planned = sum(len(planned) for _, planned in plans.values())
        for turn in range(max(len(planned) * every[name] for name, (_, planned) in plans.items())):
            if time.perf_counter() - start > options.seconds:
                break
            for name, (prover, planned) in plans.items():
                number, rest = divmod(turn, every[name])
                if rest or number >= len(planned):
                    continue
                damage = planned[number]
                result, text = prover(damage)
                part = parts[name](damage) if name in parts else damage.part
                counts[name, damage.kind, part][result] += 1
                may_be = ("noticed", "same") if name == "ours" else ("noticed", "refused", "same", "wrong")
                if result not in may_be:
                    strange.append(f"{result}: {name}: {damage} {text}")
        for prover, _ in plans.values():
            prover.close()
    print("| of | damage | part | tries |", " | ".join(OUTCOMES), "|")
    print("|---|---|---|", "---|" * (1 + len(OUTCOMES)), sep="")
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for (name, kind, part), found in sorted(counts.items()):
        totals[name] += found
        print(f"| {name} | {kind} | {part} | {found.total()} |", " | ".join(str(found[o]) for o in OUTCOMES), "|")
    for name, found in totals.items():
        print(f"| {name} | all | | {found.total()} |", " | ".join(str(found[o]) for o in OUTCOMES), "|")
    n_tries = sum(found.total() for found in totals.values())
    print(f"\n{n_tries} of {n_planned} tries in {time.perf_counter() - start:.0f} seconds, seed {options.seed}")
    print(*strange[:200], sep="\n")


if __name__ == "__main__":
    main()
