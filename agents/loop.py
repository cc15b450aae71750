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


def train(trainer: Trainer, run_dir, description: tuple[str, dict[str, str]], profile: bool = False) -> int | None:
    """Trains until `total_steps`, from the newest checkpoint in `run_dir` if there is one; ends with an evaluation.

    Args:
      trainer: the trainer, as built.
      run_dir: where logs and checkpoints go.
      description: the operative config and its settings, for TensorBoard.
      profile: writes a trace of one interval between log points.

    Returns:
      None when finished, or the number of the signal that interrupted it; all is saved then.
    """
    x = trainer.experiment
    frames_per_step = x.environment.frames_per_step
    with contextlib.ExitStack() as stack:
        owned = lambda part: stack.enter_context(contextlib.closing(part))
        interrupt = stack.enter_context(Interrupt())
        checkpointer = owned(Checkpointer(run_dir))
        progress = trainer.restore(checkpointer)
        logger = owned(Logger(run_dir, frames_per_step, progress.get("log_offsets")))
        if not progress:
            logger.describe(*description)
        display = owned(ProgressDisplay(trainer.agent_steps, x.total_steps, frames_per_step))
        report = Report(trainer, logger, display, progress.get("seconds", 0.0))
        tracer = owned(Tracer(run_dir, profile))
        actor = owned(Actor(x.environment, x.num_envs, trainer.act, x.seed, trainer.agent_steps))
        trainer.add(actor.reset())

        stop = evaluated = False
        while not stop:
            before = trainer.agent_steps
            actor.send(trainer.params, trainer.epsilon)
            if x.overlap:
                trainer.learn()  # the updates due one step ago, while the games run
            step, episodes = actor.recv()
            trainer.add(step)
            if not x.overlap:
                trainer.learn()

            report.episodes(episodes)
            display.advance(trainer.agent_steps)
            due = lambda every, span=(before, trainer.agent_steps): every and span[0] // every < span[1] // every
            finished = trainer.agent_steps >= x.total_steps
            stop = finished or interrupt.signal is not None
            if due(x.log_every_steps) or finished:
                report.log_point()
                tracer.toggle(trainer.updates)
            if due(x.diagnose_every_steps):
                report.diagnosis()
            if due(x.eval_every_steps) or finished:
                evaluated = report.evaluation(stop=lambda: interrupt.signal is not None)
            if due(x.checkpoint_every_steps) or stop:
                trainer.save(checkpointer, {"seconds": report.seconds, "log_offsets": logger.offsets()})
    return None if finished and evaluated else interrupt.signal


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
