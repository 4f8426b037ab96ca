"""Stores of any number of rows, written a piece at a time: what opening reads is real, what it does not read is virtual.

Row pointers, names of cells and obs columns are written as other tools write them. Values and column numbers of X are arrays of
the right shape of which nothing is stored: every reader takes them for zeros, and a store of 10^8 rows fits a laptop. With
``only_labels``, obs has one column, and names of cells are repeated: for sizes at which writing names takes longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LABEL", "N_COLUMNS", "N_VAR", "write_collection", "write_h5ad", "write_zarr"]

N_VAR = 2_000
N_COLUMNS = 10
LABEL = "cell_type"
# Rows to a shard. With all columns fewer are in memory at a time: Python's text is large.
_SHARD = 1 << 24
_ROWS = 1 << 19
# Four columns of labels, two of them of few values, and two of text with few values as text.
_CATEGORIES = {LABEL: 30, "donor": 500, "tissue": 12, "assay": 4}
_TEXTS = {"sex": 2, "batch": 200}
_NUMBERS = {"n_counts": np.float32, "n_genes": np.int32, "mito": np.float32, "is_primary": np.bool_}
_ENCODED = {"encoding-type": "anndata", "encoding-version": "0.1.0"}


def _names(column: str) -> list[str]:
    return [f"{column} {number:03}" for number in range({**_CATEGORIES, **_TEXTS}[column])]


def _lengths(n_obs: int, *, only_labels: bool) -> Iterator[tuple[slice, np.random.Generator, np.ndarray]]:
    """Rows, a piece at a time, what draws for them, and how many values each has."""
    at_a_time = _SHARD if only_labels else _ROWS
    for number, start in enumerate(range(0, n_obs, at_a_time)):
        rng, n = np.random.default_rng(number), min(at_a_time, n_obs - start)
        yield slice(start, start + n), rng, rng.integers(5, 16, n)


def _pieces(n_obs: int, *, only_labels: bool) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Rows, a piece at a time: lengths of rows, names of cells, and the columns (codes where they have categories)."""
    names = np.empty(0, dtype=object)
    for rows, rng, lengths in _lengths(n_obs, only_labels=only_labels):
        n = len(lengths)
        piece: dict[str, Any] = {"lengths": lengths}
        if not only_labels or not len(names):
            named = range(rows.start, rows.start + min(n, _ROWS))
            names = np.array([f"cell_{row:09}-{row % 7}" for row in named], dtype=object)
        piece["_index"] = np.resize(names, n)
        for column in [LABEL] if only_labels else _CATEGORIES:
            piece[column] = rng.integers(0, _CATEGORIES[column], n).astype(
                np.int8 if _CATEGORIES[column] < 128 else np.int16
            )
        if only_labels:
            yield rows, piece
            continue
        for column in _TEXTS:
            piece[column] = np.array(_names(column), dtype=object)[rng.integers(0, _TEXTS[column], n)]
        for column, dtype in _NUMBERS.items():
            piece[column] = rng.integers(0, 2 if dtype is np.bool_ else 10_000, n).astype(dtype)
        yield rows, piece


class _Writer:
    """What both kinds of store are to :func:`_fill`."""

    def group(self, path: str, **attributes: Any) -> None:
        raise NotImplementedError

    def array(self, path: str, n: int, dtype: Any, chunk: int, **attributes: Any) -> Any:
        raise NotImplementedError


class _Zarr(_Writer):
    def __init__(self, root: Any) -> None:
        self._root = root

    def group(self, path: str, **attributes: Any) -> None:
        self._root.require_group(path).attrs.update(attributes)

    def array(self, path: str, n: int, dtype: Any, chunk: int, **attributes: Any) -> Any:
        from zarr.dtype import VariableLengthUTF8

        text = dtype is str
        chunk = min(chunk, max(1, n))
        shard = {} if text else {"shards": (-(-max(1, min(n, _SHARD)) // chunk) * chunk,)}
        return self._root.create_array(
            path, shape=(n,), dtype=VariableLengthUTF8() if text else dtype, chunks=(chunk,), attributes=attributes,
            fill_value="" if text else 0, **shard,
        )  # fmt: skip


class _Hdf5(_Writer):
    def __init__(self, file: Any) -> None:
        self._file = file

    def group(self, path: str, **attributes: Any) -> None:
        import h5py

        group, text = self._file.require_group(path) if path else self._file, h5py.string_dtype()
        for name, value in attributes.items():
            group.attrs[name] = np.array(value, dtype=text) if name == "column-order" else value

    def array(self, path: str, n: int, dtype: Any, chunk: int, **attributes: Any) -> Any:
        import h5py

        kind = h5py.string_dtype() if dtype is str else dtype
        array = self._file.create_dataset(
            path, shape=(n,), dtype=kind, chunks=(min(chunk, max(1, n)),), fillvalue=None if dtype is str else 0
        )
        for name, value in attributes.items():
            array.attrs[name] = value
        return array


def _fill(writer: _Writer, n_obs: int, chunk: int, *, only_labels: bool) -> None:
    n_values = sum(int(lengths.sum()) for _, _, lengths in _lengths(n_obs, only_labels=only_labels))
    plain = {"encoding-type": "array", "encoding-version": "0.2.0"}
    text = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
    frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    columns = [LABEL] if only_labels else [*_CATEGORIES, *_TEXTS, *_NUMBERS]
    writer.group("", **_ENCODED)
    writer.group("X", **{"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_obs, N_VAR]})
    writer.array("X/data", n_values, np.float32, chunk)
    writer.array("X/indices", n_values, np.int32, chunk)
    arrays = {"lengths": writer.array("X/indptr", n_obs + 1, np.int64, 1 << 16)}
    writer.group("obs", **frame, **{"column-order": columns})
    arrays["_index"] = writer.array("obs/_index", n_obs, str, 1 << 15, **text)
    for column in [LABEL] if only_labels else _CATEGORIES:
        group = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        writer.group(f"obs/{column}", **group)
        categories = _names(column)
        writer.array(f"obs/{column}/categories", len(categories), str, 1 << 15, **text)[:] = np.array(
            categories, dtype=object
        )
        code = np.int8 if len(categories) < 128 else np.int16
        arrays[column] = writer.array(f"obs/{column}/codes", n_obs, code, 1 << 16, **plain)
    for column in () if only_labels else _TEXTS:
        arrays[column] = writer.array(f"obs/{column}", n_obs, str, 1 << 15, **text)
    for column, dtype in () if only_labels else _NUMBERS.items():
        arrays[column] = writer.array(f"obs/{column}", n_obs, dtype, 1 << 16, **plain)
    writer.group("var", **frame, **{"column-order": []})
    writer.array("var/_index", N_VAR, str, N_VAR, **text)[:] = np.array(
        [f"gene_{number}" for number in range(N_VAR)], dtype=object
    )
    total = 0
    for rows, piece in _pieces(n_obs, only_labels=only_labels):
        lengths = piece.pop("lengths")
        # Where each row begins, so that a piece fills whole shards; where the last one ends comes last.
        arrays["lengths"][rows] = total + np.cumsum(lengths) - lengths
        total += int(lengths.sum())
        for column, values in piece.items():
            arrays[column][rows] = values
    arrays["lengths"][n_obs] = total


def write_zarr(path: Path, n_obs: int, chunk: int = 1 << 16, *, only_labels: bool = False) -> Path:
    """Write a Zarr store; ``chunk`` values to a stored chunk of X."""
    import zarr

    _fill(_Zarr(zarr.open_group(path, mode="w", zarr_format=3)), n_obs, chunk, only_labels=only_labels)
    return path


def write_h5ad(path: Path, n_obs: int, chunk: int = 1 << 16, *, only_labels: bool = False) -> Path:
    """Write an h5ad file."""
    import h5py

    with h5py.File(path, "w") as file:
        _fill(_Hdf5(file), n_obs, chunk, only_labels=only_labels)
    return path


def write_collection(path: Path, n_obs: int, *, only_labels: bool = False) -> Path:
    """Write a collection of one dataset."""
    import zarr

    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    _fill(_Zarr(root.create_group("dataset_0")), n_obs, 1 << 16, only_labels=only_labels)
    return path
