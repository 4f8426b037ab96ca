"""The first step: look at every input, one at a time, and find every clash before any work is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from annbatch._shared.labels import unite_categories

from .columns import Column
from .interning import Interned
from .plan import block_edges
from .schema import SRC_PATH, Description, Schema, agree, describe_input
from .warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .fields import Array
    from .inputs.inputs import Input, InputSpec
    from .options import Options, Target

# Blocks are made of grains: where these lie is all that is kept of an input's row sizes until it is known how big a
# block may be.
_GRAIN_BYTES = 10**6

# Of a row pointer in memory, at most: the row's length, and its share of the start of a block of rows.
_POINTER_BYTES = 5


@dataclass(frozen=True)
class Seen:
    """What one look at an input found.

    Attributes
    ----------
    labels
        Its groupby columns.
    grains, grain_bytes
        Rows at which it may be cut into blocks, and bytes of all rows before each (int64), obs included.
    matrix_bytes
        Of its rows without obs.
    pointer_bytes
        Of its row pointers, which are in memory while it is open.
    decoding_bytes
        Of its longest chunk of text, which is in memory while it is decoded.
    digest
        Of the names of its rows.
    """

    description: Description
    labels: list[pd.Categorical[Any]]
    grains: Array
    grain_bytes: Array
    matrix_bytes: int
    pointer_bytes: int
    decoding_bytes: int
    digest: int

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return self.description.n_obs

    def block_edges(self, most_bytes: int) -> Array:
        """Cut into blocks of rows."""
        return self.grains[block_edges(self.grain_bytes, most_bytes)]


@dataclass(frozen=True)
class Survey:
    """What was found of all inputs."""

    inputs: Sequence[Seen]

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return sum(seen.n_obs for seen in self.inputs)

    @property
    def matrix_bytes(self) -> int:
        """Of all rows without obs."""
        return sum(seen.matrix_bytes for seen in self.inputs)

    @property
    def total_bytes(self) -> int:
        """Of all rows with obs."""
        return sum(int(seen.grain_bytes[-1]) for seen in self.inputs)

    @property
    def held_bytes(self) -> int:
        """Memory that open inputs take.

        Two inputs of many blocks are open when threads pass from one to the next; one chunk of text is decoded at a time.
        """
        return 2 * max(seen.pointer_bytes for seen in self.inputs) + max(seen.decoding_bytes for seen in self.inputs)

    @property
    def labels(self) -> list[list[pd.Categorical[Any]]]:
        """Groupby columns of each input that has any rows."""
        return [seen.labels for seen in self.inputs if seen.labels]


def look_at_inputs(specs: Sequence[InputSpec], options: Options, scratch: Path, *, may_have_nul: bool) -> Survey:
    """Look at every input; ``scratch``: a folder for temporary files; ``may_have_nul``: text of rows may have NUL characters.

    Raises
    ------
    ValueError
        There are no rows.
    """
    interned = Interned()
    inputs = [
        _look_at(spec, options.groupby, interned, scratch, may_have_nul=may_have_nul)
        for spec in tqdm(specs, desc="Checking inputs", unit="file", disable=not options.progress)
    ]
    if not any(seen.n_obs for seen in inputs):
        msg = f"adata_paths: no rows in any of the {len(specs)} inputs"
        raise ValueError(msg)
    return Survey(inputs)


def _look_at(spec: InputSpec, groupby: Sequence[str], interned: Interned, scratch: Path, *, may_have_nul: bool) -> Seen:
    opened = spec.open(scratch)
    try:
        description = interned.description(describe_input(opened))
        opened.obs.check_text(spec.label, may_have_nul=may_have_nul)
        lacking = [name for name in groupby if name not in (*description.obs, SRC_PATH)]
        if lacking and description.n_obs:
            msg = f"groupby: obs of {spec.label} has no column {lacking[0]!r}; it has {list(description.obs)}"
            raise KeyError(msg)
        labels = [_labels(opened, name) for name in groupby if not lacking]
        before = opened.bytes_before()
        matrix_bytes = int(before[-1])
        before += np.arange(len(before), dtype=np.int64) * (opened.obs.row_bytes if description.n_obs else 0)
        grains = block_edges(before, _GRAIN_BYTES, opened.row_step)
        sparse = sum(matrix.is_sparse for matrix in description.matrices.values())
        pointers = _POINTER_BYTES * sparse * description.n_obs
        return Seen(
            description,
            labels,
            grains,
            before[grains],
            matrix_bytes,
            pointers,
            opened.obs.decoding_bytes,
            opened.obs.digest,
        )
    finally:
        opened.close()


def _labels(opened: Input, name: str) -> pd.Categorical[Any]:
    """A groupby column of an input; ``src_path`` is what this build makes of it."""
    if name != SRC_PATH:
        return opened.obs.labels(name)
    return pd.Categorical.from_codes(np.zeros(opened.n_obs, np.int8), pd.Index([opened.label]))


def agree_on_schema(
    target: Target, existing: list[str], specs: Sequence[InputSpec], survey: Survey, options: Options
) -> Schema:
    """What all inputs, and the collection they are added to, can share."""
    present = _describe_existing(target, existing[-1]) if existing else None
    openers: dict[str, Callable[[], Input]] = {spec.label: spec.open for spec in specs}
    if present is not None:
        openers[present.label] = partial(target.open_input, existing[-1])

    def texts_of(label: str, name: str) -> pd.Index[Any]:
        opened = openers[label]()
        try:
            labels: pd.Index[Any] = pd.Index(sorted(opened.obs.labels(name).categories), dtype=object)
            return labels
        finally:
            opened.close()

    descriptions = [seen.description for seen in survey.inputs]
    replaced = [d.label for d in descriptions if SRC_PATH in d.obs]
    if replaced:
        warn_user(
            f"obs[{SRC_PATH!r}] of {len(replaced)} of {len(descriptions)} inputs, e.g. {replaced[0]}, "
            "is replaced by the names of the inputs; give it another name with load_adata to keep it"
        )
    schema = agree(
        [_without_src_path(d) for d in descriptions if d.n_obs],
        None if present is None else _without_src_path(present),
        var_subset=options.var_subset,
        extra_genes=options.extra_genes,
        merge=options.merge,
        texts_of=texts_of,
    )
    labels = Column("categorical", categories=pd.Index(list(dict.fromkeys(s.label for s in specs)), dtype=object))
    return replace(schema, obs={**schema.obs, SRC_PATH: labels})


def _without_src_path(description: Description) -> Description:
    return replace(description, obs={name: column for name, column in description.obs.items() if name != SRC_PATH})


def _describe_existing(target: Target, name: str) -> Description:
    opened = target.open_input(name)
    try:
        return describe_input(opened)
    finally:
        opened.close()


def label_unions(survey: Survey, schema: Schema, groupby: Sequence[str]) -> list[pd.Index[Any]]:
    """Values of each groupby column in all inputs, in the order in which they are sorted."""
    unions = []
    for i, name in enumerate(groupby):
        united = schema.obs[name].categories
        if united is None:
            united = unite_categories([labels[i].categories for labels in survey.labels])
            assert united is not None  # agree_on_schema() has found the columns of one kind
        unions.append(united)
    return unions
