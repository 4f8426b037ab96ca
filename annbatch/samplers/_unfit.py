"""What a view has in the place of a sampler that cannot follow its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ._base import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from annbatch.types import LoadRequest

__all__ = ["UnfitSampler"]


class UnfitSampler(Sampler):
    """Says what to do instead, when it is first asked for anything about rows.

    Parameters
    ----------
    original
        The sampler that knows something of each of the rows that it was made for.
    """

    def __init__(self, original: Sampler) -> None:
        self._name = type(original).__name__
        self._batch_size, self._shuffle = original.batch_size, original.shuffle

    @property
    def batch_size(self) -> int | None:
        """Rows per batch of the original."""
        return self._batch_size

    @property
    def shuffle(self) -> bool:
        """Whether the original shuffles."""
        return self._shuffle

    def n_batches(self, n_obs: int) -> NoReturn:
        """Raise ValueError."""
        self.validate(n_obs)

    def validate(self, n_obs: int) -> NoReturn:
        """Raise ValueError."""
        msg = (
            f"batch_sampler must be given for a view of other rows than those whose classes the {self._name} of the loader knows, "
            f"got none; make one of the view's own: view.subset(slice(None), batch_sampler={self._name}(..., "
            "classes=view.obs([column])[column].values))"
        )
        raise ValueError(msg)

    def _sample(self, n_obs: int) -> Iterator[LoadRequest]:
        self.validate(n_obs)

    def __repr__(self) -> str:
        return f"<no sampler: {self._name} has classes of other rows>"
