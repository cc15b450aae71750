"""The life of one run: its games, logs and checkpoints; what is due after a step, and how it goes on after a stop."""

from __future__ import annotations

import contextlib
from pathlib import Path

import flax
import numpy as np

from agents.actor import Actor
from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import flatten
from agents.checkpointing.checkpointer import Checkpointer
from agents.reporting.logger import Logger
from agents.reporting.progress import ProgressDisplay
from agents.reporting.report import Clock, Report
from agents.trainer import Trainer

WHAT_HELPS = (
    "No checkpoint has it, and from there the same command goes the same way again. A smaller learning rate, "
    "Learner.max_grad_norm or a wider support may help, in another --run_dir."
)


class Run:
    """One seed: a trainer with its games, logs and checkpoints.

    Args:
      trainer: the trainer, as built.
      run_dir: where logs and checkpoints go.
      operative_text: the operative config, for TensorBoard.
      settings: its values.

    Attributes:
      over: whether it is finished, interrupted or stopped by an error; but for the error all is saved.
      evaluated: whether it has been at the end.
      error: of a loss that is not finite, None without. It stops this run, and no other of the same process.
    """

    def __init__(self, trainer: Trainer, run_dir, operative_text: str, settings: dict[str, str]):
        self.trainer, self.run_dir, self._operative_text, self._settings = trainer, run_dir, operative_text, settings
        self.over, self.evaluated = False, False
        self.error: FloatingPointError | None = None
        self._owned = contextlib.ExitStack()

    def start(self, display: ProgressDisplay, interrupt, clock: Clock, label: str) -> None:
        """Opens the games and the files, and goes on from the newest checkpoint that is intact.

        Args:
          display: where its bar is added.
          interrupt: its `signal` is not None once the run is to stop.
          clock: of all runs, for their speed.
          label: what tells its bar from others.
        """
        trainer, x, self._interrupt = self.trainer, self.trainer.experiment, interrupt
        owned = lambda part: self._owned.enter_context(contextlib.closing(part))
        self._checkpointer = owned(Checkpointer(self.run_dir, keep_replay=x.log_replay))
        checkpoint = self._checkpointer.resume()
        progress = checkpoint.progress if checkpoint else {}
        if checkpoint:  # its files may have been copied from another run
            run_directory.refuse_other_settings(self.run_dir, progress["settings"], run_directory.fixed(self._settings))
            trainer.restore(checkpoint)
        else:
            trainer.allocate_replay()
        self._logger = owned(Logger(self.run_dir, x.frames_per_step, progress.get("log_offsets")))
        if not checkpoint:
            # TensorBoard keeps the first values, so what a later start may change is left out.
            self._logger.describe(self._operative_text, run_directory.fixed(self._settings))
        self._bar = display.add(label, trainer.agent_steps, x.total_steps, x.frames_per_step)
        self._recorded, self._episodes = trainer.agent_steps, []
        self._open_source(checkpoint)
        self._report = Report(trainer, self._logger, self._bar, clock, progress.get("report"))
        owes_evaluation = bool(checkpoint) and checkpoint.owes_evaluation(x.total_steps)
        if owes_evaluation:
            owes_evaluation = not self._evaluate()
        self._stop(trainer.agent_steps >= x.total_steps, owes_evaluation)

    def _open_source(self, checkpoint) -> None:
        """Opens the games, and brings them to where they were."""
        trainer, x = self.trainer, self.trainer.experiment
        self._actor = Actor(x.environment, x.num_envs, trainer.act, x.seed, reseed_every_steps=x.reseed_every_steps)
        self._owned.enter_context(contextlib.closing(self._actor))
        if not (checkpoint and self._restore_games(checkpoint)):
            self._store(self._actor.reset())

    def _restore_games(self, checkpoint) -> bool:
        saved = flax.traverse_util.unflatten_dict(checkpoint.arrays("actor/"), sep="/")
        steps = len(saved["games"]["actions"])
        if steps * len(saved["returns"]) > 20_000:
            self._bar.print(f"Playing the games again, {steps:,} steps from their last seeds to where they were.")
        exact = self._actor.restore(saved)
        if not exact:
            self._bar.print(
                "WARNING: the games are not where they were after the same seeds and actions: they depend on something "
                "else, or are another version. They begin new episodes, so this run is not what it would have been."
            )
        return exact

    def _store(self, step) -> None:
        self.trainer.add(step)
        self._checkpointer.append(step)

    def send(self) -> None:
        """Sets the games going."""
        self._actor.send(self.trainer.params, self.trainer.epsilon)

    def recv(self) -> None:
        """Stores what the games gave."""
        step, self._episodes = self._actor.recv()
        self._store(step)

    def record(self) -> bool:
        """Logs, evaluates and saves what is due after a step of all games; returns whether it was a log point."""
        try:
            return self._record()
        except FloatingPointError as error:
            self._bar.print("Stopped: the loss is not finite.")
            self.error, self.over = error, True
            return False

    def _record(self) -> bool:
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
        progress["evaluated"] = self.evaluated
        progress["settings"] = run_directory.fixed(self._settings)
        arrays = self.trainer.save() | self._save_source()
        if not all(np.isfinite(array).all() for name, array in arrays.items() if name.startswith("learner/params/")):
            raise FloatingPointError("The parameters are not finite. " + WHAT_HELPS)
        self._checkpointer.save(self.trainer.agent_steps, arrays, progress, x.replay.num_rows(x.num_envs))

    def _save_source(self) -> dict:
        """Returns arrays to save of what is learned from."""
        return flatten("actor", self._actor.save())

    def _refuse_not_finite(self) -> None:
        """Stops a run whose loss is NaN or infinite, before it is saved, and writes down the batch that did it."""
        batch = self.trainer.not_finite()
        if batch:
            path, update = Path(self.run_dir, "not_finite.npz"), batch["update"]
            np.savez(path, **batch)
            raise FloatingPointError(
                f"The loss or its gradient was not finite in update {update:,}; its batch is in {path}. {WHAT_HELPS}"
            )

    def close(self) -> None:
        """Closes what was opened."""
        self._owned.close()
