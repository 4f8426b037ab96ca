"""How many CPUs this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_cpus", "threads_each"]


def available_cpus(*, root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    The smaller of the CPU affinity of the process and the CPU quota of its control group (Linux, version 1 and 2), so
    that a container limited to two CPUs gets two threads and not one per core of the machine.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are mounted; for tests.

    Examples
    --------
    >>> from annbatch import storage
    >>> storage.available_cpus() >= 1
    True
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(root)
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def threads_each(n_workers: int) -> int:
    """Threads for each of so many workers that read at a time, at least 1."""
    return max(1, available_cpus() // n_workers)


def _cgroup_quota(root: Path) -> float | None:
    """CPUs allowed by the strictest control group above this process, or None without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount = root / "sys/fs/cgroup"
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, read = mount, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = mount / "cpu", _quota_v1
        else:
            continue
        own = base / group.lstrip("/")
        # A limit of any ancestor counts. Inside a container the path is often that of the host: then only base exists.
        for folder in (own, *own.parents):
            quotas.append(read(folder))
            if folder == base:
                break
    limits = [quota for quota in quotas if quota is not None]
    return min(limits, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
