"""The training loop. Read this file first: everything else is a part that it calls.

games --observations--> Actor --time step [N]--> replay --batch [B]--> learner --metrics--> Report
                          ^------------------- parameters ----------------'
"""

from __future__ import annotations

import contextlib
import signal

import jax

from agents.actor import Actor
from agents.checkpoint import Checkpointer
from agents.logger import Logger
from agents.progress import ProgressDisplay
from agents.report import Report
from agents.trainer import Trainer


def train(runs: list[Run], profile: bool = False) -> int | None:
    """Trains until `total_steps`, each run from its newest checkpoint if there is one, and ends with an evaluation.

    Args:
      runs: one, or several that differ in their seeds and directories only. These share compiled calls of the learner.
      profile: writes a trace of one interval between log points, to the directory of the first run.

    Returns:
      None when finished, or the number of the signal that interrupted it; all is saved then.
    """
    first = runs[0]
    overlap = first.trainer.experiment.overlap
    with contextlib.ExitStack() as stack:
        owned = lambda part: stack.enter_context(contextlib.closing(part))
        interrupt = stack.enter_context(Interrupt())
        display = owned(ProgressDisplay())
        tracer = owned(Tracer(first.run_dir, profile))
        for run in runs:
            owned(run).start(display, label=f"seed {run.trainer.experiment.seed}" if len(runs) > 1 else "")

        going = list(runs)
        while going:
            for run in going:
                run.actor.send(run.trainer.params, run.trainer.epsilon)
            if overlap:
                Trainer.learn(*(run.trainer for run in going))  # the updates due one step ago, while the games run
            for run in going:
                run.recv()
            if not overlap:
                Trainer.learn(*(run.trainer for run in going))
            for run in going:
                logged = run.record(interrupt)
                if run is first and logged:
                    tracer.toggle(run.trainer.updates)
            going = [run for run in going if not run.over]
    return None if all(run.evaluated for run in runs) else interrupt.signal


class Run:
    """One seed: a trainer with its games, logs and checkpoints.

    Args:
      trainer: the trainer, as built.
      run_dir: where logs and checkpoints go.
      description: the operative config and its settings, for TensorBoard.
    """

    def __init__(self, trainer: Trainer, run_dir, description: tuple[str, dict[str, str]]):
        self.trainer, self.run_dir, self._description = trainer, run_dir, description
        self.over = False  # finished or interrupted, and saved
        self.evaluated = False  # at the end
        self._owned = contextlib.ExitStack()

    def start(self, display: ProgressDisplay, label: str) -> None:
        """Opens the games and the files, and restores the newest checkpoint."""
        trainer, x = self.trainer, self.trainer.experiment
        owned = lambda part: self._owned.enter_context(contextlib.closing(part))
        self._checkpointer = owned(Checkpointer(self.run_dir))
        progress = trainer.restore(self._checkpointer)
        self._logger = owned(Logger(self.run_dir, x.environment.frames_per_step, progress.get("log_offsets")))
        if not progress:
            self._logger.describe(*self._description)
        self._bar = display.add(label, trainer.agent_steps, x.total_steps, x.environment.frames_per_step)
        self._report = Report(trainer, self._logger, self._bar, progress.get("seconds", 0.0))
        self.actor = owned(Actor(x.environment, x.num_envs, trainer.act, x.seed, trainer.agent_steps))
        self._recorded = trainer.agent_steps
        trainer.add(self.actor.reset())

    def recv(self) -> None:
        """Stores what the games gave."""
        step, self._episodes = self.actor.recv()
        self.trainer.add(step)

    def record(self, interrupt: Interrupt) -> bool:
        """Logs, evaluates and saves what is due after a step of all games; returns whether it was a log point."""
        trainer, x, report = self.trainer, self.trainer.experiment, self._report
        before, self._recorded = self._recorded, trainer.agent_steps
        due = lambda every: every and before // every < trainer.agent_steps // every
        finished = trainer.agent_steps >= x.total_steps
        stop = finished or interrupt.signal is not None

        report.episodes(self._episodes)
        self._bar.advance(trainer.agent_steps)
        logged = due(x.log_every_steps) or finished
        if logged:
            report.log_point()
        if due(x.diagnose_every_steps):
            report.diagnosis()
        if due(x.eval_every_steps) or finished:
            self.evaluated = report.evaluation(stop=lambda: interrupt.signal is not None) and finished
        if due(x.checkpoint_every_steps) or stop:
            trainer.save(self._checkpointer, {"seconds": report.seconds, "log_offsets": self._logger.offsets()})
        self.over = stop
        return logged

    def close(self) -> None:
        """Closes what was opened."""
        self._owned.close()


class Interrupt:
    """Notes SIGINT and SIGTERM instead of dying of them, while it is entered."""

    def __enter__(self):
        self.signal = None
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
