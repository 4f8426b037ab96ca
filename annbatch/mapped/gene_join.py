"""Which column of which file holds which gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from annbatch._shared.gene_names import check_known, check_unique, join_names

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
        Keep just these of the joint genes, in this order; distinct.

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
            check_unique(names, path)
        # Files of the same genes share one Index: each is gone through once.
        joint = join_names(list({id(names): names for names in var_list}.values()), how)
        if not len(joint):
            msg = f'join="inner": no gene is in all {n_files} files; use join="outer" to keep the genes of every file'
            raise ValueError(msg)
    if var_names is not None:
        if joint is None:
            msg = f'var_names needs join="inner" or join="outer": the genes of {paths[differ[0]]} and {paths[0]} differ'
            raise ValueError(msg)
        check_unique(joint, paths[0])
        wanted: pd.Index[Any] = pd.Index(list(var_names), dtype=object)
        check_known(wanted, joint, how if differ else None)
        joint = wanted
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


def _places(names: pd.Index[Any], wanted: pd.Index[Any]) -> np.ndarray:
    return np.asarray(names.get_indexer(wanted), dtype=np.int64)
