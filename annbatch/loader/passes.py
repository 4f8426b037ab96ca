"""One pass over the data: what it yields, and where its consumer stands."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from annbatch.storage import tell_untold

from .device import HandOver
from .read_ahead import InOrder, ReadAhead

if TYPE_CHECKING:
    from concurrent.futures import Future

    from annbatch.abc import Sampler
    from annbatch.storage import Cancel
    from annbatch.types import LoaderOutput, LoadRequest

    from .batches import BatchReader

__all__ = ["LoaderPass", "LoaderPosition", "loads"]


_STATE_VERSION = 1


@dataclass(frozen=True)
class LoaderPosition:
    """Where a consumer stands: `n_done` batches into the load request that `sampler` draws next from `state`."""

    sampler: Sampler
    state: dict[str, Any]
    n_done: int = 0

    def as_dict(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a loader over `data`, told by its fingerprint: plain data that survives JSON."""
        return {
            "version": _STATE_VERSION,
            "data": data,
            "sampler": self.state,
            "n_batches_done_of_request": self.n_done,
        }

    def stands_where(self, other: LoaderPosition) -> bool:
        """Whether both are at the same load request of the same pass of one sampler."""
        same = all(self.state.get(key) == other.state.get(key) for key in ("pass", "request"))
        return self.sampler is other.sampler and same

    def taken_up(self) -> LoaderPosition:
        """Return this position as the sampler sees it that has loaded its state: other ranks may have stood there."""
        n_done = self.sampler._batches_to_skip(self.n_done)  # noqa: SLF001
        return self if n_done == self.n_done else LoaderPosition(self.sampler, self.sampler.state_dict(), n_done)

    @classmethod
    def from_dict(cls, state: dict[str, Any], data: dict[str, Any], sampler: Sampler) -> LoaderPosition:
        """Read a state, which must have been taken over the same rows of the same data; the sampler checks its own part."""
        if not isinstance(state, dict):
            msg = f"state must be a dict made by state_dict, got {type(state).__name__}"
            raise TypeError(msg)
        if state.get("version") != _STATE_VERSION:
            msg = f"state must be a loader's, of version {_STATE_VERSION}, got version {state.get('version')!r}"
            raise ValueError(msg)
        ours, theirs = data, state.get("data")
        if isinstance(theirs, dict) and {**ours, "view": None} == {**theirs, "view": None} and ours != theirs:
            its_rows, our_rows = (facts.get("view") or "all rows" for facts in (theirs, ours))
            msg = f"state belongs to another view of the same data: it was taken with {its_rows}, this loader has {our_rows}"
            raise ValueError(msg)
        if ours != theirs:
            msg = (
                f"state belongs to other data: it was taken with {theirs}, this loader has {ours}; "
                "add the same data in the same order"
            )
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


class LoaderPass(Iterator["LoaderOutput"]):
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
    cancel
        Set when the pass ends early, so that nothing is waited for any more.
    """

    _closed = True  # until it is fully made, so that the destructor of a half-made one does nothing

    def __init__(
        self, owner: _Owner, number: int, source: Generator[Iterable[Item]], prefetch: int, cancel: Cancel
    ) -> None:
        self._owner = owner
        self._number = number
        self._items: ReadAhead[Item] | InOrder[Item] = (
            ReadAhead(source, prefetch, cancel.set) if prefetch else InOrder(source)
        )
        self._process = os.getpid()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether batches may still come. A fork's copy of a pass is none of its own."""
        return not self._closed and self._process == os.getpid()

    def __next__(self) -> LoaderOutput:
        if self._closed:
            raise StopIteration
        tell_untold()
        batch: LoaderOutput
        try:
            batch, position = next(self._items)
        except BaseException:
            self.close()
            raise
        self._owner._moved(self._number, position)  # noqa: SLF001 (the two belong together)
        if batch is _END:
            self._closed = True
            self._items.close()
            tell_untold()
            raise StopIteration
        return batch.take() if isinstance(batch, HandOver) else batch

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
    n_together: int = 0,
) -> Generator[Iterable[Item]]:
    """Yield the batches of each load request, every batch with the position that follows it.

    The state of the sampler before it draws a request describes that request. So a position is that state and the number
    of batches done of the request, and does not depend on how many requests were drawn since.

    `n_together`: so many load requests are read at the same time, each in a thread of its own; below 2, one after the other in
    the thread that asks.
    """
    position, sampler = start, start.sampler
    if getattr(requests, "exchanged", False):
        # `set_epoch` came between the start of the pass and its first batch.
        position = LoaderPosition(sampler, sampler.state_dict())
    # Requests that are being read by threads of their own, where it takes long for bytes to come; n_together: so many.
    begun: deque[tuple[Future[Iterator[dict[str, Any]]], Callable[[Iterator[dict[str, Any]]], Iterator[Item]]]] = (
        deque()
    )
    threads = ThreadPoolExecutor(n_together, thread_name_prefix="annbatch-load") if n_together > 1 else None
    try:
        for request in requests:
            following = LoaderPosition(sampler, sampler.state_dict())
            batches = reader.batches(request, _n_done(request, position))
            finish: Callable[[Iterator[dict[str, Any]]], Iterator[Item]]
            finish = partial(_load, reader, position, following, len(request["splits"]), transform)
            if threads is None:
                yield finish(batches)
            else:
                begun.append((threads.submit(_begun, batches), finish))
                batches = iter(())  # nothing here keeps a load request alive
                if len(begun) == n_together:
                    future, finish = begun.popleft()
                    yield finish(future.result())
                    del future
            position = following
        if position is start and start.n_done:
            msg = f"state says that {start.n_done} batches of a load request are done, but the pass has none left; it was changed"
            raise ValueError(msg)
        while begun:
            future, finish = begun.popleft()
            yield finish(future.result())
            del future
        yield [(_END, LoaderPosition(sampler, sampler.state_dict()))]
    finally:
        if threads is not None:
            reader.cancel.set()
            begun.clear()
            threads.shutdown(cancel_futures=True)
        if hasattr(requests, "close"):
            requests.close()


def _begun(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Have a load request read, and return its batches."""
    first = next(batches, None)
    return batches if first is None else chain((first,), batches)


def _n_done(request: LoadRequest, position: LoaderPosition) -> int:
    n_batches = len(request["splits"])
    if position.n_done > n_batches:
        msg = (
            f"state says that {position.n_done} batches of a load request are done, but it has {n_batches}; "
            "it belongs to other data"
        )
        raise ValueError(msg)
    return position.n_done


def _load(
    reader: BatchReader,
    position: LoaderPosition,
    following: LoaderPosition,
    n_batches: int,
    transform: Callable[[dict[str, Any]], Any] | None,
    batches: Iterator[dict[str, Any]],
) -> Iterator[Item]:
    for n_done in range(position.n_done + 1, n_batches + 1):
        # Only while a batch is made: what the consumer does in between is on its own stream.
        with reader.working():
            batch = next(batches)
            made = batch if transform is None else transform(batch)
            if made is None:
                msg = "transform must return what is to be handed out, got None; does it end with `return batch`?"
                raise TypeError(msg)
            made = reader.handed_over(made)
        del batch
        yield made, following if n_done == n_batches else replace(position, n_done=n_done)
        del made
