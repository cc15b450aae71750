"""The images of `scripts/synthetic.py`: frames of Atari games, or CIFAR-10 from files of one's own."""

from __future__ import annotations

from pathlib import Path

import ale_py
import cv2
import numpy as np

from agents.environments import ROMS
from agents.errors import ConfigError

SIDE = 32
BETWEEN = 20  # agent steps of four frames between two images of a game
CIFAR_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))


def frames(games: list[str], number: int) -> np.ndarray:
    """Plays games at random and takes as many frames of each; returns uint8 [number, 32, 32, 3]."""
    each, found = -(-number // len(games)), []
    for game in games:
        ale, random = ale_py.ALEInterface(), np.random.default_rng((0, len(found)))
        ale.setInt("random_seed", 0)
        ale.loadROM(ale_py.roms.get_rom_path(ROMS[game]))
        actions = ale.getMinimalActionSet()
        for _ in range(each):
            for _ in range(BETWEEN):
                action = actions[random.integers(len(actions))]
                for _ in range(4):
                    ale.act(action)
                if ale.game_over():
                    ale.reset_game()
            found.append(cv2.resize(ale.getScreenRGB(), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    chosen = np.random.default_rng(0).permutation(len(found))[:number]
    return np.stack(found)[np.sort(chosen)]


def cifar(folder: Path, number: int) -> np.ndarray:
    """Reads training images from CIFAR-10's binary files (https://www.cs.toronto.edu/~kriz/cifar.html).

    Its files for Python are pickles, which could execute anything, and are not read.

    Raises:
      ConfigError: if they are not there, or something else.
    """
    found = []
    for name in CIFAR_BATCHES:
        path = folder / name
        if not path.is_file() or path.stat().st_size % (1 + 3 * SIDE**2) or not path.stat().st_size:
            raise ConfigError(f"--cifar: {path} is no file of the binary version of CIFAR-10.")
        rows = np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * SIDE**2)
        found.append(rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    return np.concatenate(found)[:number]
