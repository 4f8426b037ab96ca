"""Warnings that point to the line of the caller, however deep in a build they come up."""

from __future__ import annotations

import warnings

from annbatch._shared.args import levels_to_user


def warn_user(text: str) -> None:
    """Tell the caller of this package something that is no error."""
    warnings.warn(text, UserWarning, stacklevel=levels_to_user())
