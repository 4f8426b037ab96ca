"""One pass over the data: what it yields, and where its consumer stands."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .read_ahead import ReadAhead, in_order

if TYPE_CHECKING:
    from annbatch.abc import Sampler
    from annbatch.types import LoadRequest

    from .batches import BatchReader
    from .datasets import Table

__all__ = ["LoaderPass", "LoaderPosition", "loads"]


_STATE_VERSION = 1


@dataclass(frozen=True)
class LoaderPosition:
    """Where a consumer stands: `n_done` batches into the load request that `sampler` draws next from `state`."""

    sampler: Sampler
    state: dict[str, Any]
    n_done: int = 0

    def as_dict(self, table: Table) -> dict[str, Any]:
        """Return the state of a loader over `table`: plain data that survives JSON."""
        return {
            "version": _STATE_VERSION,
            "data": dict(table.fingerprint),
            "sampler": self.state,
            "n_batches_done_of_request": self.n_done,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], table: Table, sampler: Sampler) -> LoaderPosition:
        """Read a state, which must have been taken over the same data; the sampler checks its own part."""
        if not isinstance(state, dict):
            msg = f"state must be a dict made by state_dict, got {type(state).__name__}"
            raise TypeError(msg)
        if state.get("version") != _STATE_VERSION:
            msg = f"state must be a loader's, of version {_STATE_VERSION}, got version {state.get('version')!r}"
            raise ValueError(msg)
        ours, theirs = table.fingerprint, state.get("data")
        if ours != theirs:
            msg = f"state belongs to other data: it was taken with {theirs}, this loader has {ours}"
            raise ValueError(msg)
        n_done = state.get("n_batches_done_of_request")
        if not isinstance(n_done, int) or n_done < 0 or not isinstance(state.get("sampler"), dict):
            msg = f"state must be a dict made by state_dict, got one with n_batches_done_of_request={n_done!r}"
            raise ValueError(msg)
        return cls(sampler, state["sampler"], n_done)


Item: TypeAlias = tuple[Any, LoaderPosition]

# Comes after the last batch, to say where the sampler stands then: at the start of its next pass.
_END = object()


class _Owner(Protocol):
    def _moved(self, number: int, position: LoaderPosition) -> None: ...

    def _left_early(self) -> None: ...


class LoaderPass(Iterator[Any]):
    """The iterator that a loader hands out.

    Parameters
    ----------
    owner
        Told where the consumer stands after each batch, and when a pass is left before its end.
    number
        Number of the pass, for `owner`.
    source
        What :func:`loads` returns.
    prefetch
        Load requests to read ahead in a background thread; 0: read in the caller's.
    """

    _closed = True  # until it is fully made, so that the destructor of a half-made one does nothing

    def __init__(self, owner: _Owner, number: int, source: Generator[Iterable[Item]], prefetch: int) -> None:
        self._owner = owner
        self._number = number
        self._items: ReadAhead[Item] | Generator[Item] = ReadAhead(source, prefetch) if prefetch else in_order(source)
        self._process = os.getpid()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether batches may still come. A fork's copy of a pass is none of its own."""
        return not self._closed and self._process == os.getpid()

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        try:
            batch, position = next(self._items)
        except BaseException:
            self.close()
            raise
        self._owner._moved(self._number, position)  # noqa: SLF001 (the two belong together)
        if batch is _END:
            self._closed = True
            self._items.close()
            raise StopIteration
        return batch

    def close(self) -> None:
        """End the pass: stop the background thread and free what it has read."""
        if not self._closed:
            self._closed = True
            self._items.close()
            self._owner._left_early()  # noqa: SLF001

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            # Its own destructor waits for the thread, but not for ever.
            del self._items
            self._owner._left_early()  # noqa: SLF001


def loads(
    requests: Iterator[LoadRequest],
    reader: BatchReader,
    start: LoaderPosition,
    transform: Callable[[dict[str, Any]], Any] | None,
) -> Generator[Iterable[Item]]:
    """Yield the batches of each load request, every batch with the position that follows it.

    The state of the sampler before it draws a request describes that request. So a position is that state and the number
    of batches done of the request, and does not depend on how many requests were drawn since.
    """
    position, sampler = start, start.sampler
    try:
        for request in requests:
            following = LoaderPosition(sampler, sampler.state_dict())
            yield _load(request, reader, position, following, transform)
            position = following
        yield [(_END, LoaderPosition(sampler, sampler.state_dict()))]
    finally:
        if hasattr(requests, "close"):
            requests.close()


def _load(
    request: LoadRequest,
    reader: BatchReader,
    position: LoaderPosition,
    following: LoaderPosition,
    transform: Callable[[dict[str, Any]], Any] | None,
) -> Iterator[Item]:
    n_batches, skip = len(request["splits"]), position.n_done
    if skip > n_batches:
        msg = f"state says that {skip} batches of a load request are done, but it has {n_batches}; it belongs to other data"
        raise ValueError(msg)
    for n_done, batch in enumerate(reader.batches(request, skip), skip + 1):
        made = batch if transform is None else transform(batch)
        yield made, following if n_done == n_batches else replace(position, n_done=n_done)
