"""The rules by which variables are matched by name: the same in Loader and in MappedCollection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_known", "check_unique", "join_names", "some"]


def join_names(many: Sequence[pd.Index[Any]], how: str) -> pd.Index[Any]:
    """Join names that differ.

    Parameters
    ----------
    many
        Distinct names of each kind of file, the first file's first.
    how
        "inner": the shared names, in the order of the first. "outer": all names, sorted, as anndata.concat does.
    """
    if how == "inner":
        keep = np.ones(len(many[0]), dtype=bool)
        for names in many[1:]:
            keep &= np.asarray(many[0].isin(names))
        shared: pd.Index[Any] = many[0][keep]
        return shared
    union: pd.Index[Any] = pd.Index(sorted(set().union(*many)), dtype=object)
    return union


def check_unique(names: pd.Index[Any], where: str) -> None:
    """Refuse names that cannot be matched because they repeat."""
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        msg = f"var names must be unique to be aligned, got {some(twice)} more than once in {where}"
        raise ValueError(msg)


def check_known(wanted: pd.Index[Any], joined: pd.Index[Any], how: str | None) -> None:
    """Refuse names to yield that are not among the joined ones."""
    unknown = wanted[~wanted.isin(joined)]
    if len(unknown):
        of = "names that all files share (join='inner')" if how == "inner" else "names of the data"
        msg = f"var_names must be {of}, got {len(unknown)} unknown ones: {some(unknown)}"
        if len(unknown) == len(wanted):
            # Most likely names of another kind, symbols for identifiers.
            msg += f". All of them are unknown; the names there look like {some(joined)}"
        raise KeyError(msg)


def some(names: pd.Index[Any]) -> str:
    """Return a few of the names, for an error text."""
    return ", ".join(repr(str(name)) for name in names[:3]) + (", ..." if len(names) > 3 else "")
