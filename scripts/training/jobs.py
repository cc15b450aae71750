"""The runs that a command line asks for, and what has become of them so far."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import Checkpoint, newest
from agents.configuration import config
from agents.errors import ConfigError
from replay.files import DamagedError
from training.command_line import gin_files, load


class Job(NamedTuple):
    """A seed of the command line: its configuration, and the run directory as it is found."""

    cfg: config.Config
    title: str
    run_dir: Path
    manifest: dict | None  # None if there is no run yet
    checkpoint: Checkpoint | None  # its newest one

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.cfg.experiment.seed

    @property
    def start(self) -> int:
        """Agent steps it goes on from."""
        return self.checkpoint.agent_steps if self.checkpoint else 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        total = self.cfg.experiment.total_steps
        return self.start >= total and not self.checkpoint.owes_evaluation(total)

    def intact(self) -> bool:
        """Whether the state in the newest checkpoint is as it was written."""
        try:
            self.checkpoint.verify(replay=False)
        except DamagedError:
            return False
        return True

    @property
    def how(self) -> str:
        """How it starts."""
        if self.checkpoint:
            return f"goes on at {self.start:,} {self.cfg.experiment.unit}"
        return "starts over: it has no checkpoint" if self.manifest else "new"


def job(args, num_envs: int | None = None) -> Job:
    """Loads a configuration and looks into its run directory, without changing it.

    Args:
      args: the command line.
      num_envs: games where their number is left to the machine; by default as many as the run there was started with.
    """
    cfg = load(args)
    files = gin_files(args)[1:]
    name = run_directory.name(cfg.experiment, files, args.gin_bindings)
    run_dir = Path(args.run_dir or Path(args.base_dir, name))
    try:
        str(run_dir).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{str(run_dir)!r} is no name in UTF-8. Choose another directory.") from error
    manifest = run_directory.read_manifest(run_dir)
    if cfg.settings["Experiment.num_envs"] == "0":
        started_with = manifest["num_envs"] if manifest else cfg.experiment.num_envs
        # What the machine chose overrides nobody's value.
        cfg = load(args, num_envs=num_envs or started_with)._replace(overrides=cfg.overrides)
    if manifest:
        run_directory.refuse_other_settings(run_dir, manifest["settings"], cfg.settings)
    return Job(cfg, run_directory.title(files), run_dir, manifest, newest(run_dir) if manifest else None)


def jobs(args) -> list[Job]:
    """One job, or with `--seeds` one for each seed."""
    first = job(args)
    if args.seeds is None:
        return [first]
    if args.seeds < 1:
        raise ConfigError(f"--seeds is a number of seeds; got {args.seeds}.")
    if any("Experiment.seed" in binding.partition("=")[0] for binding in args.gin_bindings):
        raise ConfigError("--seeds counts from --seed: pass that instead of a binding of Experiment.seed.")
    if args.run_dir:
        raise ConfigError("--run_dir is one directory, and --seeds needs one for each. Use --base_dir instead.")
    x = first.cfg.experiment
    others = [argparse.Namespace(**vars(args) | {"seed": x.seed + i}) for i in range(1, args.seeds)]
    return [first, *(job(other, x.num_envs) for other in others)]
