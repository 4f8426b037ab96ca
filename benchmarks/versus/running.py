"""Run one worker in a process of its own and take what it reports."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .environments import Environments

__all__ = ["WORKERS", "WorkerError", "run_worker"]

WORKERS = Path(__file__).with_name("workers")


class WorkerError(RuntimeError):
    """A worker, or something it needs, failed; the text says why."""


def run_worker(
    environments: Environments, environment: str, worker: str, given: dict[str, Any], timeout: float
) -> dict[str, Any]:
    """Run one worker in a fresh process and return the JSON object on its last line."""
    try:
        command = [environments.interpreter(environment), str(WORKERS / worker), json.dumps(given)]
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=environments.variables(environment),
            cwd=environments.folder,
        )
    except subprocess.TimeoutExpired:
        msg = f"no result after {timeout:.0f} s"
        raise WorkerError(msg) from None
    except (OSError, RuntimeError) as error:
        raise WorkerError(str(error)) from error
    if answer.returncode:
        last = (answer.stderr.strip() or f"exit status {answer.returncode}").splitlines()[-1]
        raise WorkerError(last)
    try:
        return json.loads(answer.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        msg = f"no line of JSON in its output: {answer.stdout[-200:]!r}"
        raise WorkerError(msg) from None
