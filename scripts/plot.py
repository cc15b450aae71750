#!/usr/bin/env python
"""Plots the training returns of runs against frames: the mean of the last episodes, and evaluations as dots.

example:
  python scripts/plot.py runs/RoadRunner/*/seed0 --output curves.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib import cycler
from matplotlib.figure import Figure

from agents import launch
from agents.errors import ConfigError
from agents.evaluation import scores
from comparison import figures, runs


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run_dirs", nargs="+", type=launch.path, help="run directories of one game")
    parser.add_argument("--output", required=True, type=launch.path, help="PNG or SVG file")
    parser.add_argument("--episodes", type=int, default=30, help="episodes in the moving mean (default: 30)")
    args = parser.parse_args(argv)
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1; got {args.episodes}")
    if args.output.suffix not in (".png", ".svg") or args.output.is_dir():
        parser.error(f"--output is a file that ends in .png or .svg; got {args.output}")

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=figures.STYLES) * cycler(color=figures.COLOURS))
    games = set()
    for run_dir in args.run_dirs:
        trained, evaluated = read(run_dir, "train"), read(run_dir, "eval")
        games.add(trained.game)
        if not len(trained.returns):
            raise ConfigError(f"{run_dir} has no finished episode yet.")
        ends = range(1, len(trained.returns) + 1)
        mean = [trained.returns[max(0, end - args.episodes) : end].mean() for end in ends]
        (line,) = axes.plot(trained.frames / 1e6, mean, label="/".join(run_dir.resolve().parts[-2:]))
        axes.plot(evaluated.frames / 1e6, evaluated.returns, "o", color=line.get_color(), clip_on=False)
    if len(games) > 1:
        raise ConfigError(f"The runs are of different games: {', '.join(sorted(games))}.")
    game = games.pop()
    if game in scores():
        axes.axhline(scores()[game][0], color="0.5", linestyle=":", label="random play")
    axes.set(title=game, xlabel="million frames", ylabel=f"return, mean of the last {args.episodes} episodes")
    axes.grid(visible=False)
    axes.margins(x=0)
    axes.legend()
    figure.savefig(args.output, dpi=120)
    print(f"Wrote {args.output}")
    return 0


def read(run_dir: Path, metric: str) -> runs.Run:
    """The returns of one run directory.

    Raises:
      ConfigError: if it is none, or an offline run's.
    """
    problems: list[str] = []
    found = runs.read(run_dir, metric, problems)
    if problems or len(found) != 1:
        raise ConfigError((problems or [f"{run_dir} is no run directory."])[0])
    if found[0].unit != "frames":
        raise ConfigError(f"{run_dir} is an offline run, which plays no episodes in training: use scripts/compare.py.")
    return found[0]


if __name__ == "__main__":
    launch.run(main)
