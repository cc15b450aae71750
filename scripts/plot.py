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

    problems: list[str] = []
    run_dirs = dict.fromkeys(run_dir.resolve() for run_dir in args.run_dirs)
    pairs = {run_dir: [read(run_dir, metric, problems) for metric in ("train", "eval")] for run_dir in run_dirs}
    games = {trained.game for trained, _ in pairs.values()}
    if len(games) > 1:
        raise ConfigError(f"The runs are of different games: {', '.join(sorted(games))}.")
    game = games.pop()
    longest = max(trained.reached_frames for trained, _ in pairs.values())
    per, unit = figures.scale(longest)

    figure = Figure(figsize=(8, 4.2 + 0.1 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=figures.STYLES) * cycler(color=figures.COLOURS))
    for label, (trained, evaluated) in zip(labels(list(pairs)), pairs.values(), strict=True):
        ends = range(1, len(trained.returns) + 1)
        mean = [trained.returns[max(0, end - args.episodes) : end].mean() for end in ends]
        (line,) = axes.plot(trained.frames / per, mean, label=label)
        if len(evaluated.returns):
            axes.plot(evaluated.frames / per, evaluated.returns, "o", color=line.get_color(), clip_on=False)
    if any(len(evaluated.returns) for _, evaluated in pairs.values()):
        axes.plot([], [], "o", color=figures.INK, label="evaluation")
    if game in scores():
        axes.axhline(scores()[game][0], color="0.5", linestyle=":", label="random play")
    axes.set(title=game, xlabel=unit, ylabel=f"return, mean of the last {args.episodes} episodes")
    axes.grid(visible=False)
    axes.margins(x=0)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    figure.savefig(args.output, dpi=120)
    for problem in dict.fromkeys(problems):
        print(f"Note: {problem}")
    print(f"Wrote {args.output}")
    return 0


def labels(run_dirs: list[Path]) -> list[str]:
    """The last parts of absolute paths, as many as tell them apart; cut where they are long."""
    parts = [run_dir.parts for run_dir in run_dirs]
    number = 2
    while len({of[-number:] for of in parts}) < len({*parts}):
        number += 1
    return list(figures.labels(["/".join(of[-number:]) for of in parts], 90, 90).values())


def read(run_dir: Path, metric: str, problems: list[str]) -> runs.Run:
    """The returns of one run directory, which may be none of evaluations; damage goes to `problems`.

    Raises:
      ConfigError: if it is none, an offline run's, or has no finished episode.
    """
    found = runs.read(run_dir, metric, problems)
    if len(found) > 1:
        raise ConfigError(f"{run_dir} holds {len(found)} runs: name the directories of those to be drawn.")
    if not found:
        raise ConfigError((problems or [f"{run_dir} is no run directory."])[0])
    if found[0].unit != "frames":
        raise ConfigError(f"{run_dir} is an offline run, which plays no episodes in training: use scripts/compare.py.")
    if metric == "train" and not len(found[0].returns):
        raise ConfigError(f"{run_dir} has no finished episode yet.")
    return found[0]


if __name__ == "__main__":
    launch.run(main)
