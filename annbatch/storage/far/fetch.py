"""Many byte ranges at a time: one queue for the process, a bounded number of requests, a bounded number of bytes.

The requests run in zarr-python's event loop, because clients of stores that zarr-python opened belong to it. Whoever wants
bytes waits in a thread of its own, and decodes what has arrived while the rest is on its way.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.errors import CorruptDataError

from .errors import Abandoned, ChangedError, TransientError
from .stores import check_same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future

    from .stores import Objects, Stamp

__all__ = ["ByteBudget", "Cancel", "Fetcher", "Order", "Want", "counts", "fetcher"]

# Tries of a request, and the pauses between them: 0.1, 0.2, 0.4, ... seconds, but no longer than the longest.
N_TRIES = 6
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

# What the libraries of stores raise when it makes no sense to try again.
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError, TypeError, ValueError, KeyError, CorruptDataError)

# Memory is taken in such steps, so that a buffer fits again, and is freed when nobody has needed any for so long.
_BUFFER_STEP = 1 << 21
BUFFERS_KEPT_S = 10.0

# For tests and benchmarks: requests that were answered, their bytes, tries that failed, and bytes that came from a cache.
counts = {"requests": 0, "bytes": 0, "retries": 0, "cached_bytes": 0}


class _Awaited:
    """Something that is awaited in the event loop for a thread."""

    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    def abandon(self) -> None:
        """Give it up; from any thread."""
        self.future.cancel()


class Cancel:
    """Says that nobody wants the bytes any more. Set once, from any thread."""

    # Without a lock: it is set in destructors, which run where they like, and in forked processes, where a thread of the
    # parent would hold the lock for ever. Who watches does so before looking, who sets says so before looking.
    def __init__(self) -> None:
        self._orders: set[Order | _Awaited] = set()
        self.is_set = False

    def set(self) -> None:
        """Give up all orders, and those to come."""
        self.is_set = True
        for order in self._orders.copy():
            order.abandon()

    def watch(self, order: Order | _Awaited) -> None:
        """Give `order` up, too, when it comes to that."""
        self._orders.add(order)
        if self.is_set:
            order.abandon()

    def forget(self, order: Order | _Awaited) -> None:
        """Watch an order no longer."""
        self._orders.discard(order)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cancel, ()


@dataclass(slots=True, eq=False)
class Want:
    """Bytes of one object.

    Attributes
    ----------
    objects, key
        Where they are.
    start, stop
        Half open. None: the whole object, which comes as `data`.
    into
        Where a range goes.
    stamp
        What the object was when it was looked at; None: not known.
    data, found
        The whole object once it is there, and what it was; None when there is no such object and `may_lack`.
    """

    objects: Objects
    key: str
    start: int | None = None
    stop: int | None = None
    into: memoryview | None = None
    stamp: Stamp | None = None
    may_lack: bool = False
    data: Any = None
    found: Stamp | None = None
    order: Any = None

    @property
    def text(self) -> str:
        """The object and the range, for error texts."""
        name = self.objects.text(self.key)
        return name if self.start is None else f"{name}, bytes {self.start} to {self.stop}"


@dataclass(slots=True, eq=False)
class Order:
    """Wants that are waited for together."""

    fetcher: Fetcher
    wants: Sequence[Want]
    n_left: int = 0
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    ended: bool = False

    def wait(self) -> None:
        """Wait until all is there.

        Raises
        ------
        CorruptDataError
            An object changed.
        ConnectionError
            A range could not be had, after several tries.
        Abandoned
            The order was given up.
        """
        self.done.wait()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Give up what is not there yet; from any thread."""
        self.end(Abandoned())

    def end(self, error: BaseException | None) -> None:
        """Note that nothing more is to be done."""
        if not self.ended:
            self.ended, self.error = True, error
            self.done.set()
            if error is not None:
                self.fetcher.drop(self)


class ByteBudget:
    """Bytes that may be on their way or waiting to be decoded."""

    def __init__(self, n_bytes: int) -> None:
        self._condition = threading.Condition()
        self._most, self._taken = n_bytes, 0

    @property
    def most(self) -> int:
        """Bytes there are in all."""
        return self._most

    def take(self, n_bytes: int, cancel: Cancel | None, *, wait: bool) -> bool:
        """Take room, once there is some; one that alone exceeds all there is gets it when nobody has any."""
        with self._condition:
            while self._taken and self._taken + n_bytes > self._most:
                if cancel is not None and cancel.is_set:
                    raise Abandoned
                if not wait:
                    return False
                self._condition.wait(0.1)
            self._taken += n_bytes
            return True

    def give_back(self, n_bytes: int) -> None:
        """Return what was taken."""
        with self._condition:
            self._taken -= n_bytes
            self._condition.notify_all()


class Buffers:
    """Memory that ranges are fetched to, kept for the next ones: the first touch of fresh memory is slow.

    Parameters
    ----------
    most
        Bytes: with what is in use, no more is kept than this.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._free: list[np.ndarray] = []
        self._most = most
        self._n_used = self._n_free = 0
        self.last_used = 0.0

    @property
    def n_free(self) -> int:
        """Bytes that are kept and not in use."""
        return self._n_free

    def take(self, n_bytes: int) -> np.ndarray:
        """Return at least so many bytes (uint8)."""
        with self._lock:
            self.last_used = time.monotonic()
            found = None
            for number, buffer in enumerate(self._free):
                if n_bytes <= len(buffer) <= 4 * n_bytes + _BUFFER_STEP:
                    found = self._free.pop(number)
                    self._n_free -= len(found)
                    break
            if found is None:
                size = max(1, -(-n_bytes // _BUFFER_STEP)) * _BUFFER_STEP
                self._shrink(self._most - self._n_used - size)
                found = np.empty(size, np.uint8)
            self._n_used += len(found)
            return found

    def give_back(self, buffer: np.ndarray) -> None:
        """Return what was taken and is used no more."""
        with self._lock:
            self._n_used -= len(buffer)
            self._free.append(buffer)
            self._n_free += len(buffer)
            self._shrink(self._most - self._n_used)

    def lose(self, buffer: np.ndarray) -> None:
        """Note that what was taken does not come back."""
        with self._lock:
            self._n_used -= len(buffer)

    def _shrink(self, most: int) -> None:
        while self._free and self._n_free > most:
            self._n_free -= len(self._free.pop(0))

    def clear(self) -> None:
        """Free what nobody uses."""
        with self._lock:
            self._shrink(0)


class Fetcher:
    """The queue of one process."""

    def __init__(self, max_requests: int, max_in_flight: int) -> None:
        self.max_requests = max_requests
        self.budget = ByteBudget(max_in_flight)
        self.buffers = Buffers(max_in_flight)
        self._will_tidy = False
        self.loop = _event_loop()
        self._queue: deque[Want] = deque()
        self._workers: dict[asyncio.Task[None], Want | None] = {}
        self._pid = os.getpid()
        self._n_pauses = 0

    @property
    def wave_bytes(self) -> int:
        """Bytes that are ordered together: little enough for several orders to be under way."""
        return max(1 << 16, min(1 << 23, self.budget.most // 8))

    def order(self, wants: Iterable[Want], cancel: Cancel | None = None) -> Order:
        """Ask for bytes; returns at once."""
        order = Order(self, list(wants))
        order.n_left = len(order.wants)
        for want in order.wants:
            want.order = order
        if not order.wants:
            order.end(None)
            return order
        if cancel is not None:
            cancel.watch(order)
        self.loop.call_soon_threadsafe(self._begin, order)
        return order

    def fetch(self, wants: Iterable[Want], cancel: Cancel | None = None) -> list[Want]:
        """Ask for bytes and wait for them."""
        order = self.order(wants, cancel)
        try:
            order.wait()
        finally:
            order.abandon()
            if cancel is not None:
                cancel.forget(order)
        return list(order.wants)

    def gather(
        self, calls: Sequence[Callable[[], Any]], names: Sequence[str], cancel: Cancel | None = None
    ) -> list[Any]:
        """Await what calls of a store return, as many at a time as there may be requests: results or errors, in order.

        They are tried again as requests for ranges are.
        """
        call = _Awaited(asyncio.run_coroutine_threadsafe(_gather(calls, names, self.max_requests), self.loop))
        if cancel is not None:
            cancel.watch(call)
        try:
            answers: list[Any] = call.future.result()
            return answers
        except CancelledError:
            raise Abandoned from None
        finally:
            call.abandon()
            if cancel is not None:
                cancel.forget(call)

    def give_back(self, buffer: np.ndarray) -> None:
        """Return a buffer; it is kept for a while."""
        self.buffers.give_back(buffer)
        if not self._will_tidy:
            self._will_tidy = True
            self.loop.call_soon_threadsafe(self._tidy)

    def drop(self, order: Order) -> None:
        """Have requests of an order that has ended stopped."""
        self.loop.call_soon_threadsafe(self._stop, order)

    # -- in the event loop

    def _tidy(self) -> None:
        """Free buffers when nobody has needed any for a while."""
        idle = time.monotonic() - self.buffers.last_used
        if idle < BUFFERS_KEPT_S:
            self.loop.call_later(BUFFERS_KEPT_S - idle, self._tidy)
        else:
            self._will_tidy = False
            self.buffers.clear()

    def _begin(self, order: Order) -> None:
        if order.ended:
            return
        self._queue.extend(order.wants)
        for _ in range(min(len(order.wants), self.max_requests - len(self._workers))):
            task = self.loop.create_task(self._work())
            self._workers[task] = None

    def _stop(self, order: Order) -> None:
        for task, want in self._workers.items():
            if want is not None and want.order is order:
                task.cancel()

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while self._queue:
                want = self._queue.popleft()
                order = want.order
                if order.ended:
                    continue
                self._workers[task] = want
                try:
                    await self._fetch(want)
                except asyncio.CancelledError:
                    if not order.ended:
                        raise
                    task.uncancel()
                    continue
                except BaseException as error:  # noqa: BLE001 (raised where the bytes are waited for)
                    order.end(error)
                    continue
                finally:
                    self._workers[task] = None
                order.n_left -= 1
                if not order.n_left:
                    order.end(None)
        finally:
            del self._workers[task]

    async def _fetch(self, want: Want) -> None:
        pause = FIRST_PAUSE_S
        for n_tries in range(1, N_TRIES + 1):
            try:
                if want.into is None:
                    want.data, want.found = await want.objects.read_all(want.key)
                    check_same(want.found, want.stamp)
                    counts["bytes"] += len(want.data)
                else:
                    assert want.start is not None
                    await want.objects.read(want.key, want.start, want.into, want.stamp)
                    counts["bytes"] += len(want.into)
                counts["requests"] += 1
            except FileNotFoundError as error:
                if want.stamp is None and want.may_lack:
                    return
                if want.stamp is not None:
                    msg = f"{want.text}: the object was removed after it was opened"
                    raise CorruptDataError(msg) from error
                raise
            except ChangedError as error:
                msg = f"{want.text}: the object was changed or replaced after it was opened ({error})"
                raise CorruptDataError(msg) from None
            except PermissionError as error:
                msg = f"{want.text}: {error}"
                raise PermissionError(msg) from error
            except _FINAL:
                raise
            except Exception as error:
                if n_tries == N_TRIES:
                    raise _gave_up(want.text, error, n_tries) from error
            else:
                return
            pause = await self._pause(pause)

    async def _pause(self, pause: float) -> float:
        counts["retries"] += 1
        # Spread out, so that what failed together is not tried again together.
        self._n_pauses += 1
        await asyncio.sleep(pause * (0.75 + (self._n_pauses % 16) / 32))
        return min(2 * pause, LONGEST_PAUSE_S)


def _gave_up(what: str, error: Exception, n_tries: int) -> ConnectionError:
    cause = str(error) or type(error).__name__
    return ConnectionError(f"{what}: {cause} (the last of {n_tries} tries)")


async def retried(call: Any, what: str) -> Any:
    """Await what `call` returns, again after a failure that is worth it."""
    pause = FIRST_PAUSE_S
    for n_tries in range(1, N_TRIES + 1):
        try:
            return await call()
        except _FINAL:
            raise
        except Exception as error:
            if not worth_another_try(error):
                raise
            if n_tries == N_TRIES:
                raise _gave_up(what, error, n_tries) from error
        counts["retries"] += 1
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise AssertionError


def worth_another_try(error: Exception) -> bool:
    """Whether an error of a store's library may go away."""
    if isinstance(error, TransientError | TimeoutError | ConnectionError):
        return True
    status = getattr(error, "status", getattr(error, "status_code", None))
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("aiohttp", "obstore", "botocore")


async def _gather(calls: Sequence[Any], names: Sequence[str], most: int) -> list[Any]:
    room = asyncio.Semaphore(most)

    async def one(call: Any, name: str) -> Any:
        async with room:
            return await retried(call, name)

    counts["requests"] += len(calls)
    return await asyncio.gather(*(one(*pair) for pair in zip(calls, names, strict=True)), return_exceptions=True)


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _event_loop() -> asyncio.AbstractEventLoop:
    from zarr.core.sync import sync

    return sync(_running_loop())


_fetchers: dict[tuple[int, int], Fetcher] = {}
# Those of the process that this one was forked from. Dropping them would close connections that are not ours.
_foreign: list[Any] = []
_lock = threading.Lock()


def fetcher(max_requests: int, max_in_flight: int) -> Fetcher:
    """Return the queue of this process for these limits."""
    key = (max_requests, max_in_flight)
    with _lock:
        found = _fetchers.get(key)
        if found is None:
            found = _fetchers[key] = Fetcher(max_requests, max_in_flight)
        return found


def _after_fork() -> None:
    global _lock
    _foreign.append(dict(_fetchers))
    _fetchers.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
