"""What ``annbatch demo`` does: the whole way from h5ad files to two trained classifiers, on real counts.

559 real cells come with the package. Clusters of them are the classes, one of them rare. Shallow cells are made of the real ones by binomial
thinning: every count is kept with a small probability, as if the cell had been sequenced less deeply. A fifth of the real cells is
held out, so the classifiers are tested on cells whose originals they have never seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files
from math import isnan
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from annbatch.collection import DatasetCollection
from annbatch.loader import Loader
from annbatch.samplers import ClassSampler, RandomSampler

from .picture import Bars, bar_charts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from annbatch.abc import Sampler

    Array = np.ndarray[Any, Any]

_N_CLASSES = 12
_N_FILES = 4
_LEAST_CELLS = 4000
_TEST_SHARE = 0.2
_CHUNK_ROWS = 32
_BATCH_ROWS = 128
_ROWS_PER_STEP = 2048
_RARE_WEIGHT = 8.0


@dataclass(frozen=True)
class RealCells:
    """The bundled cells: raw counts, names of the genes, and the class of every cell, 0 being the most frequent."""

    counts: sp.csr_matrix
    genes: Array
    labels: Array
    markers: list[str]

    @property
    def names(self) -> list[str]:
        """Name of every class."""
        return [f"cluster_{i:02d}" for i in range(_N_CLASSES)]


@dataclass(frozen=True)
class Outcome:
    """What a training run is judged by."""

    sampler: str
    rows_per_second: float
    loading_rows_per_second: float
    shares: dict[str, float]
    classes_per_batch: float
    accuracy: float
    accuracy_per_class: dict[str, float]
    rare_recall: float
    rare_precision: float


def run_demo(
    out: Path, *, n_cells: int, n_passes: int, seed: int, progress: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Make the files, build the collection, train twice; ``say`` gets what a person wants to read. Returns the same as plain data."""
    if n_cells < _LEAST_CELLS:
        msg = f"cells must be >= {_LEAST_CELLS}, so that the rare class fills a chunk, got {n_cells}"
        raise ValueError(msg)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = (
            f"out must be a new or an empty folder, got {out}, which holds something; choose another one, or remove it"
        )
        raise ValueError(msg)
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    real = real_cells()
    rare = real.names[-1]
    sizes = np.bincount(real.labels)
    say(
        f"{len(real.labels)} real cells, {len(real.genes)} genes, {_N_CLASSES} clusters of {sizes.max()} to {sizes.min()} cells"
    )
    say(f"rare class: {rare}, {sizes[-1]} cells, marked by {real.markers[-1]}")

    rng = np.random.default_rng(seed)
    held_out = _held_out(real.labels, rng)
    bar = tqdm(total=_N_FILES + 1, desc="Thinning real cells", unit="file", disable=not progress)
    paths = []
    with bar:
        for i in range(_N_FILES):
            path = out / f"cells_{i}.h5ad"
            shallow_cells(real, np.flatnonzero(~held_out), n_cells // _N_FILES, f"train{i}", rng).write_h5ad(path)
            paths.append(path)
            bar.update()
        test = shallow_cells(real, np.flatnonzero(held_out), max(n_cells // 8, 100), "test", rng)
        test.write_h5ad(out / "held_out.h5ad")
        bar.update()

    place = out / "collection.zarr"
    began = time.perf_counter()
    collection = _build(place, paths, seed=seed, progress=progress)
    build_seconds = time.perf_counter() - began
    stored = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    given = sum(p.stat().st_size for p in paths)
    say(
        f"collection: {n_cells // _N_FILES * _N_FILES} cells grouped by cell_type, built in {build_seconds:.1f} s; "
        f"{given / 1e6:.0f} MB of h5ad became {stored / 1e6:.0f} MB"
    )

    labels = pd.Categorical(collection.obs(["cell_type"])["cell_type"], categories=real.names)
    weights = np.bincount(labels.codes, minlength=_N_CLASSES) / len(labels)
    weights[-1] *= _RARE_WEIGHT
    n_rows = len(labels)
    chunks = _ROWS_PER_STEP // _CHUNK_ROWS
    samplers: dict[str, Sampler] = {
        "RandomSampler": RandomSampler(_CHUNK_ROWS, chunks, _BATCH_ROWS, rng=np.random.default_rng(seed)),
        "ClassSampler": ClassSampler(
            _CHUNK_ROWS,
            chunks,
            _BATCH_ROWS,
            classes=labels,
            class_weights=weights,
            num_samples=n_rows,
            rng=np.random.default_rng(seed),
        ),
    }
    outcomes = [
        _train_and_test(name, collection, sampler, real.names, out / "held_out.h5ad", n_passes, progress=progress)
        for name, sampler in samplers.items()
    ]
    picture = out / "picture.svg"
    picture.write_text(_picture(outcomes, rare), encoding="utf-8")
    _report(outcomes, rare, _RARE_WEIGHT, say)
    say(f"picture: {picture.resolve()}")
    say(f"files: {out.resolve()}")
    say(f"took {time.perf_counter() - started:.0f} s")
    return {
        "files": str(out.resolve()),
        "picture": str(picture.resolve()),
        "collection": str(place.resolve()),
        "build_seconds": build_seconds,
        "bytes": stored,
        "rare_class": rare,
        "runs": [outcome.__dict__ for outcome in outcomes],
    }


def real_cells() -> RealCells:
    """Read the bundled cells and cluster them."""
    with files("annbatch").joinpath("data/real_counts.npz").open("rb") as file:
        stored = dict(np.load(file))
    parts = (stored["data"].astype(np.int64), stored["indices"].astype(np.int32), stored["indptr"])
    counts = sp.csr_matrix(parts, shape=tuple(stored["shape"]))
    genes = stored["genes"].astype(str)
    logged = _log_normalised(counts, 1e4)
    labels = _clusters(_principal_components(logged, n_genes=2000, n_components=20), _N_CLASSES)
    means = np.array([np.asarray(logged[labels == i].mean(axis=0)).ravel() for i in range(_N_CLASSES)])
    markers = []
    for i in range(_N_CLASSES):
        others = np.delete(means, i, axis=0).max(axis=0)
        markers.append(", ".join(genes[np.argsort(others - means[i], kind="stable")[:3]]))
    return RealCells(counts, genes, labels, markers)


def _log_normalised(counts: sp.csr_matrix, total: float) -> sp.csr_matrix:
    sums = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    scaled = counts.astype(np.float32)
    scaled.data *= np.repeat(total / sums, np.diff(counts.indptr)).astype(np.float32)
    np.log1p(scaled.data, out=scaled.data)
    return scaled


def _principal_components(logged: sp.csr_matrix, n_genes: int, n_components: int) -> Array:
    mean = np.asarray(logged.mean(axis=0)).ravel()
    variance = np.asarray(logged.multiply(logged).mean(axis=0)).ravel() - mean**2
    top = np.sort(np.argsort(-variance, kind="stable")[:n_genes])
    dense = logged.tocsc()[:, top].toarray().astype(np.float64)
    left, scale, _ = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)
    components: Array = left[:, :n_components] * scale[:n_components]
    return components


def _clusters(points: Array, k: int, *, n_starts: int = 10, n_rounds: int = 100) -> Array:
    """k-means: the best of several seeded starts, clusters numbered from the largest to the smallest."""
    rng = np.random.default_rng(0)
    best, best_cost = np.zeros(len(points), np.int64), np.inf
    for _ in range(n_starts):
        centres = points[[rng.integers(len(points))]]
        while len(centres) < k:
            far = _squared_distances(points, centres).min(axis=1)
            centres = np.vstack([centres, points[rng.choice(len(points), p=far / far.sum())]])
        for _ in range(n_rounds):
            labels = _squared_distances(points, centres).argmin(axis=1)
            moved = np.array(
                [points[labels == i].mean(axis=0) if (labels == i).any() else centres[i] for i in range(k)]
            )
            if np.allclose(moved, centres):
                break
            centres = moved
        cost = float(((points - centres[labels]) ** 2).sum())
        if cost < best_cost - 1e-6:
            best, best_cost = labels, cost
    rank = np.empty(k, np.int64)
    rank[np.argsort(-np.bincount(best, minlength=k), kind="stable")] = np.arange(k)
    return rank[best]


def _squared_distances(points: Array, centres: Array) -> Array:
    distances: Array = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    return np.maximum(distances, 0)


def _held_out(labels: Array, rng: np.random.Generator) -> Array:
    """Mask of the real cells that no training cell is made of: the same share of every class."""
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        mask[cells[: max(1, round(_TEST_SHARE * len(cells)))]] = True
    return mask


def shallow_cells(real: RealCells, originals: Array, n_cells: int, prefix: str, rng: np.random.Generator) -> ad.AnnData:
    """Cells with few counts, each a real cell whose every count was kept with a probability drawn from Beta(2, 150)."""
    picked = rng.choice(originals, n_cells)
    source = real.counts[picked]
    kept = rng.binomial(source.data, np.repeat(rng.beta(2, 150, n_cells), np.diff(source.indptr)))
    X = sp.csr_matrix((kept.astype(np.float32), source.indices, source.indptr), shape=source.shape)
    X.eliminate_zeros()
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(real.labels[picked], pd.Index(real.names)),
            "n_counts": np.asarray(X.sum(axis=1)).ravel(),
        },
        index=[f"{prefix}_{i}" for i in range(n_cells)],
    )
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=real.genes))


def _build(place: Path, paths: list[Path], *, seed: int, progress: bool) -> DatasetCollection:
    rng = np.random.default_rng(seed)
    return DatasetCollection(place).add_adatas(paths, groupby="cell_type", rng=rng, progress=progress)


class Softmax:
    """Multinomial logistic regression, trained by Adagrad."""

    def __init__(self, n_genes: int, classes: list[str], rate: float = 0.1) -> None:
        self._weights = np.zeros((n_genes, len(classes)), np.float32)
        self._bias = np.zeros(len(classes), np.float32)
        self._seen = np.full_like(self._weights, 1e-6)
        self._seen_bias = np.full_like(self._bias, 1e-6)
        self._rate = rate

    def step(self, features: sp.csr_matrix, labels: Array) -> None:
        """Learn from some rows."""
        error = self._probabilities(features)
        error[np.arange(len(labels)), labels] -= 1
        error /= len(labels)
        for parameter, seen, gradient in (
            (self._weights, self._seen, features.T @ error),
            (self._bias, self._seen_bias, error.sum(axis=0)),
        ):
            seen += gradient**2
            parameter -= self._rate * gradient / np.sqrt(seen)

    def predict(self, features: sp.csr_matrix) -> Array:
        """Class of each row."""
        predicted: Array = self._probabilities(features).argmax(axis=1)
        return predicted

    def _probabilities(self, features: sp.csr_matrix) -> Array:
        scores = np.asarray(features @ self._weights) + self._bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: Array = scores / scores.sum(axis=1, keepdims=True)
        return probabilities


def _train_and_test(
    name: str,
    collection: DatasetCollection,
    sampler: Sampler,
    classes: list[str],
    test: Path,
    n_passes: int,
    *,
    progress: bool,
) -> Outcome:
    # What a model eats: counts in its scale, labels as integers whose meaning does not depend on the file.
    batches: dict[str, Any] = {
        "labels": {"cell_type": classes},
        "normalize_total": 1e3,
        "log1p": True,
        "obs_columns": [],
    }
    loader = Loader(batch_sampler=sampler, **batches).use_collection(collection)
    model = Softmax(loader.n_var, classes)
    labels_of_batches: list[Array] = []
    began = time.perf_counter()
    for _ in range(n_passes):
        waiting: list[tuple[Any, Array]] = []
        for batch in tqdm(loader, desc=f"Training, {name}", unit="batch", disable=not progress, leave=False):
            # A batch of ClassSampler holds one class; a step takes several batches, so it sees several classes.
            waiting.append((batch["X"], batch["labels"]["cell_type"]))
            labels_of_batches.append(batch["labels"]["cell_type"])
            if len(waiting) == _ROWS_PER_STEP // _BATCH_ROWS:
                model.step(sp.vstack([X for X, _ in waiting], format="csr"), np.concatenate([y for _, y in waiting]))
                waiting.clear()
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    loaded = sum(batch["X"].shape[0] for batch in loader)
    loading_seconds = time.perf_counter() - began
    pairs = [
        (batch["labels"]["cell_type"], model.predict(batch["X"]))
        for batch in Loader(batch_size=_BATCH_ROWS, chunk_size=_BATCH_ROWS, **batches).add_paths([test])
    ]
    truth, predicted = (np.concatenate(each) for each in zip(*pairs, strict=True))
    seen = np.bincount(np.concatenate(labels_of_batches), minlength=len(classes))
    rare = len(classes) - 1
    is_rare, said_rare = truth == rare, predicted == rare
    return Outcome(
        sampler=name,
        rows_per_second=float(seen.sum()) / seconds,
        loading_rows_per_second=loaded / loading_seconds,
        shares=dict(zip(classes, (seen / seen.sum()).tolist(), strict=True)),
        classes_per_batch=float(np.mean([len(np.unique(labels)) for labels in labels_of_batches])),
        accuracy=float((predicted == truth).mean()),
        accuracy_per_class={
            label: float((predicted[truth == i] == i).mean()) if (truth == i).any() else float("nan")
            for i, label in enumerate(classes)
        },
        rare_recall=float(said_rare[is_rare].mean()) if is_rare.any() else float("nan"),
        rare_precision=float(is_rare[said_rare].mean()) if said_rare.any() else float("nan"),
    )


def _picture(outcomes: list[Outcome], rare: str) -> str:
    accuracy = {
        f"{name} (rare)" if name == rare else name: [outcome.accuracy_per_class[name] for outcome in outcomes]
        for name in outcomes[0].accuracy_per_class
    }
    mixed = [outcome.classes_per_batch for outcome in outcomes]
    charts = [
        Bars("Share of held-out cells that were named right, by class", accuracy, 1.0, ".0%"),
        Bars("Classes in a batch of 128 cells, mean", {"classes": mixed}, float(_N_CLASSES), ".1f"),
    ]
    return bar_charts([outcome.sampler for outcome in outcomes], charts)


def _report(outcomes: list[Outcome], rare: str, rare_weight: float, say: Callable[[str], None]) -> None:
    width = max(len(o.sampler) for o in outcomes) + 4
    head = "".join(f"{o.sampler:>{width}}" for o in outcomes)

    def line(what: str, values: list[str]) -> None:
        say(f"{what:44}" + "".join(f"{value:>{width}}" for value in values))

    say("")
    say(f"{'':44}{head}")
    line("rows per second, loading alone", [f"{o.loading_rows_per_second:,.0f}" for o in outcomes])
    line("rows per second, loading and training", [f"{o.rows_per_second:,.0f}" for o in outcomes])
    line("classes in a batch, mean", [f"{o.classes_per_batch:.1f}" for o in outcomes])
    say("share of the rows:")
    for name in outcomes[0].shares:
        mark = f" (rare, weight x{rare_weight:g})" if name == rare else ""
        line(f"  {name}{mark}", [f"{o.shares[name]:.1%}" for o in outcomes])
    say("on held-out cells:")
    line("  accuracy, all classes", [f"{o.accuracy:.1%}" for o in outcomes])
    line("  rare class: found (recall)", [f"{o.rare_recall:.1%}" for o in outcomes])
    line(
        "  rare class: right when named (precision)",
        ["never named" if isnan(o.rare_precision) else f"{o.rare_precision:.1%}" for o in outcomes],
    )
    say("")
