"""Data sets: the replay logs of runs (`replay/log.py`), to learn from without playing.

What is kept of each log are whole episodes. They are laid end to end in a ring of one game, in which everything else
stays as it is online: a data set that fits into the replay's capacity lies there once and for all; a larger one streams
through it, in new order on every pass, as many rows per update as an update draws.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from agents.environments import game_of
from agents.errors import ConfigError
from agents.recording import Recording, find, read_protocol, recorded_rows
from replay.log import result
from replay.ring import TimeStep

PIECE = 4096  # rows that are read at a time into memory
CHOOSE = ("random", "first")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Settings of a data set.

    Args:
      paths: run directories, or their parents. With --log_replay a run has logged every transition, without it those
        that its replay held at the end, and as many more as come between two checkpoints at most.
      fraction: of the episodes of each log; the paper takes a tenth (Appendix B.1, https://arxiv.org/abs/2403.03950).
      choose: which ones: 'random', or 'first' for the oldest, as Dopamine does with each of its files
        (labs/offline_rl/rlu_tfds).
      reward_noise: x adds to every reward, clipped if the agent clips it, a number drawn once from U(0, x) (Section
        5.2.1).
      seed: of choice, noise and order; the same for all runs, whatever their own seeds are.
    """

    paths: list
    fraction: float = 1.0
    choose: str = "random"
    reward_noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.paths, str) or not self.paths or not all(isinstance(path, str) for path in self.paths):
            raise ValueError("An agent that learns from a data set needs one: --dataset DIR, e.g. of a run's log.")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Dataset.fraction lies in (0, 1]; got {self.fraction}.")
        if self.choose not in CHOOSE:
            raise ValueError(f"Dataset.choose is {self.choose!r}; allowed: {', '.join(map(repr, CHOOSE))}.")
        if not 0 <= self.reward_noise < float("inf"):
            raise ValueError(f"Dataset.reward_noise must be a number from 0 on; got {self.reward_noise}.")
        if self.seed < 0:
            raise ValueError(f"Dataset.seed must not be negative; got {self.seed}.")

    def most_rows(self) -> int:
        """How many rows the logs hold, whole episodes or not, times the fraction.

        Raises:
          ConfigError: if there is no log.
        """
        return int(self.fraction * sum(recorded_rows(path) for path in find(self.paths))) + 1

    def check_game(self, environment) -> None:
        """Raises ConfigError if there is no log, or none of an environment's game; reads manifests only."""
        if environment.name not in (games := sorted({game_of(read_protocol(path)[0]) for path in find(self.paths)})):
            raise ConfigError(f"--dataset: no log is of {environment.name}; there are {', '.join(games)}.")

    def open(self, environment, observation, num_actions: int, agent) -> Episodes:
        """Reads everything but the observations, checks it, and chooses episodes.

        Args:
          environment: the specification that is to be learned.
          observation: its states [1, stack, ...].
          num_actions: its number of actions.
          agent: `dqn.DQN`, which tells what becomes of the rewards.

        Raises:
          ConfigError: if there is nothing to learn from, or it is of something else.
          replay.files.DamagedError: if a file is not as it was written.
        """
        self.check_game(environment)
        recordings = [Recording(path) for path in find(self.paths)]
        for recording in recordings:
            recording.check(environment, observation, num_actions)
        return Episodes(self, recordings, environment, agent)


class Part(NamedTuple):
    """Rows of one episode."""

    recording: Recording
    game: int
    start: int  # rows of the recording
    stop: int
    flat: int  # where the first of them is in the order of the recordings
    action: int | None  # that was chosen at the end of the episode before, if this is an episode's first row


class Episodes:
    """Whole episodes of several logs, end to end.

    Args:
      settings: the data set's.
      recordings: the logs.
      environment: what is to be learned.
      agent: `dqn.DQN`.

    Attributes:
      rows: how many there are in one pass.
      number: of episodes.
      recordings: the directory of each log, and how many episodes are of it.
      digest: SHA-256 of the logs.
      behaviour_return: mean raw return of the episodes of the environment's own game; None if there are none, or if
        one was converted, since those rewards had been clipped.

    Raises:
      ConfigError: if there is no whole episode.
    """

    def __init__(self, settings: Dataset, recordings: list[Recording], environment, agent):
        self._settings, self._logs = settings, recordings
        chosen = [self._choose(number, recording) for number, recording in enumerate(recordings)]
        self._table = np.concatenate(chosen)  # [E, 4]: recording, game, start, stop
        self.number = len(self._table)
        if not self.number:
            raise ConfigError(f"--dataset: no episode is whole in {', '.join(map(str, settings.paths))}.")
        lengths = self._table[:, 3] - self._table[:, 2]
        self._starts = np.cumsum(lengths) - lengths
        self.rows = int(lengths.sum())
        self.digest = hashlib.sha256("\n".join(recording.digest for recording in recordings).encode()).hexdigest()
        self.recordings = {str(log.path): len(episodes) for log, episodes in zip(recordings, chosen, strict=True)}

        returns, small, self._after = [], [], np.zeros(self.number, np.int32)
        for number, (of, game, start, stop) in enumerate(self._table):
            steps = TimeStep(*(array[start:stop, game] for array in recordings[of].rows[:4]), observation=None)
            if recordings[of].game == environment.name:
                raw = not recordings[of].converted
                returns.append(steps.r_t[1:].sum(dtype=np.float64) if raw else np.nan)
            small.append(steps._replace(r_t=self._rewards(number, steps.r_t, agent)))
            if stop < len(recordings[of].rows.first):  # games store what was chosen last with the reset that follows
                self._after[number] = recordings[of].rows.action_tm1[stop, game]
        self.behaviour_return = float(np.mean(returns)) if returns and np.isfinite(returns).all() else None
        self._small = TimeStep(*map(np.concatenate, zip(*(steps[:4] for steps in small), strict=True)), None)
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None  # of one pass
        self._reading: tuple | None = None  # what is being read ahead

    def _choose(self, number: int, recording: Recording) -> np.ndarray:
        episodes = recording.episodes()
        count = max(1, round(self._settings.fraction * len(episodes)))
        if self._settings.choose == "random" and count < len(episodes):
            rng = np.random.default_rng((self._settings.seed, 0, number))
            episodes = episodes[np.sort(rng.choice(len(episodes), count, replace=False))]
        episodes = episodes[:count]
        return np.concatenate([np.full((len(episodes), 1), number), episodes], axis=1)

    def _rewards(self, number: int, r_t: np.ndarray, agent) -> np.ndarray:
        """Rewards as the learner is to see them; for Monte Carlo targets, the returns that follow."""
        rewards = r_t[1:].astype(np.float64)
        if agent.max_abs_reward is not None:
            rewards = np.clip(rewards, -agent.max_abs_reward, agent.max_abs_reward)
        if self._settings.reward_noise:
            rng = np.random.default_rng((self._settings.seed, 1, number))
            rewards = rewards + rng.uniform(0, self._settings.reward_noise, len(rewards))
        if agent.target == "monte_carlo":
            following = 0.0
            for t in range(len(rewards) - 1, -1, -1):
                following = rewards[t] = rewards[t] + agent.discount * following
        return np.append(0, rewards).astype(np.float32)

    def description(self) -> dict:
        """What there is, for people."""
        return {
            "recordings": self.recordings,
            "episodes": self.number,
            "transitions": self.rows - self.number,
            "behaviour_return": self.behaviour_return,
            "digest": self.digest,
        }

    def pieces(self, extra: int):
        """Yields all episodes in the order of the recordings, as (row, rows [rows, 1, ...]).

        Args:
          extra: rows behind them that are no part of an episode.
        """
        for row in range(0, self.rows, PIECE):
            end = min(row + PIECE, self.rows)
            yield row, self._read(*self._begin(row, end, shuffled=False))
        last = self._logs[0].observation
        behind = lambda value, dtype: np.full((extra, 1), value, dtype)
        flags = behind(0, np.float32), behind(False, bool), behind(True, bool)
        frames = np.zeros((extra, 1, *last.shape), last.dtype)
        yield self.rows, TimeStep(behind(self._after[-1], np.int32), *flags, frames)

    def streamed(self, start: int, stop: int) -> TimeStep:
        """Reads the rows `start` to `stop` of an endless stream of passes, each in an order of its own.

        What follows, as many rows, is read ahead.
        """
        ahead, self._reading = self._reading, None
        begun = ahead[1] if ahead and ahead[0] == (start, stop) else self._begin(start, stop)
        self._reading = ((stop, 2 * stop - start), self._begin(stop, 2 * stop - start))
        return self._read(*begun)

    def _begin(self, start: int, stop: int, shuffled: bool = True):
        """Begins to read rows; returns the parts of episodes that they are, and what will be their observations."""
        parts = []
        while start < stop:
            number, offset = divmod(start, self.rows)
            end = min(stop, (number + 1) * self.rows)
            order = self._pass(number) if shuffled else (np.arange(self.number), -1)
            parts += self._parts(offset, offset + end - start, *order)
            start = end
        return parts, [part.recording.observations(part.game, part.start, part.stop) for part in parts]

    def _read(self, parts, futures) -> TimeStep:
        index = np.concatenate([np.arange(part.flat, part.flat + part.stop - part.start) for part in parts])
        steps = TimeStep(*(array[index, None] for array in self._small[:4]), observation=None)
        row = 0
        for part in parts:
            if part.action is not None:
                steps.action_tm1[row] = part.action
            row += part.stop - part.start
        observation = np.concatenate([result(future) for part in futures for future in part])
        return steps._replace(observation=observation[:, None])

    def _pass(self, number: int) -> tuple[np.ndarray, int]:
        """The order of the episodes in a pass, and the last episode of the pass before, -1 if there was none."""
        order = lambda number: np.random.default_rng((self._settings.seed, 2, number)).permutation(self.number)
        if self._order is None or self._order[0] != number:
            self._order = (number, order(number), order(number - 1)[-1] if number else -1)
        return self._order[1:]

    def _parts(self, start: int, stop: int, order: np.ndarray, before: int = -1) -> list[Part]:
        """The episodes, or parts of them, that make the rows `start` to `stop` of a pass."""
        lengths = (self._table[:, 3] - self._table[:, 2])[order]
        ends = np.cumsum(lengths)
        parts = []
        for place in range(np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left") + 1):
            of, game, first, _ = self._table[order[place]]
            begin = ends[place] - lengths[place]
            low, high = max(start - begin, 0), min(stop - begin, lengths[place])
            last = order[place - 1] if place else before
            action = (self._after[last] if last >= 0 else 0) if low == 0 else None
            flat = self._starts[order[place]] + low
            parts.append(Part(self._logs[of], game, first + low, first + high, flat, action))
        return parts
