"""What a sweep costs: steps left, memory of the replay, and hours at the speed of earlier runs.

Steps are agent steps, of offline runs updates.
"""

from __future__ import annotations

import collections
import itertools
import statistics
from pathlib import Path

from agents.environments import ROMS
from agents.reporting import logger
from sweeping.plan import Run
from sweeping.progress import speed_of


class Speeds:
    """Agent steps/s of the runs below a directory, once they learn.

    Args:
      base_dir: parent of the run directories.
      told: the speed of all runs; None: as earlier runs were.
    """

    def __init__(self, base_dir: str, told: float | None):
        self._told = told
        self._arms = collections.defaultdict(list)  # by kind of environment and arm: medians of runs
        self._likes = collections.defaultdict(list)  # by kind of environment, agent, preset and torso
        for metrics in Path(base_dir).glob(f"*/*/seed*/{logger.METRICS}"):
            rows = [row for row in logger.read(metrics.parent, 65_536) if "train/loss" in row]
            speeds = [speed for row in rows if (speed := speed_of(row))]
            if speeds:
                arm, like = _keys(metrics.parent)
                self._arms[arm].append(statistics.median(speeds))
                self._likes[like].append(statistics.median(speeds))

    def of(self, run: Run) -> float | None:
        """What was told, else the median of runs of the same arm, else of those with another head or bindings."""
        arm, like = _keys(run.run_dir)
        known = [self._told] if self._told else self._arms.get(arm) or self._likes.get(like)
        return statistics.median(known) if known else None


def _keys(run_dir: Path) -> tuple[tuple, tuple]:
    """The arm of a run directory, and what counts for its speed, each with the kind of its environment."""
    game, arm, _ = run_dir.parts[-3:]
    kind = "Atari" if game in ROMS else game.partition("-")[0]  # MinAtar's games are alike, too
    parts = list(itertools.takewhile(lambda part: "=" not in part, arm.split("-")))  # agent, head, preset, torso
    return (kind, arm), (kind, *parts[:1], *parts[2:])


def table(runs: list[Run], base_dir: str, jobs: int, told: float | None) -> list[str]:
    """Lines of a table of runs, and of their totals.

    Args:
      runs: all runs of a sweep.
      base_dir: where runs are that tell the speed.
      jobs: runs at a time.
      told: agent steps/s; None: those of earlier runs, and a '?' where there are none.
    """
    speeds = Speeds(base_dir, told)
    header = ("run", "state", "steps left", "replay GB", "hours")
    rows, hours = [header], []
    for run in runs:
        left = run.total - run.start
        if run.finished:
            rows.append((run.name, "finished", "0", "", ""))
            continue
        speed = speeds.of(run)
        hours.append(left / speed / 3600 if speed else None)
        shown = f"{hours[-1]:.2f}" if speed else "?"
        rows.append((run.name, run.how, f"{left:,}", f"{run.replay_bytes / 1e9:.2f}", shown))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    formats = [f"{{:<{width}}}" for width in widths[:2]] + [f"{{:>{width}}}" for width in widths[2:]]
    lines = ["  ".join(formats).format(*row).rstrip() for row in rows]
    return [*lines, "", *_totals(runs, hours, jobs, f"{told:g} steps/s" if told else "the speed of earlier runs")]


def _totals(runs: list[Run], hours: list[float | None], jobs: int, speed: str) -> list[str]:
    todo = [run for run in runs if not run.finished]
    known = [value for value in hours if value is not None]
    lines = [
        f"{len(runs):,} runs, {len(runs) - len(todo):,} finished; "
        f"{sum(run.total - run.start for run in todo):,} steps left in {len(todo):,}"
    ]
    if todo:
        largest = sorted((run.replay_bytes for run in todo), reverse=True)[:jobs]
        lines.append(f"replay of {len(largest)} at a time: up to {sum(largest) / 1e9:.2f} GB")
    if known:
        total = max(sum(known) / jobs, max(known))
        lines.append(
            f"about {total:,.2f} hours with --jobs {jobs}, at {speed}"
            + (f", without the {len(hours) - len(known)} runs that none is like" if len(known) < len(hours) else "")
        )
    if len(known) < len(hours):
        lines.append("?: no earlier run tells the speed; --steps_per_second N does")
    return lines
