"""What was measured as a page: tables, and a plot of memory and time against rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["exponent", "more_pages", "page", "plot"]

PLOT = "layout/scale.svg"
FAR_ROWS = 10**9


# Bytes and seconds below which a slope would be one of noise.
FLOORS = {"resident": 1e6, "processor": 0.005}


def exponent(rows: list[int], values: list[float], floor: float) -> float | None:
    """Slope of log(value) over log(rows) between the last two sizes; None where a value is too small to be told from noise."""
    if len(rows) < 2 or min(values[-2:]) < floor:
        return None
    return math.log(values[-1] / values[-2]) / math.log(rows[-1] / rows[-2])


def _cell(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(lines: list[list[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest])


def _series(results: dict[str, Any], face: str, source: str) -> list[dict[str, float]]:
    found = [case for case in results["cases"] if (case["face"], case["source"]) == (face, source)]
    return sorted(found, key=lambda case: case["rows"])


def _opening(results: dict[str, Any], faces: list[str]) -> str:
    lines = [["what", "source", "rows", "seconds", "of processor", "again", "microseconds a row", "bytes a row", "of them heap", "exponent of bytes", "of time", "pickle: ms", "bytes a row"]]  # fmt: skip
    keys = dict.fromkeys((case["face"], case["source"]) for case in results["cases"] if case["face"] in faces)
    for face, source in keys:
        series = _series(results, face, source)
        for number, case in enumerate(series):
            so_far = series[: number + 1]
            rows = [each["rows"] for each in so_far]
            lines.append([
                face, source, f"{case['rows']:,}", _cell(case["seconds"]), _cell(case["processor"]), _cell(case.get("again")),
                _cell(case["processor"] / case["rows"] * 1e6, 3), _cell(case["resident"] / case["rows"], 1),
                _cell(case["anonymous"] / case["rows"], 1),
                _cell(exponent(rows, [each["resident"] for each in so_far], FLOORS["resident"])),
                _cell(exponent(rows, [each["processor"] for each in so_far], FLOORS["processor"])),
                _cell(case["pickle_seconds"] * 1e3, 1), _cell(case["pickle_bytes"] / case["rows"], 3),
            ])  # fmt: skip
    return _table(lines)


def _workers(results: dict[str, Any]) -> str:
    lines = [
        ["started by", "rows", "seconds to start 8", "bytes a row, all 8: own", "with their part of what is shared"]
    ]
    lines += [
        [
            case["method"],
            f"{case['rows']:,}",
            _cell(case["start_seconds"]),
            _cell(case["own"] / case["rows"], 1),
            _cell(case["pss"] / case["rows"], 1),
        ]
        for case in results["workers"]
    ]
    return _table(lines)


def more_pages(results: dict[str, Any]) -> str:
    """Return the sections about what does not grow with rows alone, those that were measured."""
    found = results.get("more", {})
    sections = [part(found[what]) for what, part in _MORE.items() if what in found]
    if sections and "more_machine" in results:
        machine = results["more_machine"]
        sections.append(
            f"The last {len(sections)} sections: on {machine['cpu']}, {machine['cpus']} cores, load {machine['load']}."
        )
    return "\n\n".join(sections)


def _kinds(cases: list[dict[str, Any]]) -> str:
    kinds = [key for key in cases[0] if key not in ("source", "rows")]
    lines = [["source", *kinds]]
    lines += [[case["source"], *(_cell(case[kind] / case["rows"], 1) for kind in kinds)] for case in cases]
    return f"""## Where the memory of all columns goes

Bytes a row of what a Loader with all of ten columns holds, {cases[0]["rows"]:,} rows. All of it but the row pointers is mapped from files
that processes share. What "heap" says beyond that further up is memory that opening took and gave back to the allocator.

{_table(lines)}"""


def _files(cases: list[dict[str, Any]]) -> str:
    lines = [["what", "source", "files", "seconds", "of processor", "most open handles in a pass"]]
    lines += [
        [case["face"], case["source"], f"{case['files']:,}", _cell(case["seconds"]), _cell(case["processor"]), str(case["handles"])]
        for case in cases
    ]  # fmt: skip
    return f"""## Thousands of files

Opening small files (500 rows, ten obs columns), all handed to one `add_paths`; handles are all that the process has.

{_table(lines)}"""


def _additions(cases: list[dict[str, Any]]) -> str:
    lines = [["what", "inputs", "milliseconds of processor", "for each input"]]
    lines += [
        [
            case["what"],
            f"{case['inputs']:,}",
            _cell(case["processor"] * 1e3, 0),
            _cell(case["processor"] / case["inputs"] * 1e3, 1),
        ]
        for case in cases
    ]
    return f"""## Additions to a collection

`add_adatas` with inputs of 500 rows: one after the other to one collection, and many in one call.

{_table(lines)}"""


def _small_rows(cases: list[dict[str, Any]]) -> str:
    [case] = cases
    return f"""## Many small rows

`add_adatas` of {case["rows"]:,} rows of about ten values, with ten obs columns, from one h5ad: {case["processor"] / case["rows"] * 1e6:.2f} microseconds of processor
time a row, of all threads ({case["seconds"]:.0f} seconds by the clock)."""


def _obs_of_batches(cases: list[dict[str, Any]]) -> str:
    [case] = cases
    return f"""## obs of a batch

A batch of 128 rows and 2,000 chosen genes, CSR, of cells with 1,343 values: {case["matrix"] * 1e6:.0f} microseconds of processor time for the matrix, and
{case["obs"] * 1e6:.0f} more for obs with 30 columns (ten each of labels, numbers and text) and the names of the cells."""


def _obs_whole(cases: list[dict[str, Any]]) -> str:
    [case] = cases
    return f"""## obs of a whole collection

`collection.obs()` of {case["rows"]:,} rows and ten columns: at most {case["peak"] / 1e6:.0f} MB, of which the DataFrame takes {case["frame"] / 1e6:.0f} MB
({case["peak"] / case["frame"]:.2f} times)."""


_MORE = {
    "kinds of memory": _kinds,
    "files": _files,
    "additions": _additions,
    "small rows": _small_rows,
    "obs of batches": _obs_of_batches,
    "obs whole": _obs_whole,
}


def page(results: dict[str, Any]) -> str:
    """Return docs/scale.md."""
    machine = results["machine"]
    samplers = [face for face in dict.fromkeys(case["face"] for case in results["cases"]) if "Sampler" in face]
    faces = [face for face in dict.fromkeys(case["face"] for case in results["cases"]) if face not in samplers]
    return f"""# As the data grows

What a Loader, a MappedCollection and the samplers hold in memory for each row, and how long they take to open, measured up to
{max(case["rows"] for case in results["cases"]):,} rows by `python -m benchmarks.scale --write docs/scale.md`.

![Memory and time of opening against rows]({PLOT})

Solid: measured. Dotted: the straight line beyond what was run, from the last two sizes on; not measured.

## What is held per row, and where

| what | bytes a row | shared |
| --- | --- | --- |
| row pointers | 1 to 4 (the length of the row), and one start for 64 rows | one file per machine |
| labels, `labels=[...]` | 1 or 2 (a code) | one file per machine |
| names of cells, text of many values | their bytes, and about 1.2 | one file per machine |
| other columns of obs | as stored; text of few values a code of 1 or 2 | one file per machine |
| chunk tables | 8 for each stored chunk of an array (16 where a shard or file is larger than 4 GiB), in memory only for shards that were touched | after a fork |
| `RandomSampler` | 0 | |
| class-based samplers, scattered classes and `chunk_size=1` | 4, beside the codes | workers that are spawned |

Row pointers, labels, names and columns of obs are read by the first process of a machine, and written to files in a folder of yours. That process and all
others (workers that are forked or spawned, ranks, the next run) map these files, so that the pages are in memory once.
The files are told apart by path, size, times and inode of the data; data that changed have other files. Row pointers of HDF5 files, and of stores with
links in them, each process reads itself, since nothing but reading tells what they are; processes that read the same then map one file. The folder is

- `annbatch-<user id>` in the system's folder for temporary files (`TMPDIR`), or in the folder that the environment variable
  `ANNBATCH_CACHE_DIR` names; `ANNBATCH_CACHE_DIR=""` switches this off. It should be on a disk of the machine itself: other machines
  that remove a file from a network folder take it from under those that have it mapped.
- readable by you alone, and holds at most `ANNBATCH_CACHE_SIZE` (default `8GB`): what was used least recently goes first, nothing
  that was used in the last five minutes. Less is written where the disk is nearly full. What takes less than 64 KB gets no file.
- yours to delete at any time. Where it cannot be used, every process reads and holds what it needs itself.

A pickled Loader of stored data holds no bytes per row: whoever reads the pickle maps the same files, or reads the data again
where they are gone. Samplers and views are sent by value, except to a process that is being spawned, which maps them. Thousands
of files are open one after the other: a pass keeps no more than 16 HDF5 files open, and one for each thread.

## Opening and pickling

Ten obs columns (four of labels, two of text, four of numbers), about ten values a row; "labels": `labels=["cell_type"],
obs_columns=[]`. "Again": a second process, which maps what the first one wrote. Memory is what the process has more than after the same
with 100,000 rows; "heap" is what it does not share. Of X only the metadata and row pointers are real: opening reads nothing else.
The stores of most rows have one obs column, and their names of cells repeat.

{_opening(results, faces)}

## Samplers

A first request of 4,096 rows drawn one by one (`chunk_size=1`), 30 classes; the codes, one byte a row, are the caller's. Their pickles
by value: a spawned worker maps files instead.

{_opening(results, samplers)}

## Eight workers of one node

A Loader on a collection with one column of labels, in eight processes that look at every row length and label. Memory of all eight together,
less what the same eight have with {results["workers_base_rows"]:,} rows.

{_workers(results)}

{more_pages(results)}

Measured {results["date"]} on {machine["cpu"]}, {machine["cpus"]} cores, {machine["memory_gb"]} GB, load {machine["load"]} when it
was done (about 2 is this alone). Where other work runs beside it, seconds are upper bounds, those of the clock more than those of the processor; bytes are not
affected. Microseconds, exponents of time and the plot are of processor time.
"""


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw bytes and seconds of opening against rows, both axes logarithmic, with lines beyond what was run."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "scale"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    keys = list(dict.fromkeys((case["face"], case["source"]) for case in results["cases"]))
    for number, key in enumerate(keys):
        series = _series(results, *key)
        rows = [case["rows"] for case in series]
        for axis, what, unit in ((axes[0], "resident", 1e9), (axes[1], "processor", 1.0)):
            values = [case[what] / unit for case in series]
            shown = [(n, value) for n, value in zip(rows, values, strict=True) if value > 0]
            if not shown:
                continue
            color = f"C{number}"
            axis.plot(
                *zip(*shown, strict=True),
                "o-",
                color=color,
                markersize=4,
                label=", ".join(part for part in key if part),
            )
            if len(shown) > 1:
                slope = exponent([n for n, _ in shown], [value for _, value in shown], FLOORS[what] / unit)
                if slope is None:
                    continue
                last_rows, last = shown[-1]
                axis.plot(
                    [last_rows, FAR_ROWS], [last, last * (FAR_ROWS / last_rows) ** max(slope, 0)], ":", color=color
                )
    for axis, title in zip(axes, ("memory after opening, GB", "seconds of processor time to open"), strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("rows")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].plot([], [], ":", color="black", label="beyond what was run: a straight line")
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
