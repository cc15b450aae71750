"""Videos of a policy: the game, and beside it what the value head predicts for every action."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import jax
import numpy as np

from agents.environments import Atari
from agents.errors import ConfigError, plain
from networks.value_heads import symlog

SIZE = (1280, 720)  # width and height in pixels
TOP, BOTTOM, LEFT, RIGHT = 76, 672, 34, 1246  # the action rows and the figure end here
GAME = 630  # largest side of the game in pixels
FONT = cv2.FONT_HERSHEY_SIMPLEX
ENCODING = "-pix_fmt yuv420p -crf 18 -movflags +faststart -f mp4"  # plays in browsers

# RGB
BACKGROUND, CARD, CHOSEN, GRID = (15, 18, 26), (24, 29, 40), (42, 51, 72), (58, 68, 90)
TEXT, MUTED, BLUE, TEAL, AMBER = (236, 240, 247), (139, 150, 172), (84, 113, 168), (38, 198, 178), (250, 176, 62)


def record(policy, path, epsilon: float, seed: int = 0, max_steps: int | None = None) -> float:
    """Plays one episode and writes it to an H.264 file: a frame for every state, the final one included.

    Atari plays at its real speed.

    Args:
      policy: a `Policy`; its experiment's environment is played.
      path: the .mp4 file, in a directory that exists; it appears, or is replaced, once it is complete.
      epsilon: exploration rate.
      seed: seeds the game and the exploration.
      max_steps: ends the video after this many agent steps.

    Returns:
      The raw return of what was played.

    Raises:
      ConfigError: if no video can be written to `path`; before anything is played.
      OSError: if ffmpeg fails.
    """
    path = check_path(path)
    policy.reseed(seed)
    environment = policy.experiment.environment
    env = environment.make_single(render_mode="rgb_array")
    is_atari = isinstance(environment, Atari)
    fps = 60 / environment.frames_per_step if is_atari else env.metadata.get("render_fps") or 10
    names = env.unwrapped.get_action_meanings() if is_atari else [str(a) for a in range(env.action_space.n)]
    figure = _Figure(environment.name, policy.head, names, epsilon)
    part = path.with_name(f".{path.name}.part")
    # Not imageio_ffmpeg.write_frames: it forks a multithreaded process, and hides whether ffmpeg failed.
    command = f"-y -loglevel error -f rawvideo -pix_fmt rgb24 -s {SIZE[0]}x{SIZE[1]} -r {fps} -i - -an -c:v libx264"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *command.split(), *ENCODING.split(), str(part)]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as ffmpeg:
            episode_return = _play(policy, env, epsilon, seed, max_steps, figure, ffmpeg.stdin.write)
        if ffmpeg.returncode:
            raise OSError(f"ffmpeg failed to write {part}.")
        part.replace(path)
    finally:
        env.close()
        part.unlink(missing_ok=True)
    return episode_return


def check_path(path) -> Path:
    """Raises ConfigError if no video can be written to `path`."""
    path = Path(path)
    if path.suffix != ".mp4" or path.is_dir():
        raise ConfigError(f"A video is written to a file whose name ends in .mp4, not to {str(path)!r}.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"Cannot write {str(path)!r}: there is no directory {str(path.parent)!r} to write to.")
    return path


def check_environment(environment) -> None:
    """Raises ConfigError if `environment` cannot show its screen, or as no RGB picture of uint8 or of [0, 1]."""
    try:
        env = environment.make_single(render_mode="rgb_array")
        env.reset(seed=0)
        screen = env.render()
        env.close()
    except Exception as error:  # whatever an environment and what it draws with raise
        raise ConfigError(f"{environment.name} cannot be shown: {plain(error)}") from error
    if not isinstance(screen, np.ndarray):
        raise ConfigError(f"{environment.name} cannot be shown: it renders no picture.")
    in_range = screen.dtype == np.uint8 or (screen.dtype.kind == "f" and 0 <= screen.min() <= screen.max() <= 1)
    if screen.ndim != 3 or screen.shape[2] != 3 or not in_range:
        raise ConfigError(
            f"{environment.name} cannot be shown: it renders {screen.dtype}{list(screen.shape)} from {screen.min():g} "
            f"to {screen.max():g}; a picture is [height, width, 3], of uint8 or of floats from 0 to 1."
        )


def _play(policy, env, epsilon, seed, max_steps, figure, write) -> float:
    """Writes a frame for every state of an episode and returns its raw return."""
    observation, _ = env.reset(seed=seed)
    step, episode_return, done = 0, 0.0, False
    while True:
        done = done or step == max_steps
        action = None if done else int(policy(observation[None], epsilon)[0])
        write(figure.draw(env.render(), policy.logits(observation[None])[0], action, step, episode_return))
        if done:
            return episode_return
        observation, reward, terminated, truncated, _ = env.step(action)
        step, episode_return, done = step + 1, episode_return + float(reward), terminated or truncated


class _Figure:
    """Draws frames. The axis only ever widens, so that frames can be compared.

    Args:
      title: name of the game.
      head: the value head.
      names: name of every action [A].
      epsilon: exploration rate.
    """

    def __init__(self, title, head, names, epsilon):
        self._title, self._head, self._names, self._epsilon = title, head, names, epsilon
        self._symlog = getattr(head, "symlog", False)
        self._low, self._high, self._peak = np.inf, -np.inf, 0.0

    def draw(self, game, logits, action: int | None, step: int, episode_return: float) -> np.ndarray:
        """Draws one frame, uint8 RGB [720, 1280, 3].

        Args:
          game: the screen, RGB [height, width, 3], uint8 or float in [0, 1].
          logits: logits [A, m].
          action: the action that is taken; None in the final state.
          step: agent steps so far.
          episode_return: raw return so far.
        """
        canvas = _Canvas()
        game = _fit(game)
        height, width = game.shape[:2]
        left = LEFT + max(width, 400) + 36
        canvas.text(self._title, LEFT, 50, 0.85, TEXT)
        canvas.text(type(self._head).__name__, left, 50, 0.85, TEXT)
        stats = [("step", f"{step:,}"), ("return", f"{episode_return:,.10g}"), ("epsilon", f"{self._epsilon:g}")]
        for (label, value), x in zip(stats, (RIGHT - 220, RIGHT - 86, RIGHT), strict=True):
            canvas.text(label, x, 28, 0.42, MUTED, align=1)
            canvas.text(value, x, 52, 0.6, TEXT, align=1)
        self._rows(canvas, left, np.asarray(logits, np.float32), action)
        frame = canvas.pixels()
        top = TOP + (GAME - height) // 2
        frame[top : top + height, LEFT : LEFT + width] = game
        return frame

    def _rows(self, canvas, left, logits, action):
        """Draws a row per action, and the axis below them, between `left` and RIGHT."""
        values = np.asarray(self._head.decode(logits))
        means = np.asarray(symlog(values)) if self._symlog else values  # on the axis
        starts, ends, heights = self._bars(logits, means)
        greedy, digits = int(values.argmax()), 3 if np.abs(values).max() < 100 else 1
        pitch = (BOTTOM - TOP) / len(values)
        size = float(np.interp(pitch, (30, 60), (0.42, 0.54)))
        x_min, x_max = left + 34 + max(_width(name, size) for name in self._names), RIGHT - 84
        to_x = lambda v: np.clip(x_min + (x_max - x_min) * (v - self._low) / (self._high - self._low), x_min, x_max)
        ticks = _ticks(self._low, self._high, self._symlog)
        for a, (name, value) in enumerate(zip(self._names, values, strict=True)):
            y, bottom = TOP + a * pitch, TOP + (a + 1) * pitch - 4
            middle = (y + bottom) / 2 + 9 * size
            colour = TEAL if a == greedy else AMBER if a == action else BLUE
            canvas.box(left, y, RIGHT, bottom, CHOSEN if a == action else CARD)
            if a == action:
                canvas.box(left, y, left + 5, bottom, colour)
            for tick in ticks:
                canvas.box(to_x(tick) - 0.5, y, to_x(tick) + 0.5, bottom, GRID)
            for x0, x1, h in zip(to_x(starts[a]), to_x(ends[a]), heights[a] * (bottom - y - 4), strict=True):
                canvas.box(x0, bottom - h, x1 - 0.5, bottom, colour)
            canvas.box(to_x(means[a]) - 1, y, to_x(means[a]) + 1, bottom, TEXT)
            canvas.text(name, left + 18, middle, size, TEXT if a == action else MUTED)
            canvas.text(f"{value:z,.{digits}f}", RIGHT - 14, middle, size, TEAL if a == greedy else MUTED, align=1)
        for tick, label in ticks.items():
            canvas.text(label, to_x(tick), BOTTOM + 14, 0.42, MUTED, align=0.5)
        for x, label, colour in ((left, "greedy", TEAL), (left + 70, "exploring", AMBER)):
            canvas.box(x, BOTTOM + 25, x + 10, BOTTOM + 35, colour)
            canvas.text(label, x + 15, BOTTOM + 34, 0.42, MUTED)
        canvas.text("predicted return", (x_min + x_max) / 2, BOTTOM + 34, 0.42, MUTED, align=0.5)

    def _bars(self, logits, means):
        """Returns starts and ends on the axis and heights in [0, 1], all [A, bars]; widens the axis to show them."""
        if not hasattr(self._head, "support"):  # no distribution over returns: the values alone
            starts, ends = np.minimum(means, 0)[:, None], np.maximum(means, 0)[:, None]
            self._widen(starts.min(), ends.max(), 10 ** np.floor(np.log10(np.abs(means).max() + 1e-6)) / 2)
            return starts, ends, np.full_like(ends, 0.35)
        p = np.asarray(jax.nn.softmax(logits))
        centres = self._head.support
        width = centres[1] - centres[0]
        starts, ends = centres - width / 2, centres + width / 2
        seen = np.flatnonzero(p.max(axis=0) > 0.02 * p.max())
        self._widen(starts[seen[0]], ends[seen[-1]], 5 * width)
        self._peak = max(self._peak, p.max())
        return np.broadcast_to(starts, p.shape), np.broadcast_to(ends, p.shape), p / self._peak

    def _widen(self, low, high, unit):
        """Makes the axis contain [low, high], in multiples of `unit`."""
        self._low = min(self._low, unit * np.floor(low / unit))
        self._high = max(self._high, unit * np.floor(high / unit + 1))


class _Canvas:
    """A picture that is drawn at twice its size, for smooth edges; all positions are in final pixels."""

    def __init__(self):
        self._image = np.full((2 * SIZE[1], 2 * SIZE[0], 3), BACKGROUND, np.uint8)

    def box(self, x0, y0, x1, y1, colour):
        """Fills a rectangle."""
        x0, y0, x1, y1 = (round(2 * float(v)) for v in (x0, y0, x1, y1))
        self._image[y0:y1, x0:x1] = colour

    def text(self, text, x, y, size, colour, align=0.0):
        """Writes on the baseline y; `align` is the part of the text left of x."""
        origin = round(2 * (float(x) - align * _width(text, size))), round(2 * float(y))
        cv2.putText(self._image, text, origin, FONT, 2 * size, colour, 2, cv2.LINE_AA)

    def pixels(self) -> np.ndarray:
        """Returns the picture, uint8 RGB [720, 1280, 3]."""
        return cv2.resize(self._image, SIZE, interpolation=cv2.INTER_AREA)


def _width(text, size) -> float:
    return cv2.getTextSize(text, FONT, 2 * size, 2)[0][0] / 2


def _fit(game) -> np.ndarray:
    """Scales a screen to at most GAME pixels, uint8; up by a whole factor without smoothing."""
    game = game if game.dtype == np.uint8 else np.uint8(np.clip(game, 0, 1) * 255)
    height, width = game.shape[:2]
    factor = GAME / max(height, width)
    factor = int(factor) if factor > 1 else factor
    interpolation = cv2.INTER_NEAREST if factor >= 1 else cv2.INTER_AREA
    return cv2.resize(game, (round(width * factor), round(height * factor)), interpolation=interpolation)


def _ticks(low, high, is_symlog) -> dict[float, str]:
    """Round values within an axis: position -> label."""
    name = lambda v: f"{v:g}" if abs(v) < 10_000 else f"{v / 1000:g}k"
    if is_symlog:
        values = [0.0] + [sign * m * 10.0**k for m in (1, 5, 2) for k in range(-3, 12) for sign in (1, -1)]
        ticks: dict[float, str] = {}
        for position, value in zip(np.asarray(symlog(np.array(values))).tolist(), values, strict=True):
            if low <= position <= high and all(abs(position - other) > (high - low) / 9 for other in ticks):
                ticks[position] = name(value)
        return ticks
    unit = 10.0 ** np.floor(np.log10((high - low) / 4))
    unit *= max(m for m in (1, 2, 5) if m * unit <= (high - low) / 3.9)
    return {n * unit: name(n * unit) for n in range(int(np.ceil(low / unit)), int(np.floor(high / unit)) + 1)}
