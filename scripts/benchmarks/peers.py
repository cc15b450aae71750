"""Training against peers, by turns: Dopamine's JAX DQN, and the classic loop with one game and no overlap."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from agents import launch
from benchmarks import training

FOLDER = Path(__file__).parent
DOPAMINE = FOLDER.parents[1] / ".venv-dopamine"  # its environment
# Head and padding of both sides: Dopamine pads SAME; CleanRL and DQN Zoo, whose loop is serial, VALID.
SETTINGS = {"dopamine": ("mse", "SAME"), "serial": ("hl_gauss", "VALID")}


def install_dopamine() -> Path:
    """Installs Dopamine into an environment of its own, unless it is there; returns its Python."""
    python, ready = DOPAMINE / "bin/python", DOPAMINE / "ready"
    if not ready.exists():
        print(f"Installing Dopamine into {DOPAMINE} (3 GB) ...", flush=True)
        run = functools.partial(subprocess.run, check=True)
        run([sys.executable, "-m", "venv", DOPAMINE])
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        cuda = ["jax[cuda12]==0.6.2"] if jax.default_backend() == "gpu" else []
        run([*pip, "-r", FOLDER / "dopamine-requirements.txt", *cuda])
        run([*pip, "--no-deps", "baselines==0.1.5"])
        ready.touch()
    return python


def dopamine(directory: Path, interval: int) -> Iterator[training.Worker]:
    """Dopamine's training: the allocator set as ours; its JAX does not know our XLA_FLAGS."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [str(install_dopamine()), str(FOLDER / "dopamine_dqn.py"), str(directory / "dopamine"), str(interval)]
    yield training.Worker("Dopamine", command, directory / "dopamine", env)


def serial(directory: Path, interval: int) -> Iterator[training.Worker]:
    """The serial loop, once in our environment and once in that of a script that sets nothing."""
    for name, env in {"serial loop": {}, "serial loop, plain environment": dict.fromkeys(launch.SETTINGS, "")}.items():
        command = [sys.executable, str(FOLDER / "serial.py"), str(directory / name), str(interval), *SETTINGS["serial"]]
        yield training.Worker(name, command, directory / name, os.environ | env)


def rows(peer: str, args) -> Iterator[dict]:
    """Trains on Pong by turns with a peer, and compares agent steps/s."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        enter = lambda worker: stack.enter_context(contextlib.closing(worker))
        workers = [enter(training.ours(Path(directory, "ours"), *SETTINGS[peer], args.num_envs, args.interval))]
        its = {"dopamine": dopamine, "serial": serial}[peer](Path(directory), args.interval)
        workers += [enter(worker) for worker in its]
        training.race(workers, args.turns, args.points)
        results = training.results(workers)
    ours = next(iter(results.values()))["steps/s"]["median"]
    for name, result in results.items():
        yield {"who": name} | result | {"ours / this": ours / result["steps/s"]["median"]}
