#!/usr/bin/env python
"""Trains all runs of a sweep. The same command again skips those that are finished and resumes the others.

examples:
  python scripts/sweep.py configs/sweeps/quick.gin --jobs 2                    two and a half hours on two cores
  python scripts/sweep.py configs/sweeps/losses.gin --dry_run                  the table of runs, and what they cost
  python scripts/sweep.py configs/sweeps/losses.gin --games atari_5 --seeds 3 --steps 2500000 --jobs 4
  python scripts/sweep.py configs/sweeps/losses.gin --launcher slurm --jobs 50 \\
      --slurm partition=gpu --slurm time=1440 --slurm gpus=1 --slurm cpus=8 --slurm mem=32GB
  python scripts/sweep.py configs/sweeps/losses.gin --launcher print > commands.sh    for any other scheduler
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from pathlib import Path

import jax

from agents import launch
from agents.configuration.trust import ALLOW_IMPORT
from agents.errors import ConfigError
from sweeping import cost, grid, local, slurm
from sweeping.plan import Plan, Run
from sweeping.progress import SweepDisplay


def parse_args(argv=None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("sweep", help="gin file of the grid, e.g. configs/sweeps/losses.gin")
    add("--games", help="instead of the sweep's: a set, e.g. atari_5, or names, e.g. Pong,Breakout")
    add("--seeds", help="instead of the sweep's: a number K for seeds 0 to K - 1, or a list, e.g. 3,4 (3, for one)")
    add("--steps", type=int, help="instead of the sweep's: length of each run in agent steps")
    add("--updates", type=int, help="instead of the sweep's: length of each offline run")
    add("--dataset", nargs="+", metavar="DIR", help="instead of the sweep's: data sets; {game} stands for the game")
    add("--preset", help="instead of the sweep's: paper, fast, quick or minatar")
    add("--base_dir", default="runs", help="parent of the run directories (default: runs)")
    add("--jobs", type=int, help="runs at a time (default: 1; of SLURM: as many as it allows)")
    add("--dry_run", action="store_true", help="print the table of runs and what they cost, and stop")
    add("--steps_per_second", type=float, metavar="N", help="of --dry_run (default: as earlier runs)")
    add("--launcher", choices=("local", "slurm", "print"), default="local", help="who trains (default: local)")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help=slurm.HELP)
    add("--allow_import", action="append", default=[], metavar="PKG", help=ALLOW_IMPORT)
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {args.jobs}")
    if args.steps_per_second is not None and not args.steps_per_second > 0:
        parser.error(f"--steps_per_second must be positive; got {args.steps_per_second}")
    if args.slurm and args.launcher != "slurm":
        parser.error("--slurm is for --launcher slurm")
    if args.steps_per_second is not None and not args.dry_run:
        parser.error("--steps_per_second is for --dry_run")
    if args.jobs is not None and args.launcher == "print" and not args.dry_run:
        parser.error("--jobs is for launchers that train; --launcher print prints all commands")
    return args


def changes(args) -> dict:
    """The values of the grid that flags replace.

    Raises:
      ConfigError: for seeds that are no numbers.
    """
    result = {"steps": args.steps, "updates": args.updates, "dataset": args.dataset, "preset": args.preset}
    if args.games is not None:
        # Games are written in CamelCase, sets are not.
        result["games"] = args.games if args.games[:1].islower() else launch.listed(args.games)
    if args.seeds is not None:
        numbers = args.seeds.strip(",").split(",")
        if not all(number.isdecimal() and len(number) <= 10 for number in numbers):
            raise ConfigError(f"--seeds is {args.seeds!r}; it takes a number, e.g. 5, or a list, e.g. 3,4.")
        result["seeds"] = [int(number) for number in numbers] if "," in args.seeds else int(args.seeds)
    return {name: value for name, value in result.items() if value is not None}


def main(argv=None) -> int:
    """Runs the command line; returns the exit code: 0, 1 if runs failed, 128 + the number of a signal."""
    args = parse_args(argv)
    options = slurm.options(args.slurm)
    sweep = grid.read(args.sweep, args.allow_import).replace(**changes(args))
    runs = Plan(args.base_dir, args.allow_import).runs(sweep.cells())
    todo = [run for run in runs if not run.finished]
    folder = Path(args.base_dir, "_sweep", Path(args.sweep).stem)
    jobs = args.jobs or (max(1, len(todo)) if args.launcher == "slurm" else 1)
    if args.dry_run:
        print("\n".join(cost.table(runs, args.base_dir, jobs, args.steps_per_second)))
    elif args.launcher == "print":
        print("\n".join(shlex.join(run.command) for run in todo))
    elif not todo:
        print(f"All {len(runs)} runs are finished.")
    elif args.launcher == "slurm":
        print("\n".join(slurm.submit(todo, folder, args.jobs, options)))
    else:
        return train(runs, todo, folder, jobs)
    return 0


def train(runs: list[Run], todo: list[Run], folder: Path, jobs: int) -> int:
    """Trains on this machine; returns the exit code."""
    gpus = local.gpus(os.environ)
    if not gpus:
        local.refuse_too_much_memory(todo, jobs)
    slots = local.slots(jobs, local.cores(), gpus, os.environ)
    with launch.outlasting_readers():
        if len(gpus) > jobs:
            print(f"There are {len(gpus)} GPUs, and --jobs is {jobs}: pass --jobs {len(gpus)} for a run on each.")
        with contextlib.closing(SweepDisplay(len(runs), len(runs) - len(todo))) as display:
            outcomes, number = local.Launcher(folder, slots, display).launch(todo)
        print("\n".join(local.summary(runs, outcomes)))
    if number is not None:
        return 128 + number
    return int(any(outcome.how == "failed" for outcome in outcomes))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # this process only looks; the accelerators are for its children
    launch.run(main)
