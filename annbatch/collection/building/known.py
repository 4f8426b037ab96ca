"""Inputs that a collection holds already: a call that is made twice must not double every cell.

Beside the names of inputs, the categories of ``obs["src_path"]``, a dataset notes three numbers of each: a digest of its path,
its size, and a digest of the names of its rows. Other readers take no notice of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from .schema import SRC_PATH
from .warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .inputs.inputs import InputSpec
    from .look import Seen
    from .output.sink import Sink

_log = logging.getLogger("annbatch")

IfExists = Literal["error", "skip", "add"]

# Attribute of src_path in Zarr (which is read in no time, however many datasets there are), a small array beside it in HDF5.
NOTE = "annbatch-inputs"
_UNKNOWN = -1
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Source:
    """What tells an input from others.

    Attributes
    ----------
    path
        Where it lies; "" for what is in memory, of which nothing can be told.
    size
        Of its files, in bytes; -1: not known.
    digest
        Of the number of its rows and their names (a signed 64-bit integer).
    """

    path: str
    size: int
    digest: int

    @classmethod
    def of(cls, spec: InputSpec, seen: Seen) -> Source:
        """Describe an input."""
        size = spec.size()
        return cls("" if size is None else _absolute(spec.label), _UNKNOWN if size is None else size, seen.digest)


Held: TypeAlias = "dict[int, list[tuple[int, int] | None]]"


def held_sources(noted: Iterable[tuple[Any, Sequence[str]]]) -> Held:
    """Size and digest of the inputs of all datasets, by the digest of their path.

    ``noted``: what each dataset notes, or None and the names of its inputs, of which nothing more is known, where it is of
    version 0.4 or another tool.
    """
    held: Held = {}
    for note, labels in noted:
        if note is not None:
            for place, size, digest in np.asarray(note, np.int64).reshape(-1, 3).tolist():
                held.setdefault(place, []).append((size, digest))
        for label in labels:
            held.setdefault(_digest(_absolute(label)), []).append(None)
    return held


def noted_sources(column: Any) -> tuple[Any, Sequence[str]]:
    """What the stored ``src_path`` of a dataset notes, and else the names of the inputs; ``column`` None: there is none."""
    if column is None or "categories" not in column:
        return None, ()
    if NOTE in column.attrs:
        return column.attrs[NOTE], ()
    if NOTE in column:
        return column[NOTE][()], ()
    categories = np.asarray(column["categories"][()])
    return None, [name.decode() if isinstance(name, bytes) else str(name) for name in categories]


def write_sources(sink: Sink, sources: Sequence[Source]) -> None:
    """Note the inputs of a dataset, in the order of the categories of ``src_path``."""
    column = sink.root[f"obs/{SRC_PATH}"]
    note = np.array([[_digest(source.path), source.size, source.digest] for source in sources], np.int64)
    if hasattr(column, "store"):
        column.attrs[NOTE] = note.tolist()
    else:  # attributes of HDF5 are small
        column.create_dataset(NOTE, data=note, fletcher32=True)


def to_add(sources: Sequence[Source], held: Held, if_exists: IfExists) -> list[bool]:
    """Which inputs to add.

    Raises
    ------
    ValueError
        ``if_exists`` is "error", and the collection holds an input, or an input is given twice.
    """
    if if_exists == "add":
        return [True] * len(sources)
    there = [held.get(_digest(s.path), ()) if s.path else () for s in sources]
    known = [any(h in ((s.size, s.digest), None) for h in found) for s, found in zip(sources, there, strict=True)]
    changed = [s.path for s, found, is_known in zip(sources, there, known, strict=True) if found and not is_known]
    if changed:
        warn_user(
            f"{_shown(changed)} {'has' if len(changed) == 1 else 'have'} changed since the collection took "
            f"{'its' if len(changed) == 1 else 'their'} rows; all rows are added as new ones"
        )
    counts = Counter(s.path for s in sources if s.path)
    twice = [path for path, count in counts.items() if count > 1]
    if if_exists == "error" and any(known):
        msg = (
            f"adata_paths: the collection holds {sum(known)} of {len(known)} inputs already: "
            f"{_shown([s.path for s, is_known in zip(sources, known, strict=True) if is_known])}; "
            'pass if_exists="skip" to leave them out, or if_exists="add" to add their rows once more'
        )
        raise ValueError(msg)
    if if_exists == "error" and twice:
        msg = (
            f"adata_paths must name each input once, got {_shown(twice)} more than once; "
            'pass if_exists="skip" to take it once, or if_exists="add" to add its rows as often as it is named'
        )
        raise ValueError(msg)
    chosen, taken = [], set()
    for source, is_known in zip(sources, known, strict=True):
        chosen.append(not is_known and source.path not in taken)
        if source.path:
            taken.add(source.path)
    if not all(chosen):
        # As asked, so no warning: a job that is run again and again is to be quiet.
        left_out = sorted({s.path for s, keep in zip(sources, chosen, strict=True) if not keep})
        n_left_out = len(chosen) - sum(chosen)
        _log.info(
            "left out %s of %s inputs that are there already, or are named twice: %s",
            n_left_out,
            len(chosen),
            _shown(left_out),
        )
    return chosen


def _shown(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_MOST_SHOWN]) + (f" and {len(paths) - _MOST_SHOWN} more" if paths[_MOST_SHOWN:] else "")


def _absolute(label: str) -> str:
    # Not resolved: a link may lead somewhere else later, and is what the user named.
    return label if "://" in label else os.path.abspath(label)  # noqa: PTH100


def _digest(text: str) -> int:
    code = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(code, "little", signed=True)
