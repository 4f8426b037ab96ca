"""Inputs that a collection holds already: a call that is made twice must not double every cell.

Beside the names of inputs, the categories of ``obs["src_path"]``, a dataset notes the size of each and a digest of the names
of its rows. Other readers take no notice of them.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .schema import SRC_PATH
from .warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .inputs.inputs import InputSpec
    from .look import Seen
    from .output.sink import Sink

IfExists = Literal["error", "skip", "add"]

_SIZES, _DIGESTS = "annbatch-sizes", "annbatch-digests"
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
        Of the number of its rows and the names of some (a signed 64-bit integer).
    """

    path: str
    size: int
    digest: int

    @classmethod
    def of(cls, spec: InputSpec, seen: Seen) -> Source:
        """Describe an input."""
        size = spec.size()
        return cls("" if size is None else _absolute(spec.label), _UNKNOWN if size is None else size, seen.digest)


def held_sources(groups: Iterable[Any]) -> dict[str, list[Source | None]]:
    """Inputs of all datasets by path; None where a dataset, of version 0.4 or another tool, does not say more."""
    held: dict[str, list[Source | None]] = {}
    for group in groups:
        column = group["obs"].get(SRC_PATH)
        if column is None or "categories" not in column:
            continue
        labels = [
            name.decode() if isinstance(name, bytes) else str(name) for name in np.asarray(column["categories"][()])
        ]
        noted: list[Source | None] = [None] * len(labels)
        if _SIZES in column and column[_SIZES].shape == column[_DIGESTS].shape == (len(labels),):
            pairs = zip(column[_SIZES][()].tolist(), column[_DIGESTS][()].tolist(), strict=True)
            noted = [Source(_absolute(label), *pair) for label, pair in zip(labels, pairs, strict=True)]
        for label, source in zip(labels, noted, strict=True):
            held.setdefault(_absolute(label), []).append(source)
    return held


def write_sources(sink: Sink, sources: Sequence[Source]) -> None:
    """Note the inputs of a dataset, in the order of the categories of ``src_path``."""
    sink.element(f"obs/{SRC_PATH}/{_SIZES}", np.array([source.size for source in sources], np.int64))
    sink.element(f"obs/{SRC_PATH}/{_DIGESTS}", np.array([source.digest for source in sources], np.int64))


def to_add(sources: Sequence[Source], held: dict[str, list[Source | None]], if_exists: IfExists) -> list[bool]:
    """Which inputs to add.

    Raises
    ------
    ValueError
        ``if_exists`` is "error", and the collection holds an input, or an input is given twice.
    """
    if if_exists == "add":
        return [True] * len(sources)
    known = [bool(s.path) and any(h in (s, None) for h in held.get(s.path, ())) for s in sources]
    changed = [s.path for s, is_known in zip(sources, known, strict=True) if s.path in held and not is_known]
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
        left_out = sorted({s.path for s, keep in zip(sources, chosen, strict=True) if not keep})
        warn_user(f"left out {len(chosen) - sum(chosen)} inputs that are there already: {_shown(left_out)}")
    return chosen


def _shown(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_MOST_SHOWN]) + (f" and {len(paths) - _MOST_SHOWN} more" if paths[_MOST_SHOWN:] else "")


def _absolute(label: str) -> str:
    # Not resolved: a link may lead somewhere else later, and is what the user named.
    return label if "://" in label else os.path.abspath(label)  # noqa: PTH100
