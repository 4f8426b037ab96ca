"""One way to ask for byte ranges, whatever library knows the store."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from .errors import ChangedError, TransientError
from .http import Answer, HttpClient, NotPlainError, escaped

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

__all__ = [
    "FsspecObjects",
    "HttpObjects",
    "Objects",
    "ObstoreObjects",
    "Stamp",
    "ZarrObjects",
    "check_same",
    "has_no_credentials",
]

# File systems of fsspec that read through a single file, or connection, with one position for all threads.
_ONE_AT_A_TIME = {"tar", "libarchive", "ftp"}
# Those whose paths do not say in which folder, archive or repository.
_WITHIN_OTHERS = {"dir", "tar", "zip", "libarchive", "reference", "git"}
_taking_turns = threading.Lock()


def _in_turn(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _taking_turns:
        return call(*args, **kwargs)


def _not_awaited(files: Any) -> Any:
    """Return what zarr-python has wrapped, as it does what is not awaited."""
    return getattr(files, "sync_fs", files)


def _protocols(files: Any) -> set[str]:
    found = _not_awaited(files).protocol
    return {found} if isinstance(found, str) else set(found)


def _after_fork() -> None:
    global _taking_turns
    _taking_turns = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# Seconds after which it is asked again whether an object is the same, where answers do not tell.
LOOK_AGAIN_S = 1.0


class Stamp(NamedTuple):
    """What tells an object from the one that replaces it: its size in bytes, and its ETag or time of change ("": none)."""

    size: int
    tag: str


class Objects(ABC):
    """Objects of a store, by key. All calls are awaited in zarr-python's event loop.

    Attributes
    ----------
    is_verbatim
        Whether an object is, byte for byte, what was put there.
    """

    is_verbatim = True

    @abstractmethod
    def text(self, key: str) -> str:
        """Name an object, for error texts."""

    def identity(self, key: str) -> str | None:
        """Name an object as no other is named, for who keeps some of it; None where that cannot be."""
        return self.text(key)

    @abstractmethod
    async def read(self, key: str, start: int, into: memoryview, stamp: Stamp | None) -> None:
        """Read ``len(into)`` bytes from `start` on.

        Raises
        ------
        FileNotFoundError, PermissionError
            As it says.
        ChangedError
            The object is not the one that `stamp` was taken of.
        Exception
            Anything else is worth another try.
        """

    @abstractmethod
    async def read_all(self, key: str) -> tuple[Any, Stamp]:
        """Read a whole object."""

    @abstractmethod
    async def read_end(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """Read the last `n_bytes`, fewer where the object has fewer."""

    @abstractmethod
    async def read_start(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """Read the first `n_bytes`, fewer where the object has fewer."""

    async def stat(self, key: str) -> Stamp:
        """Look at an object."""
        return (await self.read_start(key, 1))[1]


class RoutedObjects(Objects):
    """Objects for which each call is passed on to one of several clients."""

    @abstractmethod
    async def _call(self, name: str, key: str, *args: Any) -> Any:
        """Let a client do what the method of this name does."""

    async def stat(self, key: str) -> Stamp:
        """See the base class."""
        return await self._call("stat", key)  # type: ignore[no-any-return]

    async def read(self, key: str, start: int, into: memoryview, stamp: Stamp | None) -> None:
        """See the base class."""
        await self._call("read", key, start, into, stamp)

    async def read_all(self, key: str) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._call("read_all", key)  # type: ignore[no-any-return]

    async def read_end(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._call("read_end", key, n_bytes)  # type: ignore[no-any-return]

    async def read_start(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._call("read_start", key, n_bytes)  # type: ignore[no-any-return]


def _fill(into: memoryview, data: Any) -> None:
    """Copy what a store answered; a TransientError where it is of another length."""
    if len(data) != len(into):
        msg = f"the store answered with {len(data)} bytes instead of {len(into)}"
        raise TransientError(msg)
    into[:] = data


def check_same(found: Stamp, stamp: Stamp | None) -> None:
    """Raise ChangedError when an object is another one than before."""
    if stamp is None:
        return
    if found.size != stamp.size:
        msg = f"it had {stamp.size} bytes and has {found.size}"
        raise ChangedError(msg)
    if found.tag and stamp.tag and found.tag != stamp.tag:
        msg = f"it was {stamp.tag} and is {found.tag}"
        raise ChangedError(msg)


class HttpObjects(Objects):
    """Objects of a web server, through the small client of :mod:`.http`; by its path where that cannot do it."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._server = f"{parts.scheme}://{parts.netloc}"
        self._root = url[len(self._server) :]
        self._headers = headers
        self._client: HttpClient | None = None
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return HttpObjects, (self._server + self._root, self._headers)

    def text(self, key: str) -> str:
        """See the base class."""
        return self._server + self._path(key).partition("?")[0]

    def identity(self, key: str) -> str:
        """See the base class."""
        return self._server + self._path(key)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}" if key else self._root

    async def _ask(
        self,
        key: str,
        start: int | None,
        stop: int | None,
        into: memoryview | None = None,
        most: int | None = None,
    ) -> Answer:
        client = self._client
        if client is None or self._pid != os.getpid():
            self._pid = os.getpid()
            client = self._client = _client_of(self._pid, self._server, self._headers)
        answer = await client.request("GET", self._target(key), start=start, stop=stop, into=into, most=most)
        status = answer.status
        if status in (200, 206):
            return answer
        if status in (404, 410):
            msg = f"no such object: {self.text(key)}"
            raise FileNotFoundError(msg)
        if status == 416:
            total = answer.head.get("content-range", "").rpartition("/")[2]
            if total == "0":
                return Answer(206, {**answer.head, "content-range": "bytes 0-0/0"}, b"")
            msg = f"the range is beyond its end; its size is {total or 'not told'}"
            raise ChangedError(msg)
        words = bytes(answer.data or b"")[:200].decode("utf-8", "replace").strip().replace("\n", " ")
        msg = f"the server answered with status {status}" + (f": {words}" if words else "")
        if status in (401, 403):
            raise PermissionError(msg)
        if status in (301, 302, 303, 307, 308):
            raise NotPlainError(msg)
        if status in (408, 425, 429) or status >= 500:
            raise TransientError(msg)
        raise ValueError(f"{self.text(key)}: {msg}")  # noqa: EM102 (short)

    def _target(self, key: str) -> str:
        path, question, query = self._path(key).partition("?")
        return (escaped(path) or "/") + question + query

    async def read(self, key: str, start: int, into: memoryview, stamp: Stamp | None) -> None:
        """See the base class."""
        stop = start + len(into)
        answer = await self._ask(key, start, stop, into)
        if answer.status == 200:
            check_same(Stamp(int(answer.head.get("content-length", -1)), _tag(answer.head)), stamp)
            msg = "the server answered with the whole object instead of a range"
            raise TransientError(msg)
        first, last, size = _content_range(answer.head)
        check_same(Stamp(size, _tag(answer.head)), stamp)
        if (first, last + 1) != (start, stop) or answer.data is not None:
            msg = f"the server answered with bytes {first} to {last + 1}"
            raise TransientError(msg)

    async def read_all(self, key: str) -> tuple[Any, Stamp]:
        """See the base class."""
        answer = await self._ask(key, None, None)
        assert answer.data is not None
        return answer.data, Stamp(len(answer.data), _tag(answer.head))

    async def read_end(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._part(key, -n_bytes, None, n_bytes)

    async def read_start(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._part(key, 0, n_bytes, n_bytes)

    async def _part(self, key: str, start: int, stop: int | None, n_bytes: int) -> tuple[Any, Stamp]:
        answer = await self._ask(key, start, stop, most=n_bytes)
        if answer.status == 200:
            size = int(answer.head.get("content-length", -1))
            if size > n_bytes or answer.data is None:
                msg = "the server answered with the whole object instead of a range"
                raise TransientError(msg)
            return answer.data, Stamp(size, _tag(answer.head))
        first, last, size = _content_range(answer.head)
        data, wanted = answer.data, min(n_bytes, size)
        if data is None or len(data) != wanted or first != (size - wanted if start < 0 else 0):
            msg = f"the server answered with bytes {first} to {last + 1} of {size}"
            raise TransientError(msg)
        return data, Stamp(size, _tag(answer.head))


# File systems of the process that this one was forked from; dropping them would end connections that are not ours.
_inherited: list[Any] = []
# All objects of a server share its connections: of a thousand files each would else keep its own. Those of the process
# that this one was forked from are left alone: they are still its own.
_clients: dict[tuple[int, str, frozenset[tuple[str, str]]], HttpClient] = {}


def _client_of(pid: int, server: str, headers: dict[str, str] | None) -> HttpClient:
    key = pid, server, frozenset((headers or {}).items())
    found = _clients.get(key)
    return _clients.setdefault(key, HttpClient(server, headers)) if found is None else found


def _tag(head: dict[str, str]) -> str:
    return head.get("etag") or head.get("last-modified", "")


def _content_range(head: dict[str, str]) -> tuple[int, int, int]:
    """Return first and last byte and the size of the object."""
    text = head.get("content-range", "")
    try:
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        first, _, last = span.partition("-")
        if unit.lower() != "bytes":
            raise ValueError
        if total == "0":
            return 0, -1, 0
        return int(first), int(last), int(total)
    except ValueError:
        msg = f"the server answered with part of the object but does not say which: {text!r}"
        raise TransientError(msg) from None


class FsspecObjects(Objects):
    """Objects of an fsspec file system.

    Of S3 every answer tells what the object is. Others are asked for it (ETag or time), and for each object at most once in
    a while: so bytes of an object that was replaced may be handed out for so long.
    """

    def __init__(self, files: Any, root: str) -> None:
        self._files, self._root = files, root
        self._pid = os.getpid()
        self._looked: dict[str, float] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecObjects, (self._files, self._root)

    @property
    def files(self) -> Any:
        """The file system of this process."""
        if self._pid != os.getpid():
            import pickle

            _inherited.append(self._files)
            self._files = pickle.loads(pickle.dumps(self._files))  # noqa: S301 (our own object; made anew for this process)
            self._pid = os.getpid()
        return self._files

    def text(self, key: str) -> str:
        """See the base class."""
        path = self.path(key)
        return path if "://" in path else str(self._files.unstrip_protocol(path))

    def identity(self, key: str) -> str | None:
        """See the base class."""
        if _WITHIN_OTHERS & _protocols(self._files):
            return None
        given = getattr(_not_awaited(self._files), "storage_options", {})
        # Of SFTP and the like paths do not say it.
        server = [str(given[name]) for name in ("host", "port") if given.get(name)]
        return " ".join([self.text(key), *server])

    def path(self, key: str) -> str:
        """Return the path of an object in the file system."""
        return "/".join(part for part in (self._root.rstrip("/"), key) if part)

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        files = self.files
        try:
            if _ONE_AT_A_TIME & _protocols(files):
                return await asyncio.to_thread(_in_turn, getattr(_not_awaited(files), name), *args, **kwargs)
            if files.async_impl and files.asynchronous:
                return await getattr(files, "_" + name)(*args, **kwargs)
            return await asyncio.to_thread(getattr(files, name), *args, **kwargs)
        except IsADirectoryError as error:
            raise FileNotFoundError(str(error)) from error
        except FileNotFoundError as error:
            # fsspec takes every refusal of a web server for this.
            if getattr(error.__cause__, "status", None) in (401, 403):
                raise PermissionError(str(error.__cause__)) from error
            # ... and every option that its client does not know.
            if isinstance(error.__cause__, TypeError):
                raise error.__cause__ from None
            raise
        except Exception as error:
            if has_no_credentials(error):
                raise _no_credentials(error) from error
            raise

    async def stat(self, key: str) -> Stamp:
        """See the base class."""
        files = self.files
        if hasattr(files, "invalidate_cache"):
            files.invalidate_cache(files._parent(self.path(key)))  # noqa: SLF001 (a listing may be old)
        info = await self._call("info", self.path(key))
        if info.get("type") == "directory":
            raise FileNotFoundError(self.text(key))
        names = ("ETag", "etag", "e_tag", "generation", "LastModified", "last_modified", "updated", "mtime", "modified")
        tag = next((str(info[name]) for name in names if info.get(name)), "")
        return Stamp(-1 if info.get("size") is None else int(info["size"]), tag)

    async def read(self, key: str, start: int, into: memoryview, stamp: Stamp | None) -> None:
        """See the base class."""
        files = self.files
        if stamp is not None and hasattr(files, "_call_s3"):
            data, found = await self._s3(key, Range=f"bytes={start}-{start + len(into) - 1}")
            check_same(found, stamp)
        else:
            data = await self._call("cat_file", self.path(key), start=start, end=start + len(into))
            if stamp is not None and (len(data) != len(into) or self._is_to_be_looked_at(key)):
                check_same(await self.stat(key), stamp)
        _fill(into, data)

    def _is_to_be_looked_at(self, key: str) -> bool:
        now = time.monotonic()
        if now - self._looked.get(key, -LOOK_AGAIN_S) < LOOK_AGAIN_S:
            return False
        self._looked[key] = now
        return True

    async def _s3(self, key: str, **kwargs: Any) -> tuple[bytes, Stamp]:
        """Ask s3fs for an object and for what it is."""
        files = self.files
        bucket, name, version = files.split_path(self.path(key))
        if version:
            kwargs["VersionId"] = version
        try:
            answer = await files._call_s3("get_object", Bucket=bucket, Key=name, **kwargs)  # noqa: SLF001
            async with answer["Body"] as body:
                data = await body.read()
        except Exception as error:
            code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
            if code == "InvalidRange":
                msg = "the range is beyond its end"
                raise ChangedError(msg) from error
            if code in ("NoSuchKey", "NoSuchBucket", "404"):
                raise FileNotFoundError(self.text(key)) from error
            if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"):
                raise PermissionError(str(error)) from error
            if has_no_credentials(error):
                raise _no_credentials(error) from error
            raise
        total = answer.get("ContentRange", "").rpartition("/")[2]
        return data, Stamp(int(total) if total.isdigit() else len(data), str(answer.get("ETag", "")))

    async def read_all(self, key: str) -> tuple[Any, Stamp]:
        """See the base class."""
        if hasattr(self.files, "_call_s3"):
            return await self._s3(key)
        data = await self._call("cat_file", self.path(key))
        return data, Stamp(len(data), "")

    async def read_end(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        if hasattr(self.files, "_call_s3"):
            return await self._s3(key, Range=f"bytes=-{n_bytes}")
        stamp = await self.stat(key)
        data = await self._call("cat_file", self.path(key), start=max(0, stamp.size - n_bytes), end=stamp.size)
        return data, stamp

    async def read_start(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        stamp = await self.stat(key)
        data = await self._call("cat_file", self.path(key), start=0, end=min(n_bytes, max(stamp.size, 0)))
        return data, stamp


def has_no_credentials(error: Exception) -> bool:
    """Whether a client of S3 found no credentials, or only a part of them: asking again does not help."""
    return type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")


def _no_credentials(error: Exception) -> PermissionError:
    words = "set AWS_PROFILE or the like, or pass storage_options: {'anon': True} for a public bucket"
    return PermissionError(f"{error}; {words}")


class ObstoreObjects(Objects):
    """Objects of an obstore store."""

    def __init__(self, store: Any, root: str = "") -> None:
        self._store, self._root = store, root

    def __reduce__(self) -> tuple[Any, ...]:
        return ObstoreObjects, (self._store, self._root)

    def text(self, key: str) -> str:
        """See the base class."""
        return f"{self._store!r} :: {self._path(key)}"

    def identity(self, key: str) -> str | None:
        """See the base class."""
        # A store in memory is named by its address, which the next one may have.
        return None if " object at 0x" in repr(self._store) else self.text(key)

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._root, key) if part)

    async def _asked(self, call: Any, key: str, **given: Any) -> Any:
        try:
            return await call(self._path(key), **given)
        except Exception as error:
            # Older releases have errors of their own for what is not there.
            if "NotFound" in type(error).__name__:
                raise FileNotFoundError(self.text(key)) from error
            if "Permission" in type(error).__name__ or "Unauthenticated" in type(error).__name__:
                raise PermissionError(str(error)) from error
            raise

    async def _get(self, key: str, bounds: Any) -> tuple[Any, Stamp]:
        options = {} if bounds is None else {"range": bounds}
        result = await self._asked(self._store.get_async, key, options=options)
        return memoryview(await result.bytes_async()), _obstore_stamp(result.meta)

    async def stat(self, key: str) -> Stamp:
        """See the base class."""
        return _obstore_stamp(await self._asked(self._store.head_async, key))

    async def read(self, key: str, start: int, into: memoryview, stamp: Stamp | None) -> None:
        """See the base class."""
        data, found = await self._get(key, (start, start + len(into)))
        check_same(found, stamp)
        _fill(into, data)

    async def read_all(self, key: str) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._get(key, None)

    async def read_end(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        return await self._get(key, {"suffix": n_bytes})

    async def read_start(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        stamp = await self.stat(key)
        if not stamp.size:
            return b"", stamp
        return await self._get(key, (0, min(n_bytes, stamp.size)))


def _obstore_stamp(meta: Any) -> Stamp:
    return Stamp(int(meta["size"]), meta.get("e_tag") or str(meta.get("last_modified") or ""))


class ZarrObjects(Objects):
    """Objects of any store that zarr-python reads from. Only a change of size is noticed."""

    def __init__(self, store: Store) -> None:
        from zarr.storage import MemoryStore, ZipStore

        self._store = store
        # Others may make metadata documents anew.
        self.is_verbatim = isinstance(store, MemoryStore | ZipStore)

    def __reduce__(self) -> tuple[Any, ...]:
        return ZarrObjects, (self._store,)

    def text(self, key: str) -> str:
        """See the base class."""
        root = getattr(self._store, "root", None)
        return f"{self._store if root is None else root}/{key}"

    async def _get(self, key: str, request: Any) -> Any:
        from zarr.core.buffer import default_buffer_prototype

        await self._store._ensure_open()  # noqa: SLF001 (what zarr-python itself does first)
        found = await self._store.get(key, default_buffer_prototype(), request)
        if found is None:
            msg = f"no such object: {self.text(key)}"
            raise FileNotFoundError(msg)
        return found.as_numpy_array().view("uint8").data

    async def stat(self, key: str) -> Stamp:
        """See the base class."""
        await self._store._ensure_open()  # noqa: SLF001
        return Stamp(await self._store.getsize(key), "")

    async def read(self, key: str, start: int, into: memoryview, stamp: Stamp | None) -> None:
        """See the base class."""
        from zarr.abc.store import RangeByteRequest

        data = await self._get(key, RangeByteRequest(start, start + len(into)))
        if stamp is not None and len(data) != len(into):
            check_same(await self.stat(key), stamp)
        _fill(into, data)

    async def read_all(self, key: str) -> tuple[Any, Stamp]:
        """See the base class."""
        data = await self._get(key, None)
        return data, Stamp(len(data), "")

    async def read_end(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        from zarr.abc.store import SuffixByteRequest

        data, size = await asyncio.gather(self._get(key, SuffixByteRequest(n_bytes)), self.stat(key))
        return data, size

    async def read_start(self, key: str, n_bytes: int) -> tuple[Any, Stamp]:
        """See the base class."""
        from zarr.abc.store import RangeByteRequest

        stamp = await self.stat(key)
        return await self._get(key, RangeByteRequest(0, min(n_bytes, stamp.size))), stamp
