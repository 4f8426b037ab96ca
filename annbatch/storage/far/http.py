"""A small HTTP client that does one thing quickly: ask for byte ranges over many connections that stay open.

General clients spend several times as long on a request as the network does. Here an answer of known length goes straight
into the memory where it is wanted, and nothing is made per request but the request.

Only answers with a Content-Length are understood, and no redirects: :class:`NotPlainError` says that a general client must
be asked. That is seen when an object is looked at for the first time.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from .errors import TransientError

__all__ = ["Answer", "HttpClient", "NotPlainError"]

# Seconds without a byte after which a request has failed.
TIMEOUT_S = 30.0
# Bytes for the head of an answer, and for as much of its data as arrives with it.
_HEAD_BYTES = 1 << 16
# What does not fit the question is still read to its end up to here, so that the connection can be used again.
_MOST_UNWANTED = 1 << 16


class NotPlainError(Exception):
    """The server answers in a way that only a general client understands."""


@dataclass(slots=True)
class Answer:
    """What came back: status, head (lower-case names) and, unless it went to where it was wanted, the data."""

    status: int
    head: dict[str, str]
    data: bytes | bytearray | None


class _Connection(asyncio.BufferedProtocol):
    """One connection, one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.head = bytearray(_HEAD_BYTES)
        self.head_view = memoryview(self.head)
        self.n_head = 0
        self.body: memoryview | None = None
        self.n_body = 0
        self.own: bytearray | None = None
        self.into: memoryview | None = None
        self.most: int | None = None
        self.answer: Answer | None = None
        self.waiting: asyncio.Future[Answer] | None = None
        self.transport: asyncio.Transport | None = None
        self.n_received = 0
        self.is_used = self.was_cut = False
        self.is_head_request = False

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.body is not None:
            return self.body[self.n_body :]
        return self.head_view[self.n_head :]

    def buffer_updated(self, nbytes: int) -> None:
        self.n_received += nbytes
        if self.waiting is None:
            self.abort()  # nobody has asked
            return
        if self.body is not None:
            self.n_body += nbytes
            if self.n_body == len(self.body):
                self._done()
            return
        self.n_head += nbytes
        end = self.head.find(b"\r\n\r\n", max(0, self.n_head - nbytes - 3), self.n_head)
        if end >= 0:
            try:
                self._begin_body(end)
            except (ValueError, IndexError):
                self._fail(TransientError("the answer is no HTTP"))
        elif self.n_head == _HEAD_BYTES:
            self._fail(TransientError("the head of the answer has no end"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.was_cut = self.waiting is not None  # and not given up before by us
        when = "in the middle of the answer" if self.n_received else "before the answer"
        self._fail(TransientError(f"the connection was cut {when}" + (f" ({exc})" if exc else "")))
        self.transport = None

    # -- called by the client

    def ask(
        self, request: bytes, into: memoryview | None, most: int | None, *, is_head: bool
    ) -> asyncio.Future[Answer]:
        assert self.transport is not None
        self.n_head = self.n_body = self.n_received = 0
        self.body = self.own = self.answer = None
        self.into, self.is_head_request = into, is_head
        self.most = _MOST_UNWANTED if into is not None else most
        self.waiting = self.loop.create_future()
        self.transport.write(request)
        return self.waiting

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # -- own

    def _begin_body(self, end: int) -> None:
        lines = bytes(self.head_view[:end]).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        if 100 <= status < 200:  # not the answer yet
            rest = self.n_head - end - 4
            self.head[:rest] = self.head[end + 4 : self.n_head]
            self.n_head, rest = 0, rest
            if rest:
                self.buffer_updated(rest)
            return
        head = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            head[name.lower()] = value.strip()
        self.answer = Answer(status, head, None)
        if "content-length" not in head and not self.is_head_request and status not in (204, 304):
            self._fail(NotPlainError("its answers have no Content-Length"))
            return
        length = 0 if self.is_head_request or status in (204, 304) else int(head["content-length"])
        already = self.n_head - end - 4
        if already > length:
            self._fail(TransientError("the answer is longer than it says"))
            return
        if self.into is not None and status == 206 and length == len(self.into):
            self.body = self.into
        elif self.most is not None and length > self.most:
            # For a range that is not the one that was asked for. Not read: the whole object may be large.
            self._finish(close=True)
            return
        else:
            self.own = bytearray(length)
            self.body = memoryview(self.own)
        if already:
            self.body[:already] = self.head_view[end + 4 : self.n_head]
            self.n_body = already
        if self.n_body == length:
            self._done()

    def _done(self) -> None:
        assert self.answer is not None
        if self.own is not None:
            self.answer.data = self.own
        self._finish(close=self.answer.head.get("connection", "").lower() == "close")

    def _finish(self, *, close: bool) -> None:
        waiting, answer = self.waiting, self.answer
        self.waiting = self.answer = self.body = self.into = self.own = None
        self.n_head = 0  # so that there is room for the word that the connection has ended
        self.is_used = True
        if close:
            self.abort()
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)  # type: ignore[arg-type]

    def _fail(self, error: Exception) -> None:
        waiting = self.waiting
        self.waiting = self.answer = self.body = self.into = self.own = None
        self.n_head = 0
        self.abort()
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


class HttpClient:
    """Connections to one server. To be used in one event loop.

    Parameters
    ----------
    url
        Scheme, host and port; the path is left out.
    headers
        Sent with every request.
    """

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"url must be http:// or https:// with a host, got {url!r}"
            raise ValueError(msg)
        self.secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, parts.port or (443 if self.secure else 80)
        default = 443 if self.secure else 80
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.netloc = shown if self.port == default else f"{shown}:{self.port}"
        given = {"User-Agent": "annbatch", "Accept": "*/*", "Accept-Encoding": "identity", **(headers or {})}
        if any("\r" in text or "\n" in text for pair in given.items() for text in pair):
            msg = "headers must be single lines, got one with a line break"
            raise ValueError(msg)
        lines = [f"Host: {self.netloc}", *(f"{name}: {value}" for name, value in given.items())]
        self._common = ("\r\n".join(lines) + "\r\n").encode("latin-1")
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def request(
        self,
        method: str,
        target: str,
        *,
        start: int | None = None,
        stop: int | None = None,
        into: memoryview | None = None,
        most: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask once.

        Parameters
        ----------
        method, target
            As they stand in the request line; the target is escaped already.
        start, stop
            Byte range, half open. A negative start without a stop: so many bytes of the end. None: everything.
        into
            Where the data go when the answer is partial and of just that length.
        most
            Longer answers are not read: they come without their data. None: all are, where there is no `into`.
        headers
            For this request.

        Raises
        ------
        TransientError, NotPlainError
            See there.
        """
        if start is None:
            wanted = ""
        elif stop is None:
            wanted = f"Range: bytes={start}\r\n" if start < 0 else f"Range: bytes={start}-\r\n"
        else:
            wanted = f"Range: bytes={start}-{stop - 1}\r\n"
        if headers:
            wanted += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        text = b"%s %s HTTP/1.1\r\n%s%s\r\n" % (
            method.encode(),
            target.encode(),
            self._common,
            wanted.encode("latin-1"),
        )
        while True:
            connection = await self._connection()
            was_used = connection.is_used
            answered = connection.ask(text, into, most, is_head=method == "HEAD")
            timer = connection.loop.call_later(TIMEOUT_S, self._check, connection, answered, 0)
            try:
                answer = await answered
            except TransientError:
                if was_used and connection.was_cut and not connection.n_received:
                    continue  # the server had closed a connection that was idle
                raise
            except BaseException:
                connection.abort()
                raise
            finally:
                timer.cancel()
                if connection.is_open:
                    self._idle.append(connection)
                else:
                    self._all.discard(connection)
            return answer

    def _check(self, connection: _Connection, answered: asyncio.Future[Answer], n_received: int) -> None:
        """Give a request up that has made no progress."""
        if answered.done():
            return
        if connection.n_received == n_received:
            connection._fail(TransientError(f"no byte came for {TIMEOUT_S:g} s"))  # noqa: SLF001
            return
        connection.loop.call_later(TIMEOUT_S, self._check, connection, answered, connection.n_received)

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self._all.discard(connection)
        loop = asyncio.get_running_loop()
        if self.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        connection = _Connection(loop)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await loop.create_connection(lambda: connection, self.host, self.port, ssl=self._tls)
        except TimeoutError:
            msg = f"no connection to {self.netloc} for {TIMEOUT_S:g} s"
            raise TransientError(msg) from None
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            msg = f"no connection to {self.netloc}: {error}"
            raise TransientError(msg) from error
        self._all.add(connection)
        return connection

    def close(self) -> None:
        """Close all connections. To be called in the event loop."""
        for connection in list(self._all):
            connection.abort()
        self._all.clear()
        self._idle.clear()


def escaped(path: str) -> str:
    """Return a path as it stands in a request line."""
    return quote(path, safe="/!$&'()*+,;=:@~%") if "%" in path else quote(path, safe="/!$&'()*+,;=:@~")
