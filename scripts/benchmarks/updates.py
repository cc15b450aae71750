"""The compiled update of agents, heads and networks, alone: one batch, no replay, no games."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from agents.configuration import config
from agents.learner import make_update
from agents.trainer import Trainer, learn
from benchmarks.timing import by_turns, matmul_gflops, seconds_of, summary
from replay.ring import TimeStep, Transition

# Each network: a file of configs/torsos/, if it is not the agent's own, and bindings.
NETWORKS = {
    "NatureCNN, SAME": (None, []),
    "NatureCNN, VALID": (None, ["NatureCNN.padding = 'VALID'"]),
    "ImpalaCNN": ("impala_cnn", []),
    **{f"ImpalaCNN, dense x{n}": ("impala_cnn", [f"ImpalaCNN.hidden = {512 * n}"]) for n in (2, 4, 8)},
    **{f"ResNet-{n}": ("resnet", [f"ResNet.depth = {n}"]) for n in (18, 34, 50, 101)},
    **{f"SoftMoE-{n}": (None, [f"SoftMoE.num_experts = {n}"]) for n in (1, 2, 4, 8)},
    "NatureCNN, SAME, bfloat16": (None, ["NatureCNN.dtype = 'bfloat16'"]),
    "ResNet-50, bfloat16": ("resnet", ["ResNet.depth = 50", "ResNet.dtype = 'bfloat16'"]),
    "SoftMoE-8, bfloat16": (None, ["SoftMoE.num_experts = 8", "ImpalaEncoder.dtype = 'bfloat16'"]),
    **{f"ImpalaCNN, width x{n}": ("impala_cnn", [f"ImpalaEncoder.width = {n}"]) for n in (2, 4)},
}
HEADS = config.names("heads")
WIDENED = [f"ImpalaCNN, dense x{n}" for n in (2, 4, 8)]
# Agent, head, network, batch.
UPDATES = [
    *(("dqn", head, "NatureCNN, SAME", 32) for head in HEADS),
    *(("dqn", head, network, 32) for network in ("NatureCNN, VALID", "ImpalaCNN") for head in ("mse", "hl_gauss")),
    *(("dqn", head, network, 32) for network in WIDENED for head in ("mse", "hl_gauss")),
    *(("dqn", head, f"ResNet-{n}", 32) for n in (18, 34, 50, 101) for head in ("mse", "hl_gauss")),
    *(("rainbow", head, "NatureCNN, SAME", 32) for head in HEADS),
    *(("full_rainbow", head, "NatureCNN, SAME", 32) for head in ("mse", "c51")),
    *(("soft_moe", head, f"SoftMoE-{n}", 32) for n in (1, 2, 4) for head in ("mse", "hl_gauss")),
    *(("soft_moe", head, "SoftMoE-8", 32) for head in HEADS),
    *(("dqn", "hl_gauss", f"{network}, bfloat16", 32) for network in ("NatureCNN, SAME", "ResNet-50")),
    ("soft_moe", "hl_gauss", "SoftMoE-8, bfloat16", 32),
]
GROWTH = [
    *(("dqn", "hl_gauss", "NatureCNN, VALID", batch) for batch in (32, 64, 128, 256, 512)),
    ("dqn", "hl_gauss", "ImpalaCNN", 32),
    *(("dqn", head, f"ImpalaCNN, width x{n}", 32) for n in (2, 4) for head in ("mse", "hl_gauss")),
]


def build(
    agent: str, head: str, network: str, *bindings: str, full_action_space: bool = True, capacity: int = 20_000
) -> Trainer:
    """Builds a trainer for Pong with one game and a replay that is not allocated yet."""
    torso, of_network = NETWORKS[network]
    files = [config.BASE, config.shipped(".", agent), config.shipped("heads", head)]
    files += [config.shipped("torsos", torso)] if torso else []
    lines = [f"Atari.full_action_space = {full_action_space}", f"Replay.capacity = {capacity}", *of_network, *bindings]
    return Trainer(config.load(files, lines).experiment)


def random_batch(trainer: Trainer, size: int) -> Transition:
    """Makes a batch of random frames on the device."""
    random = np.random.default_rng(0)
    frames = lambda: random.integers(256, size=(size, 4, 84, 84), dtype=np.uint8)
    actions = lambda: random.integers(trainer.network.num_actions, size=size, dtype=np.int32)
    rewards, ones = random.integers(-1, 2, size).astype(np.float32), np.ones(size, np.float32)
    discounts = np.float32(trainer.experiment.agent.discount) * ones
    return jax.device_put(Transition(frames(), actions(), rewards, discounts, frames(), actions(), ones))


def random_step(games: int) -> TimeStep:
    """Makes a step of all games with random frames, in the midst of their episodes."""
    random = np.random.default_rng(0)
    return TimeStep(
        action_tm1=random.integers(18, size=games, dtype=np.int32),
        r_t=random.integers(-1, 2, games).astype(np.float32),
        terminated=np.zeros(games, bool),
        first=np.zeros(games, bool),
        observation=random.integers(256, size=(games, 84, 84), dtype=np.uint8),
    )


class Compiled(NamedTuple):
    """A compiled update.

    Attributes:
      call: makes one, on the same random batch.
      gflop: its arithmetic.
      megabytes: memory while it runs, as XLA plans it: the learner's state, the batch, and what the update holds beside
        them. Scratch space of convolutions on a CPU is not in it.
      compile_seconds: how long its compilation took.
    """

    call: Callable
    gflop: float
    megabytes: float
    compile_seconds: float


def compiled(trainer: Trainer, batch_size: int = 32) -> Compiled:
    """Compiles the update of a trainer."""
    x = trainer.experiment
    update = make_update(x.learner, x.agent, trainer.network, x.head, x.replay_ratio)
    batch, state = random_batch(trainer, batch_size), trainer.state
    started = time.perf_counter()
    run = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - started
    memory = run.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the new state takes the place of the old one
    num_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes + results

    def call():
        nonlocal state
        state, items, metrics = run(state, batch)
        return state, items, metrics

    return Compiled(call, gflop(update, state, batch), num_bytes / 1e6, compile_seconds)


def gflop(function, *args) -> float:
    """Counts the arithmetic of a function as XLA does before it optimises, for the CPU: others do not tell."""
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu), args)
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"] / 1e9


def rows(wanted, args) -> Iterator[dict]:
    """Times the updates of agents, heads and networks, and compares their arithmetic with a matrix product's."""
    for agent, head, network, batch in wanted:
        if args.only not in f"{agent} {head} {network} {batch}":
            continue
        trainer = build(agent, head, network)
        parameters = trainer.num_parameters
        update = compiled(trainer, batch)
        rates = summary(1 / seconds_of(update.call, args.repeats, args.seconds))
        gflops = update.gflop * rates["median"]
        matmul = matmul_gflops("bfloat16" if "bfloat16" in network else "float32")
        what = {"agent": agent, "head": head, "network": network, "batch": batch, "parameters": parameters}
        speed = {"updates/s": rates, "GFLOP": update.gflop, "GFLOP/s": gflops, "of matmul": gflops / matmul}
        yield what | speed | {"MB": update.megabytes, "compile s": update.compile_seconds}


def step(agent: str, head: str, *bindings: str, seeds: int = 1):
    """Makes a function that makes the updates of one call as in training, from a filled replay, with new priorities."""
    trainers = build(agent, head, "NatureCNN, SAME", *bindings).with_seeds(range(seeds))
    x = trainers[0].experiment
    for trainer in trainers:
        trainer.allocate_replay()
        while trainer.agent_steps < x.warmup_steps:
            trainer.add(random_step(x.num_envs))
        trainer.agent_steps = x.warmup_steps

    def call():
        for trainer in trainers:
            trainer.agent_steps += int(x.updates_per_call / x.replay_ratio)
        learn(trainers)
        return [(trainer.state.params, trainer.replay_state.priorities) for trainer in trainers]

    return call


def seed_rows(args) -> Iterator[dict]:
    """Times the updates of several seeds in one call: 16 of each, as with 64 games; on a CPU one of two seeds."""
    on_cpu = jax.default_backend() == "cpu"
    games, numbers = (1, (1, 2)) if on_cpu else (64, (1, 2, 5, 16))
    calls = {n: step("dqn", "hl_gauss", f"Experiment.num_envs = {games}", seeds=n) for n in numbers}
    times = by_turns(calls, args.repeats, args.seconds)
    for seeds, seconds in times.items():
        updates = seeds * max(1, games // 4)
        gain = seeds * times[1] / seconds
        yield {"seeds": seeds, "updates/s of all": summary(updates / seconds), "of all / of one": summary(gain)}


def ratio_rows(args) -> Iterator[dict]:
    """Times, by turns, what a head and prioritised replay cost; ratios are taken in each round."""
    uniform = "Replay.sampler = @samplers.Uniform()"
    comparisons = [
        {f"update, {head}": compiled(build("dqn", head, "NatureCNN, SAME")).call for head in HEADS},
        {f"step of Rainbow, {n}": step("rainbow", "c51", *b) for n, b in (("uniform", [uniform]), ("prioritised", []))},
    ]
    for calls in comparisons:
        times = by_turns(calls, args.repeats, args.seconds)
        first = next(iter(times.values()))
        for name, seconds in times.items():
            yield {"what": name, "per s": summary(1 / seconds), "time / the first's": summary(seconds / first)}
