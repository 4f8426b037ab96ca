"""Sides of a division of rows (training, validation, test): what was asked for, what came out, and the way from one to the other."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from annbatch._shared.args import as_names
from annbatch._shared.labels import is_missing
from annbatch._shared.row_filter import as_conditions, passing

from .allot import Groups, allot_groups, allot_rows, count_codes, group_rows, look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .views import View

    LabelsOf: TypeAlias = Callable[[str, str], tuple[np.ndarray, Any]]

__all__ = ["Division", "Sides", "WantedSides", "as_wanted_sides", "divide", "side_of_rows"]

# What is left of 1 when fractions were written with a few digits (0.333) is a slip; what is left by binary rounding is not.
_TOLERANCE = Fraction(1, 10**6)

# -- what was asked for


@dataclass(frozen=True)
class WantedSides:
    """The sides of a division as they were asked for.

    Attributes
    ----------
    names
        All sides, in the order given.
    conditions
        ``{side: {column: [values]}}`` of the sides that name their rows.
    fractions
        ``{side: fraction}`` of the others: of the rows that no condition takes; exact, their sum is 1.
    """

    names: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, list[Any]]]
    fractions: Mapping[str, Fraction]


def as_wanted_sides(sides: Any) -> WantedSides:
    """Check what was passed to :meth:`annbatch.Loader.split`.

    Raises
    ------
    TypeError, ValueError
        As there.
    """
    if not hasattr(sides, "items"):
        msg = f"sides must be a dict of name: fraction, or name: {{column: values}}, got {sides!r} ({type(sides).__name__})"
        raise TypeError(msg)
    conditions: dict[str, dict[str, list[Any]]] = {}
    fractions: dict[str, Fraction] = {}
    rest = []
    for name, side in sides.items():
        if not isinstance(name, str):
            msg = f"sides must have names, got {name!r} ({type(name).__name__})"
            raise TypeError(msg)
        if side is Ellipsis:
            rest.append(name)
        elif hasattr(side, "items"):
            conditions[name] = as_conditions(f"sides[{name!r}]", side)
            if not conditions[name]:
                msg = f"sides[{name!r}] must name at least one column, got {side!r}; pass ... for all rows of no other side"
                raise ValueError(msg)
        else:
            fractions[name] = _as_fraction(name, side)
    if not sides:
        msg = "sides must hold at least one side, got none"
        raise ValueError(msg)
    if len(rest) > 1:
        msg = f"sides must leave the rest (...) to one side, got {rest}"
        raise ValueError(msg)
    total = sum(fractions.values(), Fraction(0))
    if rest:
        if total >= 1:
            msg = f"sides must leave something to {rest[0]!r}, got fractions that add up to {float(total):g}"
            raise ValueError(msg)
        fractions[rest[0]] = 1 - total
    elif fractions:
        if abs(total - 1) > _TOLERANCE:
            what = "of the rows that no condition takes " if conditions else ""
            msg = f"sides must have fractions {what}that add up to 1, got {float(total):g}; pass ... for a side that takes the rest"
            raise ValueError(msg)
        fractions = {name: fraction / total for name, fraction in fractions.items()}
    # In the order in which they were given.
    return WantedSides(tuple(sides), conditions, {name: fractions[name] for name in sides if name in fractions})


def _as_fraction(name: str, value: Any) -> Fraction:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        msg = f"sides[{name!r}] must be a fraction, {{column: values}}, or ... for the rest, got {value!r} ({type(value).__name__})"
        raise TypeError(msg)
    number = float(value)
    if not 0 < number <= 1:
        msg = f"sides[{name!r}] must be a fraction > 0 and <= 1, got {value}"
        raise ValueError(msg)
    # 0.1 means one tenth, not the binary number next to it.
    return Fraction(number).limit_denominator(10**9) if number >= 10**-6 else Fraction(number)


class Sides(dict[str, Any]):
    """What :meth:`annbatch.Loader.split` returns: a dict of its loaders by side, and what became of the fractions.

    Attributes
    ----------
    fractions
        ``{side: fraction}`` of the rows that each side has.
    groups
        ``{side: [labels]}`` of the groups on each side, as `by` names them (tuples for several columns); None without `by`.
        A missing label is numpy.nan.
    """

    def __init__(
        self, loaders: Mapping[str, Any], fractions: Mapping[str, float], groups: Mapping[str, list[Any]] | None = None
    ) -> None:
        super().__init__(loaders)
        self.fractions = dict(fractions)
        self.groups = None if groups is None else dict(groups)

    def __reduce__(self) -> tuple[Any, ...]:
        return Sides, (dict(self), self.fractions, self.groups)

    def __repr__(self) -> str:
        sides = []
        for name, loader in self.items():
            of_groups = "" if self.groups is None else f" in {len(self.groups[name])} groups"
            sides.append(f"{name}: {loader.n_obs} rows ({self.fractions[name]:.4g}){of_groups}")
        return f"Sides({', '.join(sides)})"


# -- which rows go where


class Division(NamedTuple):
    """What became of a division.

    Attributes
    ----------
    side
        Per row the number of its side, in the order of their names.
    groups
        ``{side: [labels]}``; None without `by`.
    """

    side: np.ndarray
    groups: dict[str, list[Any]] | None


def divide(
    sides: WantedSides,
    view: View,
    labels_of: LabelsOf,
    by: str | Sequence[str] | None,
    stratify: str | Sequence[str] | None,
    rng: np.random.Generator,
) -> Division:
    """Give every row of a view a side; arguments and errors as for :meth:`annbatch.Loader.split`.

    Parameters
    ----------
    sides
        What was asked for.
    view
        The rows.
    labels_of
        Returns the codes (-1: missing) of a column, one per row, and the sorted labels that they number. Its second argument
        is the parameter that names the column, for error texts.
    by, stratify, rng
        As there.
    """
    named = _grouped("by", by, labels_of)
    groups = named
    if groups is None and view.repeats:
        # Copies of a row are a group, or they would be on both sides.
        rows, codes = np.unique(view.take(np.arange(view.n_obs)), return_inverse=True)
        groups = Groups(codes.reshape(-1), rows.tolist())
    taken = {name: _taken(name, conditions, view.n_obs, labels_of) for name, conditions in sides.conditions.items()}
    side = side_of_rows(sides, view.n_obs, taken, rng, groups, _grouped("stratify", stratify, labels_of))
    if named is None:
        return Division(side, None)
    of_group = np.empty(len(named.labels), dtype=side.dtype)
    of_group[named.codes] = side
    on_side = [np.flatnonzero(of_group == number).tolist() for number in range(len(sides.names))]
    labels = [[named.labels[group] for group in on] for on in on_side]
    return Division(side, dict(zip(sides.names, labels, strict=True)))


def _grouped(parameter: str, columns: str | Sequence[str] | None, labels_of: LabelsOf) -> Groups | None:
    if columns is None:
        return None
    names = (columns,) if isinstance(columns, str) else as_names(parameter, columns)
    if not names:
        msg = f"{parameter} must name at least one column, got none; pass None"
        raise ValueError(msg)
    return group_rows([labels_of(name, parameter) for name in names])


def _taken(side: str, conditions: Mapping[str, Sequence[Any]], n_rows: int, labels_of: LabelsOf) -> np.ndarray:
    """Where all conditions hold."""
    taken = np.ones(n_rows, dtype=bool)
    for column, values in conditions.items():
        parameter = f"sides[{side!r}]"
        codes, labels = labels_of(column, parameter)
        occurring = np.flatnonzero(count_codes(codes.astype(np.int32) + 1, len(labels) + 1)) - 1
        absent = [value for value in values if not passing(occurring, labels, [value]).any()]
        if absent:
            # A slip of the pen would leave that donor in another side.
            there = _label_names([labels[code] for code in occurring.tolist() if code >= 0]) or "none"
            msg = (
                f"{parameter}[{column!r}] must name values that occur, got {_label_names(absent)}, which no row has; "
                f"there is {there}"
            )
            raise ValueError(msg)
        taken &= passing(codes, labels, values)
    return taken


def side_of_rows(
    sides: WantedSides,
    n_rows: int,
    taken: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    groups: Groups | None = None,
    strata: Groups | None = None,
) -> np.ndarray:
    """Give every row a side.

    Parameters
    ----------
    sides
        What was asked for.
    n_rows
        Number of rows.
    taken
        Booleans, one per row: which rows each side takes by its conditions.
    rng
        Source of chance.
    groups, strata
        Groups that must not be cut, and labels whose shares every side should keep.

    Returns
    -------
    ndarray
        Per row the number of its side (int16), in the order of their names.

    Raises
    ------
    ValueError
        When a side would be empty, two sides take the same row, a row is in no side, or conditions cut a group.
    """
    side = np.full(n_rows, -1, dtype=np.int16)
    for number, name in enumerate(sides.names):
        if name in taken:
            twice = taken[name] & (side >= 0)
            if twice.any():
                other = sides.names[side[twice.argmax()]]
                msg = f"sides must not take the same rows, got {int(twice.sum())} that are in {other!r} and in {name!r}"
                raise ValueError(msg)
            if not taken[name].any():
                msg = f"sides[{name!r}] must not be empty, got no row for which {sides.conditions[name]!r} holds"
                raise ValueError(msg)
            side[taken[name]] = number
    left = side < 0
    if groups is not None and taken:
        _check_whole(groups, side, sides.names)
    if not sides.fractions:
        if left.any():
            msg = f"sides must take all rows, got {int(left.sum())} of {n_rows} that are in none; pass ... for a side that takes the rest"
            raise ValueError(msg)
        return side
    fractions = list(sides.fractions.values())
    n_left = int(np.count_nonzero(left))
    if n_left and taken:
        groups, strata = (None if each is None else each.only(left) for each in (groups, strata))
    if groups is None or n_left == 0:
        of_left = allot_rows(n_left, fractions, rng, strata if n_left else None)
    elif len(groups.labels) < len(fractions):
        msg = f"by must name at least as many groups as there are sides, got {len(groups.labels)} groups for {list(sides.fractions)}"
        raise ValueError(msg)
    else:
        of_left = look_up(allot_groups(groups, fractions, rng, strata), groups.codes)
    counts = count_codes(of_left, len(fractions))
    for name, count in zip(sides.fractions, counts.tolist(), strict=True):
        if count == 0:
            msg = f"sides[{name!r}] must not be empty, got {float(sides.fractions[name]):g} of {n_left} rows"
            raise ValueError(msg)
    numbers_of_sides = np.array([sides.names.index(name) for name in sides.fractions], dtype=np.int16)
    side[left] = look_up(numbers_of_sides, of_left)
    return side


def _check_whole(groups: Groups, side: np.ndarray, names: Sequence[str]) -> None:
    n_places = len(names) + 1
    place = groups.codes.astype(np.int64) * n_places + side + 1
    cut = (np.bincount(place, minlength=len(groups.labels) * n_places).reshape(-1, n_places) > 0).sum(axis=1) > 1
    if cut.any():
        labels = _label_names([groups.labels[number] for number in np.flatnonzero(cut).tolist()])
        msg = f"sides must not cut the groups of `by`, but the conditions put some rows of {labels} on one side and some on another"
        raise ValueError(msg)


def _label_names(labels: Sequence[Any], most: int = 5) -> str:
    """Name some labels, for an error text."""
    shown = ["missing" if is_missing(label) else repr(label) for label in labels[:most]]
    return ", ".join(shown) + (f" and {len(labels) - most} more" if len(labels) > most else "")
