"""A whole call of ``add_adatas``, in the five steps of docs/collections.md: look, plan, deal, assemble, put in place."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from annbatch._shared.collection_format import H5AD_SUFFIX

from .assemble import assemble_datasets
from .columns import sort_keys
from .deal import deal_inputs
from .journal import Call, WorkFolder
from .known import Source, held_sources, to_add
from .look import Survey, agree_on_schema, label_unions, look_at_inputs
from .plan import Budget, dataset_edges, destinations, rng_of
from .schema_file import SchemaFile
from .tasks import Work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from .inputs.inputs import InputSpec
    from .options import Options, Target


def build(
    target: Target,
    specs: Sequence[InputSpec],
    options: Options,
    executor: Executor | None,
    rng: np.random.Generator | None,
) -> None:
    """Add the rows of all inputs as new datasets."""
    from annbatch.storage import available_cpus

    call = Call(options.fingerprint(specs), None if rng is None else int(rng.integers(2**63)))
    with WorkFolder(target.root) as folder:
        if folder.finish_interrupted(call, target.mark):
            return

        # Look.
        is_h5ad = target.suffix == H5AD_SUFFIX
        survey = look_at_inputs(specs, options, folder.generation.drafts, may_have_nul=not is_h5ad)
        sources = [Source.of(spec, seen) for spec, seen in zip(specs, survey.inputs, strict=True)]
        new = to_add(sources, held_sources(target.noted()), options.if_exists)
        specs, survey = list(compress(specs, new)), Survey(list(compress(survey.inputs, new)))
        if not survey.n_obs:
            return
        existing = target.existing()
        schema = agree_on_schema(target, existing, specs, survey, options)

        # Plan.
        row_bytes = survey.matrix_bytes / survey.n_obs
        most_rows = options.dataset_rows or max(1, int((options.dataset_bytes or 0) / row_bytes))
        edges = dataset_edges(survey.n_obs, most_rows)
        unions = label_unions(survey, schema, options.groupby)
        budget = Budget.of(
            edges,
            unions,
            total_bytes=survey.total_bytes,
            held_bytes=survey.held_bytes,
            label_bytes=sum(column.codes.nbytes for columns in survey.labels for column in columns),
            max_memory=options.max_memory,
            n_threads=1 if executor is not None else available_cpus(),
        )
        seed = folder.begin(call, existing)
        keys = sort_keys(survey.labels, unions) if unions else None
        places = destinations(survey.n_obs, edges, shuffle=options.shuffle, rng=rng_of(seed), sort_keys=keys)
        del keys, unions
        names = target.new_names(len(edges) - 1)
        schema_file = SchemaFile.write(schema, folder.generation.path / "schema.h5")
        work = Work(folder.generation, schema, schema_file, budget, options, executor)

        # Deal.
        blocks = deal_inputs(work, specs, survey, places)
        del survey, places

        # Assemble.
        by_label = {spec.label: source for spec, source in zip(specs, compress(sources, new), strict=True)}
        assemble_datasets(work, blocks, names, edges, list(by_label.values()))

        # Put in place.
        folder.commit(dict(zip(names, np.diff(edges).tolist(), strict=True)))
        folder.finish(target.mark)
