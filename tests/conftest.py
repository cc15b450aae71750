"""Strictness for all tests: silent broadcasting between ranks is an error; so are warnings (pyproject.toml)."""

import os
import signal
import tempfile
from importlib.metadata import version

# Most of the tests' time is compilation: optimise nothing, and one process per core with one thread.
# Four devices are for meshes.
FLAGS = ["backend_optimization_level=0", "cpu_multi_thread_eigen=false", "force_host_platform_device_count=4"]
if version("jaxlib").startswith("0.10."):  # its older emitters compile faster by a third; JAX 0.12 has none
    FLAGS += ["cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in FLAGS))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with the processes that tests start

# What one process of the tests has compiled, none of the others need.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from filelock import FileLock

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves figures out of comparisons, for tests of all else."""
    from comparison import figures  # ends the choice of a backend by matplotlib

    monkeypatch.setattr(figures, "draw_all", lambda analysis, legend=True: {})


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """once(name, make): a folder that `make` fills in one of the tests' processes, for all of them to read."""
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent

    def once(name, make):
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.made").exists():
                make(root / name)
                (root / f"{name}.made").touch()
        return root / name

    return once


@pytest.fixture
def hangups():
    """Lets SIGHUP arrive as in a terminal, also where these tests run under nohup, which has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
