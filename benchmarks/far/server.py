"""An HTTP server of a folder that answers byte ranges: late, at a limited rate, or wrongly, as it is told.

    python -m benchmarks.far.server FOLDER --delay 0.015 --bandwidth 100e6

prints its URL and serves until its input ends. In tests it runs in a thread of the process: ``with RangeServer(folder) as
server: server.url``, and ``server.faults.append(Fault("cut", "X/data"))`` lets it misbehave.

It is quick (several thousand answers a second on one core), so that what is measured is the client. All answers of a server
share its bandwidth, as they would a network.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import functools
import mmap
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Fault", "RangeServer", "serving"]

_RANGE = re.compile(rb"\r\nrange: *bytes=(\d*)-(\d*)", re.IGNORECASE)
_AUTHORIZATION = re.compile(rb"\r\nauthorization: *([^\r]+)", re.IGNORECASE)
_IF_MATCH = re.compile(rb"\r\nif-match: *([^\r]+)", re.IGNORECASE)
REASONS = {
    200: "OK",
    206: "Partial Content",
    404: "Not Found",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
}


@dataclass
class Fault:
    """What goes wrong with answers.

    Attributes
    ----------
    kind
        ``"status"``: the status below and no data. ``"cut"``: the connection ends in the middle of the answer. ``"reset"``: it
        ends before the answer. ``"hang"``: no answer at all. ``"stall"``: half of an answer, then nothing. ``"whole"``: the
        whole object instead of a range. ``"short"``: fewer bytes than asked for, and says so. ``"slow"``: an answer
        `seconds` later. ``"elsewhere"``: another range of the object than the one asked for.
    pattern
        Regular expression that is searched for in the path.
    times
        Answers that are hit.
    status, seconds
        See `kind`.
    """

    kind: str
    pattern: str = ""
    times: int = 1
    status: int = 503
    seconds: float = 1.0


@dataclass
class Served:
    """An object as it was when it was looked at last."""

    data: mmap.mmap | bytes
    tag: str
    modified: str
    stamp: tuple[int, int, int]


@dataclass
class RangeServer:
    """Serve a folder from a thread.

    Attributes
    ----------
    folder
        What is served, under the URL `url`.
    delay
        Seconds before each answer.
    bandwidth
        Bytes a second of all answers together; None: no limit.
    tags, dates
        Whether answers carry an ETag and a Last-Modified.
    hold, n_rounds
        Answer nothing before no request has come for `hold` seconds, and no other thread of this process has anything to do,
        then all of them: how often that was. It is how often the client had to wait for answers before it could ask on.
    faults
        What shall go wrong. May be changed at any time.
    requests
        Method, path and range (None: all) of every request, in order of arrival. May be cleared at any time.
    authorizations
        The credentials of those that had some.
    most_open, n_open
        Most requests that waited for an answer at a time since this was last set, and those that do now.
    """

    folder: Path
    delay: float = 0.0
    bandwidth: float | None = None
    tags: bool = True
    dates: bool = True
    log: bool = True
    hold: float = 0.0
    n_rounds: int = 0
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, tuple[int, int] | None]] = field(default_factory=list)
    authorizations: list[bytes] = field(default_factory=list)
    most_open: int = 0
    n_open: int = 0
    n_connections: int = 0
    port: int = 0

    def __enter__(self) -> RangeServer:
        self.loop = asyncio.new_event_loop()
        self._files: dict[str, Served] = {}
        self._free_at = 0.0
        self.connections: set[_Connection] = set()
        self._held: list[tuple[_Connection, bytes]] = []
        self._release: asyncio.TimerHandle | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="range-server", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        listening = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listening.getsockname()[1]
        server = self.loop.run_until_complete(
            self.loop.create_server(functools.partial(_Connection, self), sock=listening, backlog=1024)
        )
        self.loop.call_soon(started.set)
        try:
            self.loop.run_forever()
        finally:
            server.close()
            # Whoever was just coming in has no connection yet that could be ended.
            coming = asyncio.all_tasks(self.loop)
            if coming:
                self.loop.run_until_complete(asyncio.wait(coming))
            for connection in list(self.connections):
                connection.transport.abort()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    def found(self, path: str) -> Served | None:
        """Return an object as it is now."""
        name = os.path.join(self.folder, path.lstrip("/"))  # noqa: PTH118 (quick)
        try:
            stat = os.stat(name)  # noqa: PTH116
        except OSError:
            return None
        if not os.path.isfile(name):  # noqa: PTH113
            return None
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self._files.get(path)
        if known is None or known.stamp != stamp:
            with Path(name).open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if stat.st_size else b""
            tag = '"' + "-".join(f"{number:x}" for number in stamp) + '"'
            known = Served(data, tag, email.utils.formatdate(stat.st_mtime, usegmt=True), stamp)
            self._files[path] = known
        return known

    def fault(self, path: str) -> Fault | None:
        """Return what goes wrong with this answer, and count it."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def hold_back(self, connection: _Connection, request: bytes) -> None:
        """Answer when nobody asks any more."""
        self._held.append((connection, request))
        if self._release is not None:
            self._release.cancel()
        self._release = self.loop.call_later(self.hold, self._answer_held)

    def _answer_held(self) -> None:
        if _others_run():  # silent for want of a processor
            self._release = self.loop.call_later(self.hold, self._answer_held)
            return
        held, self._held = self._held, []
        self.n_rounds += 1
        for connection, request in held:
            connection.answer(request)

    def wait(self, n_bytes: int) -> float:
        """Return the seconds until so many bytes are through the network."""
        if not self.bandwidth:
            return 0.0
        now = self.loop.time()
        self._free_at = max(self._free_at, now) + n_bytes / self.bandwidth
        return self._free_at - now


class _Connection(asyncio.Protocol):
    """One connection: answers its requests one after the other."""

    def __init__(self, server: RangeServer) -> None:
        self.server, self.buffer = server, b""
        self.busy = False

    def connection_made(self, transport):
        self.transport = transport
        self.server.n_connections += 1
        self.server.connections.add(self)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        # Else the data wait for the client's word that it has the head, 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc):
        self.server.connections.discard(self)
        if self.busy:
            self.server.n_open -= 1

    def data_received(self, data):
        self.buffer += data
        if not self.busy and self.buffer.endswith(b"\r\n\r\n"):
            request, self.buffer = self.buffer, b""
            self.busy = True
            self.server.n_open += 1
            self.server.most_open = max(self.server.most_open, self.server.n_open)
            if self.server.hold:
                self.server.hold_back(self, request)
            elif self.server.delay:
                loop = self.server.loop
                loop.call_later(self.server.delay, self.answer, request)
            else:
                self.answer(request)

    def answer(self, request: bytes) -> None:
        server = self.server
        if self.transport.is_closing():
            return
        method, target, _ = request.split(b" ", 2)
        path = urllib.parse.unquote(target.partition(b"?")[0].decode())
        ranged = _RANGE.search(request)
        bounds = None
        if ranged and ranged[1]:
            bounds = (int(ranged[1]), int(ranged[2]) + 1 if ranged[2] else sys.maxsize)
        elif ranged:
            bounds = (-int(ranged[2]), sys.maxsize)
        if server.log:
            server.requests.append((method.decode(), path, bounds))
            if credentials := _AUTHORIZATION.search(request):
                server.authorizations.append(credentials[1])
        fault = server.fault(path)
        kind = None if fault is None else fault.kind
        if kind == "hang":
            return
        if kind == "reset":
            self.transport.abort()
            return
        if kind == "slow":
            server.loop.call_later(fault.seconds, self.respond, method, path, bounds, request, None)
            return
        if kind == "status":
            self.finish(fault.status, b"", b"it was told to\n")
            return
        self.respond(method, path, bounds, request, kind)

    def respond(self, method: bytes, path: str, bounds, request: bytes, kind: str | None) -> None:
        server = self.server
        served = server.found(path)
        if served is None:
            self.finish(404, b"", b"there is nothing\n")
            return
        wanted = _IF_MATCH.search(request)
        if wanted and server.tags and wanted[1].decode() != served.tag:
            self.finish(412, b"", b"it has changed\n")
            return
        size = len(served.data)
        extra = f"ETag: {served.tag}\r\n" if server.tags else ""
        if server.dates:
            extra += f"Last-Modified: {served.modified}\r\n"
        start, stop = 0, size
        status = 200
        if bounds is not None and kind != "whole":
            start, stop = bounds
            start = max(size + start, 0) if start < 0 else start
            stop = min(stop, size)
            if start >= size:
                self.finish(416, f"Content-Range: bytes */{size}\r\n".encode(), b"")
                return
            if kind == "short":
                stop = start + (stop - start) // 2
            if kind == "elsewhere":
                start, stop = (start - 1, stop - 1) if start else (start + 1, min(stop + 1, size))
            status = 206
            extra += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        body = memoryview(served.data)[start:stop]
        if method == b"HEAD":
            self.finish(200, f"{extra}Accept-Ranges: bytes\r\n".encode(), b"", size)
            return
        if kind in ("cut", "stall"):
            self.transport.write(self.head(status, extra.encode(), len(body)))
            self.transport.write(body[: len(body) // 2])
            if kind == "cut":
                self.transport.close()
            return
        self.send(status, extra.encode(), body)

    @staticmethod
    def head(status: int, extra: bytes, length: int) -> bytes:
        reason = REASONS.get(status, "Trouble")
        return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\n".encode() + extra + b"\r\n"

    def finish(self, status: int, extra: bytes, body: bytes, length: int | None = None) -> None:
        self.transport.write(self.head(status, extra, len(body) if length is None else length) + body)
        self.done()

    def send(self, status: int, extra: bytes, body: memoryview) -> None:
        head = self.head(status, extra, len(body))
        wait = self.server.wait(len(body))
        if wait <= 0:
            self.transport.write(head)
            if body:
                self.transport.write(body)
            self.done()
            return
        # What the network holds back arrives when it is through.
        self.server.loop.call_later(wait, self._late, head, body)

    def _late(self, head: bytes, body: memoryview) -> None:
        if not self.transport.is_closing():
            self.transport.write(head)
            self.transport.write(body)
            self.done()

    def done(self) -> None:
        self.busy = False
        self.server.n_open -= 1


def _others_run() -> bool:
    """Whether another thread of this process runs, or would if it had a processor; False where the system does not say."""
    own = str(threading.get_native_id())
    try:
        threads = [thread for thread in Path("/proc/self/task").iterdir() if thread.name != own]
    except OSError:
        return False
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                return True
    return False


@contextlib.contextmanager
def serving(folder: Path, latency_ms: float = 0.0, bandwidth: float | None = None) -> Iterator[str]:
    """Serve a folder from another process, with so many ms before each answer and MB/s of all; yields the URL."""
    command = [sys.executable, "-m", "benchmarks.far.server", str(folder), "--delay", str(latency_ms / 1000)]
    if bandwidth:
        command += ["--bandwidth", str(bandwidth * 1e6)]
    repository = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()  # which ends it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bandwidth", type=float, help="bytes a second of all answers together")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    with RangeServer(args.folder, args.delay, args.bandwidth, log=False, port=args.port) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
