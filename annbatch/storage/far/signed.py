"""S3 at the price of plain HTTP: s3fs signs a URL for each object, once, and the small client asks for its ranges.

A request of s3fs takes more than a millisecond of processor time, one of the small client a twentieth of that. A signed URL is
good for any range of its object for as long as it says. Whatever is out of the ordinary goes through s3fs itself.
"""

from __future__ import annotations

import os
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from .http import NotPlainError
from .stores import FsspecObjects, HttpObjects, RoutedObjects, has_no_credentials

__all__ = ["SignedObjects", "can_be_signed"]

# Seconds for which a URL is signed, and after which another one is taken.
_VALID_S, _USED_S = 3600, 1800
# Seconds for which a signature that is refused means that the server does not know such, and not that it has come of age.
_FRESH_S = 1.0
# Settings of s3fs that URLs do not carry, or that a client of ours does not know.
_UNKNOWN_SETTINGS = ("req_kw", "s3_additional_kwargs")
_KNOWN_SETTINGS = {"client_kwargs": {"endpoint_url", "region_name"}, "config_kwargs": {"signature_version", "s3"}}
_OWN_AUTHORITIES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def can_be_signed(files: Any) -> bool:
    """Whether objects of a file system can be asked for by signed URLs: it is that of s3fs, without unusual settings."""
    if not all(hasattr(files, name) for name in ("_call_s3", "get_s3", "set_session", "split_path")):
        return False
    if any(getattr(files, name, None) for name in _UNKNOWN_SETTINGS) or not getattr(files, "use_ssl", True):
        return False
    return all(not set(getattr(files, name, None) or ()) - known for name, known in _KNOWN_SETTINGS.items())


def _is_special(scheme: str, host: str) -> bool:
    """Whether the environment says how a server is reached, which botocore heeds and the small client does not."""
    if scheme == "https" and any(os.environ.get(name) for name in _OWN_AUTHORITIES):
        return True
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)


class SignedObjects(RoutedObjects):
    """Objects of S3."""

    def __init__(self, general: FsspecObjects) -> None:
        self._general = general
        self._servers: dict[str, HttpObjects] = {}
        self._signed: dict[str, tuple[HttpObjects, str, float]] = {}
        self._is_refused = False

    def __reduce__(self) -> tuple[Any, ...]:
        return SignedObjects, (self._general,)

    def text(self, key: str) -> str:
        """See the base class."""
        return self._general.text(key)

    async def _place(self, key: str) -> tuple[HttpObjects, str, float]:
        """Return the server, the path with its signature, and the time of signing."""
        known = self._signed.get(key)
        if known is None or time.monotonic() - known[2] > _USED_S:
            files = self._general.files
            bucket, name, version = files.split_path(self._general.path(key))
            await files.set_session()
            client = await files.get_s3(bucket)
            wanted = {"Bucket": bucket, "Key": name, **({"VersionId": version} if version else {})}
            url = urlsplit(await client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=_VALID_S))
            if _is_special(url.scheme, url.hostname or ""):
                msg = "it is reached through a proxy, or has certificates of its own"
                raise NotPlainError(msg)
            server = f"{url.scheme}://{url.netloc}"
            objects = self._servers.setdefault(server, HttpObjects(f"{server}/"))
            # But for the slash between server and path: a key may begin with one.
            known = self._signed[key] = objects, f"{url.path.removeprefix('/')}?{url.query}", time.monotonic()
        return known

    async def _call(self, name: str, key: str, *args: Any) -> Any:
        if self._is_refused:
            return await getattr(self._general, name)(key, *args)
        signed = None
        try:
            objects, path, signed = await self._place(key)
            return await getattr(objects, name)(path, *args)
        except FileNotFoundError as error:
            raise FileNotFoundError(self.text(key)) from error
        except (PermissionError, NotPlainError, ValueError):
            # The signature may have lost its credentials, or the server does not know such. If it is something else, s3fs
            # has the store's own words.
            self._signed.pop(key, None)
            answer = await getattr(self._general, name)(key, *args)
            if signed is None or time.monotonic() - signed < _FRESH_S:
                self._is_refused = True
            return answer
        except Exception as error:
            if has_no_credentials(error):  # s3fs says so, too, as what it is
                return await getattr(self._general, name)(key, *args)
            raise
