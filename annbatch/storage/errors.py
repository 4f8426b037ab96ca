"""What storage raises when the bytes on disk cannot be what was written."""

from __future__ import annotations

__all__ = ["CorruptDataError"]


class CorruptDataError(ValueError):
    """Stored data are damaged or contradict themselves.

    The message names the file, the array in it and, where it applies, the chunk. Nothing was returned for the request
    in which it happened.
    """
