#!/usr/bin/env python
"""Trains an agent on one game and ends with an evaluation. The same command again resumes where it stopped."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agents import launch
from agents.errors import ConfigError

if __name__ == "__main__":
    launch.prepare()

from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import newest_intact
from agents.configuration import config
from agents.loop import train
from agents.offline import OfflineRun, OfflineTrainer
from agents.run import Run
from agents.trainer import Trainer
from training import messages
from training.command_line import allowed, gin_files, load, parse_args
from training.jobs import Job, jobs


def build(experiment, own_code: bool) -> Trainer:
    """Builds the trainer; writes nothing.

    Args:
      experiment: its settings.
      own_code: whether these name code of the user's, to whom a traceback tells where it went wrong.

    Raises:
      ConfigError: if what the settings describe cannot be computed.
      MemoryError: if it does not fit.
    """
    try:
        trainer = (OfflineTrainer if experiment.dataset is not None else Trainer)(experiment)
        trainer.trace()
        return trainer
    except (ConfigError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever JAX, flax and optax make of values that nobody foresaw
        if own_code:
            raise
        reason = str(error).strip().partition("\n")[0][:300]
        raise ConfigError(f"Nothing can be trained with these settings: {type(error).__name__}: {reason}") from error


def refuse_other_data(job: Job, trainer: OfflineTrainer) -> None:
    """Raises ConfigError if the run was begun with another data set."""
    if job.manifest and (job.manifest.get("dataset") or {}).get("digest") != trainer.data.digest:
        paths = ", ".join(job.cfg.experiment.dataset.paths)
        raise ConfigError(
            f"{job.run_dir} was begun with another data set than {paths}: its logs have changed since then, or are "
            "others. Train in another --run_dir."
        )


def refuse_other_torso(job: Job, trainer: Trainer) -> None:
    """Raises ConfigError if the run starts over, but was begun with another torso."""
    before, now = (job.manifest or {}).get("torso"), trainer.torso_origin
    if not job.checkpoint and before and before["state_sha256"] != now["state_sha256"]:
        raise ConfigError(
            f"{job.run_dir} was begun with the torso of {before['checkpoint']}, has no checkpoint of its own yet, and "
            f"would start over with that of {now['checkpoint']}. Remove it, or train in another --run_dir."
        )


def of_each(todo: list[Job], trainer: Trainer) -> list[Trainer]:
    """Makes a trainer for each job out of one that was built; writes nothing."""
    if trainer.experiment.torso_from is not None and not all(job.checkpoint for job in todo):
        trainer.load_torso(todo[0].cfg.settings)
        for job in todo:
            refuse_other_torso(job, trainer)
    if len(todo) == 1 and trainer.experiment.seed == todo[0].seed:
        return [trainer]
    return trainer.with_seeds([job.seed for job in todo])


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    if args.deterministic and launch.DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise ConfigError(f"--deterministic found no way to set XLA_FLAGS; set it: {launch.DETERMINISTIC}")
    if args.print_config:
        print(load(args).operative_text)
        return 0
    wanted = jobs(args)
    offline, trainer = wanted[0].cfg.experiment.dataset is not None, None
    if offline:  # what is learned from may have changed since a run was begun, or finished
        trainer = build(wanted[0].cfg.experiment, bool(args.allow_import))
        for job in wanted:
            refuse_other_data(job, trainer)
    for job in wanted:
        if job.finished and job.intact():
            print(messages.finished(job, allowed(args)))
    todo = [job for job in wanted if not job.finished or not job.intact()]
    if not todo:
        return 0
    # One that cannot go on is not touched. Damage is reported later, by the run that falls back to this checkpoint.
    todo = [job._replace(checkpoint=newest_intact(job.run_dir, report=lambda line: None)[0]) for job in todo]

    trainers = of_each(todo, trainer or build(todo[0].cfg.experiment, bool(args.allow_import)))
    with contextlib.ExitStack() as stack:
        for job in todo:
            stack.enter_context(run_directory.lock(job.run_dir))
            if run_directory.read_manifest(job.run_dir) != job.manifest:
                raise ConfigError(f"Another process has just trained in {job.run_dir}. Run the command again.")
        for job, trainer in zip(todo, trainers, strict=True):  # nothing is written before all of them are free
            if job.manifest:
                run_directory.resume(job.run_dir, job.manifest, job.start, job.cfg)
            else:
                run_directory.create(job.run_dir, trainer, job.cfg, job.title)
        stack.enter_context(launch.outlasting_readers())
        presets = [Path(file) for file in gin_files(args) if config.folder(file) == "presets"]
        messages.announce(trainers[0], todo, presets, args.run_dir or args.base_dir)
        runs = [
            (OfflineRun if offline else Run)(trainer, job.run_dir, job.cfg.operative_text, job.cfg.settings)
            for job, trainer in zip(todo, trainers, strict=True)
        ]
        interrupted_by = train(runs, args.profile)
        errors = [run.error for run in runs if run.error]
        for run in runs:
            if not run.error:
                print(messages.outcome(run, allowed(args)))
        if errors:
            raise FloatingPointError(" ".join(map(str, errors))) from errors[0]
    return 128 + interrupted_by if interrupted_by else 0


if __name__ == "__main__":
    launch.run(main)
