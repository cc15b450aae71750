"""One replay log that is learned from: what it is of, whether it is sound, and where its episodes lie."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from agents.checkpointing.checkpoint import Checkpoint, checkpoints
from agents.environments import game_of, protocol
from agents.errors import ConfigError
from replay.files import read_json
from replay.log import DIRECTORY, Log, result
from replay.ring import TimeStep

MANIFEST = "manifest.json"
SMALL = ("action_tm1", "r_t", "terminated", "first")  # all of a `TimeStep` but its observation


def find(paths) -> list[Path]:
    """Directories of all logs at or below some paths, each once.

    Raises:
      ConfigError: if there is none.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        below, seen = [], set()
        for folder, folders, files in os.walk(path, followlinks=True):
            if MANIFEST in files and DIRECTORY in folders:
                below.append(Path(folder))
                folders.clear()
            new = [
                name for name in sorted(folders) if not name.startswith((".", "_")) and not name.endswith(".partial")
            ]
            folders[:] = [name for name in new if not _seen(os.path.realpath(os.path.join(folder, name)), seen)]
        if not below:
            what = "holds no replay log" if path.exists() else "does not exist"
            raise ConfigError(
                f"--dataset: {path} {what}. Log one with train.py --log_replay, or convert one: scripts/convert.py."
            )
        found |= {os.path.realpath(folder): folder for folder in below}
    return list(found.values())


def _seen(path: str, seen: set[str]) -> bool:
    """Whether a folder has been gone into, by another link to it."""
    again = path in seen
    seen.add(path)
    return again


def read_protocol(path: Path) -> tuple[dict, bool]:
    """Settings of the environment that the log of a run is of, and whether it was converted from Dopamine's files.

    Raises:
      ConfigError: if its manifest cannot be read.
    """
    try:
        manifest = read_json(path / MANIFEST)
        settings = dict(manifest["protocol"])
        game_of(settings)  # has it one?
        return settings, "converted_from" in manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path / MANIFEST} cannot be read, or names no protocol ({error!r}).") from error


def recorded_rows(path: Path) -> int:
    """Rows of all games in the log of a run; 0 if it has none.

    Raises:
      replay.files.DamagedError: if it cannot be read.
    """
    checkpoint = _checkpoint(path)
    if checkpoint is None or not checkpoint.segments:
        return 0
    log = checkpoint.log
    [first, *_] = log.array("first", log.first_row, log.first_row + 1)
    return (log.end - log.first_row) * first.shape[1]


def _checkpoint(path: Path) -> Checkpoint | None:
    """The newest one, which tells what the log is: an older one in place of a damaged one would have less of it."""
    return next(map(Checkpoint, checkpoints(path)), None)


class Recording:
    """The log of one run; everything but the observations is in memory.

    Args:
      path: the run directory.

    Attributes:
      protocol: the environment's settings.
      converted: whether it is of the DQN Replay Dataset (`scripts/convert.py`), whose rewards had been clipped.
      rows: everything but the observations.
      digest: SHA-256 of its segments' hashes.

    Raises:
      ConfigError: if it has no log, or its manifest cannot be read.
      replay.files.DamagedError: if a file is not as it was written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.protocol, self.converted = read_protocol(path)
        checkpoint = _checkpoint(path)
        if checkpoint is None:
            raise ConfigError(f"{path} has no checkpoint, to which a log belongs.")
        checkpoint.verify(state=False)
        self.log: Log = checkpoint.log
        self.digest = hashlib.sha256(json.dumps(checkpoint.segments).encode()).hexdigest()
        self.rows = TimeStep(*(self._read(name) for name in SMALL), observation=None)

    def _read(self, name: str) -> np.ndarray:
        parts = self.log.array(name, self.log.first_row, self.log.end)
        return np.concatenate([result(part.read()) for part in parts]) if parts else np.zeros((0, 1))

    @property
    def game(self) -> str:
        """Name of its task, as `environment.name`."""
        return game_of(self.protocol)

    @property
    def observation(self) -> np.ndarray:
        """The first one."""
        return result(self.observations(0, 0, 1)[0])[0]

    def check(self, environment, observation, num_actions: int) -> None:
        """Raises ConfigError, naming the difference, unless it can be learned from for an environment."""
        wanted = json.loads(json.dumps(protocol(environment)))  # as manifests have it: tuples are lists there
        same = ("environment", "frame_skip") if "game" in wanted else ("environment", "id", "kwargs")
        for name in same:
            if self.protocol.get(name) != wanted[name]:
                raise ConfigError(
                    f"{self.path} was recorded with {name} {self.protocol.get(name)}, not {wanted[name]}."
                )
        if self.log.end == self.log.first_row:
            raise ConfigError(f"The log of {self.path} is empty.")
        like = self.observation
        if like.shape != observation.shape[2:] or like.dtype != observation.dtype:
            raise ConfigError(
                f"{self.path} holds observations {like.dtype}{list(like.shape)}, not "
                f"{observation.dtype}{list(observation.shape[2:])}."
            )
        if "game" in wanted and self._actions(environment) != environment.actions():
            raise ConfigError(
                f"{self.path} is of {self.game} with the actions {', '.join(self._actions(environment))}; "
                f"{environment.game} has {', '.join(environment.actions())}. Mix games of the same actions, or such "
                "as were recorded with Atari.full_action_space = True."
            )
        taken = self.rows.action_tm1  # those that were sent with a reset, too: SARSA takes them for the next action
        if not 0 <= taken.min() <= taken.max() < num_actions:
            raise ConfigError(
                f"{self.path} holds actions from {taken.min()} to {taken.max()}; there are {num_actions}, from 0 on."
            )
        if not np.isfinite(self.rows.r_t[~self.rows.first]).all():
            raise ConfigError(f"{self.path} holds rewards that are not finite.")

    def _actions(self, environment) -> list[str]:
        try:
            full = bool(self.protocol.get("full_action_space"))
            return dataclasses.replace(environment, game=self.game, full_action_space=full).actions()
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from error

    def episodes(self) -> np.ndarray:
        """Whole episodes: game, first row, and the row after the last, counted from the log's first [E, 3]."""
        end, found = len(self.rows.first), []
        for game in range(self.rows.first.shape[1]):
            starts = np.flatnonzero(self.rows.first[:, game])
            ends = starts[1:]
            if len(starts) and self.rows.terminated[-1, game]:
                ends = [*ends, end]
            found += [(game, start, stop) for start, stop in zip(starts, ends, strict=False) if stop - start > 1]
        return np.array(sorted(found, key=lambda episode: episode[1]), np.int64).reshape(-1, 3)

    def observations(self, game: int, start: int, stop: int) -> list:
        """Begins to read observations [rows, ...] of one game; returns the parts as futures."""
        first = self.log.first_row
        return [part.read() for part in self.log.array("observation", first + start, first + stop, game)]
