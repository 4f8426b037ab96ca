"""The two dictionaries that travel through annbatch: what a sampler asks for, and what a loader hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["LoadRequest", "LoaderOutput"]


class LoadRequest(TypedDict):
    """Rows to read in one go, and how to cut them into batches.

    Attributes
    ----------
    requests
        The rows to read: a list of slices (half open, step 1, global row numbers) or an integer array of global row
        numbers. The order matters: it defines the positions that ``splits`` refers to.
    splits
        One integer array per batch. The number ``j`` in a split is the ``j``-th row of ``requests`` concatenated in
        the order given. Rows that are in no split are not yielded.

    Notes
    -----
    Neither entry changes after it was handed out. A sampler that leaves ``splits`` out gets them from
    :meth:`annbatch.abc.Sampler.sample`.
    """

    requests: list[slice] | np.ndarray
    splits: NotRequired[list[np.ndarray]]


class LoaderOutput(TypedDict):
    """A batch.

    Attributes
    ----------
    X
        The matrix of the batch, ``n_rows x n_var``, in the format that the loader was asked for; None with ``x=False``.
    obs
        Annotations of the rows, row-aligned with ``X``, or None when the data has none. A copy.
    var
        Annotations of the variables, or None when the data has none. A copy: changing it changes no other batch.
    index
        Global row numbers (int64, of the kind that `to` names), or None unless ``return_index=True``.
    labels
        Codes of labels (int64) by obs column; present when the loader was asked for them.
    covariates
        float32, one row per row and one column per covariate; present when the loader was asked for them.
    library_size
        Total of each row (float32), before scaling; present when the loader was asked for it.
    layers, obsm
        Row-aligned matrices by key; present when the loader was asked for them.
    """

    X: Any
    obs: pd.DataFrame | None
    var: pd.DataFrame | None
    index: Any
    labels: NotRequired[dict[str, Any]]
    covariates: NotRequired[Any]
    library_size: NotRequired[Any]
    layers: NotRequired[dict[str, Any]]
    obsm: NotRequired[dict[str, Any]]
