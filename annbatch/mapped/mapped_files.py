"""Opening AnnData files: what a collection must know of each before it reads rows."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from annbatch._shared.args import levels_to_user
from annbatch._shared.collection_format import is_marked
from annbatch._shared.row_filter import Found, filtered
from annbatch.storage import Needs, fetched_ahead, is_far_place, is_store, open_group, open_groups, open_matrix
from annbatch.storage.errors import damage_named
from annbatch.storage.frames import FrameReader, Labels

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from annbatch.storage import FarOptions, StoredObject

__all__ = ["MappedFile", "open_files", "read_labels"]


@dataclass
class MappedFile:
    """What is known of one file.

    Attributes
    ----------
    path, name
        Where it lies, a URL as text, and the same for error texts.
    far
        How it is read when it is far.
    rows
        Numbers of the rows that pass the filter (int64, increasing); None: all.
    n_rows
        How many these are.
    var_names
        Gene names; the same object for files with the same genes.
    filtered_by
        Per column of the filter which of its values there are; without columns that the file lacks.
    matrices
        Per key the matrix to read rows from. Keys that the file lacks are left out.
    obs
        Per key the column, only the rows that pass the filter: numbers, labels, or None when the file lacks it.
    """

    path: Path | str | StoredObject
    name: str
    far: FarOptions
    rows: np.ndarray | None
    n_rows: int
    var_names: pd.Index[Any]
    filtered_by: Mapping[str, Found] = field(default_factory=dict)
    matrices: dict[str, Any] = field(default_factory=dict)
    obs: dict[str, np.ndarray | Labels | None] = field(default_factory=dict)


def open_files(
    paths: Sequence[Path | str | StoredObject],
    layers_keys: Sequence[str],
    obs_keys: Sequence[str],
    obsm_keys: Sequence[str],
    encoded: Collection[str],
    obs_filter: Mapping[str, Sequence[Any]],
    far: FarOptions,
) -> tuple[list[MappedFile], dict[str, list[str]]]:
    """Read names, labels and shapes of all files; nothing of the matrices.

    Returns
    -------
    files
        What is known of each.
    missing
        Per argument the keys that no file has. A warning says so.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    KeyError
        If no file has a column that is filtered by.
    ValueError
        If a path is no AnnData file, or a matrix does not fit its file or is stored by columns.
    """
    from tqdm import tqdm

    for path in paths:
        _check_path(path)
    files: list[MappedFile] = []
    columns: set[str] = set()
    # Those that are far are opened together.
    far_groups = open_groups([path for path in paths if is_far_place(path)], far)
    opened = iter(far_groups)
    needs = Needs(
        {"obs": [*obs_keys, *obs_filter], "var": []},
        ["X" if key == "X" else "raw/X" if key == "raw.X" else f"layers/{key}" for key in layers_keys]
        + [f"obsm/{key}" for key in obsm_keys],
    )
    with fetched_ahead(far_groups, needs):
        for path in tqdm(paths, desc="Opening files", unit="file", delay=1, leave=False):
            with _opened(path, far, next(opened) if is_far_place(path) else None) as group:
                with damage_named(str(path)):
                    lacking = [name for name in ("obs", "var") if name not in group]
                    is_collection = bool(lacking) and is_marked(group.attrs)
                if lacking:
                    msg = f"path_list: {path} is no AnnData file: it has no {lacking[0]}"
                    if is_collection:
                        msg += ". It is a collection: pass the paths of its datasets (dataset_0, dataset_1, ...)"
                    raise ValueError(msg)
                with damage_named(str(path)):
                    table = group["obs"]
                reader = FrameReader(table)
                columns.update(reader.columns)
                file = _names_and_rows(path, group, reader, obs_filter, far)
                if files and file.var_names.equals(files[-1].var_names):
                    file.var_names = files[-1].var_names
                file.obs = {key: _column(reader, key, file.rows, as_labels=key in encoded) for key in obs_keys}
                for kind, keys, prefix in (("layers_keys", layers_keys, ""), ("obsm_keys", obsm_keys, "obsm_")):
                    for key in keys:
                        elem = _element(group, kind, key)
                        if elem is not None:
                            file.matrices[prefix + key] = _matrix(
                                elem, path, key, reader.n_rows, len(file.var_names), kind
                            )
            files.append(file)
    matrices = {name for file in files for name in file.matrices}
    for column in obs_filter:
        if column not in columns:
            msg = f"obs_filter: no file has {column!r}; there is {', '.join(sorted(columns)) or 'none'}"
            raise KeyError(msg)
    missing: dict[str, list[str]] = {}
    for kind, keys, found in (
        ("obs_keys", obs_keys, columns),
        ("layers_keys", layers_keys, matrices),
        ("obsm_keys", obsm_keys, {name.removeprefix("obsm_") for name in matrices - {*layers_keys}}),
    ):
        missing[kind] = [key for key in keys if key not in found]
        if missing[kind]:
            there = columns if found is columns else _stored_keys(paths, kind, far)
            names = ", ".join(map(repr, missing[kind]))
            warnings.warn(
                f"{kind}: no file has {names}, which samples go without; there is {', '.join(sorted(there)) or 'none'}",
                UserWarning,
                stacklevel=levels_to_user(),
            )
    return files, missing


def read_labels(file: MappedFile, key: str) -> Labels | None:
    """Read one more obs column of a file as labels; None when the file lacks it."""
    with _opened(file.path, file.far) as group:
        return _column(FrameReader(group["obs"]), key, file.rows, as_labels=True)  # type: ignore[return-value]


@contextmanager
def _opened(path: Path | str | StoredObject, far: FarOptions, group: Any = None) -> Iterator[Any]:
    group = open_group(path, far, quick=True) if group is None else group
    try:
        yield group
    finally:
        # Only HDF5 files stay open; a Zarr group holds no handle.
        if hasattr(group, "close"):
            group.close()


def _check_path(path: Path | str | StoredObject) -> None:
    if is_far_place(path):
        return  # known when it is opened
    assert isinstance(path, Path)
    if not path.exists():
        msg = f"path_list: {path} does not exist"
        raise FileNotFoundError(msg)
    if not is_store(path):
        msg = f"path_list: {path} is neither an .h5ad file nor a .zarr folder"
        raise ValueError(msg)


def _names_and_rows(
    path: Path | str | StoredObject,
    group: Any,
    reader: FrameReader,
    obs_filter: Mapping[str, Sequence[Any]],
    far: FarOptions,
) -> MappedFile:
    names = FrameReader(group["var"]).index()
    # As objects: files of different encodings would else give string dtypes that pandas does not take for equal.
    names = pd.Index(names.astype(str).to_numpy(dtype=object), dtype=object)
    rows = None
    n_rows = reader.n_rows
    filtered_by: dict[str, Found] = {}
    if obs_filter:
        keep, filtered_by = filtered(
            obs_filter, lambda column: reader.labels(column) if column in reader.columns else None, n_rows
        )
        rows = np.flatnonzero(keep)
        n_rows = len(rows)
    # Opened again for labels that are asked for later, maybe from another working directory.
    home = path.absolute() if isinstance(path, Path) else path
    return MappedFile(home, str(path), far, rows, n_rows, names, filtered_by)


def _column(reader: FrameReader, key: str, rows: np.ndarray | None, *, as_labels: bool) -> np.ndarray | Labels | None:
    if key not in reader.columns:
        return None
    numbers = None if as_labels else reader.numbers(key)
    if numbers is not None:
        return numbers if rows is None else numbers[rows]
    labels = reader.labels(key)
    return labels if rows is None else Labels(labels.codes[rows], labels.categories)


def _stored_keys(paths: Sequence[Path | str | StoredObject], kind: str, far: FarOptions) -> set[str]:
    """What the files have of a kind; only asked for to word an error."""
    there: set[str] = set()
    for path in paths:
        with _opened(path, far) as group:
            if kind == "obsm_keys":
                there.update(group.get("obsm", []))
            else:
                there.update(group.get("layers", []))
                there.update(key for key in ("X", "raw.X") if _element(group, kind, key) is not None)
    return there


def _element(group: Any, kind: str, key: str) -> Any:
    """Return a stored matrix, or None where the file has none."""
    if kind == "obsm_keys":
        path = f"obsm/{key}"
    elif key == "X":
        path = "X"
    elif key == "raw.X":
        # The second is how AnnData wrote it before 0.7.
        path = "raw/X" if "raw/X" in group else "raw.X"
    else:
        path = f"layers/{key}"
    if path not in group:
        return None
    elem = group[path]
    # An AnnData object without X has a place for it all the same.
    return None if dict(elem.attrs).get("encoding-type") == "null" else elem


def _matrix(elem: Any, path: Path | str | StoredObject, key: str, n_rows: int, n_genes: int, kind: str) -> Any:
    try:
        source = open_matrix(elem)
    except TypeError as error:
        msg = f"{path}, key {key!r}: {error}"
        raise ValueError(msg) from error
    fixed_genes = kind == "layers_keys" and key != "raw.X"
    if source.shape[0] != n_rows or (fixed_genes and source.shape[1:] != (n_genes,)):
        expected = f"{n_rows} rows" + (f" and {n_genes} columns" if fixed_genes else "")
        msg = f"{path}, key {key!r}: obs and var ask for {expected}, but the matrix has shape {source.shape}"
        raise ValueError(msg)
    return source
