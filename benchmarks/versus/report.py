"""Turn the figures of a run into a table, a plot, and sections of documents.

``python -m benchmarks.versus.report RESULTS.json --write FILE.md`` rewrites what stands between the lines
``<!-- versus:begin -->`` and ``<!-- versus:end -->`` of a document, with the whole table and the plot; or between
``<!-- versus-few:begin -->`` and ``<!-- versus-few:end -->``, with the rows that matter to most people.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["markdown_table", "plot", "rewrite_section", "short_table"]

# The rows of a short table: what most people have and do.
FEW = {
    "h5ad": "shuffled batches straight from h5ad files",
    "h5ad-gzip": "the same, gzip-compressed h5ad",
    "mapped-batches": "map-style, in a torch `DataLoader`, shuffled h5ad",
    "loader-32x256-own": "shuffled batches from a collection that each side made of the files",
    "loader-2000-genes": "the same, 2,000 chosen genes as dense tensors",
    "add-adatas": "making that collection",
}

PEERS = {"annbatch": "annbatch {}", "lamindb": "lamindb {}", "scdataset": "scDataset {}"}


def figure_text(value: float, unit: str) -> str:
    """Three significant digits with a unit that suits the size."""
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}"


def times_text(ratio: float) -> str:
    """Write a ratio with three significant digits."""
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.3g} x"


def spread_text(summary: dict[str, Any] | None, unit: str) -> str:
    """Write the median with the lowest and the highest round."""
    if summary is None:
        return "failed"
    median = figure_text(summary["median"], unit)
    if summary["rounds"] == 1:
        return median
    return f"{median} ({figure_text(summary['lowest'], unit)} to {figure_text(summary['highest'], unit)})"


def goal_text(measure: dict[str, Any]) -> str:
    """Write the goal and whether it was reached."""
    if measure["limit"] is not None:
        if measure["ours"] is None:
            return f"at most {figure_text(measure['limit'], measure['unit'])}"
        reached = measure["ours"]["highest"] <= measure["limit"]
        return f"at most {figure_text(measure['limit'], measure['unit'])}{'' if reached else ' (**missed**)'}"
    if measure["goal"] is None:
        return ""
    reached = measure["ratio"] is not None and measure["ratio"] >= measure["goal"]
    return f"{measure['goal']:.3g} x{'' if reached else ' (**missed**)'}"


def markdown_table(results: dict[str, Any], *, only_goals: bool = False) -> str:
    """Write all cases as a Markdown table with a caption that tells how to run them again.

    ``only_goals`` leaves out figures without a goal, but never a case.
    """
    lines = [
        "| case | what | peer | peer's median (lowest to highest) | ours | times better | goal | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reasons = []
    for case in results["cases"]:
        if not case["measures"]:
            lines.append(
                f"| `{case['name']}` | {case['title']} | {case['peer']} | failed | not run | | | {case['commit']} |"
            )
        for position, measure in enumerate(case["measures"]):
            has_goal = measure["goal"] is not None or measure["limit"] is not None
            if only_goals and not has_goal and position:
                continue
            what = case["title"] if not measure["title"] else f"{case['title']}: {measure['title']}"
            unit = " rows/s" if measure["unit"] == "rows/s" else ""
            ratio = "" if measure["ratio"] is None else f"**{times_text(measure['ratio'])}**"
            lines.append(
                f"| `{case['name']}` | {what} | {case['peer']} | {spread_text(measure['peer'], measure['unit'])}"
                f"{unit if measure['peer'] else ''} | {spread_text(measure['ours'], measure['unit'])}"
                f"{unit if measure['ours'] else ''} | {ratio} | {goal_text(measure)} | {case['commit']} |"
            )
        reasons += [f"- `{case['name']}`: {side} failed: {reason}" for side, reason in case["failures"].items()]
    machine = results["machine"]
    sizes = results["sizes"]
    smaller = "" if sizes["sampler_fraction"] == 1 else f" Sampler sizes times {sizes['sampler_fraction']:g}."
    caption = (
        f"Measured {results['date']} on {machine['cpu']}, {machine['cpus']} cores, {machine['memory_gb']} GB, "
        f"load {machine['load']} at the start; {sizes['files']} files of {sizes['cells']:,} cells, all in the page cache.{smaller} "
        "One row again: `python -m benchmarks.versus --only CASE`."
    )
    return "\n".join([*lines, "", *([*reasons, ""] if reasons else []), caption, ""])


def short_table(results: dict[str, Any]) -> str:
    """The first figure of the cases in FEW, in five columns."""
    lines = ["| what | peer | peer's median | ours | times better |", "| --- | --- | --- | --- | --- |"]
    cases = {case["name"]: case for case in results["cases"]}
    for name, what in FEW.items():
        if name not in cases:
            continue
        measures = cases[name]["measures"]
        if not measures:
            lines.append(f"| {what} | {cases[name]['peer']} | failed | not run | |")
            continue
        measure = measures[0]
        unit = " rows/s" if measure["unit"] == "rows/s" else ""
        medians = [
            "failed" if measure[side] is None else figure_text(measure[side]["median"], measure["unit"]) + unit
            for side in ("peer", "ours")
        ]
        ratio = "" if measure["ratio"] is None else f"**{times_text(measure['ratio'])}**"
        lines.append(f"| {what} | {cases[name]['peer']} | {medians[0]} | {medians[1]} | {ratio} |")
    machine, sizes = results["machine"], results["sizes"]
    caption = f"Measured {results['date']} on {machine['cpus']} cores, {sizes['files']} files of {sizes['cells']:,} cells, in the page cache."
    return "\n".join([*lines, "", caption, ""])


def bars(results: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """(label, times better, goal) of the first figure of each case that has one."""
    return [
        (f"{' '.join([case['name'], measure['title']]).strip()}  ({case['peer']})", measure["ratio"], measure["goal"])
        for case in results["cases"]
        for measure in case["measures"][:1]
        if measure["ratio"] is not None
    ]


def plot(results: dict[str, Any], paths: list[Path]) -> None:
    """Draw how many times better each case is, with its goal as a tick."""
    import matplotlib as mpl
    import matplotlib.ticker

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "versus"
    import matplotlib.pyplot as plt

    found = bars(results)[::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(found)), layout="constrained")
    positions = range(len(found))
    axes.barh(positions, [ratio - 1 for _, ratio, _ in found], left=1, color="#4878a8", height=0.62)
    for position, (_, ratio, goal) in zip(positions, found, strict=True):
        axes.annotate(f" {times_text(ratio)}", (max(ratio, goal or 1.0, 1.0), position), va="center", fontsize=8)
        if goal is not None:
            axes.plot([goal, goal], [position - 0.4, position + 0.4], color="#c44e52", linewidth=2)
    axes.set_yticks(list(positions), [label for label, _, _ in found], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times better than the peer (log scale); red: the goal")
    axes.margins(x=0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=120, metadata=metadata)
    plt.close(figure)


def rewrite_section(document: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    whole = document.read_text()
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        msg = f"{document} must hold the lines {begin} and {end}, in this order and once each"
        raise ValueError(msg)
    head, rest = whole.split(begin)
    tail = rest.split(end)[1]
    document.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def write_into(document: Path, results: dict[str, Any], plot_path: Path) -> None:
    """Rewrite the section ``versus`` (the goals, and the plot if it exists) or ``versus-few`` of a document."""
    if "<!-- versus-few:begin -->" in document.read_text():
        rewrite_section(document, "versus-few", short_table(results))
        return
    text = markdown_table(results, only_goals=True)
    if plot_path.exists():
        relative = Path(os.path.relpath(plot_path, document.parent)).as_posix()
        text = f"![Times better than the peer, case by case]({relative})\n\n{text}"
    rewrite_section(document, "versus", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the results.json of a run")
    parser.add_argument("--write", type=Path, action="append", default=[], metavar="FILE.md")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    for document in options.write:
        write_into(document, results, options.results.with_name("plot.svg"))
    if not options.write:
        print(markdown_table(results))


if __name__ == "__main__":
    main()
