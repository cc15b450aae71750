"""Strictness for all tests: silent broadcasting between ranks is an error; so are warnings (pyproject.toml)."""

import os
import tempfile

# Most of the tests' time is compilation: optimise less, and one process per core with one thread.
# Four devices are for meshes.
FLAGS = ("backend_optimization_level=1", "cpu_multi_thread_eigen=false", "force_host_platform_device_count=4")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in FLAGS))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with the processes that tests start

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# What one test has compiled, the next one need not.
_cache = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
