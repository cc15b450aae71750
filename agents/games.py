"""Games whose state can be saved, though not by ALE's vector environment: they are played again from their last seed.

A game is a function of its seed and the actions since. A game that is played for days would take long to play again, so
each is given a new seed now and then, at the first end of an episode after a fixed number of steps of all games. When
that is depends on nothing else: not on checkpoints, not on interruptions.
"""

from __future__ import annotations

import numpy as np

from agents import environments


class GameError(RuntimeError):
    """A game has failed, by no fault of what plays it."""


class Games:
    """N games, stepped in two halves, that log their actions since their last seed.

    Args:
      environment: a specification, `environments.Atari` or `Gymnasium`.
      num_envs: N.
      entropy: integers that determine all seeds.
      reseed_every_steps: agent steps, of all games together, between new seeds; None: the first are the last.
    """

    def __init__(self, environment, num_envs: int, entropy: tuple[int, ...], reseed_every_steps: int | None = None):
        self._envs = environment.make(num_envs)
        self._entropy = entropy
        self._every = max(1, reseed_every_steps // num_envs) if reseed_every_steps else 2**62
        self.count = 0  # steps so far, of all games together
        self._seeded_at = np.zeros(num_envs, np.int64)  # the count at each game's last seed
        self.over = np.zeros(num_envs, bool)  # which are to be reset in their next step
        self._actions: list[np.ndarray] = []  # [N] each, of the steps after the earliest seed

    def reset(self) -> np.ndarray:
        """Starts all games anew; returns observations [N, stack, ...]."""
        self._seeded_at[:], self.over = self.count, np.zeros_like(self.over)
        self._actions.clear()
        return self._reseed(~self.over)

    def _seeds(self) -> np.ndarray:
        """The seed of each game's interval, [N]."""
        intervals = self._seeded_at // self._every
        seeds = {interval: environments.seeds(len(intervals), *self._entropy, interval) for interval in set(intervals)}
        return np.array([seeds[interval][game] for game, interval in enumerate(intervals)])

    def _call(self, function, *args, **options):
        try:
            return function(*args, **options)
        except Exception as error:
            raise GameError(
                f"A game has failed after {self.count:,} steps of all games ({type(error).__name__}: {error}). "
                "The same command goes on from the newest checkpoint, if there is one."
            ) from error

    def send(self, actions: np.ndarray) -> None:
        """Sets the games going; actions are [N].

        Raises:
          GameError: if a game fails.
        """
        self._actions.append(actions)
        self._call(self._envs.send, actions)

    def recv(self):
        """Waits for the games; returns observations [N, stack, ...], rewards, terminated and truncated [N].

        Raises:
          GameError: if a game does, or gives a reward that is not finite.
        """
        observation, reward, terminated, truncated, _ = self._call(self._envs.recv)
        self.count += 1
        if not np.isfinite(reward).all():
            raise GameError(f"A game has given the rewards {reward} in step {self.count:,} of all games.")
        begun, self.over = self.over, terminated | truncated
        due = begun & (self._seeded_at // self._every < self.count // self._every)
        if due.any():
            forgotten = self._seeded_at.min()
            self._seeded_at[due] = self.count
            del self._actions[: self._seeded_at.min() - forgotten]
            observation = self._reseed(due)
        return observation, reward, terminated, truncated

    def _reseed(self, games: np.ndarray) -> np.ndarray:
        """Starts some games from their seeds; `games` [N] says which."""
        observation, _ = self._call(self._envs.reset, seed=self._seeds()[games], options={"reset_mask": games})
        return observation

    def save(self) -> dict[str, np.ndarray]:
        """What `restore` needs."""
        actions = np.array(self._actions, np.int32).reshape(-1, len(self.over))
        return {"count": np.int64(self.count), "seeded_at": self._seeded_at, "over": self.over, "actions": actions}

    def restore(self, saved: dict[str, np.ndarray], observation: np.ndarray) -> bool:
        """Plays the games again, from their last seeds to where they were when they had given `observation`.

        Returns:
          Whether they give it again, and the same games are over; else they depend on more than seeds and actions.
        """
        self.count, self._actions = int(saved["count"]), list(saved["actions"])
        self._seeded_at, self.over = saved["seeded_at"].copy(), saved["over"].copy()
        found = self._reseed(self._seeded_at >= 0)  # those seeded later start again when their time comes
        over = np.zeros_like(self.over)
        for count, actions in enumerate(self._actions, start=self._seeded_at.min() + 1):
            self._call(self._envs.send, actions)
            found, _, terminated, truncated, _ = self._call(self._envs.recv)
            over = terminated | truncated
            seeded = self._seeded_at == count
            if seeded.any():
                found, over = self._reseed(seeded), over & ~seeded
        return np.array_equal(found, observation) and np.array_equal(over, self.over)

    def close(self) -> None:
        """Closes the games."""
        self._envs.close()
