"""The training loop. Read this file first: everything else is a part that it calls.

games --observations--> Actor --time step [N]--> replay --batch [B]--> learner --metrics--> Report
                          ^------------------- parameters ----------------'

Offline (`agents/offline.py`) a data set fills the replay, and nobody sends or receives.
"""

from __future__ import annotations

import contextlib
import signal

import jax

from agents.reporting.progress import ProgressDisplay
from agents.reporting.report import Clock
from agents.run import Run
from agents.trainer import learn


def train(runs: list[Run], profile: bool = False) -> int | None:
    """Trains until `total_steps`, each run from its newest checkpoint if there is one, and ends with an evaluation.

    Args:
      runs: one, or several that differ in their seeds and directories only. These share compiled calls of the learner.
      profile: writes a trace of one interval between log points, to the directory of the first run.

    Returns:
      None when finished, or the number of the signal that interrupted it; all is saved then. A run whose loss was not
      finite has an `error`, was over with it, and the others went on.
    """
    first = runs[0]
    overlap = first.trainer.experiment.overlap
    with contextlib.ExitStack() as stack:
        owned = lambda part: stack.enter_context(contextlib.closing(part))
        interrupt = stack.enter_context(Interrupt())
        display = owned(ProgressDisplay())
        tracer = owned(Tracer(first.run_dir, profile))
        clock = Clock()
        with clock.pause():
            for run in runs:
                label = f"seed {run.trainer.experiment.seed}" if len(runs) > 1 else ""
                owned(run).start(display, interrupt, clock, label)

        going = [run for run in runs if not run.over]
        while going:
            for run in going:
                run.send()
            if overlap:
                learn([run.trainer for run in going])  # the updates due one step ago, while the games run
            for run in going:
                run.recv()
            if not overlap:
                learn([run.trainer for run in going])
            for run in going:
                logged = run.record()
                if run is first and logged:
                    tracer.toggle(run.trainer.updates)
            going = [run for run in going if not run.over]
    return None if all(run.evaluated for run in runs) else interrupt.signal


class Interrupt:
    """Notes SIGINT, SIGTERM and SIGHUP, a closed terminal's, instead of dying of them, while it is entered."""

    def __enter__(self):
        self.signal = None
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._handlers = {number: signal.getsignal(number) for number in numbers}
        if self._handlers[signal.SIGHUP] == signal.SIG_IGN:  # by nohup
            del self._handlers[signal.SIGHUP]
        for number in self._handlers:
            signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.signal = number
        signal.signal(number, self._handlers[number])  # a second one is not noted but obeyed

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class Tracer:
    """Writes a trace of one log interval with updates to `run_dir/profile`, for TensorBoard or Perfetto."""

    def __init__(self, run_dir, enabled: bool):
        self._directory, self._state = f"{run_dir}/profile", "waiting" if enabled else "done"

    def toggle(self, updates: int) -> None:
        """Starts at the first log point after the first update, and stops at the next one."""
        if self._state == "waiting" and updates:
            jax.profiler.start_trace(self._directory)
            self._state = "tracing"
        else:
            self.close()

    def close(self) -> None:
        """Writes the trace if there is one under way."""
        if self._state == "tracing":
            jax.profiler.stop_trace()
            self._state = "done"
