"""Reading obs and var."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["read_frame"]


def read_frame(elem: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a data frame of a zarr or h5 group, or only some of its columns."""
    import anndata as ad  # type: ignore[import-untyped]

    frame: pd.DataFrame = ad.io.read_elem(elem)
    return frame if columns is None else frame[list(columns)]
