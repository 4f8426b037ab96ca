"""How big the benchmarks are, and how many of them there are."""

from __future__ import annotations

import os
from typing import TypeVar

QUICK = os.environ.get("ANNBATCH_BENCH_QUICK", "0") == "1"

T = TypeVar("T")


def size(full: int, quick: int) -> int:
    """Return the size for this run."""
    return quick if QUICK else full


def levels(values: list[T]) -> list[T]:
    """Values of a parameter that all run the same code: in a quick run the first one will do."""
    return values[:1] if QUICK else values
