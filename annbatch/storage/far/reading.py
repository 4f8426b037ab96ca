"""Jobs whose chunks are far away: ranges are fetched in waves, and what has arrived is decoded while the rest is on its way.

A wave is what is decoded together: tasks of any arrays, few enough bytes for several waves to be under way. All waves of a
request are ordered at once, as far as the bytes in flight allow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from annbatch.storage.engine import _engine
from annbatch.storage.engine._plan import FETCHED, EngineJob, Plan

from .cache import PAGE_BYTES
from .fetch import Order, Want
from .ranges import MOST_BYTES, Located, merged
from .tables import FarTable, check_document, check_size, check_whole, read_shard_indexes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from annbatch.storage.engine._plan import Failure
    from annbatch.storage.reading.jobs import DenseJob, Job

    from .cache import RangeCache
    from .fetch import Cancel, Fetcher

__all__ = ["is_far", "run_far", "run_far_dense"]


def is_far(job: Job) -> bool:
    """Whether a job's chunks come through a network."""
    return isinstance(job.array.table, FarTable)


@dataclass(slots=True, eq=False)
class _Share:
    """Tasks of one job that are decoded together, and the bytes for them."""

    job: Job
    description: EngineJob
    tasks: np.ndarray
    located: Located | None = None
    fetched: np.ndarray | None = None

    def described(self) -> EngineJob:
        """Return what the engine does with it."""
        return self.description._replace(plan=Plan(self.tasks, self.description.plan.pieces), fetched=self.fetched)


class _Whole(NamedTuple):
    """A chunk that is an object of its own."""

    row: int  # of the tasks of its share
    file: int
    want: Want


@dataclass(slots=True, eq=False)
class _Wave:
    """Shares that are fetched and decoded together."""

    shares: list[_Share]
    decode: Callable[[list[_Share]], tuple[Failure | None, list[Job]]]
    n_bytes: int = 0
    order: Order | None = None
    buffer: np.ndarray | None = None
    keep: list[Any] = field(default_factory=list)
    wholes: list[tuple[_Share, list[_Whole]]] = field(default_factory=list)
    for_cache: list[tuple[Want, RangeCache]] = field(default_factory=list)
    ranges: list[Any] = field(default_factory=list)

    def plan(self) -> None:
        """Find out which ranges are needed."""
        for share in self.shares:
            table = share.description.table
            if not isinstance(table, FarTable):
                self.ranges.append(None)
                continue
            located = table.located(share.tasks)
            share.fetched = np.zeros(len(share.tasks), FETCHED)
            share.fetched["n_bytes"] = np.where(located.start < 0, -1, located.stop - located.start)
            if table.is_whole:
                rows = self._not_cached_wholes(table, located, share.fetched)
                self.ranges.append(rows)
                self.n_bytes += int((located.stop - located.start)[rows].sum())
                continue
            cached = self._cached(table, located, share.fetched)
            there = np.flatnonzero((located.start >= 0) & ~cached)
            ranges = merged(Located(*(part[there] for part in _in_pages(table, located, there))))
            self.ranges.append((located, there, ranges))
            self.n_bytes += int((ranges.stop - ranges.start).sum())

    def _not_cached_wholes(self, table: FarTable, located: Located, fetched: np.ndarray) -> np.ndarray:
        """Point at objects that are on the local disk, and return the numbers of the tasks whose objects are not."""
        cache = table.cache
        if cache is None:
            return np.arange(len(located.file))
        missing = []
        for row, file in enumerate(located.file.tolist()):
            stamp = table.stamps.get(file)
            # What it was when this process read it first; before that, only the store knows what it is.
            assert table.objects is not None
            data = None if stamp is None else cache.find_whole(table.objects, table.key(file), stamp)
            if data is None:
                missing.append(row)
            else:
                self.keep.append(data)
                fetched[row] = (data.__array_interface__["data"][0], len(data))
        return np.array(missing, np.int64)

    def _cached(self, table: FarTable, located: Located, fetched: np.ndarray) -> np.ndarray:
        """Point at what is on the local disk, and say which of it that is."""
        is_cached = np.zeros(len(located.file), bool)
        cache = table.cache
        if cache is None:
            return is_cached
        assert table.objects is not None
        self.keep.append(cache)
        for file in np.unique(located.file).tolist():
            own = np.flatnonzero((located.file == file) & (located.start >= 0))
            if len(own):
                address, segments = cache.find(
                    table.objects, table.key(file), table.stamps.get(file), located.start[own], located.stop[own]
                )
                self.keep.append(segments)  # mapped as long as they are decoded from
                fetched["address"][own] = address
                is_cached[own] = address != 0
        return is_cached

    def start(self, queue: Fetcher, cancel: Cancel | None) -> None:
        """Ask for the bytes."""
        wants: list[Want] = []
        size = sum(int((found[2].stop - found[2].start).sum()) for found in self.ranges if isinstance(found, tuple))
        buffer = queue.buffers.take(size)
        self.buffer = buffer
        view, at, address = memoryview(buffer), 0, buffer.__array_interface__["data"][0]
        for share, found in zip(self.shares, self.ranges, strict=True):
            table = share.description.table
            if not isinstance(table, FarTable):
                continue
            assert table.objects is not None
            assert share.fetched is not None
            if isinstance(found, np.ndarray):
                files = table.located(share.tasks).file[found].tolist()
                whole = [
                    _Whole(row, file, Want(table.objects, table.key(file), stamp=table.stamps.get(file), may_lack=True))
                    for row, file in zip(found.tolist(), files, strict=True)
                ]
                self.wholes.append((share, whole))
                wants += [one.want for one in whole]
                continue
            located, there, ranges = found
            cache = table.cache
            length = ranges.stop - ranges.start
            begins = at + np.cumsum(length) - length
            share.fetched["address"][there] = (
                address + begins[ranges.of_item] + (located.start[there] - ranges.start[ranges.of_item])
            )
            keys: dict[int, str] = {}
            rows = zip(ranges.file.tolist(), ranges.start.tolist(), ranges.stop.tolist(), begins.tolist(), strict=True)
            for file, low, high, begin in rows:
                key = keys.get(file)
                if key is None:
                    key = keys[file] = table.key(file)
                for piece in range(low, high, MOST_BYTES):
                    stop = min(piece + MOST_BYTES, high)
                    into = view[begin + piece - low : begin + stop - low]
                    want = Want(table.objects, key, piece, stop, into, table.stamps.get(file))
                    wants.append(want)
                    if cache is not None:
                        self.for_cache.append((want, cache))
            at += int(length.sum())
        self.order = queue.order(wants, cancel)

    def finish(self) -> None:
        """Wait for the bytes and decode them."""
        assert self.order is not None
        self.order.wait()
        for share, wholes in self.wholes:
            table = share.description.table
            assert share.fetched is not None
            for row, file, want in wholes:
                if want.data is None:
                    check_size(table, file, -1)
                    check_document(table)
                    share.fetched[row] = (0, -1)
                    continue
                if file not in table.stamps:
                    check_whole(table, file, memoryview(want.data))
                    table.stamps[file] = want.found
                data = np.frombuffer(want.data, np.uint8)
                self.keep.append(data)
                share.fetched[row] = (data.__array_interface__["data"][0], len(data))
        failure, jobs = self.decode(self.shares)
        if failure is not None:
            raise jobs[failure.job].failure(failure.chunk, failure.kind, failure.detail)
        for want, cache in self.for_cache:
            assert want.start is not None
            assert want.into is not None
            cache.add(want.objects, want.key, want.stamp, want.start, want.into)
        for share, wholes in self.wholes:
            cache = share.description.table.cache
            for one in wholes if cache is not None else ():
                if one.want.found is not None:
                    cache.add_whole(one.want.objects, one.want.key, one.want.found, one.want.data)


def run_far(jobs: Sequence[Job], num_threads: int, cancel: Cancel | None = None) -> None:
    """Do jobs whose tables are far."""

    def decode(shares: list[_Share]) -> tuple[Failure | None, list[Job]]:
        failure = _engine.run([share.described() for share in shares], num_threads)
        return failure, [share.job for share in shares]

    described = _described(jobs, cancel)
    if described:
        queue = described[0].description.table.fetcher
        _run((_Wave(shares, decode) for shares in _waves(described, queue.wave_bytes)), queue, cancel)


def run_far_dense(jobs: Sequence[DenseJob], num_threads: int, cancel: Cancel | None = None) -> None:
    """Do jobs that make dense rows, where one of the two tables at least is far."""
    arrays = [array for job in jobs for array in (job.values, job.columns)]
    described = [_Share(job, description, job.plan.tasks) for job in arrays if (description := job.for_engine())]
    assert len(described) == len(arrays)
    tables = [share.description.table for share in described]
    read_shard_indexes(
        [
            (table, share.tasks["chunk"])
            for table, share in zip(tables, described, strict=True)
            if isinstance(table, FarTable)
        ],
        cancel,
    )
    queues = [table.fetcher for table in tables if isinstance(table, FarTable)]
    if queues:
        queue = queues[0]
        waves = (
            wave
            for number, job in enumerate(jobs)
            for wave in _dense_waves(
                job, described[2 * number], described[2 * number + 1], num_threads, queue.wave_bytes
            )
        )
        _run(waves, queue, cancel)


def _in_pages(table: FarTable, located: Located, there: np.ndarray) -> Located:
    """Widen ranges to whole pages of the cache, where there is one."""
    if table.cache is None or not len(there):
        return located
    files, number = np.unique(located.file, return_inverse=True)
    sizes = [stamp.size if (stamp := table.stamps.get(file)) else 0 for file in files.tolist()]
    stop = np.minimum(-(-located.stop // PAGE_BYTES) * PAGE_BYTES, np.array(sizes)[number])
    return Located(located.file, located.start // PAGE_BYTES * PAGE_BYTES, np.maximum(stop, located.stop))


def _described(jobs: Sequence[Job], cancel: Cancel | None) -> list[_Share]:
    shares = []
    for job in jobs:
        if len(job.plan.tasks):
            description = job.for_engine()
            assert description is not None
            shares.append(_Share(job, description, job.plan.tasks))
    read_shard_indexes([(share.description.table, share.tasks["chunk"]) for share in shares], cancel)
    return shares


def _waves(whole: Sequence[_Share], wave_bytes: int) -> Iterator[list[_Share]]:
    """Cut the tasks of all jobs, which lie behind each other, into waves of neighbours."""
    shares: list[_Share] = []
    room = wave_bytes
    for share in whole:
        located = share.description.table.located(share.tasks)
        order = np.lexsort((located.start, located.file))
        tasks = share.tasks[order]
        sizes = np.cumsum((located.stop - located.start)[order])
        low = taken = 0
        while low < len(tasks):
            # At least one task, however large.
            high = max(low + 1, int(np.searchsorted(sizes, taken + room, side="right")))
            shares.append(_Share(share.job, share.description, tasks[low:high]))
            room -= int(sizes[high - 1]) - taken
            taken, low = int(sizes[high - 1]), high
            if room <= 0 or low < len(tasks):
                yield shares
                shares, room = [], wave_bytes
    if shares:
        yield shares


def _dense_waves(job: DenseJob, values: _Share, columns: _Share, num_threads: int, wave_bytes: int) -> Iterator[_Wave]:
    """Cut the stretches of a dense job into waves."""
    stretches = job.plan.stretches
    if not len(stretches):
        return
    reached = np.zeros(len(stretches), np.int64)
    for share, last in ((values, "stop_value_task"), (columns, "stop_column_task")):
        table = share.description.table
        if isinstance(table, FarTable):
            located = table.located(share.tasks)
            reached += np.append(0, np.cumsum(located.stop - located.start))[stretches[last]]
    low, taken = 0, 0
    while low < len(stretches):
        high = max(low + 1, int(np.searchsorted(reached, taken + wave_bytes, side="right")))
        own = stretches[low:high].copy()
        shares = []
        for share, first, last in (
            (values, "first_value_task", "stop_value_task"),
            (columns, "first_column_task", "stop_column_task"),
        ):
            begin, end = int(own[first][0]), int(own[last][-1])
            shares.append(_Share(share.job, share.description, share.tasks[begin:end]))
            own[first] -= begin
            own[last] -= begin
        yield _Wave(shares, _Densify(job, own, num_threads))
        taken, low = int(reached[high - 1]), high


@dataclass(slots=True, eq=False)
class _Densify:
    """Makes some stretches of a job dense."""

    job: DenseJob
    stretches: np.ndarray
    num_threads: int

    def __call__(self, shares: list[_Share]) -> tuple[Failure | None, list[Job]]:
        dense = self.job.for_engine(0, self.stretches)
        failure = _engine.run_dense([share.described() for share in shares], [dense], self.num_threads)
        return failure, [share.job for share in shares]


def _run(waves: Iterator[_Wave], queue: Fetcher, cancel: Cancel | None) -> None:
    """Order waves as long as there is room, and decode the first one that was ordered, until all are done."""
    under_way: deque[_Wave] = deque()
    following = next(waves, None)
    if following is not None:
        following.plan()
    try:
        while under_way or following is not None:
            while following is not None and queue.budget.take(following.n_bytes, cancel, wait=not under_way):
                under_way.append(following)
                following.start(queue, cancel)
                following = next(waves, None)
                if following is not None:
                    following.plan()
            wave = under_way[0]
            wave.finish()
            _release(under_way.popleft(), queue, cancel)
    finally:
        for wave in under_way:
            _release(wave, queue, cancel)


def _release(wave: _Wave, queue: Fetcher, cancel: Cancel | None) -> None:
    order = wave.order
    is_done = order is not None and order.error is None and order.ended
    if order is not None:
        order.abandon()
        if cancel is not None:
            cancel.forget(order)
    if wave.buffer is not None:
        # What was given up may still be written to by a request that is being stopped.
        (queue.give_back if is_done else queue.buffers.lose)(wave.buffer)
        wave.buffer = None
    wave.keep.clear()
    wave.for_cache.clear()
    queue.budget.give_back(wave.n_bytes)
