"""Measure the cases: both sides in turn, round by round, and what comes out of the rounds."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .running import WorkerError, run_worker

if TYPE_CHECKING:
    from .cases import Case, Side
    from .data import Data
    from .environments import Environments

__all__ = ["Sizes", "Versus"]

SAMPLER_SIZES = ("n_obs", "n_runs", "num_samples")


@dataclass(frozen=True)
class Sizes:
    """How big a run is. ``sampler_fraction`` shrinks the samplers' rows, runs and draws alike."""

    cells: int = 50_000
    files: int = 4
    seconds: float = 2.0
    sampler_fraction: float = 1.0
    rounds: int | None = None


@dataclass
class Versus:
    """One run over several cases; ``rates`` remembers the peers' medians that set the pace of a training step."""

    environments: Environments
    data: Data
    sizes: Sizes
    timeout: float = 900.0
    rates: dict[str, float] = field(default_factory=dict)

    def arguments(self, side: Side, *, step_per_row: float = 0.0) -> dict[str, Any]:
        """Fill in what depends on this run: sizes, paths, the step."""
        given = dict(side.arguments)
        for key in SAMPLER_SIZES:
            if key in given:
                given[key] = max(1, int(given[key] * self.sizes.sampler_fraction))
        given["seconds"] = self.sizes.seconds
        given["out"] = str(self.data.folder / f"built_by_{side.environment}.zarr")
        if side.data is not None:
            given["paths"] = self.data.paths(side.data)
        if step_per_row:
            given["step_per_row"] = step_per_row
        return given

    def once(self, side: Side, *, step_per_row: float = 0.0) -> dict[str, Any]:
        """Measure one side once."""
        given = self.arguments(side, step_per_row=step_per_row)
        return run_worker(self.environments, side.environment, side.worker, given, self.timeout)

    def pace(self, case: Case, cases: dict[str, Case]) -> float:
        """Seconds a row that the peer needs in the case that sets the pace of this one; 0 when there is none."""
        if case.step_of is None:
            return 0.0
        if case.step_of not in self.rates:
            peer = cases[case.step_of].peer
            rounds = self.sizes.rounds or case.rounds
            self.rates[case.step_of] = statistics.median(self.once(peer)["rate"] for _ in range(rounds))
        return 1.0 / self.rates[case.step_of]

    def run(self, case: Case, cases: dict[str, Case]) -> dict[str, Any]:
        """Measure a case: both sides in turn, once a round. A side that fails is not tried again."""
        figures: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        failures: dict[str, str] = {}
        started = time.perf_counter()
        try:
            step_per_row = self.pace(case, cases)
        except WorkerError as error:
            return {"failures": {"peer": f"{case.step_of}: {error}"}, "measures": []}
        for _ in range(self.sizes.rounds or case.rounds):
            for name, side in (("ours", case.ours), ("peer", case.peer)):
                if name in failures:
                    continue
                try:
                    figures[name].append(self.once(side, step_per_row=step_per_row))
                except WorkerError as error:
                    failures[name] = str(error)
                    print(f"  {name} failed: {error}", file=sys.stderr, flush=True)
        if figures["peer"] and "rate" in figures["peer"][0]:
            self.rates[case.name] = statistics.median(figure["rate"] for figure in figures["peer"])
        measures = []
        for measure in case.measures:
            values = {name: [figure[measure.key] for figure in figures[name]] for name in figures}
            measures.append(
                {
                    "key": measure.key,
                    "title": measure.title,
                    "unit": measure.unit,
                    "goal": measure.goal,
                    "limit": measure.limit,
                    "ours": summary(values["ours"]),
                    "peer": summary(values["peer"]),
                    "ratio": times_better(values["ours"], values["peer"], more_is_better=measure.more_is_better),
                }
            )
        return {"failures": failures, "measures": measures, "raw": figures, "took": time.perf_counter() - started}


def summary(values: list[float]) -> dict[str, Any] | None:
    """Median and spread of the rounds; None when there were none."""
    if not values:
        return None
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "rounds": len(values)}


def times_better(ours: list[float], peer: list[float], *, more_is_better: bool) -> float | None:
    """Ratio of the medians, turned so that more than 1 means that we are better."""
    if not (ours and peer):
        return None
    ratio = statistics.median(ours) / statistics.median(peer)
    return ratio if more_is_better else 1.0 / ratio
