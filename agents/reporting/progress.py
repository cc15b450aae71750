"""What a person sees while runs train: a live bar for each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, and days if there are any."""
    return str(datetime.timedelta(seconds=int(seconds)))


class ProgressDisplay:
    """Owns the console, which bars share."""

    def __init__(self):
        self.console = Console(file=sys.stdout, highlight=False)
        self.progress = None
        if self.console.is_terminal:
            done = "{task.fields[label]}{task.completed:,}/{task.total:,} {task.fields[unit]}"
            columns = TextColumn(done + "{task.description}")
            self.progress = Progress(BarColumn(bar_width=20), columns, console=self.console)
            self.progress.start()

    def add(self, label: str, start: int, total: int, frames_per_step: int | None) -> Bar:
        """Adds a bar.

        Args:
          label: what tells it from others, '' for a single one.
          start: agent steps done by earlier runs of the same command.
          total: agent steps in the run.
          frames_per_step: emulator frames per agent step; None: updates are counted instead.
        """
        return Bar(self, f"{label}: " if label else "", start, total, frames_per_step)

    def close(self) -> None:
        """Leaves the bars as they stand."""
        if self.progress:
            self.progress.stop()


class Bar:
    """Shows agent steps, frames, return, steps/s and the time left of one run; made by `ProgressDisplay.add`."""

    def __init__(self, display: ProgressDisplay, label: str, start: int, total: int, frames_per_step: int | None):
        self._display, self._label, self._total, self._frames_per_step = display, label, total, frames_per_step
        self._unit = "agent steps" if frames_per_step else "updates"
        if display.progress:
            self._task = display.progress.add_task("", completed=start, total=total, label=label, unit=self._unit)

    def advance(self, agent_steps: int) -> None:
        """Moves the bar."""
        if self._display.progress:
            self._display.progress.update(self._task, completed=agent_steps)

    def update(self, agent_steps: int, episode_return: float | None, steps_per_second: float) -> None:
        """Shows the state at a log point; the return is the mean of the latest episodes, None before the first."""
        shown = "-" if episode_return is None else f"{episode_return:.1f}"
        left = max(0, self._total - agent_steps) / max(steps_per_second, 1e-3)
        frames = f", {agent_steps * self._frames_per_step:,} frames" if self._frames_per_step else ""
        speed = f"{steps_per_second:.0f} {self._unit.rpartition(' ')[2]}/s"
        text = f"{frames}, return {shown}, {speed}, ETA {duration(left)}"
        if self._display.progress:
            self._display.progress.update(self._task, completed=agent_steps, description=text)
        else:
            print(f"{self._label}{agent_steps:,}/{self._total:,} {self._unit}{text}", flush=True)

    def print(self, text: str) -> None:
        """Prints a line, above the bars if there are any."""
        self._display.console.print(self._label + text, markup=False, soft_wrap=True)
