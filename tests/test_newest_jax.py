"""The main job on the newest Python and JAX that the constraints name; minutes long, for it installs them."""

import shutil
import subprocess

import pytest

from agents.configuration.config import ROOT


def newest_python():
    """A Python that gets the newest JAX; pyenv's shims exist for versions that do not run."""
    for name in ("python3.14", "python3.13", "python3.12"):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


@pytest.mark.slow
def test_trains_on_the_newest_jax(tmp_path):
    python = newest_python()
    if python is None:
        pytest.skip("needs Python 3.12 or newer on the PATH")
    run = lambda *command: subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    run("make", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    venv_python = tmp_path / "venv/bin/python"
    assert run(venv_python, "-c", "import jax; print(jax.__version_info__ >= (0, 11))").strip() == "True"
    # The tests of the main job; the rest does not depend on the version of Python.
    names = ("training", "replay", "learner", "launch", "mesh", "networks", "checkpoint", "resume", "faults")
    names += ("dataset", "offline", "synthetic")
    files = [f"tests/test_{name}.py" for name in names]
    out = run(venv_python, "-m", "pytest", "-q", *files)
    assert " passed" in out and "failed" not in out
