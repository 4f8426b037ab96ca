"""The ``annbatch`` command."""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

_EXAMPLES = """\
examples:
  annbatch demo                                              see everything once, on bundled real cells
  annbatch build cells.zarr data/*.h5ad --groupby cell_type  make a shuffled collection
  annbatch info cells.zarr                                   what is inside, how it is stored and read, and the largest
                                                             chunk_size for ClassSampler
  annbatch verify cells.zarr                                 whether everything is as it was written
  annbatch bench cells.zarr                                  rows per second on this machine, and which setting to use
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0 done, 1 something went wrong, 2 wrong arguments, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        result = options.run(options)
        if options.json:
            print(json.dumps(result, indent=2))
        return getattr(options, "exit_code", 0)
    except KeyboardInterrupt as error:
        print("\n".join(["annbatch: interrupted", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left; Python would complain about it at its exit
        return 1
    except Exception as error:  # a person at a terminal wants the text, not the traceback
        if options.traceback:
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        print(
            "\n".join([f"annbatch: error: {_as_typed(text, options)}", *getattr(error, "__notes__", [])]),
            file=sys.stderr,
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="annbatch",
        description="Turn AnnData files into shuffled mini-batches.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"annbatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    common.add_argument("--quiet", action="store_true", help="no progress bars")
    common.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    for add in (_add_build, _add_info, _add_verify, _add_bench, _add_demo):
        add(commands, common)
    return parser


def _add_build(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "build",
        parents=[common],
        help="shuffle AnnData files into a collection, or add to one",
        description=(
            "Shuffle the rows of AnnData files (.h5ad, .zarr) into a collection. What OUT holds already stays as it is; the new rows are added. "
            "An interrupted build continues when the same command is given again."
        ),
    )
    parser.add_argument("out", metavar="OUT.zarr", help="the collection; made if it does not exist")
    parser.add_argument("inputs", metavar="IN", nargs="+", help=".h5ad or .zarr files")
    parser.add_argument(
        "--groupby", action="append", metavar="COLUMN", help="sort each dataset by this obs column (repeat for several)"
    )
    parser.add_argument("--var-subset", metavar="FILE", type=Path, help="text file with the genes to keep, one a line")
    parser.add_argument("--extra-genes", choices=["error", "ignore"], default="error", help="genes OUT does not have")
    parser.add_argument(
        "--if-exists",
        choices=["error", "skip", "add"],
        default="error",
        help="inputs that OUT holds already, or that are named twice (default error)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="build beside OUT, and put the new collection in its place when it is done",
    )
    parser.add_argument(
        "--merge", choices=["same", "unique", "first", "only"], help="how var columns that differ are merged"
    )
    parser.add_argument("--no-shuffle", dest="shuffle", action="store_false", help="keep the order of the rows")
    parser.add_argument("--seed", type=_seed, help="makes the shuffle repeatable")
    parser.add_argument("--n-obs-per-chunk", type=int, metavar="ROWS", help="rows in the smallest piece that is read")
    parser.add_argument("--shard-size", type=_size, default="1GB", help='rows, or bytes as in "1GB" (default)')
    parser.add_argument("--dataset-size", type=_size, default="20GB", help='rows, or bytes as in "20GB" (default)')
    parser.add_argument(
        "--zarr-compressor", metavar="JSON", help='codecs, e.g. \'[{"name": "zstd", "configuration": {"level": 3}}]\''
    )
    parser.add_argument("--h5ad-compressor", choices=["gzip", "lzf", "none"], default="gzip")
    parser.add_argument("--h5ad", action="store_true", help="write a folder of h5ad files instead of Zarr")
    parser.add_argument("--max-memory", default="2GB", metavar="SIZE", help="memory to work in (default 2GB)")
    parser.add_argument("--no-compact", dest="compact", action="store_false", help="keep the dtype of whole numbers")
    parser.add_argument("--processes", type=int, metavar="N", help="work in N processes; each uses max-memory")
    parser.set_defaults(run=_build)


def _add_info(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="what a collection or AnnData file holds",
        description=(
            "Show rows, genes, layers, obs columns, how each matrix is stored and read, size on disk, and the runs of every class of "
            "a label column."
        ),
    )
    parser.add_argument("paths", type=_path, metavar="PATH_OR_URL", nargs="+")
    _add_storage_options(parser)
    parser.add_argument(
        "--label",
        action="append",
        metavar="COLUMN",
        help="show the runs of this obs column (default: every categorical one)",
    )
    parser.set_defaults(run=_info)


def _add_verify(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "verify",
        parents=[common],
        help="read a collection or AnnData file once, and say what is damaged",
        description=(
            "Read everything once and say what is damaged: file, array, chunks and rows. "
            "The exit status is 1 when something is."
        ),
    )
    parser.add_argument("path", type=_path, help="a local file or folder; of a URL, a copy on a disk")
    parser.add_argument(
        "--accept", action="store_true", help="take it as it is now: it was changed on purpose after it was written"
    )
    parser.set_defaults(run=_verify)


def _add_bench(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "bench",
        parents=[common],
        help="how fast this machine reads a collection or AnnData files, and how well settings mix them",
        description=(
            "Read batches with a few settings of Loader, and say how fast each is, how well it mixes the rows, and which to use."
        ),
    )
    parser.add_argument("paths", type=_path, metavar="PATH_OR_URL", nargs="+")
    _add_storage_options(parser)
    parser.add_argument("--batch-size", type=int, default=4096, metavar="ROWS")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each setting (default 2)")
    parser.add_argument(
        "--label",
        action="append",
        metavar="COLUMN",
        help="obs column whose labels are to be mixed (repeat for several; default: every categorical one)",
    )
    parser.set_defaults(run=_bench)


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="from h5ad files to two trained classifiers, on bundled real cells",
        description=(
            "Make cells from 559 real ones, write h5ad files, build a collection, and train a classifier twice: "
            "with random batches, and with a rare class over-sampled."
        ),
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        help="folder for the files, new or empty (default ./demo-output)",
    )
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--passes", type=int, default=2, help="passes over the data (default 2)")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.set_defaults(run=_demo)


def _size(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _path(text: str) -> Path | str:
    from .storage import is_url

    return text if is_url(text) else Path(text)


def _add_storage_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage-options",
        metavar="JSON",
        type=_json_object,
        help="for a URL, what its library needs besides, such as '{\"anon\": true}'",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        msg = f"must be a JSON object, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return found


def _seed(text: str) -> int:
    if not text.isdecimal():
        msg = f"must be a whole number of at least 0, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _say(options: argparse.Namespace, text: str) -> None:
    """Text for a person: to stderr when stdout belongs to a program."""
    print(text, file=sys.stderr if options.json else sys.stdout)


def _build(options: argparse.Namespace) -> dict[str, Any]:
    import warnings

    import numpy as np

    from .collection import DatasetCollection

    chosen: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "groupby",
            "extra_genes",
            "if_exists",
            "merge",
            "shuffle",
            "shard_size",
            "dataset_size",
            "max_memory",
            "compact",
        )
    }
    if options.n_obs_per_chunk is not None:
        chosen["n_obs_per_chunk"] = options.n_obs_per_chunk
    if options.var_subset is not None:
        chosen["var_subset"] = [name for line in options.var_subset.read_text().splitlines() if (name := line.strip())]
    if options.seed is not None:
        chosen["rng"] = np.random.default_rng(options.seed)
    if options.zarr_compressor is not None:
        chosen["zarr_compressor"] = _codecs(options.zarr_compressor)
    chosen["h5ad_compressor"] = None if options.h5ad_compressor == "none" else options.h5ad_compressor
    # Whatever OUT is, it must be a collection, also to be overwritten.
    collection = DatasetCollection(options.out, is_collection_h5ad=options.h5ad)
    with warnings.catch_warnings(), _log_shown(), _place(options) as out:
        warnings.showwarning = lambda message, *_, **__: print(f"annbatch: {message}", file=sys.stderr)
        warnings.simplefilter("always", UserWarning)
        building = collection if out is None else DatasetCollection(out, is_collection_h5ad=options.h5ad)
        with _executor(options.processes) as executor:
            building.add_adatas(options.inputs, executor=executor, progress=not options.quiet, **chosen)
    _say(options, f"{collection!r}")
    return {"path": options.out, "datasets": len(collection)}


@contextmanager
def _log_shown() -> Iterator[None]:
    """Show what the package logs, such as inputs that are left out."""
    import logging

    log, handler = logging.getLogger("annbatch"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("annbatch: %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def _place(options: argparse.Namespace) -> AbstractContextManager[Path | None]:
    """Where to build instead of OUT, if OUT is to be overwritten."""
    from contextlib import nullcontext

    from .collection.swap import overwriting

    if not options.overwrite:
        return nullcontext()
    if "://" in options.out:
        msg = f"--overwrite needs a local folder, got {options.out}; build under another name, and remove the old one"
        raise ValueError(msg)
    return overwriting(Path(options.out))


def _executor(processes: int | None) -> AbstractContextManager[Executor | None]:
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import nullcontext
    from multiprocessing import get_context

    from ._shared.args import as_count

    if processes is None:
        return nullcontext()
    # Not forked: threads have run by the time the first task is sent.
    return ProcessPoolExecutor(as_count("processes", processes), mp_context=get_context("spawn"))


def _codecs(text: str) -> list[Any]:
    from zarr.registry import get_codec_class

    try:
        return [get_codec_class(codec["name"]).from_dict(codec) for codec in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"zarr_compressor must be a JSON list of Zarr v3 codecs, got {text!r} ({error})"
        raise ValueError(msg) from error


def _info(options: argparse.Namespace) -> dict[str, Any] | list[dict[str, Any]]:
    from .commands.info import describe, show

    found = []
    for path in options.paths:
        found.append(describe(path, options.label, options.storage_options))
        if not options.json:
            show(found[-1], print)
    return found[0] if len(found) == 1 else found


def _as_typed(text: str, options: argparse.Namespace) -> str:
    """Name arguments of Python functions in an error as the options of the command: ``if_exists="skip"`` is ``--if-exists skip``."""

    def typed(found: re.Match[str]) -> str:
        name, value = found.groups()
        return f"--{name.replace('_', '-')} {value}" if hasattr(options, name) else found.group()

    return re.sub(r'\b(\w+)="(\w+)"', typed, text)


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from .collection.verify import accept, show, verify

    report = (accept if options.accept else verify)(options.path, progress=not options.quiet)
    if not options.json:
        show(report, print)
    options.exit_code = 0 if report.is_sound else 1
    return report.as_dict()


def _bench(options: argparse.Namespace) -> dict[str, Any]:
    from .commands.bench import run_bench, show

    found = run_bench(
        options.paths,
        options.batch_size,
        options.seconds,
        progress=not options.quiet,
        storage_options=options.storage_options,
        labels=options.label,
    )
    if not options.json:
        show(found, print)
    return found


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from ._shared.args import as_count
    from .commands.demo import run_demo

    return run_demo(
        options.out,
        n_cells=as_count("cells", options.cells),
        n_passes=as_count("passes", options.passes),
        seed=options.seed,
        progress=not options.quiet,
        say=lambda text: _say(options, text),
    )


if __name__ == "__main__":
    sys.exit(main())
