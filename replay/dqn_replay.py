"""Reads the DQN Replay Dataset (Agarwal et al. 2020, https://arxiv.org/abs/1907.04543): Dopamine's replay files.

A folder holds for each checkpoint k the files `$store$_observation_ckpt.k.gz`, `..._action_...`, `..._reward_...`,
`..._terminal_...` and `add_count_ckpt.k.gz`, each a compressed NumPy array (Dopamine, replay_memory/
circular_replay_buffer.py). A row there is an observation, the action that was chosen in it and what came of that;
before an episode Dopamine puts three rows of zeros to pad its stacks with. The Dopamine of the data set marks every
episode's last row as terminal (`DQNAgent.end_episode`), also where a time limit has cut it, so that nothing is
bootstrapped from there. Later versions do not mark a cut: in their files the episode runs into the next one.
"""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from replay.files import DamagedError
from replay.ring import TimeStep

KINDS = {"action": "iu", "reward": "iuf", "terminal": "iub"}  # NumPy's kinds of types
PADDING = 3  # rows of zeros before an episode, at most
PIECE = 1_000  # observations in memory at a time


def checkpoints(folder: Path) -> list[int]:
    """The numbers of the checkpoints in a folder."""
    names = [re.fullmatch(r"\$store\$_observation_ckpt\.(\d+)\.gz", path.name) for path in Path(folder).glob("*.gz")]
    return sorted(int(match[1]) for match in names if match)


def _path(folder: Path, name: str, number: int) -> Path:
    return Path(folder) / f"{name}_ckpt.{number}.gz"


def _small(folder: Path, number: int) -> tuple[dict[str, np.ndarray], int, int]:
    """All arrays of a checkpoint but the observations, how many rows were ever added, and how many it has room for."""
    path = lambda name: _path(folder, name, number)
    small = {name: _whole(path(f"$store$_{name}")) for name in KINDS}
    count = _whole(path("add_count"))
    if (
        count.size != 1
        or count.dtype.kind not in "iu"
        or any(small[name].dtype.kind not in kinds for name, kinds in KINDS.items())
    ):
        raise DamagedError(f"{path('add_count')} or its companions hold something else")
    added, length = int(count.item()), small["action"].size
    if not all(array.shape == (length,) for array in small.values()) or added < 0 or not length:
        raise DamagedError(f"{path('$store$_action')} and its companions have different lengths, or hold nothing")
    return small, added, length


def check(folder: Path, number: int, shape: tuple[int, ...], num_actions: int) -> None:
    """Refuses a checkpoint that is not of a game.

    Args:
      folder: of the files.
      number: of the checkpoint.
      shape: of an observation.
      num_actions: there are in the game.

    Raises:
      replay.files.DamagedError: for observations of another shape, actions that the game does not have, or rewards that
        are not finite; and if a file is missing, or not what it should be.
    """
    small, added, length = _small(folder, number)
    used = {name: array[:added] for name, array in small.items()}
    with _opened(observations := _path(folder, "$store$_observation", number)) as (_, found, _):
        pass
    if found[1:] != shape:
        raise DamagedError(f"{observations} holds observations {list(found[1:])}, not {list(shape)}")
    if added and not 0 <= used["action"].min() <= used["action"].max() < num_actions:
        low, high = used["action"].min(), used["action"].max()
        raise DamagedError(
            f"{_path(folder, '$store$_action', number)} holds actions from {low} to {high}; the game has {num_actions}"
        )
    if not np.isfinite(used["reward"]).all():
        raise DamagedError(f"{_path(folder, '$store$_reward', number)} holds rewards that are not finite")


def read(folder: Path, number: int) -> Iterator[TimeStep]:
    """Yields the rows of one checkpoint as time steps of a single game, in the order in which they were played.

    A game's last observation is not there; it comes out as zeros, which nothing is bootstrapped from. What does not
    begin with padding is the rest of an episode, and left out up to its end: of a ring that has gone round, and of a
    run's last file, which holds what came after the one before.

    Raises:
      replay.files.DamagedError: if a file is missing, cut short, or not what it should be.
    """
    small, added, length = _small(folder, number)
    cursor = added % length if added > length else 0  # the oldest row of a ring that has gone round
    last = None  # action and reward of the row before, None at the start of an episode
    padded, cut = 0, True
    observations = _observations(_path(folder, "$store$_observation", number), length, cursor)
    for i, observation in zip(range(min(added, length)), observations, strict=False):
        action, reward, terminal = (small[name][(cursor + i) % length] for name in ("action", "reward", "terminal"))
        empty = not (observation.any() or action or reward or terminal)
        if last is None and padded < PADDING and empty and (padded == i or not cut):  # else a black screen
            padded += 1
            continue
        if cut and not padded:
            cut = not terminal
            continue
        cut = False
        yield _step(observation, *(last or (0, 0.0)), first=last is None)
        last = int(action), float(reward)
        if terminal:
            yield _step(np.zeros_like(observation), *last, terminated=True)
            last, padded = None, 0
    for _ in observations:  # to the end, where damage is told
        pass


def _step(observation, action, reward, terminated=False, first=False) -> TimeStep:
    one = lambda value, dtype: np.array([value], dtype)
    flags = one(terminated, bool), one(first, bool)
    return TimeStep(one(action, np.int32), one(reward, np.float32), *flags, observation[None])


@contextlib.contextmanager
def _opened(path: Path):
    """Opens a compressed array; gives the file behind its header, its shape and its type."""
    try:
        with gzip.open(path) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, column_major, dtype = read_header[version](file)
            if column_major or dtype.hasobject:
                raise ValueError("an array of another kind")
            yield file, shape, dtype
    except (OSError, EOFError, ValueError, KeyError, gzip.zlib.error) as error:
        raise DamagedError(f"{path} is missing or damaged ({error})") from error


def _read(file, shape, dtype) -> np.ndarray:
    data = file.read(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)


def _check_end(file) -> None:
    """Reads what is behind an array: nothing, but the sum by which a damaged file is told."""
    if file.read(1):
        raise ValueError("more than it says")


def _whole(path: Path) -> np.ndarray:
    with _opened(path) as (file, shape, dtype):
        array = _read(file, shape, dtype)
        _check_end(file)
        return array


def _observations(path: Path, length: int, cursor: int) -> Iterator[np.ndarray]:
    """Yields observations from the row `cursor` on, then those before it, without holding all of them."""
    for start, stop in ((cursor, length), (0, cursor)):
        with _opened(path) as (file, shape, dtype):
            if len(shape) < 2 or shape[0] != length or dtype != np.uint8:
                raise ValueError(f"{dtype}{list(shape)} instead of {length} observations of bytes")
            for begin in range(0, stop, PIECE):
                piece = _read(file, (min(PIECE, stop - begin), *shape[1:]), dtype)
                yield from piece[max(start - begin, 0) :]
            if stop == length:
                _check_end(file)
