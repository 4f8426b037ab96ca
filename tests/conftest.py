from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# `ci` repeats the same examples in every run; `nightly` looks for new ones, longer. Time limits per example would only
# measure how busy the machine is.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
