"""One object for all that are equal: hundreds of inputs mostly have the same genes and the same labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd

    from .columns import Column
    from .schema import Description

T = TypeVar("T", "pd.DataFrame", "pd.Index[Any]")


class Interned:
    """Frames and indexes that were seen."""

    def __init__(self) -> None:
        self._seen: dict[Any, list[Any]] = {}

    def description(self, description: Description) -> Description:
        """The same, made of what was seen before where that is equal."""
        return replace(
            description,
            obs={name: self._column(column) for name, column in description.obs.items()},
            var=self.one(description.var),
            raw_var=None if description.raw_var is None else self.one(description.raw_var),
        )

    def one(self, value: T) -> T:
        """An equal one that was seen before, or this one."""
        same_kind = self._seen.setdefault((type(value), value.shape), [])
        for seen in same_kind:
            if _are_same(seen, value):
                return seen  # type: ignore[no-any-return]
        same_kind.append(value)
        return value

    def _column(self, column: Column) -> Column:
        return column if column.categories is None else replace(column, categories=self.one(column.categories))


def _are_same(a: Any, b: Any) -> bool:
    names = (a.index.name, b.index.name) if hasattr(a, "index") else (a.name, b.name)
    return bool(names[0] == names[1] and a.equals(b) and _dtypes(a) == _dtypes(b))


def _dtypes(value: Any) -> Any:
    return value.dtypes.to_list() if hasattr(value, "dtypes") and hasattr(value, "columns") else value.dtype
