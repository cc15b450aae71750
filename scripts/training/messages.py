"""What `train.py` tells its user."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path

import jax

from agents.checkpointing import run_directory
from agents.configuration import config
from agents.environments import Atari

EVALUATE = config.ROOT / "scripts/evaluate.py"


def announce(trainer, todo, presets, logdir) -> None:
    """Prints what is about to run.

    Args:
      trainer: of the first run.
      todo: all of them, as `jobs.Job`.
      presets: gin files of configs/presets in use.
      logdir: for TensorBoard.
    """
    x, env = trainer.experiment, trainer.experiment.environment
    if run_directory.unused_gpu():
        print(
            "*" * 100 + "\nWARNING: this machine has a GPU, but JAX runs on the CPU, many times slower.\n"
            "Install JAX for it: make setup EXTRA=cuda13\n" + "*" * 100
        )
    if len(todo) > 1 and jax.default_backend() == "cpu":
        print("WARNING: on a CPU several seeds learn faster in processes of their own: scripts/sweep.py --jobs.")
    protocol = ", ".join(f"{field.name} {getattr(env, field.name)}" for field in dataclasses.fields(env))
    seeds = [str(job.seed) for job in todo]
    frames = f" = {x.total_steps * x.frames_per_step:,} frames" if x.frames_per_step else ""
    source = _games(x, trainer, len(todo)) if x.dataset is None else _data(trainer)
    rows = {
        "Preset": "; ".join(f"{path.stem}: {path.read_text().partition(chr(10))[0].strip('# ')}" for path in presets),
        "Run": ("\n" + " " * 10).join(f"{job.run_dir} ({job.how})" for job in todo),
        "Device": run_directory.device(),
        "Protocol": f"{type(env).__name__}: {protocol}",
        "Length": f"{x.total_steps:,} {x.unit}{frames}, seed {', '.join(seeds)}",
        **source,
        "Head": f"{x.head}",
        "Network": f"{trainer.num_parameters:,} parameters",
        "Torso": f"{trainer.torso_origin['checkpoint']}, frozen" if trainer.torso_origin else "",
        "Curves": shlex.join([program("tensorboard"), "--logdir", str(logdir)]),
    }
    for key, text in rows.items():
        if text:
            print(f"{key:<9} {text}")
    for job in todo:
        if job.manifest and (changed := run_directory.differences(job.manifest)):
            print(f"NOTE: {job.run_dir} goes on under other circumstances, which may change bits: {'; '.join(changed)}")
    for line in todo[0].cfg.overrides:
        print(f"Override  {line}")


def _games(x, trainer, number: int) -> dict[str, str]:
    order = (
        f"stepped while the learner computes: updates come one step of all games ({x.num_envs} agent steps) later"
        if x.overlap
        else "stepped in turn with the learner"
    )
    replay = f"{x.replay.capacity:,} transitions, {trainer.replay_bytes / 1e9:.2f} GB, allocated at once"
    return {"Games": f"{x.num_envs}, {order}", "Replay": f"{number} times {replay}" if number > 1 else replay}


def _data(trainer) -> dict[str, str]:
    data, size = trainer.data.description(), f"{trainer.replay_bytes / 1e9:.2f} GB"
    score = data["behaviour_return"]
    played = "" if score is None else f", mean return {score:.1f}"
    how = f"in memory, {size}" if trainer.resident else f"streamed through a replay of {size}"
    logs = f"{len(data['recordings'])} log{'s' * (len(data['recordings']) > 1)}"
    return {"Data set": f"{data['episodes']:,} episodes of {logs}{played}; {data['transitions']:,} transitions, {how}"}


def finished(job, packages) -> str:
    """What to do with a run that is finished."""
    flag = "--steps" if job.cfg.experiment.dataset is None else "--updates"
    done = f"{job.run_dir} is finished: {job.start:,} {job.cfg.experiment.unit}."
    return f"{done} Pass more {flag} to go on, or evaluate it:\n{evaluate_command(job.run_dir, packages)}"


def program(name: str) -> str:
    """How to call a program of this Python's environment from the working directory."""
    return os.path.relpath(Path(sys.executable).parent / name)


def evaluate_command(run_dir, packages) -> str:
    """How to evaluate a run from the working directory."""
    allowed = [word for package in packages for word in ("--allow_import", package)]
    return shlex.join([program("python"), os.path.relpath(EVALUATE), str(run_dir), "--episodes", "10", *allowed])


def outcome(run, packages) -> str:
    """What has become of a `run.Run`; `packages` are those that its config may import."""
    x, steps = run.trainer.experiment, run.trainer.agent_steps
    if run.evaluated:
        can_be_shown = isinstance(x.environment, Atari)  # others may need packages of their own to render
        video = " --video out.mp4" if can_be_shown else ""
        return f"Finished: {run.run_dir}\nEvaluate: {evaluate_command(run.run_dir, packages)}{video}"
    interrupted = f"Interrupted at {steps:,} {x.unit}; all is saved. "
    left = "goes on from there" if steps < x.total_steps else "makes the final evaluation, which alone is missing"
    return f"{interrupted}The same command {left}."
