"""What will be read when data are opened: said once, so that it can be fetched together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Needs"]


class Needs:
    """What will be read of an AnnData group when it is opened.

    Attributes
    ----------
    frames
        By name, ``obs`` or ``var``: the columns, or None for all.
    matrices
        Paths of matrices, such as ``"X"`` and ``"layers/counts"``.
    without_index
        Frames whose row names are not read.
    """

    def __init__(
        self,
        frames: Mapping[str, Sequence[str] | None],
        matrices: Sequence[str],
        without_index: Sequence[str] = (),
    ) -> None:
        self.frames, self.matrices, self.without_index = dict(frames), list(matrices), without_index
