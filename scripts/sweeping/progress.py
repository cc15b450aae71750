"""How far runs are, by their log files, and what a person sees of it: a line for each run that is under way."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from agents.reporting import logger
from agents.reporting.progress import duration
from sweeping.plan import Run

SUMMARY_EVERY = 60.0  # seconds
LATEST = 16_384  # bytes of a log: its last log points, with the episodes between them


def progress_of(run: Run) -> tuple[int, float | None]:
    """Agent steps of a run so far, and agent steps/s at its latest log point; updates of an offline run."""
    steps, speed = run.start, None
    for row in logger.read(run.run_dir, LATEST):
        made = row.get("agent_steps", row.get("updates"))
        steps, speed = max(steps, made if isinstance(made, int) else 0), speed_of(row) or speed
    return min(steps, run.total), speed


def speed_of(row: dict) -> float | None:
    """Agent steps/s of a log point that tells them, or updates/s of an offline run."""
    speed = row.get("speed/updates_per_second" if "updates" in row else "speed/steps_per_second")
    return speed if isinstance(speed, (int, float)) and 0 < speed < float("inf") else None


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text that is longer than `width`, or than 24 characters."""
    half = max(width, 24) // 2
    return text if len(text) <= 2 * half else f"{text[: half - 1]}…{text[-half:]}"


class SweepDisplay:
    """Shows the runs that are under way.

    Args:
      total: number of runs in the sweep.
      finished: how many of them were finished before.
    """

    def __init__(self, total: int, finished: int):
        self._total, self._finished, self._failed = total, finished, 0
        self._console = Console(file=sys.stdout, highlight=False)
        self._bars, self._tasks = None, {}
        self._summary_due = time.monotonic() + SUMMARY_EVERY
        if self._console.is_terminal:
            text = TextColumn("{task.completed:,}/{task.total:,}{task.fields[rest]}  {task.description}", markup=False)
            self._bars = Progress(BarColumn(bar_width=20), text, console=self._console)
            self._all = self._bars.add_task("", completed=finished, total=total, rest=" runs")
            self._bars.start()

    def print(self, text: str) -> None:
        """Prints a line, above the bars if there are any."""
        self._console.print(text, markup=False, soft_wrap=True)

    def started(self, run: Run, log: Path) -> None:
        """Shows a run that starts, and where its output goes."""
        if self._bars:
            name = shortened(run.name, self._console.width - 75)
            self._tasks[run] = self._bars.add_task(name, completed=run.start, total=run.total, rest="")
        else:
            self.print(f"started   {run.name} ({run.how}), log {log}")

    def ended(self, run: Run, how: str, seconds: float) -> None:
        """Shows how a run ended: 'finished', 'failed' or 'stopped'."""
        self._finished, self._failed = self._finished + (how == "finished"), self._failed + (how == "failed")
        if self._bars:
            self._bars.remove_task(self._tasks.pop(run))
            self._bars.update(self._all, completed=self._finished, description=self._failures())
        self.print(f"{how:<9} {run.name} after {duration(seconds)}")

    def update(self, running: list[Run]) -> None:
        """Shows how far the runs are; without a terminal once a minute."""
        if self._bars:
            for run in running:
                steps, speed = progress_of(run)
                rest = f", {speed:.0f} steps/s, ETA {duration((run.total - steps) / speed)}" if speed else ""
                self._bars.update(self._tasks[run], completed=steps, rest=rest)
        elif time.monotonic() >= self._summary_due:
            self._summary_due = time.monotonic() + SUMMARY_EVERY
            under_way = ", ".join(f"{run.name} {progress_of(run)[0] / run.total:.0%}" for run in running)
            self.print(f"{self._finished} of {self._total} runs finished, {self._failures()}; under way: {under_way}")

    def _failures(self) -> str:
        return f"{self._failed} failed"

    def close(self) -> None:
        """Leaves the bars as they stand."""
        if self._bars:
            self._bars.stop()
