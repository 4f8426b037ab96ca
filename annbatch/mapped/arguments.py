"""Arguments of MappedCollection, checked."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from annbatch._shared.args import as_keys, as_paths, levels_to_user
from annbatch._shared.row_filter import as_conditions
from annbatch.storage import is_url

__all__ = ["as_encoded_keys", "as_filter", "as_path_list", "as_scaler", "as_unknown_labels", "check_distinct"]


def as_path_list(path_list: Any) -> list[Path | str]:
    """Return at least one path; URLs stay text."""
    paths = [str(path) if is_url(path) else Path(path) for path in as_paths("path_list", path_list)]
    if not paths:
        msg = "path_list must hold at least one path, got none"
        raise ValueError(msg)
    return paths


def as_filter(obs_filter: Any) -> dict[str, list[Any]]:
    """Return the conditions of a filter; a pair of a column and values is how they were given before."""
    if isinstance(obs_filter, (tuple, list)) and len(obs_filter) == 2 and isinstance(obs_filter[0], str):
        column, values = obs_filter
        warnings.warn(
            f"obs_filter=({column!r}, ...) is deprecated: pass obs_filter={{{column!r}: ...}}",
            DeprecationWarning,
            stacklevel=levels_to_user(),
        )
        obs_filter = {column: values}
    return as_conditions("obs_filter", obs_filter)


def check_distinct(layers_keys: list[str], obs_keys: list[str], obsm_keys: list[str]) -> None:
    """Refuse keys that would take each other's place in a sample."""
    names = [*layers_keys, *obs_keys, *(f"obsm_{key}" for key in obsm_keys), "_store_idx"]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        msg = f"layers_keys, obs_keys and obsm_keys must give each sample different keys, got {repeated} more than once"
        raise ValueError(msg)


def as_encoded_keys(encode_labels: Any, obs_keys: list[str]) -> list[str]:
    """Return which of `obs_keys` become integers: all, none, or those that are listed."""
    if isinstance(encode_labels, bool | np.bool_):
        return list(obs_keys) if encode_labels else []
    keys = [] if encode_labels is None else list(as_keys("encode_labels", encode_labels))
    unknown = [key for key in keys if key not in obs_keys]
    if unknown:
        msg = f"encode_labels must be True, False or a list of obs_keys {obs_keys}, got {unknown}"
        raise ValueError(msg)
    return keys


def as_unknown_labels(unknown_label: Any, encoded: list[str]) -> dict[str, Any]:
    """Return the label of each key that gets -1."""
    if unknown_label is None:
        return {}
    if not hasattr(unknown_label, "items"):
        unknown_label = dict.fromkeys(encoded, unknown_label)
    not_encoded = [key for key in unknown_label if key not in encoded]
    if not_encoded:
        msg = f"unknown_label: the keys must be encoded keys {encoded}, got {not_encoded}"
        raise ValueError(msg)
    for label in unknown_label.values():
        if not isinstance(label, Hashable):
            msg = f"unknown_label must be a label, or a dict of one label per key, got {label!r} for a label"
            raise TypeError(msg)
    return dict(unknown_label)


def as_scaler(scaler: Any) -> float | None:
    """Return None or a number > 0."""
    if scaler is not None and not scaler > 0:
        msg = f"scaler must be None or > 0, got {scaler}"
        raise ValueError(msg)
    return None if scaler is None else float(scaler)
