"""Which column of which file holds which gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GeneJoin", "join_genes"]


@dataclass(frozen=True)
class GeneJoin:
    """Genes of many files brought to one order.

    Attributes
    ----------
    how
        "inner" or "outer" when columns have to move, None when every row is taken as it lies in its file.
    names
        The joint genes; None when the files differ and are not joined.
    sources
        One int64 array per file: for each joint gene the column of the file that holds it, -1 where the file lacks it.
        None for a file whose genes are the joint genes.
    targets
        One int64 array per file: for each column of the file its place among the joint genes, -1 where it is left out.
        None for a file whose genes are the joint genes.
    """

    how: Literal["inner", "outer"] | None
    names: pd.Index[Any] | None
    sources: list[np.ndarray | None]
    targets: list[np.ndarray | None]


def join_genes(
    var_list: Sequence[pd.Index[Any]],
    paths: Sequence[str],
    how: Literal["inner", "outer"] | None,
    var_names: Sequence[str] | None = None,
) -> GeneJoin:
    """Find the joint genes and where each file has them.

    Parameters
    ----------
    var_list
        Gene names of each file.
    paths
        Name of each file, for error texts.
    how
        "inner" (shared genes in the order of the first file), "outer" (all genes; sorted when the files differ) or None
        (every file as it is).
    var_names
        Keep just these of the joint genes, in this order.

    Raises
    ------
    KeyError
        If ``var_names`` holds a name that is no joint gene.
    ValueError
        If no gene is shared, if names repeat where columns have to move, or if ``var_names`` is asked for where genes
        differ and are not joined.
    """
    first = var_list[0]
    differ = [number for number, names in enumerate(var_list) if not (names is first or names.equals(first))]
    n_files = len(var_list)
    if not differ:
        joint: pd.Index[Any] | None = first
    elif how is None:
        joint = None
    else:
        for names, path in zip(var_list, paths, strict=True):
            _check_unique(names, path)
        joint = _shared(var_list) if how == "inner" else _union(var_list)
        if not len(joint):
            msg = f'join="inner": no gene is in all {n_files} files; use join="outer" to keep the genes of every file'
            raise ValueError(msg)
    if var_names is not None:
        if joint is None:
            msg = f'var_names needs join="inner" or join="outer": the genes of {paths[differ[0]]} and {paths[0]} differ'
            raise ValueError(msg)
        _check_unique(joint, paths[0])
        joint = _chosen(joint, var_names, how if differ else None)
    if joint is None or (joint is first and not differ):
        return GeneJoin(None, joint, [None] * n_files, [None] * n_files)

    places: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}
    for names in var_list:
        if id(names) not in places:
            same = names.equals(joint)
            places[id(names)] = (None, None) if same else (_places(names, joint), _places(joint, names))
    return GeneJoin(
        how or "inner",
        joint,
        [places[id(names)][0] for names in var_list],
        [places[id(names)][1] for names in var_list],
    )


def _shared(var_list: Sequence[pd.Index[Any]]) -> pd.Index[Any]:
    keep = np.ones(len(var_list[0]), dtype=bool)
    for names in {id(names): names for names in var_list[1:]}.values():
        keep &= np.asarray(var_list[0].isin(names))
    shared: pd.Index[Any] = var_list[0][keep]
    return shared


def _union(var_list: Sequence[pd.Index[Any]]) -> pd.Index[Any]:
    distinct = {id(names): names for names in var_list}
    union: pd.Index[Any] = pd.Index(sorted(set().union(*distinct.values())), dtype=object)
    return union


def _chosen(joint: pd.Index[Any], var_names: Sequence[str], how: str | None) -> pd.Index[Any]:
    chosen: pd.Index[Any] = pd.Index(list(var_names), dtype=object)
    repeated = chosen[chosen.duplicated()]
    if len(repeated):
        msg = f"var_names must not repeat a name, got {_some(repeated)} more than once"
        raise ValueError(msg)
    unknown = chosen[~chosen.isin(joint)]
    if len(unknown):
        where = "the files" if how is None else "the genes that all files share" if how == "inner" else "any file"
        msg = f"var_names: {len(unknown)} of {len(chosen)} names are not in {where}: {_some(unknown)}"
        raise KeyError(msg)
    return chosen


def _places(names: pd.Index[Any], wanted: pd.Index[Any]) -> np.ndarray:
    return np.asarray(names.get_indexer(wanted), dtype=np.int64)


def _check_unique(names: pd.Index[Any], path: str) -> None:
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        msg = (
            f"{path} has gene names that repeat ({_some(repeated)}), so its columns cannot be matched with other files"
        )
        raise ValueError(msg)


def _some(names: pd.Index[Any]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
