"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressDisplay:
    """Shows agent steps, frames, return, steps/s and the time left.

    Args:
      start: agent steps done by earlier runs of the same command.
      total: agent steps in the run.
      frames_per_step: emulator frames per agent step.
    """

    def __init__(self, start: int, total: int, frames_per_step: int):
        self._total, self._frames_per_step = total, frames_per_step
        self._console = Console(file=sys.stdout, highlight=False)
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.completed:,}/{task.total:,} agent steps{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", completed=start, total=total)
            self._bar.start()

    def advance(self, agent_steps: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=agent_steps)

    def update(self, agent_steps: int, episode_return: float | None, steps_per_second: float) -> None:
        """Shows the state at a log point; the return is the mean of the latest episodes, None before the first."""
        shown = "-" if episode_return is None else f"{episode_return:.1f}"
        left = int(max(0, self._total - agent_steps) / max(steps_per_second, 1e-9))
        text = (
            f", {agent_steps * self._frames_per_step:,} frames, return {shown}, {steps_per_second:.0f} steps/s, "
            f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )
        if self._bar:
            self._bar.update(self._task, completed=agent_steps, description=text)
        else:
            print(f"{agent_steps:,}/{self._total:,} agent steps{text}", flush=True)

    def print(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar:
            self._bar.stop()
