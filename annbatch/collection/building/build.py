"""A whole call of ``add_adatas``: look, agree, plan, deal, assemble, put in place."""

from __future__ import annotations

import hashlib
import json
import secrets
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .assemble import AssembleTask, assemble
from .columns import Column, sort_keys, unite_categories
from .deal import DealTask, close_inputs, deal
from .fields import WholeRange
from .inputs.inputs import function_fingerprint
from .interning import Interned
from .journal import WorkFolder, say
from .plan import block_edges, dataset_edges, destinations, plan_bytes, rng_of
from .schema import SRC_PATH, Description, Schema, agree, describe_input, save_schema
from .spill import read_notes
from .tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .fields import Array
    from .inputs.inputs import Input, InputSpec
    from .output.sink import Layout

# What is in blocks and journal; an interrupted call is continued by the same version only.
_JOURNAL_VERSION = 2
# Least memory that blocks of rows get, all together, and each.
_LEAST_WORKING_MEMORY = 64 * 10**6
_LEAST_ROOM_OF_A_BLOCK = 8 * 10**6
# Small blocks stay in memory that the allocator has at hand, which saves the first touch of fresh pages; but a big
# build must not be cut into more blocks than a file system likes.
_LEAST_BLOCK_BYTES = 32 * 10**6
_MOST_BLOCK_BYTES = 512 * 10**6
_MANY_BLOCKS = 256
# Blocks are made of grains: where these lie is all that is kept of an input's row sizes until it is known how big a
# block may be.
_GRAIN_BYTES = 10**6
# Least bytes that are read in one go from a block while a dataset is assembled.
_SECTION_BYTES = 2**18
# How often the values of a block, or of a piece of a dataset, are in memory at one time: as read, fitted, and on their
# way to the disk; and the rows of obs that were read with those of a block.
_COPIES = 4


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
    progress: bool


@dataclass(frozen=True)
class Target:
    """Where datasets go: below the folder ``root``, which ``mark`` makes a collection."""

    root: Path
    suffix: str
    mark: Callable[[], None]
    existing: Callable[[], list[str]]
    open_input: Callable[[str], Input]

    def name(self, number: int) -> str:
        """Name of a dataset."""
        return f"dataset_{number}{self.suffix}"

    def number(self, name: str) -> int:
        """Number of a dataset."""
        return int(name.removeprefix("dataset_").removesuffix(self.suffix))


@dataclass(frozen=True)
class _Seen:
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
    """

    description: Description
    labels: list[pd.Categorical[Any]]
    grains: Array
    grain_bytes: Array
    matrix_bytes: int
    pointer_bytes: int
    decoding_bytes: int

    def block_edges(self, most_bytes: int) -> Array:
        """Cut into blocks of rows."""
        return self.grains[block_edges(self.grain_bytes, most_bytes)]


@dataclass(frozen=True)
class _Budget:
    """How ``max_memory`` is shared out.

    Attributes
    ----------
    n_parallel
        Blocks that are dealt at a time in a process.
    block_bytes
        Most bytes of a block; of obs, as much is read in one go.
    """

    n_parallel: int
    block_bytes: int


def build(
    target: Target,
    specs: Sequence[InputSpec],
    options: Options,
    executor: Executor | None,
    rng: np.random.Generator | None,
) -> None:
    """Add the rows of all inputs as new datasets."""
    from annbatch.storage import available_cpus

    seed = None if rng is None else int(rng.integers(2**63))
    call = {"version": _JOURNAL_VERSION, "call": _fingerprint(specs, options), "seed": seed}
    with WorkFolder(target.root) as work:
        if _finish_interrupted(work, target, call):
            return
        survey = _survey(work, specs, options)
        n_obs = sum(seen.description.n_obs for seen in survey)
        if n_obs == 0:
            msg = f"adata_paths: no rows in any of the {len(specs)} inputs"
            raise ValueError(msg)
        existing = target.existing()
        schema = _agree(target, existing, specs, [seen.description for seen in survey], options)
        row_bytes = sum(seen.matrix_bytes for seen in survey) / n_obs
        edges = dataset_edges(n_obs, options.dataset_rows or max(1, int((options.dataset_bytes or 0) / row_bytes)))
        unions = _unions(survey, schema, options.groupby)
        budget = _budget(survey, edges, unions, options, 1 if executor is not None else available_cpus())
        seed = _begin(work, call, existing)
        first = max((target.number(name) for name in existing), default=-1) + 1
        names = [target.name(first + i) for i in range(len(edges) - 1)]
        schema_path = work.path / f"schema-{secrets.token_hex(4)}.pickle"
        save_schema(schema, schema_path)
        blocks = _deal(work, schema_path, specs, survey, edges, unions, seed, executor, budget, options)
        del survey, unions
        _assemble(work, schema_path, schema, blocks, edges, names, executor, options)
        work.commit(names)
        _finish(work, target, names)


def _survey(work: WorkFolder, specs: Sequence[InputSpec], options: Options) -> list[_Seen]:
    """Look at every input, one at a time."""
    survey = []
    interned = Interned()
    for spec in tqdm(specs, desc="Checking inputs", unit="file", disable=not options.progress):
        opened = spec.open(work.path)
        try:
            description = interned.description(describe_input(opened))
            lacking = [name for name in options.groupby if name not in (*description.obs, SRC_PATH)]
            if lacking and description.n_obs:
                msg = f"groupby: obs of {spec.label} has no column {lacking[0]!r}; it has {list(description.obs)}"
                raise KeyError(msg)
            labels = [_labels(opened, name) for name in options.groupby if not lacking]
            before = opened.bytes_before()
            matrix_bytes = int(before[-1])
            before += np.arange(len(before), dtype=np.int64) * (opened.obs.row_bytes if description.n_obs else 0)
            grains = block_edges(before, _GRAIN_BYTES, opened.row_step)
            sparse = sum(matrix.is_sparse for matrix in description.matrices.values())
            pointers = 8 * sparse * description.n_obs
            decoding = opened.obs.decoding_bytes
            survey.append(_Seen(description, labels, grains, before[grains], matrix_bytes, pointers, decoding))
        finally:
            opened.close()
    return survey


def _labels(opened: Input, name: str) -> pd.Categorical[Any]:
    """A groupby column of an input; ``src_path`` is what this build makes of it."""
    if name != SRC_PATH:
        return opened.obs.labels(name)
    return pd.Categorical.from_codes(np.zeros(opened.n_obs, np.int8), pd.Index([opened.label]))


def _budget(
    survey: Sequence[_Seen], edges: Array, unions: Sequence[pd.Index[Any]], options: Options, n_threads: int
) -> _Budget:
    """Share ``max_memory`` out; what grows with the rows comes first.

    Raises
    ------
    ValueError
        It is too little.
    """
    n_obs = int(edges[-1])
    # Two inputs of many blocks are open when threads pass from one to the next; one chunk of text is decoded at a time.
    held = plan_bytes(n_obs, 0) + 2 * max(seen.pointer_bytes for seen in survey)
    held += max(seen.decoding_bytes for seen in survey)
    labels = sum(column.codes.nbytes for seen in survey for column in seen.labels)
    planning = plan_bytes(n_obs, int(np.diff(edges).max()), _key_bytes(unions)) + labels
    least = max(planning, held + _LEAST_WORKING_MEMORY)
    if options.max_memory < least:
        msg = f"max_memory must be at least {least / 1e6:.0f}MB for {n_obs} rows, got {options.max_memory / 1e6:.0f}MB"
        raise ValueError(msg)
    room = options.max_memory - held
    n_parallel = max(1, min(n_threads, room // (_COPIES * _LEAST_ROOM_OF_A_BLOCK)))
    total = sum(int(seen.grain_bytes[-1]) for seen in survey)
    wanted = min(max(_LEAST_BLOCK_BYTES, total // _MANY_BLOCKS), _MOST_BLOCK_BYTES)
    return _Budget(n_parallel, min(wanted, room // (_COPIES * n_parallel)))


def _key_bytes(unions: Sequence[pd.Index[Any]]) -> int:
    """Width of the integers that :func:`sort_keys` makes (0 without groupby)."""
    n_keys = prod(len(union) + 1 for union in unions)
    return np.min_scalar_type(min(n_keys, 2**63)).itemsize if unions else 0


def _finish_interrupted(work: WorkFolder, target: Target, call: dict[str, Any]) -> bool:
    """Put datasets in place that an interrupted call had decided to add.

    Returns whether this call asks for just those.
    """
    journal = work.read()
    if journal is None or journal["state"] != "publishing":
        return False
    _finish(work, target, journal["names"])
    same = _same_call(journal, call)
    rest = (
        "this call asked for the same and adds nothing more"
        if same
        else "it had asked for something else than this call"
    )
    say(f"{target.root}: finished an interrupted call, which only had to put its datasets in place; {rest}")
    return same


def _begin(work: WorkFolder, call: dict[str, Any], existing: list[str]) -> int:
    """Open the journal, or go on with that of an interrupted call. Returns the seed."""
    journal = work.read()
    if journal is not None and journal["existing"] == existing and _same_call(journal, call):
        work.drop_unfinished(journal)
        blocks, datasets = len(list(work.blocks.glob("*.json"))), len(list(work.ready.glob("dataset_*")))
        say(f"{work.root}: continuing an interrupted call; {blocks} blocks and {datasets} datasets were finished")
    else:
        if journal is not None:
            say(f"{work.root}: removed the unfinished work of an interrupted call with other inputs or arguments")
        work.discard()
        seed = secrets.randbits(63) if call["seed"] is None else call["seed"]
        journal = {**call, "seed": seed, "existing": existing}
    work.begin(journal)
    return int(journal["seed"])


def _same_call(journal: dict[str, Any], call: dict[str, Any]) -> bool:
    return journal["call"] == call["call"] and call["seed"] in (None, journal["seed"])


def _fingerprint(specs: Sequence[InputSpec], options: Options) -> str:
    """What makes two calls the same: inputs and every argument that decides what is written."""
    load = [function_fingerprint(spec.load_adata) for spec in specs[:1]]
    parts = [
        _JOURNAL_VERSION,
        [spec.fingerprint() for spec in specs],
        load,
        options.groupby,
        options.var_subset,
        repr(options.layout),
        options.dataset_rows,
        options.dataset_bytes,
        options.shuffle,
        options.merge,
        options.extra_genes,
        options.compact,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _agree(
    target: Target,
    existing: list[str],
    specs: Sequence[InputSpec],
    descriptions: Sequence[Description],
    options: Options,
) -> Schema:
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

    replaced = [d.label for d in descriptions if SRC_PATH in d.obs]
    if replaced:
        say(
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


def _unions(survey: Sequence[_Seen], schema: Schema, groupby: Sequence[str]) -> list[pd.Index[Any]]:
    """Values of each groupby column in all inputs, in the order in which they are sorted."""
    unions = []
    for i, name in enumerate(groupby):
        united = schema.obs[name].categories
        if united is None:
            united = unite_categories([seen.labels[i].categories for seen in survey if seen.labels])
            assert united is not None  # agree() has found the columns of one kind
        unions.append(united)
    return unions


def _deal(
    work: WorkFolder,
    schema_path: Path,
    specs: Sequence[InputSpec],
    survey: Sequence[_Seen],
    edges: Array,
    unions: Sequence[pd.Index[Any]],
    seed: int,
    executor: Executor | None,
    budget: _Budget,
    options: Options,
) -> list[Path]:
    """Read all inputs. Returns the blocks."""
    keys = sort_keys([seen.labels for seen in survey if seen.labels], unions) if unions else None
    places = destinations(int(edges[-1]), edges, shuffle=options.shuffle, rng=rng_of(seed), sort_keys=keys)
    del keys
    tasks = []
    offset = 0
    for number, (spec, seen) in enumerate(zip(specs, survey, strict=True)):
        cuts = seen.block_edges(budget.block_bytes)
        tasks += [
            DealTask(
                number=number,
                spec=spec,
                schema_path=schema_path,
                start=start,
                stop=stop,
                places=places[offset + start : offset + stop],
                path=work.blocks / f"{number}-{start}-{stop}",
                compact=options.compact,
                num_threads=1,
                window_bytes=budget.block_bytes,
                src_path=spec.label,
            )
            for start, stop in pairwise(cuts.tolist())
        ]
        offset += int(cuts[-1])
    bar = _bar("Reading inputs", offset, options)
    if executor is not None:
        run_all(executor, deal, tasks, bar)
    else:
        try:
            with ThreadPoolExecutor(budget.n_parallel, thread_name_prefix="annbatch-deal") as threads:
                run_all(threads, deal, tasks, bar)
        finally:
            close_inputs()
    return [task.path for task in tasks]


def _assemble(
    work: WorkFolder,
    schema_path: Path,
    schema: Schema,
    blocks: Sequence[Path],
    edges: Array,
    names: Sequence[str],
    executor: Executor | None,
    options: Options,
) -> None:
    """Write all datasets."""
    notes = [read_notes(path) for path in blocks]
    tasks = [
        AssembleTask(
            blocks=tuple(blocks),
            schema_path=schema_path,
            dtypes=_stored_dtypes(schema, notes),
            text_with_missing=frozenset(name.removesuffix("#mask") for note in notes for name in note["missing"]),
            start=start,
            stop=stop,
            path=work.ready / name,
            layout=options.layout,
            obs_row_bytes=max(note["obs_row_bytes"] for note in notes),
            most_bytes=min(max(_LEAST_BLOCK_BYTES, len(blocks) * _SECTION_BYTES), options.max_memory // _COPIES),
        )
        for name, (start, stop) in zip(names, pairwise(edges.tolist()), strict=True)
    ]
    del notes
    bar = _bar("Writing datasets", int(edges[-1]), options)
    if executor is not None:
        run_all(executor, assemble, tasks, bar)
        return
    with bar:
        for task in tasks:
            assemble(task, bar.update)


def _stored_dtypes(schema: Schema, notes: list[dict[str, Any]]) -> dict[str, np.dtype[Any]]:
    """Type of the stored values of each matrix: one for the whole call, decided by all its values."""
    return {
        name: WholeRange.union([note["ranges"][name] for note in notes]).smallest_type(matrix.dtype)
        for name, matrix in schema.matrices.items()
    }


def _finish(work: WorkFolder, target: Target, names: list[str]) -> None:
    work.publish(names)
    target.mark()
    work.finish()


def _bar(what: str, total: int, options: Options) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit="row", unit_scale=True, disable=not options.progress)
