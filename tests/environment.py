"""What must be set before Keras is imported."""

import contextlib
import os
import pathlib

# PyTorch's build for GPUs imports triton when it needs an optimizer. After TensorFlow was
# imported, that would crash the process.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# `make test-as-users` runs without the shortcuts that make the tests fast.
AS_USERS = bool(os.environ.get("AS_USERS"))

# Most programs run once or twice in a test, so optimizing them takes longer, and other
# tests, or the other process, have compiled them before.
if os.environ.get("KERAS_BACKEND") == "jax" and not AS_USERS:
    flags = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(
            pathlib.Path(__file__).parents[1] / "build/xla"
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for name, value in flags.items():
        os.environ.setdefault(name, value)
