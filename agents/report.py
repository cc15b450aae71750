"""What a run reports: metrics at intervals, finished episodes, evaluations, and warnings in plain words."""

from __future__ import annotations

import collections
import time

import numpy as np

from agents.evaluation import human_normalised


class Report:
    """Writes what happened to the logger and shows it to the person watching.

    Args:
      trainer: the trainer reported on.
      logger: where metrics go.
      display: what a person sees.
      seconds: training time of earlier runs of the same command.
    """

    def __init__(self, trainer, logger, display, seconds: float):
        self._trainer, self._logger, self._display = trainer, logger, display
        self._started = time.monotonic() - seconds
        self._recent = collections.deque(maxlen=20)  # returns of the latest episodes
        self._last = (time.monotonic(), trainer.agent_steps, trainer.updates)
        self._warned = False

    @property
    def seconds(self) -> float:
        """Training time so far, over all runs of this command."""
        return time.monotonic() - self._started

    def _write(self, metrics) -> None:
        self._logger.write(self._trainer.agent_steps, self.seconds, metrics)

    def episodes(self, episodes) -> None:
        """Logs each episode that has ended."""
        for episode in episodes:
            self._recent.append(episode.episode_return)
            self._write({"episode/return": episode.episode_return, "episode/length": episode.length})

    def log_point(self) -> None:
        """Logs speed, exploration and the means of the learner's metrics since the last log point."""
        trainer, now = self._trainer, time.monotonic()
        then, steps, updates = self._last
        elapsed = max(now - then, 1e-9)
        self._last = (now, trainer.agent_steps, trainer.updates)
        made = trainer.updates - updates
        steps_per_second = (trainer.agent_steps - steps) / elapsed
        metrics = {
            "speed/steps_per_second": steps_per_second,
            "speed/updates_per_second": made / elapsed,
            "train/epsilon": trainer.epsilon,
            "train/replay_ratio": made / max(trainer.agent_steps - steps, 1),
        }
        for name, value in trainer.metrics().items():
            metrics[name if "/" in name else f"train/{name}"] = value
        self._write(metrics)
        self._logger.flush()
        self._display.update(trainer.agent_steps, np.mean(self._recent) if self._recent else None, steps_per_second)

    def diagnosis(self) -> None:
        """Logs measurements on a large batch, and warns if the head's support does not fit the targets."""
        diagnosis = self._trainer.diagnose()
        if diagnosis is None:
            return
        metrics, targets = diagnosis
        self._write({f"features/{name}": value for name, value in metrics.items()})
        self._warn_of_support(targets)

    def _warn_of_support(self, targets) -> None:
        head = self._trainer.experiment.head
        if self._warned or not hasattr(head, "v_min") or not np.isfinite(targets).all():
            return
        outside = np.mean((targets < head.v_min) | (targets > head.v_max))
        if outside > 0.01:
            self._warned = True
            low, median, high = np.quantile(targets, [0.01, 0.5, 0.99])
            name, bound = type(head).__name__, float(f"{1.2 * np.abs(targets).max():.1g}")
            self._display.print(
                f"WARNING: {outside:.1%} of the TD targets lie outside the head's support [{head.v_min}, {head.v_max}] "
                f"and are clipped. Targets seen: 1 % below {low:.3g}, median {median:.3g}, 1 % above {high:.3g}. Try "
                f"--gin_bindings='{name}.v_min = {-bound}' --gin_bindings='{name}.v_max = {bound}'."
            )

    def evaluation(self) -> None:
        """Evaluates, logs the mean return and shows it."""
        x = self._trainer.experiment
        returns = self._trainer.evaluate()
        metrics = {"eval/return": returns.mean(), "eval/return_std": returns.std()}
        normalised = human_normalised(x.environment.name, returns.mean())
        text = f"Evaluation at {self._trainer.agent_steps:,} agent steps: {returns.mean():.1f} +- {returns.std():.1f}"
        if normalised is not None:
            metrics["eval/human_normalised"] = normalised
            text += f", human-normalised {normalised:.3f}"
        self._write(metrics)
        self._logger.flush()
        self._display.print(f"{text} ({len(returns)} episodes, epsilon {x.agent.epsilon_eval})")
