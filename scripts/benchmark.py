#!/usr/bin/env python
"""Measures the compiled update of agents, heads and torsos: median and spread over repeats, with the parameters.

examples:
  python scripts/benchmark.py                                          the table of the README
  python scripts/benchmark.py --only 'soft_moe hl_gauss'               rows whose name contains this
  python scripts/benchmark.py --repeats 50 --json benchmark.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from agents import config
from agents.trainer import Trainer
from replay.ring import TimeStep

NUM_ENVS, ROWS, EPISODE = 8, 200, 50
WARMUP = NUM_ENVS * (ROWS - ROWS // EPISODE)  # the agent steps in those rows
# Each network: a file of configs/torsos/, if it is not the agent's own, and bindings.
NETWORKS = {
    "NatureCNN, SAME": (None, []),
    "NatureCNN, VALID": (None, ["NatureCNN.padding = 'VALID'"]),
    "ImpalaCNN": ("impala_cnn", []),
    **{f"ImpalaCNN, dense x{n}": ("impala_cnn", [f"ImpalaCNN.hidden = {512 * n}"]) for n in (2, 4, 8)},
    **{f"ResNet-{n}": ("resnet", [f"ResNet.depth = {n}"]) for n in (18, 34, 50, 101)},
}
EXPERTS = {f"SoftMoE-{n}": (None, [f"SoftMoE.num_experts = {n}"]) for n in (1, 2, 4, 8)}
HEADS = ("mse", "huber", "mse_softmax", "two_hot", "hl_gauss", "c51")
ROWS_OF_TABLE = [
    *(("dqn", head, "NatureCNN, SAME") for head in HEADS),
    *(("dqn", head, network) for network in list(NETWORKS)[1:6] for head in ("mse", "hl_gauss")),
    *(("dqn", "hl_gauss", network) for network in list(NETWORKS)[6:]),
    *(("rainbow", head, "NatureCNN, SAME") for head in ("mse", "hl_gauss", "c51")),
    ("full_rainbow", "c51", "NatureCNN, SAME"),
    *(("soft_moe", head, network) for network in EXPERTS for head in ("mse", "hl_gauss")),
]


def build(agent: str, head: str, network: str) -> Trainer:
    """Builds a trainer for Pong with all 18 actions, and fills its small replay with random frames."""
    torso, bindings = {**NETWORKS, **EXPERTS}[network]
    files = [config.BASE, config.shipped(".", agent), config.shipped("heads", head)]
    files += [config.shipped("torsos", torso)] if torso else []
    bindings = [
        "Atari.full_action_space = True",
        f"Experiment.num_envs = {NUM_ENVS}",
        f"Experiment.warmup_steps = {WARMUP}",
        f"Replay.capacity = {NUM_ENVS * ROWS}",
        *bindings,
    ]
    trainer = Trainer(config.load(files, bindings)[0])
    trainer.allocate_replay()
    random = np.random.default_rng(0)
    for row in range(ROWS):
        step = TimeStep(
            action_tm1=random.integers(18, size=NUM_ENVS, dtype=np.int32),
            r_t=random.integers(-1, 2, NUM_ENVS).astype(np.float32),
            terminated=np.zeros(NUM_ENVS, bool),
            first=np.full(NUM_ENVS, row % EPISODE == 0),
            observation=random.integers(256, size=(NUM_ENVS, 84, 84), dtype=np.uint8),
        )
        trainer.add(step)
    return trainer


def measure(trainer: Trainer, repeats: int, seconds: float) -> dict[str, float]:
    """Times the updates due after each step of all games, three times at least.

    Args:
      trainer: the trainer.
      repeats: number of times.
      seconds: when to stop earlier.

    Returns:
      Median, first and ninth decile of the updates/s; the seconds of the first call, which compiles; the repeats.
    """

    def updates_per_second() -> float:
        before, started = trainer.updates, time.perf_counter()
        trainer.agent_steps += NUM_ENVS
        trainer.learn()
        jax.block_until_ready((trainer.state.params, trainer.replay_state.priorities))
        return (trainer.updates - before) / (time.perf_counter() - started)

    started = time.perf_counter()
    updates_per_second()
    compile_seconds = time.perf_counter() - started
    started, rates = time.perf_counter(), []
    while len(rates) < repeats and (len(rates) < 3 or time.perf_counter() - started < seconds):
        rates.append(updates_per_second())
    low, median, high = np.quantile(rates, [0.1, 0.5, 0.9])
    rates = {"updates_per_second": median, "p10": low, "p90": high, "repeats": len(rates)}
    return {**rates, "first_call_seconds": compile_seconds}


def matmul_gflops() -> float:
    """Speed of a float32 product of 1024x1024 matrices, GFLOP/s, median of 30: what to compare machines by."""
    product, a = jax.jit(lambda a: a @ a), np.ones((1024, 1024), np.float32)
    product(a).block_until_ready()
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / float(np.median(seconds)) / 1e9


def main(argv=None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", default="", help="rows whose name contains this, e.g. 'soft_moe hl_gauss'")
    parser.add_argument("--repeats", type=int, default=20, help="timed repeats of each row (default: 20)")
    parser.add_argument("--seconds", type=float, default=15, help="fewer repeats after this time (default: 15)")
    parser.add_argument("--json", help="also write the results to this file")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error("--repeats must be positive")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json: there is no directory {Path(args.json).parent}")
    rows = [row for row in ROWS_OF_TABLE if args.only in " ".join(row)]
    if not rows:
        parser.error(f"no row contains {args.only!r}; a name is e.g. {' '.join(ROWS_OF_TABLE[0])!r}")

    device = jax.devices()[0].device_kind
    result = {"device": device, "cores": os.cpu_count(), "jax": jax.__version__, "matmul_gflops": matmul_gflops()}
    print(f"{device}, {os.cpu_count()} cores, jax {jax.__version__}, matmul {result['matmul_gflops']:.0f} GFLOP/s")
    print(
        "| agent | head | network | parameters | updates/s, batch 32 (p10 - p90) | first call |\n" + "| --- " * 6 + "|"
    )
    result["updates"] = []
    for agent, head, network in rows:
        trainer = build(agent, head, network)
        row = {"agent": agent, "head": head, "network": network, "parameters": trainer.num_parameters}
        row |= measure(trainer, args.repeats, args.seconds)
        print(
            "| {agent} | {head} | {network} | {parameters:,} | {updates_per_second:.1f} ({p10:.1f} - {p90:.1f}) | "
            "{first_call_seconds:.0f} s |".format(**row),
            flush=True,
        )
        result["updates"].append(row)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
