"""What storage raises when the bytes on disk cannot be what was written, and when they cannot be read."""

from __future__ import annotations

import errno
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CorruptDataError", "damage_named", "system_error"]

# What the system says of places that only damaged metadata lead to.
_SAID_OF_DAMAGE = {errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EFBIG}


class CorruptDataError(ValueError):
    """Stored data are damaged or contradict themselves.

    The message names the file, the array in it and, where it applies, the chunk. Nothing was returned for the request
    in which it happened.
    """


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Raise one kind of error for damage, whatever library finds it: a CorruptDataError that says where.

    Errors of reading (a disk that fails, a server that does not answer, missing permission) stay OSErrors; those that
    name no file get the name. Memory that is not there is no damage either, nor is a library that is not installed.
    """
    try:
        yield
    except (CorruptDataError, MemoryError, ImportError, ConnectionError, TimeoutError, InterruptedError):
        raise
    except OSError as error:
        number = system_error(error)
        if number is None or number in _SAID_OF_DAMAGE:
            raise CorruptDataError(_message(where, error)) from error
        if error.filename is None:
            raise OSError(number, f"{where}: {error}") from error
        raise
    except Exception as error:
        if type(error).__name__ == "IORegistryError":  # anndata does not know the encoding, which is no damage
            raise
        raise CorruptDataError(_message(where, error)) from error


def system_error(error: OSError) -> int | None:
    """Number of the system's error; HDF5 only writes it into the text."""
    if error.errno is not None:
        return error.errno
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else None


def _message(where: str, error: Exception) -> str:
    # The text of a KeyError is its argument quoted once more.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{where}: {text or type(error).__name__}"
