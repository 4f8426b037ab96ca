"""``python -m benchmarks.quick``: every asv benchmark once on small data; exit status 1 when any of them is broken.

asv asks questions about the machine when it runs for the first time and keeps the answers in the home folder. Here it gets a
home folder for the time of the run, and answers by default, so that it runs unattended and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# asv's own exit status covers these; the text is a second net, since a broken benchmark that goes unseen is worthless.
BROKEN = re.compile(r"\s(failed|skipped \(setup_cache failed\)|error)\s*$|Failed to build the project", re.MULTILINE)


def run_once(folder: Path, arguments: list[str]) -> int:
    """Run the suites of an asv project once; return 0 when every benchmark ran."""
    with tempfile.TemporaryDirectory() as home:
        variables = {
            **os.environ,
            "HOME": home,
            "USERPROFILE": home,
            "ANNBATCH_BENCH_QUICK": "1",
            "ASV_PYTHONPATH": str(HERE.parent),
        }
        asv = [sys.executable, "-m", "asv"]
        subprocess.run([*asv, "machine", "--yes"], check=True, cwd=folder, env=variables, stdout=subprocess.DEVNULL)
        command = [*asv, "run", "--python=same", "--quick", "--show-stderr", "--dry-run", *arguments]
        with subprocess.Popen(
            command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            lines = []
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
    broken = [line.strip() for line in lines if BROKEN.search(line)]
    if process.returncode or broken:
        print(
            "\nbroken benchmarks:", *broken, f"(asv's exit status: {process.returncode})", sep="\n  ", file=sys.stderr
        )
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quick", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=HERE, help="folder of asv.conf.json")
    options, rest = parser.parse_known_args()
    return run_once(options.folder, rest)


if __name__ == "__main__":
    sys.exit(main())
