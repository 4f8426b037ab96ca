"""A whole call of ``add_adatas``: look, agree, plan, deal, assemble, put in place."""

from __future__ import annotations

import hashlib
import json
import secrets
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .assemble import AssembleTask, assemble
from .columns import Column, sort_codes, unite_categories
from .deal import DealTask, close_inputs, deal
from .fields import WholeRange
from .inputs import function_fingerprint
from .journal import WorkFolder, say
from .plan import block_edges, dataset_edges, destinations, plan_bytes, rng_of
from .schema import SRC_PATH, Description, Schema, agree, describe_input, save_schema
from .spill import read_notes
from .tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .fields import Array
    from .inputs import Input, InputSpec
    from .sink import Layout

_LEAST_WORKING_MEMORY = 64 * 10**6
# Small blocks stay in memory that the allocator has at hand, which saves the first touch of fresh pages; but a big build must not be cut
# into more blocks than a file system likes.
_LEAST_BLOCK_BYTES = 32 * 10**6
_MOST_BLOCK_BYTES = 512 * 10**6
_MANY_BLOCKS = 256
# Least bytes that are read in one go from a block while a dataset is assembled.
_SECTION_BYTES = 2**18
# How often the values of a block, or of a piece of a dataset, are in memory at one time: as read, fitted, and on their way to the disk.
_COPIES = 3


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
    """Where datasets go: ``root`` is a folder; ``names(k)`` names dataset ``k``; ``mark`` makes the folder a collection."""

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
class _Survey:
    """What one look at every input found."""

    inputs: list[Description]
    sort_columns: list[list[pd.Series[Any]]]
    blocks: list[Array]
    row_bytes: float


def build(
    target: Target,
    specs: Sequence[InputSpec],
    options: Options,
    executor: Executor | None,
    rng: np.random.Generator | None,
) -> None:
    """Add the rows of all inputs as new datasets."""
    from annbatch.storage import available_cpus

    num_threads = available_cpus()
    seed = None if rng is None else int(rng.integers(2**63))
    call = {"version": 1, "call": _fingerprint(specs, options), "seed": seed}
    with WorkFolder(target.root) as work:
        if _finish_interrupted(work, target, call):
            return
        survey = _survey(specs, options, 1 if executor is not None else num_threads)
        n_obs = sum(d.n_obs for d in survey.inputs)
        if n_obs == 0:
            msg = f"adata_paths: no rows in any of the {len(specs)} inputs"
            raise ValueError(msg)
        existing = target.existing()
        schema = _agree(target, existing, specs, survey, options)
        seed = _begin(work, call, existing)
        most = options.dataset_rows or max(1, int((options.dataset_bytes or 0) / max(survey.row_bytes, 1)))
        edges = dataset_edges(n_obs, most)
        first = max((target.number(name) for name in existing), default=-1) + 1
        names = [target.name(first + i) for i in range(len(edges) - 1)]
        keys = _sort_keys(survey.sort_columns, [schema.obs[c] for c in options.groupby]) if options.groupby else None
        places = destinations(n_obs, edges, shuffle=options.shuffle, rng=rng_of(seed), sort_keys=keys)
        del keys
        survey.sort_columns.clear()
        schema_path = work.path / f"schema-{secrets.token_hex(4)}.pickle"
        save_schema(schema, schema_path)
        deals = _deal_tasks(work, schema_path, specs, survey, places, options)
        _run_deals(executor, deals, num_threads, options)
        del places
        notes = [read_notes(task.path) for task in deals]
        room = options.max_memory - plan_bytes(n_obs, sorts=False)
        most_bytes = min(max(_LEAST_BLOCK_BYTES, len(deals) * _SECTION_BYTES), room // _COPIES)
        assembles = [
            AssembleTask(
                blocks=tuple(task.path for task in deals),
                schema_path=schema_path,
                dtypes=_stored_dtypes(schema, notes),
                text_with_missing=frozenset(name.removesuffix("#mask") for note in notes for name in note["missing"]),
                start=int(start),
                stop=int(stop),
                path=work.ready / name,
                layout=options.layout,
                most_bytes=most_bytes,
            )
            for name, start, stop in zip(names, edges[:-1], edges[1:], strict=True)
        ]
        _run_assembles(executor, assembles, n_obs, options)
        work.commit(names)
        _finish(work, target, names)


def _survey(specs: Sequence[InputSpec], options: Options, n_parallel: int) -> _Survey:
    """Look at every input, one at a time."""
    inputs, sort_columns, bytes_before, steps = [], [], [], []
    for spec in tqdm(specs, desc="Checking inputs", unit="file", disable=not options.progress):
        opened = spec.open()
        try:
            description = describe_input(opened)
            lacking = [name for name in options.groupby if name not in opened.obs]
            if lacking and description.n_obs:
                msg = f"groupby: obs of {spec.label} has no column {lacking[0]!r}; it has {list(opened.obs.columns)}"
                raise KeyError(msg)
            sort_columns.append([_categorical(opened.obs[name]) for name in options.groupby if not lacking])
            bytes_before.append(opened.bytes_before())
            steps.append(opened.row_step)
            inputs.append(description)
        finally:
            opened.close()
    n_obs = sum(d.n_obs for d in inputs)
    total = sum(int(before[-1]) for before in bytes_before)
    room = options.max_memory - plan_bytes(n_obs, sorts=bool(options.groupby))
    if room < _LEAST_WORKING_MEMORY:
        least = options.max_memory - room + _LEAST_WORKING_MEMORY
        msg = f"max_memory must be at least {least / 1e6:.0f}MB for {n_obs} rows, got {options.max_memory / 1e6:.0f}MB"
        raise ValueError(msg)
    wanted = min(max(_LEAST_BLOCK_BYTES, total // _MANY_BLOCKS), _MOST_BLOCK_BYTES)
    most = min(wanted, room // (_COPIES * n_parallel))
    blocks = [block_edges(before, most, step) for before, step in zip(bytes_before, steps, strict=True)]
    return _Survey(inputs, sort_columns, blocks, total / max(n_obs, 1))


def _categorical(series: pd.Series[Any]) -> pd.Series[Any]:
    """Labels as codes: a text column of a big file would be kept as one Python object a row."""
    return pd.Series(pd.Categorical(series))


def _finish_interrupted(work: WorkFolder, target: Target, call: dict[str, Any]) -> bool:
    """Put datasets in place that an interrupted call had decided to add. Returns whether this call asks for just those."""
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
    target: Target, existing: list[str], specs: Sequence[InputSpec], survey: _Survey, options: Options
) -> Schema:
    present = _describe_existing(target, existing[-1]) if existing else None
    openers = {spec.label: spec.open for spec in specs}
    if present is not None:
        openers[present.label] = lambda: target.open_input(existing[-1])

    def texts_of(label: str, name: str) -> pd.Index[Any]:
        opened = openers[label]()
        try:
            return pd.Index(sorted(set(opened.obs[name].dropna().astype(str))), dtype=object)
        finally:
            opened.close()

    schema = agree(
        [d for d in survey.inputs if d.n_obs],
        present,
        var_subset=options.var_subset,
        extra_genes=options.extra_genes,
        merge=options.merge,
        texts_of=texts_of,
    )
    labels = Column("categorical", categories=pd.Index(list(dict.fromkeys(s.label for s in specs)), dtype=object))
    return Schema(**{**schema.__dict__, "obs": {**schema.obs, SRC_PATH: labels}})


def _describe_existing(target: Target, name: str) -> Description:
    opened = target.open_input(name)
    try:
        return describe_input(opened)
    finally:
        opened.close()


def _sort_keys(columns: list[list[pd.Series[Any]]], types: Sequence[Column]) -> Array:
    """One integer a row over all inputs that sorts as the groupby columns do."""
    unions = []
    having = [series for series in columns if series]
    for i, column in enumerate(types):
        united = column.categories
        if united is None:
            united = unite_categories([series[i].cat.categories for series in having])
            assert united is not None  # agree() has found the columns of one kind
        unions.append(united)
    return np.concatenate([sort_codes(series, unions) for series in having])


def _deal_tasks(
    work: WorkFolder, schema_path: Path, specs: Sequence[InputSpec], survey: _Survey, places: Array, options: Options
) -> list[DealTask]:
    tasks = []
    offset = 0
    for number, (spec, edges) in enumerate(zip(specs, survey.blocks, strict=True)):
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
            )
            for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        ]
        offset += int(edges[-1])
    return tasks


def _run_deals(executor: Executor | None, tasks: list[DealTask], num_threads: int, options: Options) -> None:
    bar = _bar("Reading inputs", sum(task.stop - task.start for task in tasks), options)
    if executor is not None:
        run_all(executor, deal, tasks, bar)
        return
    try:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="annbatch-deal") as threads:
            run_all(threads, deal, tasks, bar)
    finally:
        close_inputs()


def _run_assembles(executor: Executor | None, tasks: list[AssembleTask], n_obs: int, options: Options) -> None:
    bar = _bar("Writing datasets", n_obs, options)
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
