"""The plan of a sweep: the command of each run, checked and looked up before the first one starts."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from agents.configuration import config
from agents.errors import ConfigError, plain
from sweeping.grid import Cell
from training import jobs
from training.command_line import load, parse_args

TRAIN = config.ROOT / "scripts/train.py"


class Run(NamedTuple):
    """A run of a sweep, as it is found."""

    argv: tuple[str, ...]  # flags of scripts/train.py
    run_dir: Path
    how: str  # it starts
    start: int  # agent steps done
    total: int  # agent steps to be done
    replay_bytes: int
    finished: bool = False  # nothing is left to do

    @property
    def name(self) -> str:
        """The run directory below the base directory."""
        return "/".join(self.run_dir.parts[-3:])

    @property
    def command(self) -> list[str]:
        """The command that trains it."""
        return [sys.executable, str(TRAIN), *self.argv]


class Plan:
    """Turns cells of grids into runs.

    Loading a configuration takes 40 ms or more, so seeds that have no directory yet share one.

    Args:
      base_dir: parent of the run directories.
      allow_import: packages that the runs may import.
    """

    def __init__(self, base_dir: str, allow_import=()):
        self._common = [f"--base_dir={base_dir}", *(f"--allow_import={package}" for package in allow_import)]
        self._by_machine: dict[tuple, bool] = {}  # whether the number of games is left to the machine
        self._jobs: dict[tuple, jobs.Job] = {}
        self._replay_bytes: dict[tuple, int] = {}  # of arms whose network has been built

    def runs(self, cells: list[Cell]) -> list[Run]:
        """Checks all cells; writes nothing.

        Raises:
          ConfigError: for a run that cannot start as it is written, and for two in the same directory.
        """
        runs: dict[Path, Run] = {}
        for cell in cells:
            argv = [*cell.argv, *self._common]
            try:
                run = self._run(cell, argv)
            except ValueError as error:
                raise ConfigError(f"The run {shlex.join(argv)} cannot start: {error}") from error
            if (other := runs.setdefault(run.run_dir, run)) is not run:
                both = " and ".join(shlex.join(twin.argv) for twin in (other, run))
                raise ConfigError(f"Two runs of the sweep have the same directory, {run.run_dir}: {both}.")
        return list(runs.values())

    def _run(self, cell: Cell, argv: list[str]) -> Run:
        kind = (cell.flags, "--game" if cell.task.startswith("--game=") else cell.task)
        if kind not in self._by_machine:
            settings = load(parse_args(argv)).settings
            self._by_machine[kind] = settings["Experiment.num_envs"] == "0"
        if self._by_machine[kind]:
            argv = [*argv, f"--num_envs={cell.num_envs}"]
        job = self._job((cell.flags, cell.task), cell.seed, argv)
        x, size = job.cfg.experiment, self._bytes(cell.flags, job.cfg.experiment)
        return Run(tuple(argv), job.run_dir, job.how, job.start, x.total_steps, size, job.finished)

    def _job(self, arm: tuple, seed: int, argv: list[str]) -> jobs.Job:
        if arm in self._jobs:
            run_dir = self._jobs[arm].run_dir.with_name(f"seed{seed}")
            if not run_dir.exists():
                return self._jobs[arm]._replace(run_dir=run_dir, manifest=None, checkpoint=None)
        job = self._jobs[arm] = jobs.job(parse_args(argv))
        if job.cfg.experiment.dataset is not None:
            job.cfg.experiment.dataset.check_game(job.cfg.experiment.environment)
        return self._jobs[arm]

    def _bytes(self, flags: tuple, x) -> int:
        """Memory of the replay; the screens of all Atari games have the same size.

        Raises:
          ConfigError: if the network cannot be built.
        """
        key = (flags, getattr(x.environment, "screen", x.environment.name), repr(x.dataset), x.num_envs)
        if key not in self._replay_bytes:
            network, observation = x.build_network()
            try:
                jax.eval_shape(network.init, jax.random.key(0), observation)
            except Exception as error:  # whatever JAX and flax make of values that nobody foresaw
                raise ConfigError(f"{type(error).__name__}: {plain(error).partition(chr(10))[0]}") from error
            replay = x.replay
            if x.dataset is not None:
                replay = dataclasses.replace(replay, capacity=min(replay.capacity, x.dataset.most_rows()))
            self._replay_bytes[key] = replay.num_bytes(x.num_envs, observation.shape[2:], observation.dtype)
        return self._replay_bytes[key]
