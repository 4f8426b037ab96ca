"""Reading a collection or an AnnData file once, to find out what is damaged."""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from tqdm.auto import tqdm

from annbatch._shared.collection_format import H5AD_SUFFIX, is_marked, sorted_datasets
from annbatch.storage import CorruptDataError, available_cpus, is_url, open_matrix
from annbatch.storage.chunks.described import document_of
from annbatch.storage.chunks.hdf5_table import edges_are_bare
from annbatch.storage.chunks.zarr_table import zarr_steps
from annbatch.storage.documents import check_documents
from annbatch.storage.errors import damage_named
from annbatch.storage.frames import FrameReader
from annbatch.storage.listing import Listing, check_format
from annbatch.storage.local_zarr import check_zarr_format
from annbatch.storage.manifest import (
    dataset_damage,
    has_manifest,
    is_set_aside,
    missing_files,
    parsed_document,
    set_aside,
)
from annbatch.storage.opening import check_is_store, open_hdf5
from annbatch.storage.reading.proving import prove

from .manifest import write_manifest
from .places import LocalZarr

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    import zarr

__all__ = ["Damage", "Report", "accept", "show", "verify"]

_MOST_SHOWN = 50


@dataclass(frozen=True)
class Damage:
    """Something that cannot be read, or is not as it was written.

    Attributes
    ----------
    file
        The dataset or file it is in, and the very file where that is known.
    array
        Path of the array in it; "" for what is no array.
    chunks
        First and last of the damaged chunks, both included, numbered in C order of the chunk grid; None: not a matter of chunks.
    rows
        Rows of the dataset that are in these chunks, half open; None where the array has none.
    what
        What is wrong.
    """

    file: str
    array: str
    chunks: tuple[int, int] | None
    rows: tuple[int, int] | None
    what: str

    def __str__(self) -> str:
        place = [self.file, f":: {self.array}" if self.array else ""]
        if self.chunks is not None:
            first, last = self.chunks
            place.append(f"chunk {first}" if first == last else f"chunks {first} to {last}")
        if self.rows is not None:
            place.append(f"rows {self.rows[0]} <= row < {self.rows[1]}")
        # The text of most errors begins with the place.
        return f"{', '.join(filter(None, place)).replace(', ::', ' ::')}: {self.what}"


@dataclass
class Report:
    """What :meth:`DatasetCollection.verify` found.

    Attributes
    ----------
    damage
        Empty when everything is as it was written.
    n_arrays, n_bytes
        Arrays that were read, and their size in memory.
    without_checksums
        Arrays whose values have no checksum: a change in them can only be found where it breaks the compression.
    seconds
        How long it took.
    """

    damage: list[Damage] = field(default_factory=list)
    n_arrays: int = 0
    n_bytes: int = 0
    without_checksums: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {"is_sound": self.is_sound, **asdict(self)}


class _Array(NamedTuple):
    """An array to read: its path in the dataset, itself, and what its items mean."""

    path: str
    elem: Any
    n_columns: int | None
    row_edges: np.ndarray | None  # for values and column numbers: the row pointer


def verify(path: str | os.PathLike[str], *, progress: bool = True, num_threads: int | None = None) -> Report:
    """Read everything below a path once and say what is damaged.

    Parameters
    ----------
    path
        A collection, of Zarr or of h5ad files, or any AnnData file (``.h5ad``, ``.zarr``).
    progress
        Show a progress bar.
    num_threads
        Threads that decode; None: the CPUs this process may use.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        It is a URL.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from annbatch.collection.verify import verify
    >>> ad.AnnData(np.eye(3, dtype="float32")).write_h5ad("three.h5ad")
    >>> verify("three.h5ad", progress=False).is_sound
    True
    """
    path = _local(path)
    report, start = Report(), time.perf_counter()
    bar = tqdm(desc="Verifying", unit="B", unit_scale=True, disable=not progress)
    with bar:
        for dataset in _datasets(path, report):
            _verify_dataset(dataset, report, bar.update, num_threads or available_cpus())
    report.seconds = time.perf_counter() - start
    return report


def accept(path: str | os.PathLike[str], *, progress: bool = True) -> Report:
    """Give the datasets below a path a new manifest of what is there now, if all of it can be read.

    For a dataset that was changed on purpose (a column was added, say) after annbatch wrote it. A file that is missing is
    damage, since its chunks would be read as fill values: an array that is to have none must be written anew.

    Returns
    -------
    Report
        Of reading it without its manifest. When something is damaged, the manifests stay as they were.
    """
    path = _local(path)
    folders = [folder for folder in _datasets(path, Report()) if folder.is_dir() and has_manifest(folder)]
    with set_aside([path, *folders]):
        report = verify(path, progress=progress)
    if report.is_sound:
        report.damage += [
            Damage(str(folder), "", None, None, str(error)) for folder in folders for error in missing_files(folder)
        ]
    if report.is_sound:
        for folder in folders:
            write_manifest(folder, add_checksums=False)
        _relist(path, folders)
    return report


def _relist(path: Path, folders: Collection[Path]) -> None:
    """Have a collection list its datasets as they are now; `path` is the collection, or one of the datasets that it lists."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 (links stay)
    if whole.name in _listed(whole.parent):
        LocalZarr(whole.parent).relist([whole.name])
    elif _listed(path) or (folders and path not in folders):
        LocalZarr(path).relist()


def _listed(folder: Path) -> Collection[str]:
    """Names of the datasets that a folder lists; none where it is no collection."""
    try:
        return Listing.of(LocalZarr(folder).attributes(), folder).digests
    except (ValueError, OSError):
        return ()


def _local(path: str | os.PathLike[str]) -> Path:
    if is_url(path):
        msg = (
            f"path must be a local file or folder, got {path}; copy it to a disk and verify the copy (far away, a Loader "
            "compares what it reads with checksums and sizes)"
        )
        raise ValueError(msg)
    path = Path(path)
    if not path.exists():
        msg = f"no such file or folder: {path}"
        raise FileNotFoundError(msg)
    return path


def show(report: Report, say: Callable[[str], None]) -> None:
    """Print it for a person."""
    speed = report.n_bytes / 1e6 / max(report.seconds, 1e-9)
    say(
        f"{report.n_arrays} arrays read, {report.n_bytes / 1e6:,.1f} MB in {report.seconds:.1f} s ({speed:,.0f} MB a second)"
    )
    if report.without_checksums:
        few = ", ".join(report.without_checksums[:5]) + (", ..." if len(report.without_checksums) > 5 else "")
        say(f"{len(report.without_checksums)} arrays have no checksums, so not every change to them can be seen: {few}")
    for damage in report.damage[:_MOST_SHOWN]:
        say(f"damaged: {damage}")
    if len(report.damage) > _MOST_SHOWN:
        say(f"... and {len(report.damage) - _MOST_SHOWN} more")
    places = "1 place is damaged" if len(report.damage) == 1 else f"{len(report.damage)} places are damaged"
    say("everything is as it was written" if report.is_sound else places)


def _datasets(path: Path, report: Report) -> Iterator[Path]:
    """Files and folders that hold one AnnData each."""
    if not path.is_dir():
        yield path
        return
    found = {child.name for child in path.iterdir()}
    folders, files = sorted_datasets(found), sorted_datasets(found, H5AD_SUFFIX)
    if not folders and not files and not _listed(path):
        yield path
        return
    if folders or not files:
        _verify_root(path, report)
        _verify_formats(path, folders, report)
    yield from (path / name for name in (*folders, *files))


def _verify_root(path: Path, report: Report) -> None:
    """See that a collection says that it is one, and that its datasets are those that it lists."""
    document = path / "zarr.json"
    try:
        root = parsed_document(document)
        check_zarr_format(path, root)
        attributes = root["attributes"]
        if not is_marked(attributes):
            report.damage.append(Damage(str(document), "", None, None, "does not say that this is a collection"))
        if not is_set_aside(path):
            listing = Listing.of(attributes, path)
            report.damage += [Damage(str(path), "", None, None, str(error)) for error in listing.damage()]
    except CorruptDataError as error:
        report.damage.append(Damage(str(document), "", None, None, str(error)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        report.damage.append(Damage(str(document), "", None, None, f"cannot be read: {error!r}"))


def _verify_formats(path: Path, names: Iterable[str], report: Report) -> None:
    """See that no dataset is in another format than the collection, unless that was said already."""
    said = {damage.what for damage in report.damage}
    for name in names:
        try:
            check_format(path, name)
        except CorruptDataError as error:
            if str(error) not in said:
                report.damage.append(Damage(str(path), "", None, None, str(error)))


def _verify_dataset(path: Path, report: Report, read: Callable[[int], object], num_threads: int) -> None:
    known = set()
    try:
        if path.is_dir() and has_manifest(path):
            for error in dataset_damage(str(path), marks=True):
                report.damage.append(Damage(str(path), "", None, None, str(error)))
                known.add(str(error))
        group = _opened(path)
    except (CorruptDataError, OSError) as error:
        if str(error) not in known:
            report.damage.append(Damage(str(path), "", None, None, str(error)))
        return
    try:
        for array in _arrays(group, "", str(path), report, set()):
            report.n_arrays += 1
            if not _has_checksums(array.elem):
                report.without_checksums.append(f"{path.name}/{array.path}")
            _verify_array(path, array, report, read, num_threads)
        _verify_frames(path, group, report)
    finally:
        if isinstance(group, h5py.File):
            group.close()


def _opened(path: Path) -> h5py.File | zarr.Group:
    """Open without a look at the manifest, which was compared before."""
    import zarr

    check_is_store(path)
    with damage_named(str(path)):
        if not path.is_dir():
            return open_hdf5(path, skip=())
        check_documents(path, parse=False)  # zarr-python opens whatever has the name of one
        return zarr.open_group(path, mode="r", use_consolidated=False)


def _arrays(group: Any, at: str, where: str, report: Report, seen: set[Any]) -> Iterator[_Array]:
    """All arrays of a hierarchy, and what their items mean; of a group that links lead to several times, once."""
    itself = _itself(group)
    if itself in seen:
        return
    seen.add(itself)
    try:
        with damage_named(f"{where} :: {at or '/'}"):
            names = sorted(group)
            attributes = dict(group.attrs)
    except (CorruptDataError, OSError) as error:
        report.damage.append(Damage(where, at, None, None, str(error)))
        return
    sparse = attributes.get("encoding-type") in ("csr_matrix", "csc_matrix")
    n_columns, row_edges = _sparse_parts(group, at, where, attributes, report) if sparse else (None, None)
    for name in names:
        path = f"{at}/{name}" if at else name
        try:
            with damage_named(f"{where} :: {path}"):
                elem = group[name]
        except (CorruptDataError, OSError) as error:
            report.damage.append(Damage(where, path, None, None, str(error)))
            continue
        if hasattr(elem, "keys"):
            yield from _arrays(elem, path, where, report, seen)
        elif hasattr(elem, "shape"):
            inside = sparse and name in ("data", "indices")
            yield _Array(path, elem, n_columns if name == "indices" else None, row_edges if inside else None)


def _itself(group: Any) -> Any:
    """What is the same for every path that leads to a group."""
    if isinstance(group, h5py.Group):
        return group.id
    folder = os.stat(Path(group.store.root, group.path))  # noqa: PTH116
    return folder.st_dev, folder.st_ino


def _sparse_parts(
    group: Any, at: str, where: str, attributes: dict[str, Any], report: Report
) -> tuple[int | None, np.ndarray | None]:
    """Number of columns and row pointer of a CSR matrix, as far as they can be read."""
    if attributes["encoding-type"] != "csr_matrix":
        return None, None
    try:
        source = open_matrix(group)
    except (ValueError, TypeError, OSError) as error:
        report.damage.append(Damage(where, at, None, None, str(error)))
        return None, None
    try:
        return source.shape[1], source.row_pointers.indptr()  # type: ignore[union-attr]
    except (ValueError, OSError) as error:
        report.damage.append(Damage(where, f"{at}/indptr", None, None, str(error)))
        return source.shape[1], None


def _verify_array(path: Path, array: _Array, report: Report, read: Callable[[int], object], num_threads: int) -> None:
    found: list[Damage] = []
    for n_bytes, damaged in prove(array.elem, array.n_columns, num_threads):
        report.n_bytes += n_bytes
        read(n_bytes)
        for chunk, error in damaged:
            what = re.sub(r", chunk \d+", "", str(error))
            if chunk is None:
                found.append(Damage(str(path), array.path, None, None, what))
                continue
            rows, last = _rows_of(array, chunk), found[-1] if found else None
            first = chunk
            if last and last.chunks and last.chunks[1] == chunk - 1 and last.what == what:
                first = last.chunks[0]
                rows = (last.rows[0], rows[1]) if rows and last.rows else rows
                found.pop()
            found.append(Damage(str(path), array.path, (first, chunk), rows, what))
    report.damage += found


def _rows_of(array: _Array, chunk: int) -> tuple[int, int] | None:
    """Rows of the dataset that lie in a chunk."""
    part = array.path.partition("/")[0]
    shape = array.elem.shape
    chunks = getattr(array.elem, "chunks", None)
    if part not in ("X", "obs", "layers", "obsm", "raw") or array.path.startswith("raw/var") or not shape or not chunks:
        return None
    if array.path.endswith("/categories"):
        return None
    grid = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    first = int(np.unravel_index(chunk, grid)[0]) * chunks[0]
    stop = min(first + chunks[0], shape[0])
    if array.row_edges is not None:
        low = int(np.searchsorted(array.row_edges, first, side="right")) - 1
        return low, int(np.searchsorted(array.row_edges, stop, side="left"))
    if array.path.endswith("/indptr"):
        return max(first - 1, 0), min(stop, shape[0] - 1)
    return first, stop


def _verify_frames(path: Path, group: Any, report: Report) -> None:
    """See that codes number categories and columns are as long as their table."""
    named = {damage.array for damage in report.damage if damage.file == str(path)}
    for part in ("obs", "var", "raw/var"):
        if any(array == part or array.startswith(f"{part}/") for array in named):
            continue
        try:
            with damage_named(f"{path} :: {part}"):
                is_there = part in group
            if not is_there:
                continue
            reader = FrameReader(group[part])
            for name in reader.columns:
                reader.check(name)
        except (ValueError, TypeError, OSError) as error:
            report.damage.append(Damage(str(path), part, None, None, str(error)))


def _has_checksums(elem: Any) -> bool:
    """Whether a change to the bytes of any chunk is found by the format itself."""
    if isinstance(elem, h5py.Dataset):
        if elem.dtype.kind == "O":
            return False  # filters see where text lies in the file, not the text
        if edges_are_bare(elem):
            return False
        # Deflate ends with a checksum of its own.
        return bool(elem.fletcher32) or elem.compression == "gzip"
    _, document = document_of(elem)
    return any(name in ("crc32c", "gzip", "zlib") for name, _ in zarr_steps(document))
