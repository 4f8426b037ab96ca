"""Reading ahead: how far, in what order, and that nothing is left behind."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Loader, storage
from annbatch.loader import read_ahead
from annbatch.loader.read_ahead import InOrder, ReadAhead
from tests.cells import full_cells, write

from .loaders import small_loader

# anndata 0.13 says it of itself under pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")


@pytest.fixture(autouse=True)
def _threads_of_others():
    """What another test has left does not count."""
    _others.update(threading.enumerate())
    yield
    _others.clear()


_others: set[threading.Thread] = set()


def n_threads():
    return sum(thread.name == "annbatch-read-ahead" and thread not in _others for thread in threading.enumerate())


def wait_until(condition, seconds=60.0):
    stop = time.monotonic() + seconds
    while not condition() and time.monotonic() < stop:
        time.sleep(0.001)
    return condition()


class Loads:
    """Loads of two items each, which notes what was started and whether it was closed."""

    def __init__(self, n):
        self.n, self.started, self.threads, self.closed = n, [], set(), False

    def __iter__(self):
        try:
            for number in range(self.n):
                self.started.append(number)
                self.threads.add(threading.current_thread())
                yield [(number, 0), (number, 1)]
        finally:
            self.closed = True


@pytest.mark.parametrize("n_ahead", [1, 2, 5])
def test_order_is_kept(n_ahead):
    assert list(ReadAhead(iter(Loads(7)), n_ahead)) == [(i, j) for i in range(7) for j in range(2)]
    assert list(InOrder(iter(Loads(7)))) == [(i, j) for i in range(7) for j in range(2)]


def test_any_number_of_loads_ahead_may_be_asked_for():
    assert len(list(ReadAhead(iter(Loads(7)), 10**15))) == 14


def test_no_loads():
    ahead = ReadAhead(iter(()), 1)
    assert list(ahead) == []
    assert list(ahead) == []


def test_loads_without_items_are_passed_over():
    assert list(ReadAhead(iter([[], [1], [], [], [2, 3], []]), 1)) == [1, 2, 3]


@pytest.mark.parametrize("n_ahead", [1, 2, 3])
def test_at_most_one_and_n_ahead_loads_exist(n_ahead):
    loads = Loads(10)
    ahead = ReadAhead(iter(loads), n_ahead)
    time.sleep(0.02)
    assert loads.started == []  # nothing before the first item is asked for
    for number in range(10):
        for half in range(2):
            assert next(ahead) == (number, half)
            expected = min(10, number + 1 + n_ahead)
            assert wait_until(lambda n=expected: len(loads.started) == n)
            time.sleep(0.002)
            assert len(loads.started) == expected
    assert list(ahead) == []
    assert loads.closed
    assert {thread.name for thread in loads.threads} == {"annbatch-read-ahead"}


def test_error_comes_where_its_item_would_have_come_with_its_traceback():
    def items(number):
        yield number, 0
        if number == 2:
            raise KeyError(number)
        yield number, 1

    ahead = ReadAhead((items(number) for number in range(5)), 2)
    assert [next(ahead) for _ in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    with pytest.raises(KeyError) as caught:
        next(ahead)
    assert "items" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert list(ahead) == []
    assert n_threads() == 0


def close(ahead):
    ahead.close()


def drop(ahead):
    del ahead


@pytest.mark.parametrize("n_taken", [0, 1, 4])
@pytest.mark.parametrize("end", [close, drop])
def test_leaving_early_stops_the_thread_and_closes_the_loads(n_taken, end):
    loads = Loads(100)
    ahead = [ReadAhead(iter(loads), 2)]
    for _ in range(n_taken):
        next(ahead[0])
    end(ahead.pop())
    gc.collect()
    assert n_threads() == 0
    assert loads.closed or not loads.started


def test_a_closed_one_yields_nothing_more_and_may_be_closed_again():
    ahead = ReadAhead(iter(Loads(3)), 1)
    next(ahead)
    ahead.close()
    ahead.close()
    assert list(ahead) == []


def test_what_was_read_is_freed_when_it_is_closed():
    class Item:
        alive = 0

        def __init__(self):
            Item.alive += 1

        def __del__(self):
            Item.alive -= 1

    ahead = ReadAhead(([Item(), Item()] for _ in range(10)), 3)
    next(ahead)
    assert wait_until(lambda: Item.alive >= 6)
    ahead.close()
    assert Item.alive == 0


@pytest.mark.parametrize("end", ["done", "failure", "close"])
def test_all_threads_that_wait_for_an_item_learn_of_the_end(end):
    may_end, got = threading.Event(), []

    def loads():
        yield [0, 1]
        may_end.wait(60)
        if end == "failure":
            raise ZeroDivisionError

    ahead = ReadAhead(loads(), 1)

    def consume():
        with suppress(ZeroDivisionError):
            got.extend(ahead)

    threads = [threading.Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: sorted(got) == [0, 1])
    time.sleep(0.02)
    may_end.set()
    if end == "close":
        ahead.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert n_threads() == 0


def test_a_thread_that_comes_while_another_one_closes_learns_of_the_end(monkeypatch):
    """Between its look whether the pass is closed and its wait for an item, it was left waiting for ever."""
    ahead = ReadAhead(iter(Loads(3)), 1)
    next(ahead)
    real, got = os.getpid, []

    def close_first():
        monkeypatch.setattr(os, "getpid", real)
        ahead.close()
        return real()

    monkeypatch.setattr(os, "getpid", close_first)
    late = threading.Thread(target=lambda: got.extend(ahead), daemon=True)
    late.start()
    late.join(60)
    assert not late.is_alive()
    assert got == []
    assert n_threads() == 0


def test_of_a_pass_that_a_fork_inherits_nothing_is_touched(monkeypatch):
    """A thread of the parent may have held its locks, which nobody gives back here."""
    told = []
    ahead = ReadAhead(iter(Loads(3)), 1, lambda: told.append("stop"))
    next(ahead)
    with monkeypatch.context() as there:
        there.setattr(os, "getpid", lambda: -1)
        ahead.close()
        assert list(ahead) == told == []
    ahead._channel.stop()  # as in the parent
    assert wait_until(lambda: n_threads() == 0)


def test_a_thread_that_comes_while_another_one_has_the_end_in_hand_learns_of_the_end():
    """Between its taking the end out and putting it back, it was told that there was no memory left."""
    ahead = ReadAhead(iter([[0]]), 1)
    assert next(ahead) == 0
    assert wait_until(lambda: n_threads() == 0)
    while ahead._channel.items.get(timeout=60) is not read_ahead._ALL_DONE:
        pass
    assert list(ahead) == []


def test_dropped_by_its_own_thread():
    # The garbage collector runs where it likes, also in the thread that reads ahead.
    holder = []

    def loads():
        yield [0]
        holder.clear()
        gc.collect()
        yield [1]

    holder.append(ReadAhead(loads(), 1))
    next(holder[0])
    assert wait_until(lambda: not holder and n_threads() == 0)


def dies_before_its_first_instruction(thread):
    """What becomes of a thread for which there is no memory, once the system has made it."""


def cannot_be_started(thread):
    msg = "can't start new thread"
    raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("owner", "name", "instead", "match"),
    [
        (threading.Thread, "_bootstrap", dies_before_its_first_instruction, "did not start: there is not even memory"),
        (threading.Thread, "start", cannot_be_started, "could not be started: there is no memory for its stack"),
        (read_ahead, "_make_items", lambda *_: None, "had no memory left to say what went wrong"),
    ],
    ids=["dies", "is refused", "ends without a word"],
)
def test_a_thread_without_memory_is_a_memory_error_and_not_waited_for(monkeypatch, owner, name, instead, match):
    # Only one that dies is waited for so long; one that lives may be slow to start.
    monkeypatch.setattr(read_ahead, "_START_PATIENCE_S", 0.1 if name == "_bootstrap" else 60)
    monkeypatch.setattr(read_ahead, "_LOOK_S", 0.01)
    ahead = ReadAhead(iter([[0]]), 1)
    with monkeypatch.context() as there:
        there.setattr(owner, name, instead)
        with pytest.raises(MemoryError, match=match + ".*pass prefetch=0"):
            next(ahead)
    assert list(ahead) == []
    threading._limbo.clear()
    # What became of that thread is nobody's concern: the next one starts.
    monkeypatch.setattr(read_ahead, "_START_PATIENCE_S", 60)
    assert list(ReadAhead(iter([[0]]), 1)) == [0]


def test_an_interrupt_while_the_start_is_waited_for_stays_one(monkeypatch):
    """``Condition.wait`` lets go of its lock and then of it once more, when Ctrl-C comes in between."""
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            threading.Lock().release()

    ahead = ReadAhead(iter([[0]]), 1)
    with monkeypatch.context() as there:
        there.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(ahead)
    assert wait_until(lambda: n_threads() == 0)


# -- through the loader


def interrupted_at(number, call):
    """Call, with a KeyboardInterrupt before the instruction `number` of what reads ahead: whether it came to that."""
    count, here = 0, threading.get_ident()

    def step(*_):
        nonlocal count
        if threading.get_ident() == here:
            count += 1
            if count == number:
                raise KeyboardInterrupt

    with stepping(step), suppress(KeyboardInterrupt):
        call()
    return count >= number


@contextmanager
def stepping(step):
    """Call `step` before every instruction of what reads ahead, in this thread at least."""
    if hasattr(
        sys, "monitoring"
    ):  # from Python 3.12 on, where a trace of instructions misses those of functions just entered
        tool, event = sys.monitoring.PROFILER_ID, sys.monitoring.events.INSTRUCTION
        sys.monitoring.use_tool_id(tool, __name__)
        sys.monitoring.register_callback(tool, event, step)
        for code in codes_of_read_ahead():
            sys.monitoring.set_local_events(tool, code, event)
        try:
            yield
        finally:
            sys.monitoring.register_callback(tool, event, None)
            for code in codes_of_read_ahead():
                sys.monitoring.set_local_events(tool, code, 0)
            sys.monitoring.free_tool_id(tool)
        return

    def trace(frame, event, _):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if frame.f_code.co_filename != read_ahead.__file__:
            return None
        if event == "opcode":
            step()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


def codes_of_read_ahead():
    """Code of all functions of the module."""
    owners = [read_ahead, *(item for item in vars(read_ahead).values() if isinstance(item, type))]
    found = {item.__code__ for owner in owners for item in vars(owner).values() if inspect.isfunction(item)}
    return [code for code in found if code.co_filename == read_ahead.__file__]


@pytest.mark.parametrize("n_taken", [1, 13], ids=["full", "all_read"])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_an_interrupt_at_any_instruction_of_leaving_leaves_no_thread(monkeypatch, how, n_taken):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what Python does with a Ctrl-C inside of a destructor
    number, before, was_interrupted = 0, n_threads(), True
    while was_interrupted:
        number += 1
        held = [ReadAhead(iter(Loads(7)), 1)]
        for _ in range(n_taken):
            next(held[0])
        was_interrupted = interrupted_at(number, held[0].close if how == "close" else held.clear)
        held.clear()
        assert wait_until(lambda: n_threads() == before), f"a thread is left by instruction {number}"
    assert number > 20


def test_loader_makes_threads_when_iteration_starts():
    loader = small_loader(prefetch=2).add_adata(full_cells())
    batches = iter(loader)
    assert n_threads() == 0
    next(batches)
    assert n_threads() == 1
    batches.close()
    assert n_threads() == 0


def leave_by_break(loader):
    for _ in loader:
        break


def leave_by_error(loader):
    with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012
        for _ in loader:
            1 / 0  # noqa: B018
    # The traceback is still there, as in an interactive session.
    assert caught.value.__traceback__ is not None
    assert n_threads() == 0


def leave_by_next(loader):
    next(iter(loader))


def leave_by_finishing(loader):
    list(loader)


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error, leave_by_next, leave_by_finishing])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_no_thread_outlives_its_pass(leave, prefetch):
    loader = small_loader(prefetch=prefetch).add_adata(full_cells())
    leave(loader)
    assert n_threads() == 0
    # The pass is over: data may be added.
    assert loader.add_adata(full_cells()).n_obs == 100


def test_two_passes_at_a_time():
    loader = small_loader().add_adata(full_cells())
    pairs = [(first["index"].tolist(), second["index"].tolist()) for first, second in zip(loader, loader, strict=True)]
    assert len(pairs) == 9
    assert all(first == second for first, second in pairs)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_at_most_one_and_prefetch_load_requests_of_rows_are_held(monkeypatch, prefetch):
    held, most, read_dense = [], [], storage.read_dense

    def counted(*args, **kwargs):
        batches = read_dense(*args, **kwargs)
        held.extend(weakref.ref(batch) for batch in batches)
        most.append(sum(len(batch) for ref in held if (batch := ref()) is not None))
        return batches

    monkeypatch.setattr(storage, "read_dense", counted)
    batches = iter(small_loader(prefetch=prefetch).add_dataset(np.zeros((120, 3))))
    for number in range(20):
        # Not kept: what the caller holds on to comes on top.
        next(batches)
        ahead = min(10, number // 2 + 1 + prefetch)
        assert wait_until(lambda n=ahead: len(most) == n)
        time.sleep(0.002)
        assert len(most) == ahead
    assert max(most) <= 12 * (1 + prefetch)


def open_files():
    return sorted(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.parametrize("n_passes", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_abandoned_passes_leave_nothing(tmp_path, suffix, n_passes):
    loader = small_loader(shuffle=True, layers=["twice"]).add_paths([write(full_cells(), tmp_path / f"a{suffix}")])

    def abandon(n):
        for _ in range(n):
            next(iter(loader))
        gc.collect()
        return set(threading.enumerate()), Counter(open_files()), resident_bytes()

    abandon(50)
    threads, files, resident = abandon(50)
    threads_after, files_after, resident_after = abandon(n_passes)
    # Fewer where a thread of an earlier test was still ending, or closed a connection of its own.
    assert threads_after <= threads
    assert files_after <= files
    # A pass holds about 5 kB of rows, and its thread 8 MB of stack: a leak of either would show.
    assert resident_after - resident < 4_000_000


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(code, **kwargs):
    setup = """
    import sys, numpy as np
    from annbatch import Loader
    loader = Loader(batch_size=2, chunk_size=2, preload_nchunks=1, prefetch=3).add_dataset(np.zeros((1000, 3)))
    """
    code = textwrap.dedent(setup) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


ENDS = [
    "",
    "sys.exit(0)",
    "del loader",
    "import gc; gc.disable(); x = [batches]; x.append(x)",
    # While a load is being read.
    """
import time
slow = Loader(batch_size=2, chunk_size=2, preload_nchunks=1, transform=lambda batch: time.sleep(0.5) or batch)
more = iter(slow.add_dataset(np.zeros((1000, 3))))
next(more)
""",
]


def test_interpreter_exits_with_a_pass_open():
    process = run("batches = iter(loader); next(batches)")
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_interpreters_exit_in_many_ways_with_a_pass_open():
    """Each is a fork of one that has imported all, and ends as any other does."""
    process = run(
        f"""
        import os, warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # libraries may have threads
        for end in {ENDS!r}:
            child = os.fork()
            if child == 0:
                batches = iter(loader)
                next(batches)
                exec(end)
                break
            status = os.waitpid(child, 0)[1]
            if status:
                print(end, status)
        """
    )
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, err) == (0, "", "")


def test_ctrl_c_while_waiting_for_a_batch():
    process = run(
        """
        import signal, threading
        came = threading.Event()
        def interrupt(*_):
            came.set()
            raise KeyboardInterrupt
        signal.signal(signal.SIGINT, interrupt)
        def slow(batch):
            print("waiting", flush=True)
            came.wait(60)
        loader = Loader(batch_size=2, chunk_size=2, preload_nchunks=1, transform=slow).add_dataset(np.zeros((1000, 3)))
        batches = iter(loader)
        try:
            next(batches)
        except KeyboardInterrupt:
            print(threading.active_count(), list(batches))
        """
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out.splitlines()[-1], err) == (0, "1 []", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_mid_pass():
    process = run(
        """
        import os
        batches = iter(loader)
        next(batches)
        child = os.fork()
        if child == 0:
            try:
                next(batches)
            except RuntimeError as error:
                print(error)
            # The inherited pass is none of the child's: it may add data, and start a pass of its own.
            print(loader.add_dataset(np.zeros((4, 3))).n_obs, len(list(loader)))
            sys.exit(0)
        os.waitpid(child, 0)
        print(len(list(batches)))
        """
    )
    out, err = process.communicate(timeout=240)
    assert out.splitlines() == [
        "a pass must be continued in the process that started it: this process is a fork; start a new pass in it",
        "1004 502",
        "499",
    ]
    assert "Traceback" not in err


def test_results_are_the_same_when_reading_is_slow_or_the_caller_is():
    def slowly(batch):
        time.sleep(0.003)
        return batch["index"].tolist()

    counts = sp.csr_matrix(np.eye(48, dtype="float32"))
    expected = [list(range(first, first + 6)) for first in range(0, 48, 6)]
    assert list(small_loader(transform=slowly, prefetch=2).add_dataset(counts)) == expected
    seen = []
    for batch in small_loader(prefetch=2).add_dataset(counts):
        time.sleep(0.003)
        seen.append(batch["index"].tolist())
    assert seen == expected


def big_loader(**kwargs):
    """Batches of 512 x 200 values, big enough to be made of pooled buffers."""
    counts = np.ones((4096, 200), "float32")
    return Loader(chunk_size=64, preload_nchunks=16, batch_size=512, **kwargs).add_dataset(counts)


def test_a_second_pass_allocates_nothing_big(monkeypatch):
    loader = big_loader(prefetch=0)
    for _ in loader:
        pass
    made, empty = [], np.empty
    monkeypatch.setattr(
        np, "empty", lambda shape, *args, **kwargs: made.append(empty(shape, *args, **kwargs)) or made[-1]
    )
    for _ in loader:
        pass
    assert max(array.nbytes for array in made) < 100_000


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error, leave_by_next])
def test_leaving_early_frees_the_buffers(prefetch, leave):
    loader = big_loader(prefetch=prefetch)
    list(loader)
    leave(loader)
    gc.collect()
    assert loader._pool.free_bytes + loader._pool.used_bytes == 0
