"""What opening HDF5 files will read of them, fetched for all files together before it is read.

h5py waits for one thing after the other, of one file after the other. So it is let go as far as it comes with what is there;
what it lacked of each file is then fetched in one round trip, and it goes again, now further.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .hdf5 import SLAB_BYTES, far_file_of, fetch_slabs
from .hdf5_index import fetch_chunk_indexes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import h5py

    from .hdf5 import FarFile
    from .needs import Needs

__all__ = ["fetch_needed"]

# A file whose structure takes more rounds is read by h5py alone from there on.
_MOST_ROUNDS = 32
# Slabs of tables and row pointers that are fetched ahead of a file; behind them follow what h5py reads.
_MOST_DATA_SLABS = 32
# Groups within groups: a column with text of its own that may be missing has three.
_MOST_DEPTH = 4


def fetch_needed(groups: Sequence[Any], needs: Needs) -> list[FarFile]:
    """Fetch what opening will need of far HDF5 files; others are left alone.

    Returns
    -------
    The files that are far. What was fetched is theirs until they forget it.
    """
    import h5py

    far = [(group, file) for group in groups if isinstance(group, h5py.Group) and (file := far_file_of(group.file))]
    files = [file for _, file in far]
    found = _in_rounds(files, [partial(_datasets, group, needs) for group, _ in far])
    fetch_chunk_indexes([dataset for pair in found if pair for dataset in (*pair[0], *pair[1])])
    wholes = [pair[1] if pair else [] for pair in found]
    slabs = _in_rounds(files, [partial(_data_slabs, whole) for whole in wholes], at_most=1)
    fetch_slabs(files, [file.lacking(numbers or []) for file, numbers in zip(files, slabs, strict=True)])
    return files


def _in_rounds(files: Sequence[FarFile], calls: Sequence[Callable[[], Any]], at_most: int = _MOST_ROUNDS) -> list[Any]:
    """Return what calls, one for each file, return; None of one that fails, which will be met again when it is opened."""
    results: list[Any] = [None] * len(files)
    unfinished = list(range(len(files)))
    for _ in range(at_most):
        lacked = []
        for number in unfinished:
            with files[number].only_what_is_there() as lacking:
                try:
                    results[number] = calls[number]()
                except Exception:  # noqa: BLE001 (h5py makes of a failed read whatever it was reading for)
                    results[number] = None
            lacked.append(sorted(lacking))
        fetch_slabs([files[number] for number in unfinished], lacked)
        unfinished = [number for number, lacking in zip(unfinished, lacked, strict=True) if lacking]
        if not unfinished:
            break
    for number in unfinished:
        results[number] = None  # what h5py could not read looks to it as if it were not there
    return results


def _datasets(group: h5py.Group, needs: Needs) -> tuple[list[h5py.Dataset], list[h5py.Dataset]]:
    """Return the datasets of which rows are read, and those that are read as a whole when a file is opened."""
    import h5py

    by_rows, whole = [], []
    for path in needs.matrices:
        if path in group:
            matrix = group[path]
            if isinstance(matrix, h5py.Dataset):
                by_rows.append(matrix)
            else:
                by_rows += [matrix[name] for name in ("data", "indices") if name in matrix]
                whole += [matrix[name] for name in ("indptr",) if name in matrix]
    for name, columns in needs.frames.items():
        if name in group:
            whole += _of_frame(group[name], columns, with_index=name not in needs.without_index)
    return by_rows, whole


def _of_frame(frame: Any, columns: Sequence[str] | None, *, with_index: bool) -> list[h5py.Dataset]:
    import h5py

    if isinstance(frame, h5py.Dataset):
        return [frame]
    index, stored = frame.attrs.get("_index"), list(frame.attrs.get("column-order", ()))
    names = stored if columns is None else [name for name in columns if name in stored]
    if with_index and index is not None:
        names = [index, *names]
    return [dataset for name in names if name in frame for dataset in _below(frame[name])]


def _below(elem: Any, depth: int = _MOST_DEPTH) -> list[h5py.Dataset]:
    import h5py

    if isinstance(elem, h5py.Dataset):
        return [elem]
    return [dataset for part in elem.values() for dataset in _below(part, depth - 1)] if depth else []


def _data_slabs(datasets: Sequence[h5py.Dataset]) -> list[int]:
    """Return the numbers of the slabs where datasets lie, as many as there is room for."""
    where: list[tuple[int, int]] = []
    for dataset in datasets:
        start = dataset.id.get_offset()
        if start is not None:
            where.append((start, dataset.id.get_storage_size()))
        elif dataset.chunks and hasattr(dataset.id, "chunk_iter"):
            dataset.id.chunk_iter(lambda chunk: where.append((chunk.byte_offset, chunk.size)))
    numbers: dict[int, None] = {}
    for start, n_bytes in where:
        for number in range(start // SLAB_BYTES, -(-(start + n_bytes) // SLAB_BYTES)):
            if len(numbers) == _MOST_DATA_SLABS:
                return list(numbers)
            numbers[number] = None
    return list(numbers)
