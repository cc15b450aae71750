"""Checkpoints of a replay of 1,000,000 transitions: their size, what they take of training's time, and to restore."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from agents.actor import Actor
from agents.checkpointing.checkpoint import newest
from agents.checkpointing.checkpointer import Checkpointer
from agents.environments import Atari
from agents.trainer import Trainer
from benchmarks.timing import seconds_of, summary
from benchmarks.updates import build, compiled
from replay.ring import TimeStep

GAMES, CAPACITY, RECORDED = 8, 1_000_000, 2_000
INTERVAL = 250_000  # agent steps; the default of Experiment.checkpoint_every_steps


def play(game: str) -> list[TimeStep]:
    """Time steps of random play, to be written again and again."""
    random = np.random.default_rng(0)
    act = lambda params, observation, key, epsilon: random.integers(0, 4, GAMES, np.int32)
    with contextlib.closing(Actor(Atari(game), GAMES, act, 0)) as actor:
        steps = [actor.reset()]
        for _ in range(RECORDED):
            actor.send(None, 0.0)
            steps.append(actor.recv()[0])
    return steps


def rows(args) -> Iterator[dict]:
    """Fills a replay, with a checkpoint at every default interval, and restores it."""
    kind = "dqn", "hl_gauss", "NatureCNN, VALID"
    trainer = build(*kind, f"Experiment.num_envs = {GAMES}", capacity=CAPACITY)
    update = compiled(build(*kind)).call
    learning = INTERVAL / 4 * np.median(seconds_of(update, args.repeats, args.seconds))
    for game in ("Pong", "RoadRunner"):
        with tempfile.TemporaryDirectory() as folder:
            yield {"game": game} | measure(trainer, play(game), Path(folder), learning)


def measure(trainer: Trainer, recorded: list[TimeStep], run_dir: Path, learning: float) -> dict:
    """Writes and restores; `learning` are the seconds that the learner needs between two checkpoints."""
    trainer.allocate_replay()
    ring_rows = CAPACITY // GAMES
    in_thread, of_process, to_disk = [], [], []
    with contextlib.closing(Checkpointer(run_dir)) as checkpointer:
        for interval in range(CAPACITY // INTERVAL):
            began, of_process_began = time.perf_counter(), time.process_time()
            for i in range(INTERVAL // GAMES):
                checkpointer.append(recorded[i % len(recorded)])
            saved = time.perf_counter()
            checkpointer.save((interval + 1) * INTERVAL, trainer.save(), {}, ring_rows)
            in_thread.append(time.perf_counter() - began)
            checkpointer.wait()
            to_disk.append(time.perf_counter() - saved)
            of_process.append(time.process_time() - of_process_began)
    began = time.perf_counter()
    with contextlib.closing(Checkpointer(run_dir)) as checkpointer:
        trainer.restore(checkpointer.resume())
    jax.block_until_ready(trainer.replay_state)
    restored = time.perf_counter() - began
    size = lambda path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    replay, state = size(run_dir / "replay"), size(newest(run_dir).path)
    return {
        "replay GB": trainer.replay_bytes / 1e9,
        "on disk GB": replay / 1e9,
        "times smaller": trainer.replay_bytes / replay,
        "other state MB": state / 1e6,
        "training thread s": summary(in_thread),
        "CPU s": summary(of_process),
        "until it is complete s": summary(to_disk),
        "learning between two s": learning,
        "stall, at most": float(np.median(of_process)) / learning,
        "restore s": restored,
    }
