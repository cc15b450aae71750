"""Reads the DQN Replay Dataset (Agarwal et al. 2020, https://arxiv.org/abs/1907.04543): Dopamine's replay files.

A folder holds for each checkpoint k the files `$store$_observation_ckpt.k.gz`, `..._action_...`, `..._reward_...`,
`..._terminal_...` and `add_count_ckpt.k.gz`, each a compressed NumPy array (Dopamine, replay_memory/
circular_replay_buffer.py). A row there is an observation, the action that was chosen in it and what came of that;
before an episode Dopamine puts three rows of zeros to pad its stacks with. An episode that ended by a time limit is not
marked: it cannot be told from the next one.
"""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from replay.log import DamagedError
from replay.ring import TimeStep

PADDING = 3  # rows of zeros before an episode, at most
PIECE = 1_000  # observations in memory at a time


def checkpoints(folder: Path) -> list[int]:
    """The numbers of the checkpoints in a folder."""
    names = [re.fullmatch(r"\$store\$_observation_ckpt\.(\d+)\.gz", path.name) for path in Path(folder).glob("*.gz")]
    return sorted(int(match[1]) for match in names if match)


def read(folder: Path, number: int) -> Iterator[TimeStep]:
    """Yields the rows of one checkpoint as time steps of a single game, in the order in which they were played.

    A game's last observation is not there; it comes out as zeros, which nothing is bootstrapped from.

    Raises:
      replay.log.DamagedError: if a file is missing, cut short, or not what it should be.
    """
    folder = Path(folder)
    path = lambda name: folder / f"{name}_ckpt.{number}.gz"
    small = {name: _whole(path(f"$store$_{name}")) for name in ("action", "reward", "terminal")}
    count = _whole(path("add_count"))
    if (
        count.size != 1
        or count.dtype.kind not in "iu"
        or any(array.dtype.kind not in "iufb" for array in small.values())
    ):
        raise DamagedError(f"{path('add_count')} or its companions hold something else")
    added, length = int(count.item()), small["action"].size
    if not all(array.shape == (length,) for array in small.values()) or added < 1 or not length:
        raise DamagedError(f"{path('$store$_action')} and its companions have different lengths, or hold nothing")
    cursor = added % length if added > length else 0  # the oldest row of a ring that has gone round
    last = None  # action and reward of the row before, None at the start of an episode
    padded = 0
    cut = added > length  # the oldest row may lie in the midst of an episode, whose rest is left out
    observations = _observations(path("$store$_observation"), length, cursor)
    for i, observation in zip(range(min(added, length)), observations, strict=False):
        action, reward, terminal = (small[name][(cursor + i) % length] for name in ("action", "reward", "terminal"))
        empty = not (observation.any() or action or reward or terminal)
        if last is None and padded < PADDING and empty:
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
