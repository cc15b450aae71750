"""Offline training: the same learner, replay and loop, with a data set in the place of games."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp

from agents import evaluation, memory
from agents.errors import ConfigError
from agents.run import Run
from agents.trainer import Trainer
from replay.ring import Replay, ReplayState


class OfflineTrainer(Trainer):
    """A trainer whose replay is filled from a data set; `agent_steps` counts updates.

    Attributes:
      data: the episodes, as `dataset.Episodes`.
      resident: whether they lie in the replay once and for all; else they stream through it.

    Raises:
      ConfigError: if there is nothing to learn from for this environment.
    """

    _max_abs_reward = None  # rewards have been clipped where they were read

    def _make_ring(self, observation) -> Replay:
        x = self.experiment
        self.data = x.dataset.open(x.environment, observation, self.network.num_actions, x.agent)
        # Behind what lies in memory: so that its last transition is whole, and its first frames count as kept.
        padding = x.agent.n_step + self._stack - 1
        self.resident = self.data.rows + padding <= x.replay.capacity
        self._block = x.updates_per_call * x.learner.batch_size  # rows per call: as many as its updates draw
        rows = self.data.rows + padding if self.resident else -(-x.replay.capacity // self._block) * self._block
        self._filled = cache(self._fill)  # shared by seeds
        self._extend = jax.jit(x.replay.extend, donate_argnums=0)
        return dataclasses.replace(x.replay, capacity=rows)

    def _check_replays(self, seeds: int, network_bytes: int) -> None:
        if seeds > 1 and not self.resident:
            raise ConfigError(
                f"Several seeds share a data set that lies in memory: pass --replay_capacity {self.data.rows + 100} "
                "or more, or no --seeds."
            )
        memory.check(self.replay_bytes, self._ring.capacity, network_bytes=seeds * network_bytes)  # seeds share one

    def allocate_replay(self) -> None:
        """Allocates the replay and fills it: with all there is, or with what has streamed in by now and is kept."""
        if self.resident:
            self.replay_state = self._filled()
            return
        super().allocate_replay()
        rows, start = self._ring.capacity, self._streamed - self._ring.capacity
        self.replay_state = self.replay_state._replace(head=jnp.int32(start % rows))
        for row in range(start, start + rows, self._block):
            self._stream(row)

    def _fill(self) -> ReplayState:
        super().allocate_replay()
        return self._ring.restore(self.replay_state, self.data.pieces(self.experiment.agent.n_step), ())

    def _restore_replay(self, checkpoint) -> None:
        del checkpoint  # the data set has all of it
        self.allocate_replay()

    @property
    def _streamed(self) -> int:
        """Rows that have streamed in by now: first the replay was filled, then came a block with every call."""
        return self._ring.capacity + self.agent_steps // self.experiment.updates_per_call * self._block

    def _stream(self, row: int) -> None:
        self.replay_state = self._extend(self.replay_state, self.data.streamed(row, row + self._block))

    def normalised(self, mean_return: float) -> dict[str, float]:
        """Scores of a mean return, by what they are measured against; what was recorded has 1."""
        game, behaviour = self.experiment.environment.name, self.data.behaviour_return
        score = evaluation.behaviour_normalised(game, mean_return, behaviour)
        return super().normalised(mean_return) | ({} if score is None else {"behaviour_normalised": score})

    def feed(self) -> None:
        """In place of `add`: lets the clock go on by the updates of one call, and brings the rows for them."""
        if not self.resident:
            self._stream(self._streamed)
        self.agent_steps += self.experiment.updates_per_call


class OfflineRun(Run):
    """A run without games, but for its evaluations."""

    trainer: OfflineTrainer

    def __init__(self, trainer: OfflineTrainer, run_dir, operative_text: str, settings: dict[str, str]):
        # So that checkpoints tell what they were learned from.
        super().__init__(trainer, run_dir, operative_text, {**settings, "Dataset.digest": trainer.data.digest})

    def _open_source(self, checkpoint) -> None:
        """There are no games to open."""

    def send(self) -> None:
        """There is nobody to play."""

    def recv(self) -> None:
        """Lets the clock go on."""
        self.trainer.feed()

    def _save_source(self) -> dict:
        return {}
