"""Settings of the fuzzing tests: few examples, always the same; `FUZZ=nightly` for more."""

import os

from hypothesis import HealthCheck, settings

# Files are made once for all examples, and a new process is slow at first.
COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("suite", max_examples=40, derandomize=True, **COMMON)
settings.register_profile("nightly", max_examples=3000, **COMMON)
settings.load_profile(os.environ.get("FUZZ", "suite"))
