"""How big the benchmarks are."""

import os

QUICK = os.environ.get("ANNBATCH_BENCH_QUICK", "0") == "1"


def size(full: int, quick: int) -> int:
    """Return the size for this run."""
    return quick if QUICK else full
