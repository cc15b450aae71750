"""Offline updates against the bare compiled one: from a data set in memory, and from one that streams."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator

import jax

import train
from agents.offline import OfflineTrainer
from agents.trainer import learn
from benchmarks.timing import by_turns, summary
from benchmarks.updates import compiled
from training.command_line import load, parse_args

STEPS, GAMES = 120_000, 8  # of random play on Pong: three times what `replay/log.py` keeps of what it has unpacked


def record(folder: str) -> None:
    """Logs random play, with the few updates that a run cannot do without."""
    flags = ["--game=Pong", "--head=mse", f"--run_dir={folder}", f"--num_envs={GAMES}", f"--steps={STEPS}"]
    flags += [f"--warmup_steps={STEPS - 8 * GAMES}", f"--replay_capacity={STEPS}", "--eval_episodes=1", "--log_replay"]
    with contextlib.redirect_stdout(io.StringIO()):
        train.main([*flags, "--gin_bindings=Atari.max_episode_frames = 4000"])


def rows(args) -> Iterator[dict]:
    """Times ten updates, by turns: bare, with all data in memory, and with a quarter of it in memory at a time."""
    with tempfile.TemporaryDirectory() as folder:
        record(folder)
        calls = {}
        for name, capacity in (("in memory", 2 * STEPS), ("streamed", STEPS // 4)):
            flags = ["--game=Pong", "--agent=cql", "--dataset", folder, f"--replay_capacity={capacity}"]
            trainer = OfflineTrainer(load(parse_args(flags)).experiment)
            trainer.allocate_replay()
            if not calls:
                calls["bare update"] = ten(compiled(OfflineTrainer(trainer.experiment)).call)
            calls[name] = fed(trainer)
        times = by_turns(calls, args.repeats, args.seconds)
    for name, seconds in times.items():
        yield {
            "CQL + HL-Gauss": name,
            "updates/s": summary(10 / seconds),
            "of the bare update": summary(times["bare update"] / seconds),
        }


def ten(update):
    """Makes a function that makes ten updates."""

    def call():
        for _ in range(9):
            update()
        return update()

    return call


def fed(trainer: OfflineTrainer):
    """Makes a function that makes the updates of one call as in training."""

    def call():
        trainer.feed()
        learn([trainer])
        return jax.tree.leaves(trainer.state.params)

    return call
