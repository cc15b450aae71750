#!/usr/bin/env python
"""Plots the training returns of runs against frames: the mean of the last episodes, and final evaluations as dots.

example:
  python scripts/plot.py runs/RoadRunner/*/seed0 --output curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from agents import launch, logger
from agents.evaluation import scores


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path, help="run directories of one game")
    parser.add_argument("--output", required=True, help="PNG or SVG file")
    parser.add_argument("--episodes", type=int, default=30, help="episodes in the moving mean (default: 30)")
    args = parser.parse_args(argv)
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1; got {args.episodes}")

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    games = set()
    for run_dir in args.run_dirs:
        protocol = json.loads((run_dir / "manifest.json").read_text())["protocol"]
        games.add(protocol.get("game") or protocol["id"])
        rows = logger.read(run_dir)
        episodes = [(r["frames"], r["episode/return"]) for r in rows if "episode/return" in r]
        if not episodes:
            parser.error(f"{run_dir} has no finished episode yet")
        frames, returns = np.array(episodes).T
        mean = [returns[max(0, i - args.episodes) : i].mean() for i in range(1, len(returns) + 1)]
        (line,) = axes.plot(frames / 1e6, mean, label=f"{run_dir.parent.name} {run_dir.name}")
        evaluations = [(r["frames"] / 1e6, r["eval/return"]) for r in rows if "eval/return" in r]
        axes.plot(*np.array(evaluations).reshape(-1, 2).T, "o", color=line.get_color(), clip_on=False)
    if len(games) > 1:
        parser.error(f"the runs are of different games: {', '.join(sorted(games))}")
    game = games.pop()
    if game in scores():
        axes.axhline(scores()[game][0], color="0.5", linestyle=":", label="random play")
    axes.set(title=game, xlabel="million frames", ylabel=f"return, mean of the last {args.episodes} episodes")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0)
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=120)
    print(f"Wrote {args.output}")
    return 0


if __name__ == "__main__":
    launch.run(main)
