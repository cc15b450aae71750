#!/usr/bin/env python
"""Measures speed and memory: medians with first and ninth decile, as tables and as JSON.

examples:
  python scripts/benchmark.py                              everything but the peers
  python scripts/benchmark.py updates --only soft_moe      compiled updates, of which the rows that contain this
  python scripts/benchmark.py growth replay                by batch and width; by the replay's capacity
  python scripts/benchmark.py ratios                       heads, and prioritised replay, by turns
  python scripts/benchmark.py seeds                        several seeds in one call
  python scripts/benchmark.py checkpoints                  size, time and stall of checkpoints; to restore one
  python scripts/benchmark.py offline                      updates from a data set, in memory and streamed
  python scripts/benchmark.py actors                       choosing actions; the games alone
  python scripts/benchmark.py training start               whole runs on Pong against what their parts allow; start-up
  python scripts/benchmark.py --against serial             by turns with the classic loop: one game, no overlap
  python scripts/benchmark.py --against dopamine           by turns with Dopamine's JAX DQN, installed on first use
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from agents import launch

if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share an accelerator
    launch.prepare()

import jax

from benchmarks import checkpoints, offline, parts, peers, training, updates
from benchmarks.timing import machine

# Each gives rows of a table, as it measures them.
SECTIONS = {
    "updates": partial(updates.rows, updates.UPDATES),
    "growth": partial(updates.rows, updates.GROWTH),
    "ratios": updates.ratio_rows,
    "seeds": updates.seed_rows,
    "replay": parts.replay_rows,
    "checkpoints": checkpoints.rows,
    "offline": offline.rows,
    "actors": parts.actor_rows,
    "training": training.rows,
    "start": training.start_rows,
}


def show(rows) -> list[dict]:
    """Prints a table, row by row as they come; returns the rows."""
    done = []
    for row in rows:
        if not done:
            print("\n| " + " | ".join(row) + " |\n" + "| --- " * len(row) + "|")
        print("| " + " | ".join(cell(value) for value in row.values()) + " |", flush=True)
        done.append(row)
    return done


def cell(value) -> str:
    """A number in three digits, a measurement with its first and ninth decile."""
    if isinstance(value, dict):
        return f"{cell(value['median'])} ({cell(value['p10'])} - {cell(value['p90'])})"
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if abs(value) < 1000 and value % 1 else f"{value:,.0f}"


def parse_args(argv) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("sections", nargs="*", metavar="section", help=f"any of {', '.join(SECTIONS)} (default: all)")
    add("--against", choices=tuple(peers.SETTINGS), help="train by turns with this peer instead")
    add("--only", help="of updates and growth, the rows whose name contains this, e.g. 'soft_moe mse'")
    add("--repeats", type=int, default=20, help="timed repeats of each measurement (default: 20)")
    add("--seconds", type=float, default=15, help="fewer repeats after this time (default: 15)")
    add("--turns", type=int, default=5, help="turns of each training process (default: 5)")
    add("--points", type=int, default=3, help="log points per turn (default: 3)")
    add("--interval", type=int, help="agent steps per log point (default: 400; on an accelerator 20,000)")
    add("--num_envs", type=int, default=8, help="games of `training` and of our side of --against (default: 8)")
    add("--json", help="also write the results to this file")
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    unknown = set(args.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"unknown section {min(unknown)!r}; allowed: {', '.join(SECTIONS)}")
    if args.against and args.sections:
        parser.error("--against takes no sections")
    if args.interval is None:
        args.interval = 400 if jax.default_backend() == "cpu" else 20_000
    for name, most in (("repeats", 10**6), ("turns", 1000), ("points", 1000), ("interval", 10**8), ("num_envs", 4096)):
        if not 1 <= getattr(args, name) <= most:
            parser.error(f"--{name} lies between 1 and {most:,}; got {getattr(args, name)}")
    if args.num_envs % 4 and 4 % args.num_envs:
        parser.error(f"--num_envs is 1, 2 or a multiple of 4, one update's agent steps; got {args.num_envs}")
    if not 0 <= args.seconds < float("inf"):
        parser.error(f"--seconds must be a number from 0 on; got {args.seconds}")
    if args.json and not (Path(args.json).resolve().parent.is_dir() and not Path(args.json).is_dir()):
        parser.error(f"--json: {args.json} is a directory, or in none")
    if args.only is not None and (args.against or not {"updates", "growth"} & set(args.sections or SECTIONS)):
        parser.error("--only is for the sections updates and growth")
    rows = [" ".join(map(str, row)) for row in updates.UPDATES + updates.GROWTH]
    args.only = args.only or ""
    if not any(args.only in row for row in rows):
        parser.error(f"no row contains {args.only!r}; a name is e.g. {rows[0]!r}")
    return args


def main(argv=None) -> int:
    """Runs the command line."""
    args = parse_args(argv)
    result = machine()
    print("{device}, {cores} cores, jax {jax}, matmul {matmul_gflops:.0f} GFLOP/s".format(**result), flush=True)
    wanted = {name: SECTIONS[name] for name in args.sections or SECTIONS}
    if args.against:
        wanted = {args.against: partial(peers.rows, args.against)}
    for name, rows in wanted.items():
        result[name] = show(rows(args))
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # end the training processes, too
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    launch.run(main)
