"""Arguments of MappedCollection, checked."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from annbatch._shared.args import as_bool, as_keys, as_names, levels_to_user
from annbatch._shared.row_filter import as_conditions
from annbatch.storage import StoredObject, as_places, is_url
from annbatch.storage.reading.median import as_normalize_total

__all__ = [
    "as_encoded_keys",
    "as_filter",
    "as_path_list",
    "as_scale",
    "as_scaled_keys",
    "as_scaler",
    "as_unknown_labels",
    "check_distinct",
]


def as_path_list(path_list: Any) -> list[Path | str | StoredObject]:
    """Return at least one path; URLs stay text."""
    paths = [
        place if isinstance(place, StoredObject) else str(place) if is_url(place) else Path(place)
        for place in as_places("path_list", path_list)
    ]
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


def as_scale(normalize_total: Any, log1p: Any, library_size: Any) -> tuple[Any, bool, bool]:
    """Return what is done to values: the total of a row (a number, "median" or None), whether the logarithm is taken.

    And whether samples carry the total that there was.
    """
    return as_normalize_total(normalize_total), as_bool("log1p", log1p), as_bool("library_size", library_size)


def as_scaled_keys(normalize_layers: Any, layers_keys: list[str], *, is_used: bool, missing: list[str]) -> list[str]:
    """Return which of `layers_keys` are scaled; `missing` are keys that were asked for but are in no file."""
    if not is_used:
        if normalize_layers is not None:
            msg = "normalize_layers needs normalize_total, log1p or library_size, got none of them"
            raise ValueError(msg)
        return []
    wanted = ["X"] if normalize_layers is None else list(as_names("normalize_layers", normalize_layers))
    unread = [key for key in wanted if key not in layers_keys and key not in missing]
    if unread or not wanted:
        msg = f"normalize_layers must be among layers_keys {layers_keys}, got {unread}"
        raise ValueError(msg)
    return [key for key in wanted if key in layers_keys]


def check_distinct(layers_keys: list[str], obs_keys: list[str], obsm_keys: list[str], *, library_size: bool) -> None:
    """Refuse keys that would take each other's place in a sample."""
    names = [*layers_keys, *obs_keys, *(f"obsm_{key}" for key in obsm_keys), "_store_idx"]
    names += ["library_size"] if library_size else []
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
