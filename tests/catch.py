"""Catch (Osband et al. 2020, bsuite): a tiny pixel environment that every head must learn in seconds."""

import gymnasium
import numpy as np


class Catch(gymnasium.Env):
    """A ball falls down a board of 6 x 5 pixels; the paddle at the bottom moves left, stays or moves right."""

    ROWS, COLUMNS = 6, 5
    observation_space = gymnasium.spaces.Box(0, 255, (ROWS, COLUMNS), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.column, self.paddle = 0, int(self.np_random.integers(self.COLUMNS)), self.COLUMNS // 2
        return self._observe(), {}

    def step(self, action):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.COLUMNS - 1)
        self.row += 1
        over = self.row == self.ROWS - 1
        reward = (1.0 if self.paddle == self.column else -1.0) if over else 0.0
        return self._observe(), reward, over, False, {}

    def _observe(self):
        board = np.zeros((self.ROWS, self.COLUMNS), np.uint8)
        board[self.row, self.column] = board[-1, self.paddle] = 255
        return board


gymnasium.register("Catch-v0", Catch)
