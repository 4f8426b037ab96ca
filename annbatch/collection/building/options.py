"""What a call of ``add_adatas`` asks for, checked, and where its datasets go."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from annbatch._shared.collection_format import dataset_name, dataset_number

from .inputs.inputs import function_fingerprint
from .journal import JOURNAL_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from .inputs.inputs import Input, InputSpec
    from .output.sink import Layout


@dataclass(frozen=True)
class Options:
    """Checked arguments of ``add_adatas``."""

    groupby: tuple[str, ...]
    var_subset: tuple[str, ...] | None
    layout: Layout
    dataset_rows: int | None
    dataset_bytes: int | None
    shuffle: bool
    merge: str | None
    extra_genes: Literal["error", "ignore"]
    max_memory: int
    compact: bool
    if_exists: Literal["error", "skip", "add"]
    progress: bool

    def fingerprint(self, specs: Sequence[InputSpec]) -> str:
        """What makes two calls the same: inputs and every argument that decides what is written."""
        parts = [
            JOURNAL_VERSION,
            [spec.fingerprint() for spec in specs],
            [function_fingerprint(spec.load_adata) for spec in specs[:1]],
            self.groupby,
            self.var_subset,
            repr(self.layout),
            self.dataset_rows,
            self.dataset_bytes,
            self.shuffle,
            self.merge,
            self.extra_genes,
            self.compact,
            self.if_exists,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Target:
    """Where datasets go: below the folder ``root``, which ``mark`` makes a collection."""

    root: Path
    suffix: str
    mark: Callable[[], None]
    existing: Callable[[], list[str]]
    open_input: Callable[[str], Input]
    noted: Callable[[], Iterable[tuple[Any, Sequence[str]]]]

    def new_names(self, n: int) -> list[str]:
        """Names for ``n`` more datasets."""
        taken = [dataset_number(name, self.suffix) for name in self.existing()]
        first = max((number for number in taken if number is not None), default=-1) + 1
        return [dataset_name(first + i, self.suffix) for i in range(n)]
