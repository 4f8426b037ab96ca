"""A store of zarr-python that is read by our own means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.storage import WrapperStore

from annbatch.storage.manifest import check_digest, lost, manifest_in

from .clients import objects_of
from .fetch import fetcher, retried
from .options import FarOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from .fetch import Fetcher

__all__ = ["FarStore"]

_DOCUMENT = "zarr.json"


class FarStore(WrapperStore):  # type: ignore[type-arg]
    """A store of zarr-python whose objects are asked for by our own means, and that can have some in memory.

    Attributes
    ----------
    far_options
        How it is read.
    objects
        The same store, for byte ranges.
    listed
        By path of a dataset: the names of the nodes below it that its manifest knows, and the digests of their documents. Documents
        are compared as they are read.
    refused
        The last answer that said that something must not be read. Some stores say so of what they do not have.
    """

    def __init__(
        self, store: Store, options: FarOptions | None = None, listed: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        super().__init__(store)
        self.listed = dict(listed or {})
        self.far_options = FarOptions() if options is None else options
        self.objects = objects_of(store)
        self.refused: PermissionError | None = None
        self._kept: dict[str, bytes | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return FarStore, (self._store, self.far_options, self.listed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def __str__(self) -> str:
        return self.objects.text("").rstrip("/")

    def __repr__(self) -> str:
        return f"FarStore({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FarStore) and self._store == other._store

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def read_only(self) -> bool:
        """Always: nothing is written through it."""
        return True

    def with_read_only(self, read_only: bool = False) -> FarStore:  # noqa: FBT001, FBT002 (zarr-python's)
        """Return the same; it cannot be written to."""
        if not read_only:
            msg = f"{self} is opened for reading only"
            raise ValueError(msg)
        return self

    def _with_store(self, store: Store) -> FarStore:
        return FarStore(store, self.far_options)

    @property
    def queue(self) -> Fetcher:
        """What its bytes come through."""
        assert isinstance(self.far_options.max_in_flight, int)
        return fetcher(self.far_options.max_requests, self.far_options.max_in_flight)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See the base class."""
        from zarr.abc.store import RangeByteRequest, SuffixByteRequest

        if key in self._kept:
            data: Any = self._kept[key]
            if data is None:
                return None
            if isinstance(byte_range, RangeByteRequest):
                data = data[byte_range.start : byte_range.end]
            elif isinstance(byte_range, SuffixByteRequest):
                data = data[max(0, len(data) - byte_range.suffix) :]
            elif byte_range is not None:
                data = data[byte_range.offset :]
            return prototype.buffer.from_bytes(data)
        name = self.objects.text(key)
        try:
            if isinstance(byte_range, RangeByteRequest):
                into = bytearray(byte_range.end - byte_range.start)
                await retried(lambda: self.objects.read(key, byte_range.start, memoryview(into), None), name)
                data = into
            elif isinstance(byte_range, SuffixByteRequest):
                data, _ = await retried(lambda: self.objects.read_end(key, byte_range.suffix), name)
            else:
                data, _ = await retried(lambda: self.objects.read_all(key), name)
                if byte_range is not None:
                    data = data[byte_range.offset :]
        except FileNotFoundError:
            self._compare(key, None)
            return None
        except PermissionError as error:
            self.refused = error
            return None
        if byte_range is None:
            self._compare(key, data)
        return prototype.buffer.from_bytes(bytes(data))

    async def exists(self, key: str) -> bool:
        """See the base class."""
        if key in self._kept:
            return self._kept[key] is not None
        try:
            await retried(lambda: self.objects.stat(key), self.objects.text(key))
        except (FileNotFoundError, PermissionError):
            return False
        return True

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield what is in a folder; of what was looked for where the store cannot list."""
        prefix = prefix.rstrip("/")
        names = {}
        if self.can_list:
            async for name in self._store.list_dir(prefix):
                names[name.rstrip("/").rpartition("/")[2]] = True
        for key, data in self._kept.items():
            if data is not None and (not prefix or key.startswith(prefix + "/")):
                names[key.removeprefix(prefix).lstrip("/").partition("/")[0]] = True
        for name in names:
            yield name

    @property
    def can_list(self) -> bool:
        """Whether it can be asked what it holds."""
        protocol = getattr(getattr(self._store, "fs", None), "protocol", "")
        is_web = "http" in protocol if isinstance(protocol, str) else any("http" in one for one in protocol)
        return bool(self._store.supports_listing) and not is_web

    def keep(self, key: str, answer: Any) -> None:
        """Have the answer for an object in memory: what it holds, or why it cannot be had."""
        if isinstance(answer, PermissionError):
            self.refused = answer
        elif isinstance(answer, BaseException) and not isinstance(answer, FileNotFoundError):
            raise answer
        data = self._kept[key] = None if isinstance(answer, BaseException) else bytes(answer[0])
        if data is not None or isinstance(answer, FileNotFoundError):
            self._compare(key, data)

    def _compare(self, key: str, data: bytes | bytearray | memoryview | None) -> None:
        """Compare a metadata document with what the manifest above it says, and note the manifest that it may hold.

        Raises
        ------
        CorruptDataError
            It is missing, or not what it was when the dataset was written.
        """
        if not key.endswith(_DOCUMENT) or not self.objects.is_verbatim:
            return
        path, name = key.removesuffix(_DOCUMENT).rstrip("/"), self.objects.text(key)
        expected = self._digest_of(path)
        if expected is None:
            found = None if data is None else manifest_in(name, bytes(data))
            if found is not None:
                self.listed[path] = found["documents"]
        elif data is None:
            raise lost(name)
        else:
            check_digest(name, bytes(data), expected)

    def lacks(self, key: str) -> bool:
        """Whether it is not known of an object what it holds."""
        return key not in self._kept

    def has(self, key: str) -> bool:
        """Whether an object that was fetched is there."""
        return self._kept.get(key) is not None

    def is_listed(self, path: str) -> bool:
        """Whether a manifest above a node knows it."""
        return self._digest_of(path) is not None

    def _digest_of(self, path: str) -> str | None:
        above = path
        names: list[str] = []
        while above:
            above, _, name = above.rpartition("/")
            names.insert(0, name)
            found = self.listed.get(above, {}).get("/".join(names))
            if found is not None:
                return found
        return None

    def document(self, path: str) -> bytes | None:
        """Return the metadata document of a node, if it was fetched and is there still."""
        return self._kept.get(f"{path}/{_DOCUMENT}".lstrip("/"))

    def forget(self) -> None:
        """Drop what is in memory."""
        self._kept.clear()
