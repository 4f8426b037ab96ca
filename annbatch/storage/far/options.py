"""How far stores are read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from annbatch._shared.args import as_bytes, as_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cache import RangeCache

__all__ = ["FarOptions"]


@dataclass(frozen=True)
class FarOptions:
    """Settings for stores that are reached through a network. They have no effect on local ones.

    Attributes
    ----------
    storage_options
        For the library that opens a URL (fsspec): credentials, endpoint, headers; or for each protocol its own, ``{"s3": {...}, "https":
        {...}}``. None: what it finds in the environment.
    max_requests
        Most requests under way at a time, of all stores of the process with these limits.
    max_in_flight
        Most bytes that are on their way or wait to be decoded, in bytes or as in ``"256MB"``. One range may exceed it.
    cache
        Folder on a local disk where ranges that were fetched are kept. None: nowhere.
    cache_size
        Most bytes that the folder holds, in bytes or as in ``"500GB"``. None: no limit.

    Raises
    ------
    TypeError, ValueError
        A value is of a wrong kind or out of range.
    """

    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    max_requests: int = 128
    max_in_flight: int | str = 256 * 10**6
    cache: str | os.PathLike[str] | None = None
    cache_size: int | str | None = None

    def __post_init__(self) -> None:
        if self.storage_options is not None and not hasattr(self.storage_options, "keys"):
            msg = f"storage_options must be a dict or None, got {type(self.storage_options).__name__}"
            raise TypeError(msg)
        _set(self, "max_requests", as_count("max_requests", self.max_requests))
        _set(self, "max_in_flight", as_bytes("max_in_flight", self.max_in_flight))
        if self.cache is not None:
            if not isinstance(self.cache, str | os.PathLike):
                msg = f"cache must be the path of a folder or None, got {type(self.cache).__name__}"
                raise TypeError(msg)
            # A relative path means what it meant when it was given, in workers too.
            _set(self, "cache", os.path.abspath(self.cache))  # noqa: PTH100
        if self.cache_size is not None:
            _set(self, "cache_size", as_bytes("cache_size", self.cache_size))
            if self.cache is None:
                msg = f"cache_size must be given together with cache, got {self.cache_size} and no cache"
                raise ValueError(msg)

    def storage_options_of(self, url: str) -> dict[str, Any]:
        """Return what is for the library that opens a URL."""
        given = dict(self.storage_options or {})
        if given and "::" not in url:  # of such chains, fsspec takes each protocol its own
            from fsspec.registry import known_implementations

            if all(name in known_implementations and hasattr(value, "keys") for name, value in given.items()):
                protocol = url.partition("://")[0]
                # "http" says it for "https", too, and "s3" for "s3a": they are one to fsspec.
                kind = known_implementations.get(protocol, {}).get("class")
                same = [name for name in given if known_implementations[name]["class"] == kind]
                return dict(given[protocol if protocol in given else same[0]]) if same else {}
        return given

    def open_cache(self) -> RangeCache | None:
        """Return the folder where ranges are kept, None without one; a warning tells when nothing can be kept there."""
        from .cache import range_cache

        assert self.cache is None or isinstance(self.cache, str)
        assert self.cache_size is None or isinstance(self.cache_size, int)
        return range_cache(self.cache, self.cache_size)


def _set(options: FarOptions, name: str, value: Any) -> None:
    object.__setattr__(options, name, value)
