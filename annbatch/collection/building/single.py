"""Writing one AnnData as it is: a build of one input, without shuffle and without a change to its values."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch.collection.manifest import write_manifest

from .assemble import AssembleTask, assemble, text_with_missing
from .deal import DealTask, deal
from .generation import Generation
from .inputs.held import close_inputs
from .inputs.inputs import InputSpec
from .output.sink import write_element
from .plan import block_edges
from .schema import agree, describe_input, is_key
from .schema_file import SchemaFile
from .spill import read_notes

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

    from .inputs.inputs import Input
    from .output.sink import Layout

_PIECE_BYTES = 128 * 10**6


def write_adata(folder: Path, adata: ad.AnnData, layout: Layout, attributes: Mapping[str, Any]) -> Path:
    """Write an AnnData, with attributes of its own, as a dataset in a temporary folder. Returns where it is."""
    spec = InputSpec.of(adata, None, 0)
    opened = spec.open(folder)
    description = describe_input(opened)
    opened.obs.check_text("adata", may_have_nul=True)
    _check_keys(adata)
    schema = agree([description], None, skipped_is_fine=True)
    generation = Generation.make(folder)
    schema_file = SchemaFile.write(schema, generation.path / "schema.h5")
    edges = block_edges(opened.bytes_before(), _PIECE_BYTES, opened.row_step)
    try:
        blocks = tuple(
            deal(
                DealTask(
                    number=0,
                    spec=spec,
                    schema=schema_file,
                    generation=generation,
                    name=f"{start}-{stop}",
                    start=start,
                    stop=stop,
                    places=np.arange(start, stop),
                    compact=False,
                    num_threads=layout.threads(),
                    window_bytes=_PIECE_BYTES // 4,
                )
            )
            for start, stop in pairwise(edges.tolist())
        )
    finally:
        close_inputs()
    notes = [read_notes(block) for block in blocks]
    path = assemble(
        AssembleTask(
            blocks=blocks,
            schema=schema_file,
            generation=generation,
            name="dataset",
            dtypes={name: matrix.dtype for name, matrix in schema.matrices.items()},
            text_with_missing=text_with_missing(notes),
            start=0,
            stop=description.n_obs,
            sources=(),
            layout=layout,
            obs_row_bytes=max((note["obs_row_bytes"] for note in notes), default=0),
            most_bytes=_PIECE_BYTES,
        )
    )
    _write_rest(path, adata, opened, attributes)
    write_manifest(path)
    return path


def _check_keys(adata: ad.AnnData) -> None:
    """Refuse names of what a collection has no place for, under which nothing can be stored."""
    parts: dict[str, Any] = {kind: getattr(adata, kind) for kind in ("uns", "obsm", "obsp", "varp")}
    if adata.raw is not None:
        parts["raw.varm"] = adata.raw.varm
    while parts:
        kind, elements = parts.popitem()
        for name, value in elements.items():
            if not isinstance(name, str) or not is_key(name):
                msg = f"{kind} has the name {name!r}, under which nothing can be stored; rename it"
                raise ValueError(msg)
            if isinstance(value, Mapping):
                parts[f"{kind}[{name!r}]"] = value


def _write_rest(path: Path, adata: ad.AnnData, opened: Input, attributes: Mapping[str, Any]) -> None:
    """Write what a collection has no place for, but an AnnData does."""
    import zarr

    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.attrs.update({name: value for name, value in attributes.items() if name not in root.attrs})
    write_element(root, "uns", dict(adata.uns))
    for kind in ("obsp", "varp"):
        for name, value in getattr(adata, kind).items():
            write_element(root, f"{kind}/{name}", value)
    for name in opened.skipped:
        write_element(root, name, adata.obsm[name.removeprefix("obsm/")])
    if adata.raw is not None:
        for name, value in adata.raw.varm.items():
            write_element(root, f"raw/varm/{name}", value)
