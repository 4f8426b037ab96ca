"""How a request to a far store can go wrong."""

from __future__ import annotations

__all__ = ["Abandoned", "ChangedError", "TransientError"]


class TransientError(Exception):
    """Worth another try: a time-out, a busy server, a connection that was cut, an answer that does not fit the question."""


class ChangedError(Exception):
    """The object is not the one that was looked at before."""


class Abandoned(BaseException):
    """Whoever wanted the bytes does not want them any more."""
