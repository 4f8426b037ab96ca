"""Counts in a model's scale: what is done to values, and the totals that it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annbatch.storage.sources import MatrixSource

__all__ = ["Scale", "check_real_matrix"]


@dataclass(frozen=True, slots=True)
class Scale:
    """What is done to the values of a row while it is read.

    With the total of a row, over **all** its stored values and in the order of the store, a stored value ``v`` becomes
    ``v / total * target_sum`` (as it is where the total is 0), and then ``log(1 + v)``: the results of
    ``scanpy.pp.normalize_total(target_sum=...)`` and ``scanpy.pp.log1p`` on the stored matrix, to a relative 1e-6. Each stored
    value is scaled for itself, also where a column occurs twice in a row, as scanpy does.

    Parameters
    ----------
    target_sum
        What the values of a row add up to before the logarithm, greater than 0 and finite. None: they are not normalised.
    log1p
        Whether the logarithm is taken.

    Raises
    ------
    TypeError
        ``target_sum`` is no number.
    ValueError
        ``target_sum`` is not greater than 0, or not finite.

    Examples
    --------
    >>> from annbatch import storage
    >>> storage.Scale(target_sum=1e4, log1p=True)
    Scale(target_sum=10000.0, log1p=True)
    """

    target_sum: float | None = None
    log1p: bool = False

    def __post_init__(self) -> None:
        """Check ``target_sum``."""
        if self.target_sum is None:
            return
        if isinstance(self.target_sum, bool | str):
            msg = f"target_sum must be a number or None, got {self.target_sum!r}"
            raise TypeError(msg)
        try:
            target_sum = float(self.target_sum)
        except (TypeError, ValueError):
            msg = f"target_sum must be a number or None, got {self.target_sum!r}"
            raise TypeError(msg) from None
        if not 0 < target_sum < math.inf:
            msg = f"target_sum must be greater than 0 and finite, got {self.target_sum}"
            raise ValueError(msg)
        object.__setattr__(self, "target_sum", target_sum)

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return self.target_sum is not None or self.log1p


def check_real_matrix(source: MatrixSource) -> None:
    """Raise TypeError for complex values and ValueError for more than two dimensions: such rows have no total."""
    if source.dtype.kind == "c":
        msg = f"{source.location} must hold real numbers to be added up or scaled, got {source.dtype}"
        raise TypeError(msg)
    if len(source.shape) != 2:
        msg = f"{source.location} must have two dimensions to be added up or scaled, got shape {source.shape}"
        raise ValueError(msg)
