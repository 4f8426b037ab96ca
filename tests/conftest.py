from __future__ import annotations

import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

# `ci` repeats the same examples in every run; `nightly` looks for new ones, longer. Time limits per example would only
# measure how busy the machine is.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    """Keep what processes share (storage/shared_arrays.py) out of the user's own folder, and remove it afterwards."""
    # A worker of pytest-xdist has the variables of who started it, but what tests share must not reach another process.
    if "ANNBATCH_CACHE_DIR" not in os.environ or hasattr(config, "workerinput"):
        config.annbatch_cache = os.environ["ANNBATCH_CACHE_DIR"] = tempfile.mkdtemp(prefix="annbatch-tests-")


def pytest_unconfigure(config):
    if hasattr(config, "annbatch_cache"):
        shutil.rmtree(config.annbatch_cache, ignore_errors=True)
