"""What surrounds the update: the replay at its real size, acting, and the games alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from agents import memory
from agents.environments import Atari
from benchmarks.timing import seconds_of, summary
from benchmarks.updates import build, compiled, random_step
from replay.ring import Replay
from replay.samplers import Prioritized, Uniform

NETWORKS = ("NatureCNN, SAME", "NatureCNN, VALID", "ImpalaCNN")
GAMES, CAPACITIES = (1, 2, 4, 8, 16, 32, 64), (10_000, 100_000, 1_000_000)
SAMPLERS = {"uniform": Uniform(), "prioritised": Prioritized()}


def filled(ring: Replay, num_envs: int):
    """Makes a ring whose rows all count as filled, every transition with the priority of a loss of 1; and a step."""
    state = ring.init(num_envs, (84, 84), np.uint8)
    rows, ones = ring.num_rows(num_envs), jnp.ones(ring.num_rows(num_envs) * num_envs)
    losses = {name: ones for name in ("loss", "excess_loss", "td_error")}
    priorities = ring.sampler.update(state.priorities, jnp.arange(ones.size), losses)
    return state._replace(size=jnp.int32(rows), priorities=priorities), random_step(num_envs)


def replay(sampler: str, capacity: int, repeats: int, seconds: float) -> dict:
    """Times, on a full ring, adding a step of 8 games, and sampling 32 transitions with new priorities.

    Args:
      sampler: a name in `SAMPLERS`.
      capacity: transitions in the ring.
      repeats, seconds: as of `seconds_of`.
    """
    ring, window = Replay(capacity, SAMPLERS[sampler]), {"stack": 4, "n_step": 1}
    size = ring.num_bytes(8, (84, 84), np.uint8)
    memory.check(size, capacity)
    state, step = filled(ring, 8)
    add = jax.jit(partial(ring.add, **window), donate_argnums=0)

    def add_one():
        nonlocal state
        state = add(state, step)
        return state.head

    @partial(jax.jit, donate_argnums=0)
    def draw(priorities, state, key):
        batch, index = ring.sample(state._replace(priorities=priorities), key, 32, **window)
        items = {name: batch.r_t + 1 for name in ("loss", "excess_loss", "td_error")}
        return batch, ring.sampler.update(priorities, index, items)

    keys = itertools.cycle(jax.random.split(jax.random.key(0), 64))

    def sample_one():
        nonlocal state
        batch, priorities = draw(state.priorities, state._replace(priorities=None), next(keys))
        state = state._replace(priorities=priorities)
        return batch

    what = {"sampler": sampler, "capacity": capacity, "bytes/transition": size // capacity}
    adding = {"add ms": summary(1e3 * seconds_of(add_one, repeats, seconds))}
    return what | adding | {"sample ms": summary(1e3 * seconds_of(sample_one, repeats, seconds))}


def acting(network: str, num_envs: int, repeats: int, seconds: float) -> dict[str, float]:
    """Agent steps/s of choosing actions alone, with the observations' way to the device and the actions' back."""
    trainer = build("dqn", "hl_gauss", network, full_action_space=False)
    observation = np.random.default_rng(0).integers(256, size=(num_envs, 4, 84, 84), dtype=np.uint8)
    key = jax.random.key(0)
    act = lambda: np.asarray(trainer.act(trainer.state.params, observation, key, np.float32(0.01)))
    return summary(num_envs / seconds_of(act, repeats, seconds))


def games(game: str, num_envs: int, repeats: int, seconds: float) -> dict[str, float]:
    """Agent steps/s of ALE alone with random actions; 50 steps of all games are one measurement."""
    envs = Atari(game).make(num_envs)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(envs.single_action_space.n, size=(50, num_envs), dtype=np.int32)

    def play():
        for action in actions:
            envs.send(action)
            envs.recv()

    rate = summary(actions.size / seconds_of(play, repeats, seconds))
    envs.close()
    return rate


def replay_rows(args) -> Iterator[dict]:
    """Times sampling and adding by sampler and capacity, and their share of DQN's update."""
    update = compiled(build("dqn", "mse", "NatureCNN, SAME")).call
    per_update = 1e3 * np.median(seconds_of(update, args.repeats, args.seconds))
    for sampler in SAMPLERS:
        for capacity in CAPACITIES:
            result = replay(sampler, capacity, args.repeats, args.seconds)
            milliseconds = result["sample ms"]["median"] + result["add ms"]["median"] / 2  # 8 games make 2 updates due
            yield result | {"fraction of an update": milliseconds / per_update}


def actor_rows(args) -> Iterator[dict]:
    """Times the games alone, and choosing actions, in agent steps/s."""
    for number in GAMES:
        ale = {game: games(game, number, args.repeats, args.seconds) for game in ("Pong", "Breakout")}
        act = {name: acting(name, number, args.repeats, args.seconds) for name in NETWORKS}
        yield {"games": number} | ale | act
