"""Write the measured part of docs/collections.md and draw its plot, from what benchmarks/layout/measure.py saved.

python -m benchmarks.layout.draw

A result holds the layout that collections have by default, and at how many rows a chunk the codecs were compared, which was
the default when they were.
"""

import json
from pathlib import Path
from statistics import median

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "collections.md"
RESULTS = DOCS / "layout" / "results.json"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def name_of(layout, default):
    """What makes a layout different from the default."""
    text = [f"{layout['rows_per_chunk']} rows", f"{layout['codec']} {layout['level']}", layout["values"]]
    return ", ".join(text) + (" (default)" if is_default(layout, default) else "")


def is_default(layout, default):
    """Whether a layout is that of a new collection; counts are stored compactly there."""
    return all(layout[key] == value for key, value in default.items()) and layout["values"].startswith("uint")


def chunk_tables(results):
    """Yield lines: codecs and types, a chunk at a time."""
    default = results["default"]
    yield f"Codecs of Blosc with byte shuffle, chunks of {results['codecs_at']} rows, one thread:\n"
    yield "| codec | stored | type | bytes each | written, million a second | read, million a second |"
    yield "|---|---|---|---|---|---|"
    for found in results["chunks"]:
        mark = " (default)" if (found["codec"], found["level"]) == (default["codec"], default["level"]) else ""
        yield (
            f"| {found['codec']} {found['level']}{mark} | {found['array']} | {found['dtype']} | {found['bytes']:.2f} "
            f"| {found['write']:,.0f} | {found['read']:,.0f} |"
        )


def layout_table(results):
    """Yield lines: size and rates of whole collections."""
    sizes = list(results["layouts"][0]["rates"])
    yield (
        f"\nWhole collections of {results['cells']:,} cells, thousand rows a second in batches of 4,096 "
        f"(median of {results['rounds']} rounds, lowest to highest; where ranges overlap nothing is shown):\n"
    )
    yield "| layout | MB | " + " | ".join(f"chunk_size {size}" for size in sizes) + " |"
    yield "|---|---|" + "---|" * len(sizes)
    for layout in results["layouts"]:
        rates = [[rate / 1e3 for rate in layout["rates"][size]] for size in sizes]
        cells = " | ".join(f"{median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})" for each in rates)
        yield f"| {name_of(layout, results['default'])} | {layout['bytes'] / 1e6:,.0f} | {cells} |"


def big_build(results):
    """Yield lines: what a build took, and what it takes for Tahoe-100M."""
    build = results["build"]
    tahoe = build["tahoe"]
    yield (
        f"\nA build: {build['values'] / 1e6:,.1f} million values ({build['given_bytes'] / 1e9:.2f} GB of h5ad) took {build['seconds']:.1f} s of "
        f"processor time and a peak of {build['peak_bytes'] / 1e9:.2f} GB of resident memory, Python and its libraries included."
    )
    values = tahoe["cells"] * tahoe["values_a_cell"]
    spilled, stored = 4 * values, build["stored_bytes"] / build["values"] * values
    hours = build["seconds"] / build["values"] * values / 3600
    datasets = tahoe["datasets"]
    yield (
        f"\nThe same rates for {tahoe['cells'] / 1e6:,.0f} million cells of {tahoe['values_a_cell']:,} values (Tahoe-100M), {values / 1e9:,.0f} billion values:\n\n"
        f"- disk: {spilled / 1e9:,.0f} GB of temporary files (4 bytes a value) and {stored / 1e9:,.0f} GB of collection "
        f"({stored / values:.2f} bytes a value), both until the end: {(spilled + stored) / 1e9:,.0f} GB must be free;\n"
        f'- workers: `dataset_size="20GB"` (8 bytes a value and 64 a row in the inputs) gives {datasets} datasets, so up to {datasets} write at a time;\n'
        f"- memory: `max_memory` for each task; the plan takes {tahoe['plan_bytes'] / 1e9:.1f} GB of it in the process that calls, "
        f"{tahoe['sorted_plan_bytes'] / 1e9:.1f} GB with `groupby` of up to 255 labels;\n"
        f"- time: {hours:.1f} hours of processor time in all, {hours * 60 / datasets:.1f} minutes for each of {datasets} workers: the disk decides. "
        f"It reads {8 * values / 1e12:.2f} TB of inputs (8 bytes a value), writes and reads the temporary files, and writes the collection."
    )


def plot(results, paths):
    """Draw rates by rows per chunk, rates and size by codec, and what the types of values and column numbers cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "layout"
    mpl.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    default = results["default"]
    of_default_codec = [x for x in results["layouts"] if _codec(x) == _codec(default) and x["values"] != "float32"]
    others = [x for x in results["layouts"] if x["rows_per_chunk"] == results["codecs_at"]]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    _draw_rates(axes[0], of_default_codec, [x["rows_per_chunk"] for x in of_default_codec], "-")
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].axvline(default["rows_per_chunk"], color="black", linewidth=0.8, linestyle=":")
    axes[0].set_xlabel("rows per chunk (dotted: the default)")
    axes[0].legend(fontsize=8, frameon=False)
    others.sort(key=lambda layout: layout["bytes"])
    _draw_rates(axes[1], others, range(len(others)), "")
    n_values = results["build"]["values"]
    ticks = [f"{_codec(layout)}\n{layout['values']}\n{layout['bytes'] / n_values:.2f}" for layout in others]
    axes[1].set_xticks(range(len(others)), ticks, fontsize=8)
    axes[1].set_xlabel("codec; type of values; bytes a value and its column number")
    _draw_types(axes[2], results)
    for panel in axes:
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    for path in paths:
        figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _codec(layout):
    return f"{layout['codec']} {layout['level']}"


def _draw_rates(panel, layouts, positions, line):
    """Random and sequential rate of each layout, with its range."""
    sizes = list(layouts[0]["rates"])
    for size, what, color in ((sizes[0], "random", "#c44e52"), (sizes[-1], "sequential", "#4878a8")):
        rates = [sorted(rate / 1e3 for rate in layout["rates"][size]) for layout in layouts]
        middle = [median(each) for each in rates]
        below = [m - each[0] for m, each in zip(middle, rates, strict=True)]
        above = [each[-1] - m for m, each in zip(middle, rates, strict=True)]
        label = f"{what} (chunk_size {size})"
        panel.errorbar(
            positions, middle, [below, above], fmt=f"o{line}", color=color, elinewidth=0.8, markersize=4, label=label
        )
    panel.set_ylabel("thousand rows a second")
    panel.set_ylim(bottom=0)


def _draw_types(panel, results):
    """Bytes and rate of each type with the default codec."""
    default = results["default"]
    found = [c for c in results["chunks"] if (c["codec"], c["level"]) == (default["codec"], default["level"])]
    panel.barh(range(len(found)), [c["read"] for c in found], color="#4878a8", height=0.6)
    for position, chunk in enumerate(found):
        panel.annotate(f" {chunk['bytes']:.2f} bytes each", (chunk["read"], position), va="center", fontsize=8)
    panel.set_yticks(range(len(found)), [f"{c['array']}\n{c['dtype']}" for c in found], fontsize=8)
    panel.set_xlabel("read, million a second and thread")
    panel.set_title(f"types ({default['codec']} {default['level']})", fontsize=10)
    panel.margins(x=0.45)
    panel.invert_yaxis()


def write_page(results):
    """Write tables and plot."""
    plot(results, [RESULTS.with_name("plot.svg"), RESULTS.with_name("plot.png")])
    lines = [
        f"*Written by `{results['command']}` on a machine with {results['cpus']} CPUs; compare the ratios, not the figures.*\n",
        "![Random and sequential rate by rows per chunk; rate and size by codec; what the types of values and column numbers cost](layout/plot.svg)\n",
        *chunk_tables(results),
        *layout_table(results),
        *big_build(results),
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END + after]))


if __name__ == "__main__":
    write_page(json.loads(RESULTS.read_text()))
