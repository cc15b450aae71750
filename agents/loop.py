"""The training loop. Read this file first: everything else is a part that it calls.

games --observations--> Actor --time step [N]--> replay --batch [B]--> learner --metrics--> Report
                          ^------------------- parameters ----------------'
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import flax
import jax
import numpy as np

from agents.actor import Actor
from agents.checkpoint import Checkpointer, flatten
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
            owned(run).start(display, interrupt, f"seed {run.trainer.experiment.seed}" if len(runs) > 1 else "")

        going = [run for run in runs if not run.over]
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
                logged = run.record()
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

    def start(self, display: ProgressDisplay, interrupt: Interrupt, label: str) -> None:
        """Opens the games and the files, and goes on from the newest checkpoint that is intact."""
        trainer, x, self._interrupt = self.trainer, self.trainer.experiment, interrupt
        owned = lambda part: self._owned.enter_context(contextlib.closing(part))
        self._checkpointer = owned(Checkpointer(self.run_dir, keep_replay=x.log_replay))
        checkpoint = self._checkpointer.resume()
        trainer.allocate_replay()
        if checkpoint:
            trainer.restore(checkpoint)
        progress = checkpoint.progress if checkpoint else {}
        self._logger = owned(Logger(self.run_dir, x.environment.frames_per_step, progress.get("log_offsets")))
        if not checkpoint:
            self._logger.describe(*self._description)
        self._bar = display.add(label, trainer.agent_steps, x.total_steps, x.environment.frames_per_step)
        self._report = Report(trainer, self._logger, self._bar, progress.get("report"))
        self.actor = owned(
            Actor(x.environment, x.num_envs, trainer.act, x.seed, reseed_every_steps=x.reseed_every_steps)
        )
        self._recorded = trainer.agent_steps
        if not (checkpoint and self._restore_games(checkpoint)):
            self._store(self.actor.reset())
        owes_evaluation = progress.get("owes_evaluation", False)
        if owes_evaluation:
            owes_evaluation = not self._evaluate()
        self._stop(trainer.agent_steps >= x.total_steps, owes_evaluation)

    def _restore_games(self, checkpoint) -> bool:
        saved = flax.traverse_util.unflatten_dict(checkpoint.arrays("actor/"), sep="/")
        steps = len(saved["games"]["actions"])
        if steps * len(saved["returns"]) > 20_000:
            self._bar.print(f"Playing the games again, {steps:,} steps from their last seeds to where they were.")
        exact = self.actor.restore(saved)
        if not exact:
            self._bar.print(
                "WARNING: the games are not where they were after the same seeds and actions: they depend on something "
                "else, or are another version. They begin new episodes, so this run is not what it would have been."
            )
        return exact

    def _store(self, step) -> None:
        self.trainer.add(step)
        self._checkpointer.append(step)

    def recv(self) -> None:
        """Stores what the games gave."""
        step, self._episodes = self.actor.recv()
        self._store(step)

    def record(self) -> bool:
        """Logs, evaluates and saves what is due after a step of all games; returns whether it was a log point."""
        trainer, x, report = self.trainer, self.trainer.experiment, self._report
        before, self._recorded = self._recorded, trainer.agent_steps
        due = lambda every: every and before // every < trainer.agent_steps // every
        finished = trainer.agent_steps >= x.total_steps

        report.episodes(self._episodes)
        self._bar.advance(trainer.agent_steps)
        logged = due(x.log_every_steps) or finished
        if logged:
            self._refuse_not_finite()
            report.log_point()
        if due(x.diagnose_every_steps):
            report.diagnosis()
        owes_evaluation = bool(due(x.eval_every_steps) or finished)
        if due(x.checkpoint_every_steps) or finished:
            self._save(owes_evaluation)  # before the evaluation, which takes minutes
        if owes_evaluation:
            owes_evaluation = not self._evaluate()
        self._stop(finished, owes_evaluation)
        return logged

    def _evaluate(self) -> bool:
        """Evaluates; returns whether there was time to."""
        done = self._report.evaluation(stop=lambda: self._interrupt.signal is not None)
        self.evaluated = done and self.trainer.agent_steps >= self.trainer.experiment.total_steps
        return done

    def _stop(self, finished: bool, owes_evaluation: bool) -> None:
        """Stops and saves if the run is finished or interrupted."""
        self.over = finished or self._interrupt.signal is not None
        if self.over:
            self._save(owes_evaluation)

    def _save(self, owes_evaluation: bool) -> None:
        """Begins to write a checkpoint; an evaluation that is owed is made when it is resumed."""
        self._refuse_not_finite()
        x, report, offsets = self.trainer.experiment, self._report.save(), self._logger.offsets()
        progress = {"report": report, "log_offsets": offsets, "owes_evaluation": owes_evaluation}
        arrays = self.trainer.save() | flatten("actor", self.actor.save())
        self._checkpointer.save(self.trainer.agent_steps, arrays, progress, x.replay.num_rows(x.num_envs))

    def _refuse_not_finite(self) -> None:
        """Stops a run whose loss is NaN or infinite, before it is saved, and writes down the batch that did it."""
        batch = self.trainer.not_finite()
        if batch:
            path = Path(self.run_dir, "not_finite.npz")
            np.savez(path, **batch)
            raise FloatingPointError(
                f"The loss or its gradient was not finite in update {batch['update']:,}; its batch is in {path}. The "
                "newest checkpoint is from before; from there the same command goes the same way again. A smaller "
                "learning rate, Learner.max_grad_norm or a wider support may help."
            )

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
