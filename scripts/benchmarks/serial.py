#!/usr/bin/env python
"""The classic loop of the peers with this project's network: one game, a replay on the host, no overlap.

A process of `scripts/benchmark.py --against serial`; it appends its speed to the file that is its argument.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from agents import launch

if __name__ == "__main__":
    launch.prepare()

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from agents.learner import make_update
from benchmarks.training import WARMUP
from benchmarks.updates import build
from replay.ring import Transition

CAPACITY, BATCH = 20_000, 32


class HostReplay:
    """Stacked observations in numpy, as CleanRL's and Dopamine's buffers keep them; sampled on the host."""

    def __init__(self):
        self.observation = np.zeros((CAPACITY, 4, 84, 84), np.uint8)
        self.action, self.reward = np.zeros(CAPACITY, np.int32), np.zeros(CAPACITY, np.float32)
        self.terminated, self.last = np.zeros(CAPACITY, bool), np.zeros(CAPACITY, bool)
        self.added, self.random = 0, np.random.default_rng(0)

    def add(self, observation, action, reward, terminated, last):
        """Stores what was seen, what was done, and what came of it."""
        row = self.added % CAPACITY
        self.observation[row], self.action[row], self.reward[row] = observation, action, reward
        self.terminated[row], self.last[row] = terminated, last
        self.added += 1

    def sample(self) -> Transition:
        """Draws one-step transitions whose next observation is the next row."""
        age = self.random.integers(2, min(self.added, CAPACITY), BATCH)
        row = (self.added - age) % CAPACITY
        discount = np.float32(0.99) * ~self.terminated[row]
        after = (row + 1) % CAPACITY
        weight = (~self.last[row] | self.terminated[row]).astype(np.float32)
        reward = np.clip(self.reward[row], -1, 1)
        s_tm1, s_t = self.observation[row], self.observation[after]
        return Transition(s_tm1, self.action[row], reward, discount, s_t, self.action[after], weight)


def main(progress: str, interval: str, head: str, padding: str) -> None:
    """Trains until it is killed."""
    trainer = build("dqn", head, f"NatureCNN, {padding}", full_action_space=False)
    x, state, replay = trainer.experiment, trainer.state, HostReplay()
    update = jax.jit(make_update(x.learner, x.agent, trainer.network, x.head, x.replay_ratio), donate_argnums=0)
    envs = x.environment.make(1)
    observation, _ = envs.reset(seed=0)
    key, fold_in = jax.random.key(0), jax.jit(jax.random.fold_in)
    metrics, before = {}, time.perf_counter()
    for step in itertools.count(1):
        action = trainer.act(state.params, observation, fold_in(key, step), np.float32(0.01))
        action = np.asarray(action)
        envs.send(action)
        following, reward, terminated, truncated, _ = envs.recv()
        last = terminated[0] or truncated[0]
        replay.add(observation[0], action[0], reward[0], terminated[0], last)
        observation = following
        if last:
            observation, _ = envs.reset()
        if step > WARMUP and step % 4 == 0:
            state, _, metrics = update(state, replay.sample())
        if step % int(interval) == 0:
            now = time.perf_counter()
            row = {"speed/steps_per_second": int(interval) / (now - before)}
            row |= {f"train/{name}": float(value) for name, value in metrics.items()}
            before = now
            with open(progress, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
