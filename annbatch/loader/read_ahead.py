"""Reading ahead: one background thread, order kept, nothing left behind.

The thread and its consumer share two queues and no lock of ours: `room` tells the thread that it may start one more load,
`items` carries what it made. ``SimpleQueue.put`` is safe in a destructor, so a pass may be dropped by the garbage
collector at any moment, in any thread.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["InOrder", "ReadAhead"]

T = TypeVar("T")

# How long a destructor and the interpreter's exit wait for a load that is being read. The thread ends by itself after it.
_PATIENCE_S = 5.0

# A thread says at once that it runs, on the busiest machine within seconds.
_START_PATIENCE_S = 60.0

# How often a consumer that waits looks whether the thread is still there.
_LOOK_S = 5.0

# Who asks for more wants all there is; memory ends before this many loads.
_MOST_LOADS = 1 << 16

_LOAD_DONE = object()
_ALL_DONE = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Started(threading.Event):
    """Says that a thread has started, and gives up waiting for it in the end.

    Where memory is so tight that a new thread dies before its first instruction, ``Thread.start`` would wait for ever.
    """

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the start; MemoryError when it does not come."""
        started = super().wait(_START_PATIENCE_S if timeout is None else timeout)
        if timeout is None and not started:
            msg = "the thread that reads ahead did not start: there is not even memory for it; pass prefetch=0"
            raise MemoryError(msg)
        return started


class _Thread(threading.Thread):
    """A thread whose start is not waited for for ever."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        # Not joined by the interpreter before its exit handlers run, which would wait for ever on a pass left open.
        super().__init__(target=target, args=args, name="annbatch-read-ahead", daemon=True)
        self._started = self.has_started = _Started()  # the name that it has in every Python 3

    def start(self) -> None:
        """Start; MemoryError when that cannot be."""
        try:
            super().start()
        except RuntimeError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                # Ctrl-C between two steps of the wait, which then stumbles over its own lock.
                raise error.__context__ from None
            if "start new thread" not in str(error):
                raise
            msg = (
                "the thread that reads ahead could not be started: there is no memory for its stack, or no more threads are "
                "allowed (ulimit -v, ulimit -u); pass prefetch=0"
            )
            raise MemoryError(msg) from error


class _Channel:
    """What thread and consumer share. Does not keep the consumer, so that dropping that is noticed."""

    #: Who makes the items, once it does.
    thread: threading.Thread | None = None
    #: Whether the end, or what went wrong, is among the items: noted once it is, as there may be no memory for it.
    ended = False

    def __init__(self, n_loads: int, consumer: object) -> None:
        self.items: SimpleQueue[Any] = SimpleQueue()
        self.room: SimpleQueue[Any] = SimpleQueue()
        self.stopped = False
        # Python drops a Ctrl-C that comes inside of a destructor, and the rest of the destructor with it. No signal comes
        # between a reference and its callback in C, so the thread is woken all the same.
        self._consumer = weakref.ref(consumer, self.room.put)
        for _ in range(min(n_loads, _MOST_LOADS)):
            self.room.put(None)

    def wait_for_room(self) -> bool:
        self.room.get()
        return not self.stopped and self._consumer() is not None

    def stop(self) -> None:
        self.stopped = True
        self.room.put(None)
        self.items.put(_ALL_DONE)


class InOrder(Iterator[T], Generic[T]):
    """The items of all loads, in order, made in the thread that asks for one; of several threads, one at a time.

    Parameters
    ----------
    loads
        Yields the loads. Closed with this.
    """

    def __init__(self, loads: Iterator[Iterable[T]]) -> None:
        self._items = _chained(loads)
        # The same thread may come again: from `transform`, say, which Python then refuses in words.
        self._lock, self._process = threading.RLock(), os.getpid()

    def __next__(self) -> T:
        with self._own_lock():
            return next(self._items)

    def close(self) -> None:
        """Drop what is left."""
        with self._own_lock():
            self._items.close()

    def _own_lock(self) -> threading.RLock:
        if self._process != os.getpid():  # a thread that the fork has not may have had it
            self._lock, self._process = threading.RLock(), os.getpid()
        return self._lock


def _chained(loads: Iterator[Iterable[T]]) -> Generator[T]:
    try:
        for load in loads:
            yield from load
    finally:
        _close(loads)


class ReadAhead(Iterator[T], Generic[T]):
    """The items of all loads, in order, made by a background thread.

    At most ``1 + n_ahead`` loads exist at a time: the one that the consumer is taking items from, and `n_ahead` that are
    finished or being made. An error in a load is raised where its item would have come.

    Parameters
    ----------
    loads
        Yields the loads. Advanced, and closed, in the thread.
    n_ahead
        Loads to be ahead of the consumer, at least 1.
    stop_waiting
        Called when nothing more is wanted: ends what the thread may be waiting for.
    """

    _thread: _Thread | None = None
    _closed = True  # until it is fully made, so that the destructor of a half-made one does nothing

    def __init__(
        self, loads: Iterator[Iterable[T]], n_ahead: int, stop_waiting: Callable[[], None] | None = None
    ) -> None:
        self._stop_waiting = stop_waiting
        self._channel = _Channel(1 + n_ahead, self)
        # Who takes them out, the thread or whoever closes this, closes them: Ctrl-C may come while the thread is started,
        # and then nobody can tell whether it runs.
        self._loads: list[Iterator[Iterable[T]]] = [loads]
        self._unstarted = [True]
        self._process = os.getpid()
        self._closed = False

    def __next__(self) -> T:
        if self._closed:
            raise StopIteration
        if self._process != os.getpid():
            msg = "a pass must be continued in the process that started it: this process is a fork; start a new pass in it"
            raise RuntimeError(msg)
        try:
            if self._thread is None and _taken(self._unstarted) is not None:  # one of several threads
                self._start()
            channel = self._channel
            item = self._next_of(channel)
            while item is _LOAD_DONE:
                channel.room.put(None)
                item = self._next_of(channel)
        except BaseException:
            self.close()
            raise
        if item is _ALL_DONE:
            channel.items.put(_ALL_DONE)  # other threads may wait for an item, too
            self.close()
            raise StopIteration
        if isinstance(item, _Failure):
            self.close()
            try:
                raise item.error
            finally:
                del item  # the traceback refers to this frame: without this the error would keep itself alive
        return item  # type: ignore[no-any-return]

    def _next_of(self, channel: _Channel) -> Any:
        """Wait for what the thread makes next."""
        while True:
            # Asked before the queue is, in which a thread that ends leaves something.
            is_alive = self._is_alive(channel)
            try:
                return channel.items.get(timeout=_LOOK_S if is_alive else 0)
            except Empty:
                if is_alive:
                    continue
                if not (channel.ended or channel.stopped):
                    msg = "the thread that reads ahead had no memory left to say what went wrong; pass prefetch=0"
                    raise MemoryError(msg) from None
                # Another thread of the consumer has the end in hand, and has not yet put it back for the others.
                return _ALL_DONE

    def _is_alive(self, channel: _Channel) -> bool:
        """Whether items may still come."""
        thread = self._thread
        if self._loads and thread is not None:  # nobody has taken them yet
            return thread.is_alive() or not thread.has_started.is_set()
        return channel.thread is None or channel.thread.is_alive()

    def close(self, timeout_s: float | None = None) -> None:
        """Stop the thread, wait for it (at most `timeout_s`), and drop what it has read."""
        if self._closed:
            return
        if self._process != os.getpid():
            # The thread is the parent's. What it shares with this object may be locked here for ever.
            self._closed = True
            return
        # Noted after it is done: Ctrl-C may come between any two of these steps, and the destructor then does them again.
        channel = self._channel
        channel.stop()
        if self._stop_waiting is not None:
            self._stop_waiting()
        self._closed = True
        # Another thread may have looked whether this is closed, and not yet taken the channel: it shall not wait for ever.
        ended = _Channel(0, self)
        ended.stop()
        self._channel = ended
        loads = _taken(self._loads)
        if loads is not None:
            _close(loads)
        # The garbage collector may run in the thread itself.
        elif self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def __del__(self) -> None:
        self.close(_PATIENCE_S)

    def _start(self) -> None:
        self._thread = _Thread(_make_items, self._loads, self._channel)
        _open.add(self)
        self._thread.start()


def _taken(place: list[T]) -> T | None:
    """Take out what only one may have; None when someone has it."""
    try:
        return place.pop()
    except IndexError:
        return None


def _make_items(place: list[Iterator[Iterable[Any]]], channel: _Channel) -> None:
    loads = _taken(place)
    if loads is None:
        return
    channel.thread = threading.current_thread()
    try:
        while channel.wait_for_room():
            load = next(loads, _ALL_DONE)
            if load is _ALL_DONE:
                break
            for item in load:  # type: ignore[attr-defined]
                if channel.stopped:
                    return
                channel.items.put(item)
            item = load = None
            channel.items.put(_LOAD_DONE)
        channel.items.put(_ALL_DONE)
        channel.ended = True
    except BaseException as error:  # noqa: BLE001 (raised in the consumer)
        channel.items.put(_Failure(error))
        channel.ended = True
    finally:
        _close(loads)


def _close(iterator: Iterator[Any] | None) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


_open: weakref.WeakSet[ReadAhead[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for read_ahead in list(_open):
        read_ahead.close(_PATIENCE_S)
