"""Chunks of text of Zarr arrays in local folders, decoded without a Python object per text."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.storage.engine import _engine
from annbatch.storage.engine._ragged import unpack_texts
from annbatch.storage.errors import CorruptDataError
from annbatch.storage.local_zarr import is_version_3
from annbatch.storage.manifest import Files, check_file, file_namer, files_of, parsed_document
from annbatch.storage.text import is_utf8

from .decoders import decoder, most_text_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import zarr

__all__ = ["TextChunks"]


class TextChunks:
    """The chunks of a one-dimensional array of text, as anndata and we write it: ``vlen-utf8``, compressed, a file each.

    Attributes
    ----------
    rows
        Rows of a chunk.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        folder: Path,
        name_of: Callable[[Sequence[int]], str],
        decoders: list[Callable[[Any, int], Any]],
        files: Files | None,
    ) -> None:
        self._n_rows, self._folder, self._name_of, self._decoders, self._files = (
            array.shape[0], folder, name_of, decoders, files,
        )  # fmt: skip
        self.rows = int(array.chunks[0])

    @classmethod
    def of(cls, array: Any) -> TextChunks | None:
        """Return the chunks of an array; None when it is stored in another way."""
        from zarr.storage import LocalStore

        if not isinstance(getattr(array, "store", None), LocalStore) or len(array.shape) != 1:
            return None
        folder = Path(array.store.root, array.path)
        is_new, files = is_version_3(array), None
        name_of: Callable[[Sequence[int]], str] = lambda position: str(position[0])  # noqa: E731
        try:
            if is_new:
                document = parsed_document(folder / "zarr.json")
                is_plain = document["data_type"] == "string" and document["chunk_grid"]["name"] == "regular"
                is_plain &= document["chunk_key_encoding"]["name"] in ("default", "v2")
                name_of = file_namer(document)
                first, *steps = [step["name"] for step in document["codecs"]]
            else:
                document = parsed_document(folder / ".zarray")
                is_plain = True
                compressor = [document["compressor"]] if document["compressor"] else []
                first, *steps = [step["id"] for step in (document["filters"] or []) + compressor]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # zarr-python shall read it or say what is wrong
        decoders = [_decoder(name) for name in reversed(steps)]
        if not is_plain or first != "vlen-utf8" or None in decoders:
            return None
        if is_new:
            files = files_of(str(folder))
        return cls(array, folder, name_of, decoders, files)  # type: ignore[arg-type]

    def read(self, rows: slice) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the UTF-8 bytes of the texts of rows (uint8), and how many each has (int64).

        None when one of their chunks is not there or something is wrong with it: zarr-python knows what that means.

        Parameters
        ----------
        rows
            Whole chunks.
        """
        pairs = []
        for chunk in range(rows.start // self.rows, -(-rows.stop // self.rows)):
            pair = self._read(chunk)
            if pair is None:
                return None
            pairs.append(pair)
        data, lengths = zip(*pairs, strict=True)
        return (np.concatenate(data), np.concatenate(lengths)) if len(pairs) > 1 else pairs[0]

    def _read(self, chunk: int) -> tuple[np.ndarray, np.ndarray] | None:
        lengths = np.empty(min(self.rows, self._n_rows - chunk * self.rows), np.int64)
        path = self._folder / self._name_of((chunk,))
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                msg = f"{path} is not a regular file"
                raise CorruptDataError(msg)
            raw: Any = path.read_bytes()
        except OSError:
            return None
        if self._files is not None:
            expected = int(self._files.sizes[chunk]), int(self._files.marks[chunk])
            check_file(str(path), expected, (len(raw), int.from_bytes(raw[-4:], "little")))
        try:
            for decode in self._decoders:
                raw = decode(raw, most_text_bytes(len(lengths), len(raw)))
        except (OSError, ValueError, RuntimeError, TypeError):
            return None
        encoded = np.frombuffer(raw, np.uint8)
        if int.from_bytes(encoded[:4].tobytes(), "little") > self.rows:
            return None
        data = np.empty(len(encoded), np.uint8)
        n_bytes = unpack_texts(encoded, lengths, data)
        return (data[:n_bytes], lengths) if n_bytes >= 0 and is_utf8(data[:n_bytes], lengths) else None


def _decoder(name: str) -> Callable[[Any, int], Any] | None:
    """Return the decode function of an encoding step; None for one that is not known."""
    return _without_checksum if name == "crc32c" else decoder(name)


def _without_checksum(raw: Any, _: int) -> Any:
    found = np.frombuffer(raw, np.uint8)
    if len(found) < 4 or _engine.crc32c(found[:-4]) != int.from_bytes(found[-4:].tobytes(), "little"):
        msg = "the checksum of a chunk does not match"
        raise ValueError(msg)
    return found[:-4]
