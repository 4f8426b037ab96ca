"""What the datasets of a build hold: agreed upon, and every clash found, before any row is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from .columns import Column, describe, unify
from .fields import check_text
from .warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .inputs.inputs import Input

SRC_PATH = "src_path"
# In bytes; what is stored in Zarr becomes a folder.
_LONGEST_FILE_NAME = 255
_LONGEST_PATH = 1000
_NO_NAMES = {"", ".", "..", "zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


@dataclass(frozen=True)
class MatrixType:
    """A matrix of the output: CSR or dense, the dtype its values had in the inputs, and its shape without the rows."""

    is_sparse: bool
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """What one input (or the collection that is added to) brings."""

    label: str
    n_obs: int
    obs: Mapping[str, Column]
    index_name: str | None
    matrices: Mapping[str, MatrixType]
    var: pd.DataFrame
    varm: Mapping[str, Any]
    raw_var: pd.DataFrame | None
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Schema:
    """What every dataset of a build holds."""

    obs: Mapping[str, Column]
    index_name: str | None
    matrices: Mapping[str, MatrixType]
    var: pd.DataFrame
    varm: Mapping[str, Any]
    raw_var: pd.DataFrame | None

    @property
    def index_key(self) -> str:
        """Where the index of obs is stored: under its name, unless a column has that."""
        return "_index" if self.index_name is None or self.index_name in self.obs else self.index_name


def describe_input(opened: Input) -> Description:
    """Look at an input: of obs the types are read, of the matrices nothing."""
    obs = opened.obs.head
    no_text = [name for name in obs.columns if not isinstance(name, str)]
    if no_text:
        msg = f"names of obs columns of {opened.label} must be text, got {no_text[0]!r}; rename it, e.g. to {str(no_text[0])!r}"
        raise TypeError(msg)
    _check_names(opened)
    columns = {}
    for column in obs.columns:
        try:
            columns[column] = describe(obs[column])
        except TypeError as error:
            msg = f"obs[{column!r}] of {opened.label} {error}"
            raise TypeError(msg) from None
    raw_names = pd.Index([]) if opened.raw_var is None else opened.raw_var.index
    for what, names in (("var", opened.var.index), ("raw.var", raw_names), ("obs", obs.columns)):
        if not names.is_unique:
            twice = list(names[names.duplicated()].unique()[:5])
            msg = f"{what} names of {opened.label} must be unique, got some twice, e.g. {twice}; see var_names_make_unique"
            raise ValueError(msg)
    matrices = {}
    for name, matrix in opened.matrices.items():
        if matrix.shape[0] != opened.n_obs:
            msg = f"{name} of {opened.label} has {matrix.shape[0]} rows, but obs has {opened.n_obs}"
            raise ValueError(msg)
        n_columns = _n_columns(name, opened.var, opened.raw_var)
        if n_columns is not None and matrix.shape[1:] != (n_columns,):
            msg = f"{name} of {opened.label} has shape {matrix.shape}, but var has {n_columns} rows"
            raise ValueError(msg)
        matrices[name] = MatrixType(matrix.is_sparse, matrix.dtype, matrix.shape[1:])
    index_name = obs.index.name
    return Description(
        opened.label,
        opened.n_obs,
        columns,
        None if index_name is None else str(index_name),
        matrices,
        opened.var,
        opened.varm,
        opened.raw_var,
        opened.skipped,
    )


def _check_names(opened: Input) -> None:
    """Refuse names under which nothing can be stored, or only in place of something else."""
    frames = {"obs": opened.obs.head, "var": opened.var}
    if opened.raw_var is not None:
        frames["raw.var"] = opened.raw_var
    names: list[tuple[str, str, bool]] = []
    for part, frame in frames.items():
        index = [] if frame.index.name is None else [str(frame.index.name)]
        columns = [str(name) for name in frame.columns]
        taken = {*columns, *index}
        # anndata writes all tables but obs, and takes no slashes.
        slashes = part == "obs"
        good = {name for name in taken if (is_path(name, taken) if slashes else is_key(name))}
        names += [(f"{part} columns", name, name != "_index" and name in good) for name in columns]
        names += [(f"the index of {part}", name, name in good) for name in index]
    elements = [("varm", name) for name in opened.varm]
    elements += [(kind, name) for kind, _, name in (element.partition("/") for element in opened.matrices)]
    names += [(kind, name, is_key(name)) for kind, name in elements if kind not in ("X", "raw")]
    for kind, name, fine in names:
        if not fine:
            msg = f"{kind} of {opened.label} has the name {name!r}, under which nothing can be stored; rename it"
            raise ValueError(msg)


def is_key(name: str) -> bool:
    """Whether an element of an AnnData can be stored under a name."""
    return "/" not in name and is_path(name, set())


def is_path(name: str, others: set[str]) -> bool:
    """Whether something can be stored under a name; a slash in it makes a folder, which no other may be."""
    *folders, last = name.split("/")
    try:
        lengths = [len(part.encode()) for part in (*folders, last)]
    except UnicodeEncodeError:  # half a character
        return False
    # Zarr takes a backslash for a slash, and no file system knows names with a zero byte.
    return (
        not {"\\", "\0"} & set(name)
        and not _NO_NAMES & {*folders, last}
        and max(lengths) <= _LONGEST_FILE_NAME
        and sum(lengths) <= _LONGEST_PATH
        and others.isdisjoint("/".join(folders[:n]) for n in range(1, len(folders) + 1))
    )


def _n_columns(name: str, var: pd.DataFrame, raw_var: pd.DataFrame | None) -> int | None:
    """Number of columns a matrix must have to fit its var; None when it has none (obsm)."""
    if name.startswith("obsm/"):
        return None
    if name == "raw/X":
        return None if raw_var is None else len(raw_var)
    return len(var)


def agree(
    inputs: Sequence[Description],
    existing: Description | None,
    *,
    var_subset: Iterable[str] | None = None,
    extra_genes: Literal["error", "ignore"] = "error",
    merge: str | None = None,
    texts_of: Callable[[str, str], pd.Index[Any]] | None = None,
    skipped_is_fine: bool = False,
) -> Schema:
    """Find what all inputs, and the collection they are added to, can share.

    ``texts_of(label, column)`` gives the distinct values of a text column of an input, for a column that is categorical
    elsewhere; ``skipped_is_fine``: say nothing of elements that a collection cannot hold.
    """
    everything = [*inputs, existing] if existing is not None else list(inputs)
    matrices = _agree_matrices(inputs, existing, {} if skipped_is_fine else _skipped(inputs))
    subset = None if var_subset is None else list(dict.fromkeys(map(str, var_subset)))
    if existing is not None:
        var, varm, raw_var = existing.var, existing.varm, existing.raw_var
        _check_extra_genes(inputs, "var", var.index, subset, extra_genes)
        if raw_var is not None:
            _check_extra_genes(inputs, "raw.var", raw_var.index, None, extra_genes)
    else:
        var, varm = _merge_var([d.var for d in inputs], [d.varm for d in inputs], merge)
        if subset is not None:
            var, varm = _cut_var(var, varm, subset)
        raws = [d.raw_var for d in inputs if d.raw_var is not None]
        raw_var = _merge_var(raws, [{}] * len(raws), merge)[0] if "raw/X" in matrices else None
    widths = {"raw/X": 0 if raw_var is None else len(raw_var)}
    matrices = {
        name: m if name.startswith("obsm/") else MatrixType(m.is_sparse, m.dtype, (widths.get(name, len(var)),))
        for name, m in matrices.items()
    }
    names = {d.index_name for d in inputs}
    schema = Schema(
        _agree_obs(everything, texts_of), names.pop() if len(names) == 1 else None, matrices, var, varm, raw_var
    )
    _check_texts(schema)
    return schema


def _check_texts(schema: Schema) -> None:
    """Refuse labels, and text of genes, that files cannot hold."""
    found: dict[str, Any] = {f"categories of obs[{name!r}]": column.categories for name, column in schema.obs.items()}
    frames = {"var": schema.var, "raw.var": schema.raw_var}
    frames |= {f"varm[{name!r}]": value for name, value in schema.varm.items() if isinstance(value, pd.DataFrame)}
    for what, frame in frames.items():
        if frame is not None:
            found[f"names of {what}"] = frame.index
            for name in frame.columns:
                values: Any = frame[name].array
                found[f"{what}[{name!r}]"] = getattr(values, "categories", values)
    for what, values in found.items():
        if values is not None and values.dtype.kind not in "biufc":
            check_text(values, what)


def _agree_obs(
    inputs: Sequence[Description], texts_of: Callable[[str, str], pd.Index[Any]] | None
) -> dict[str, Column]:
    agreed: dict[str, Column] = {}
    for name in dict.fromkeys(name for d in inputs for name in d.obs):
        having = [d for d in inputs if name in d.obs]
        columns = [d.obs[name] for d in having]
        if {c.kind for c in columns} == {"text", "categorical"}:
            assert texts_of is not None  # with one input there is one kind
            columns = [
                Column("categorical", categories=texts_of(d.label, name)) if c.kind == "text" else c
                for d, c in zip(having, columns, strict=True)
            ]
        column = unify(columns, everywhere=len(having) == len(inputs))
        if column is None:
            first = having[0]
            other = next(
                (d for d in having[1:] if unify([first.obs[name], d.obs[name]], everywhere=True) is None), having[-1]
            )
            msg = (
                f"obs[{name!r}] clashes: {first.obs[name]} in {first.label}, {other.obs[name]} in {other.label}; "
                "make them alike with load_adata"
            )
            raise TypeError(msg)
        agreed[name] = column
    return agreed


def _skipped(inputs: Sequence[Description]) -> dict[str, str]:
    return {name: f"{reason} in {d.label}" for d in inputs for name, reason in d.skipped.items()}


def _agree_matrices(
    inputs: Sequence[Description], existing: Description | None, left_out: dict[str, str]
) -> dict[str, MatrixType]:
    everything = [*inputs, existing] if existing is not None else list(inputs)
    agreed: dict[str, MatrixType] = {}
    for name in dict.fromkeys(name for d in everything for name in d.matrices):
        having = [d for d in everything if name in d.matrices]
        missing = [d for d in everything if name not in d.matrices]
        if missing and (name == "X" or (existing is not None and name in existing.matrices)):
            msg = f"{name} is in {having[0].label}, but not in {missing[0].label}"
            raise ValueError(msg)
        if missing:
            left_out[name] = f"missing in {missing[0].label}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
            continue
        types = [d.matrices[name] for d in having]
        if name.startswith("obsm/") and len({t.row_shape for t in types}) > 1:
            shapes = sorted({str(t.row_shape) for t in types})
            if existing is not None and name in existing.matrices:
                msg = f"{name} has different shapes: {', '.join(shapes)}"
                raise ValueError(msg)
            left_out[name] = f"has different shapes: {', '.join(shapes)}"
            continue
        sparse = existing.matrices[name].is_sparse if existing is not None else any(t.is_sparse for t in types)
        dtype = np.result_type(*[d.matrices[name].dtype for d in inputs])
        agreed[name] = MatrixType(sparse, dtype, types[0].row_shape)
    if left_out:
        listed = "; ".join(f"{name} ({reason})" for name, reason in sorted(left_out.items()))
        warn_user(f"left out of the collection: {listed}")
    return agreed


def _merge_var(
    frames: Sequence[pd.DataFrame], varms: Sequence[Mapping[str, Any]], merge: str | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Outer join of var, by anndata's own rules."""
    import anndata as ad

    if len(frames) == 1:
        return frames[0], dict(varms[0])
    shells = [ad.AnnData(var=var, varm=dict(varm)) for var, varm in zip(frames, varms, strict=True)]
    joined = ad.concat(shells, join="outer", merge=merge)
    return joined.var, dict(joined.varm)


def _cut_var(var: pd.DataFrame, varm: Mapping[str, Any], subset: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    unknown = [name for name in subset if name not in var.index]
    if unknown:
        msg = f"var_subset: {len(unknown)} of {len(subset)} genes are in none of the inputs, e.g. {unknown[:5]}"
        raise KeyError(msg)
    keep = var.index.isin(subset)
    return var[keep], {name: value[keep] for name, value in varm.items()}


def _check_extra_genes(
    inputs: Sequence[Description],
    what: Literal["var", "raw.var"],
    known: pd.Index[Any],
    subset: Sequence[str] | None,
    extra_genes: Literal["error", "ignore"],
) -> None:
    extra: dict[str, str] = {}
    for d in inputs:
        frame = d.var if what == "var" else d.raw_var
        assert frame is not None
        names = frame.index if subset is None else frame.index.intersection(list(subset))
        extra |= dict.fromkeys(names.difference(known), d.label)
    if not extra:
        return
    some = list(extra)[:5]
    said = f"{len(extra)} genes of the inputs are not in {what} of the collection, e.g. {some}"
    if extra_genes == "error":
        msg = f'{said}; pass extra_genes="ignore" to leave them out, or name the genes you want in var_subset'
        raise ValueError(msg)
    warn_user(f"{said}; they are left out")
