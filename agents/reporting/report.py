"""What a run reports: metrics at intervals, finished episodes, evaluations, and warnings in plain words."""

from __future__ import annotations

import collections
import contextlib
import time

import jax
import numpy as np


class Clock:
    """Seconds that the reports of several runs share. It stands still while one of them evaluates, or starts."""

    def __init__(self):
        self._paused, self._stands_at = 0.0, None

    def now(self) -> float:
        """Seconds, from an unspecified point in time."""
        return (time.monotonic() if self._stands_at is None else self._stands_at) - self._paused

    @contextlib.contextmanager
    def pause(self):
        """Stops the clock, unless it stands still already."""
        if self._stands_at is not None:
            yield
            return
        self._stands_at = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - self._stands_at
            self._stands_at = None


class Report:
    """Writes what happened to the logger and shows it to the person watching.

    Args:
      trainer: the trainer reported on.
      logger: where metrics go.
      display: what a person sees.
      clock: of all runs that train together.
      saved: from `save`, at the checkpoint that is resumed.
    """

    def __init__(self, trainer, logger, display, clock: Clock, saved: dict | None = None):
        saved = saved or {"seconds": 0.0, "last": (0.0, 0, 0), "recent": [], "warned": False}
        self._trainer, self._logger, self._display, self._clock = trainer, logger, display, clock
        self._started = clock.now() - saved["seconds"]
        self._last = saved["last"]  # seconds, agent steps and updates at the last log point
        self._recent = collections.deque(saved["recent"], maxlen=20)  # returns of the latest episodes
        self._warned = saved["warned"]

    def save(self) -> dict:
        """What a report needs to go on."""
        return {"seconds": self.seconds, "last": self._last, "recent": list(self._recent), "warned": self._warned}

    @property
    def seconds(self) -> float:
        """Training time so far, over all runs of this command; evaluations do not count."""
        return self._clock.now() - self._started

    def _write(self, metrics) -> None:
        self._logger.write(self._trainer.agent_steps, self.seconds, metrics)

    def episodes(self, episodes) -> None:
        """Logs each episode that has ended."""
        for episode in episodes:
            self._recent.append(episode.episode_return)
            self._write({"episode/return": episode.episode_return, "episode/length": episode.length})

    def log_point(self) -> None:
        """Logs speed, exploration and the means of the learner's metrics since the last log point."""
        trainer, now = self._trainer, self.seconds
        then, steps, updates = self._last
        elapsed = max(now - then, 1e-9)
        self._last = (now, trainer.agent_steps, trainer.updates)
        made = trainer.updates - updates
        steps_per_second = (trainer.agent_steps - steps) / elapsed
        metrics = {"speed/updates_per_second": made / elapsed}
        if trainer.experiment.dataset is None:
            metrics |= {
                "speed/steps_per_second": steps_per_second,
                "train/epsilon": trainer.epsilon,
                "train/replay_ratio": made / max(trainer.agent_steps - steps, 1),
            }
        memory = jax.devices()[0].memory_stats() or {}  # a CPU keeps none
        if "peak_bytes_in_use" in memory:
            metrics["speed/peak_device_gb"] = memory["peak_bytes_in_use"] / 1e9
        for name, value in trainer.metrics().items():
            metrics[name if "/" in name else f"train/{name}"] = value
        self._write(metrics)
        if metrics.get("head/targets_outside_support", 0.0) > 0.01 and not self._warned:
            self._warned = True
            self._warn_of_support(metrics["head/targets_outside_support"])
        self._logger.flush()
        self._display.update(trainer.agent_steps, np.mean(self._recent) if self._recent else None, steps_per_second)

    def diagnosis(self) -> None:
        """Logs what the features look like on a large batch."""
        if self._trainer.updates:
            metrics, _ = self._trainer.diagnose()
            self._write({f"features/{name}": value for name, value in metrics.items()})

    def _warn_of_support(self, fraction: float) -> None:
        head = self._trainer.experiment.head
        _, targets = self._trainer.diagnose()
        low, median, high = np.quantile(targets, [0.01, 0.5, 0.99])
        largest = 1.2 * np.abs(targets).max() or 1.0  # before the first reward they may all be 0
        unit = 10.0 ** np.floor(np.log10(largest))
        bound = float(np.ceil(largest / unit) * unit)
        name = type(head).__name__
        self._display.print(
            f"WARNING: {fraction:.1%} of the TD targets lie outside the head's support [{head.v_min}, {head.v_max}], "
            f"which cannot express them. Targets now: 1 % below {low:.3g}, median {median:.3g}, 1 % above {high:.3g}. "
            f"Try --gin_bindings='{name}.v_min = {-bound}' --gin_bindings='{name}.v_max = {bound}'."
        )

    def evaluation(self, stop) -> bool:
        """Evaluates, logs the mean return and shows it; gives up without a result when `stop()` turns true.

        Returns:
          Whether there is a result.
        """
        x = self._trainer.experiment
        with self._clock.pause():
            returns = self._trainer.evaluate(stop)
        if len(returns) < x.eval_episodes:
            return False
        metrics = {"eval/return": returns.mean(), "eval/return_std": returns.std()}
        text = f"Evaluation at {self._trainer.agent_steps:,} {x.unit}: {returns.mean():.1f} +- {returns.std():.1f}"
        for name, score in self._trainer.normalised(returns.mean()).items():
            metrics[f"eval/{name}"] = score
            text += f", {name.replace('_', '-')} {score:.3f}"
        if x.dataset is not None:
            self._recent.append(metrics["eval/return"])  # there are no other episodes
        self._write(metrics)
        self._logger.flush()
        self._display.print(f"{text} ({len(returns)} episodes, epsilon {x.agent.epsilon_eval})")
        return True
