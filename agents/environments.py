"""Environments: N games behind one interface, with every setting of the protocol explicit.

A *specification* (`Atari`, `Gymnasium`) is a frozen dataclass; `make(num_envs)` builds the games. What it returns steps
them in two halves, `send(actions)` and `recv()`, so that a learner can compute in between, and resets a finished game
on the step after its last one (Gymnasium's NEXT_STEP): the final observation is seen, and the action sent with the
reset is ignored.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import ale_py
import ale_py.roms
import gymnasium
import numpy as np
from ale_py.registration import rom_id_to_name
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AtariPreprocessing

from agents.errors import ConfigError, did_you_mean

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner per process

# CamelCase name of every game for one player that ale-py ships -> its ROM.
ROMS = {
    rom_id_to_name(rom): rom
    for rom in sorted(ale_py.roms.get_all_rom_ids())
    if f"ALE/{rom_id_to_name(rom)}-v5" in gymnasium.registry
}


@dataclasses.dataclass(frozen=True)
class Atari:
    """An Atari game under the protocol of Machado et al. 2018 (https://arxiv.org/abs/1709.06009), as Dopamine has it.

    ALE's vector environment defaults to another protocol, so everything is set here. Rewards stay raw: clipping is the
    learner's view.

    Args:
      game: CamelCase name, e.g. 'MsPacman'.
      sticky: probability that a frame repeats the previous action.
      frame_skip: frames per agent step; the last two are max-pooled.
      stack: frames in a state; zeros before the start of the episode.
      screen: height and width of the grey frame in pixels.
      max_episode_frames: time limit; it truncates, it does not terminate.
      noop_max: up to this many random no-ops at the start.
      full_action_space: all 18 actions instead of the game's minimal set.
    """

    game: str
    sticky: float = 0.25
    frame_skip: int = 4
    stack: int = 4
    screen: int = 84
    max_episode_frames: int = 108_000
    noop_max: int = 0
    full_action_space: bool = False

    def __post_init__(self):
        if self.game not in ROMS:
            hint = did_you_mean(re.sub(r".*/|(NoFrameskip|Deterministic)?-v\d+$", "", str(self.game)), ROMS)
            raise ValueError(
                f"Unknown game {self.game!r}.{hint} Other environments of Gymnasium's are named by --env. "
                f"All games: {', '.join(ROMS)}."
            )
        if not 0 <= self.sticky <= 1:
            raise ValueError(f"Atari.sticky is a probability; got {self.sticky}.")
        numbers = (self.frame_skip, self.stack, self.screen, self.max_episode_frames, self.noop_max)
        if min(numbers[:-1]) < 1 or self.noop_max < 0 or max(numbers) >= 2**31:
            raise ValueError(
                "Atari's frame_skip, stack, screen and max_episode_frames must be positive, and noop_max not negative, "
                f"all below 2^31; got {self}."
            )

    @property
    def name(self) -> str:
        """Name of the task, for run directories and score tables."""
        return self.game

    @property
    def frames_per_step(self) -> int:
        """Emulator frames per agent step."""
        return self.frame_skip

    def actions(self) -> list[str]:
        """What the actions mean, e.g. NOOP, FIRE, UP."""
        env = self.make_single()
        meanings = env.unwrapped.get_action_meanings()
        env.close()
        return meanings

    def make(self, num_envs: int):
        """Builds N games; observations are uint8 [N, stack, screen, screen]."""
        return AtariVectorEnv(
            ROMS[self.game],
            num_envs,
            max_num_frames_per_episode=self.max_episode_frames,
            repeat_action_probability=self.sticky,
            full_action_space=self.full_action_space,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=self.screen,
            img_width=self.screen,
            grayscale=True,
            stack_num=self.stack,
            frameskip=self.frame_skip,
            maxpool=True,
            noop_max=self.noop_max,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            use_fire_reset=False,
        )

    def make_single(self, render_mode: str | None = None) -> gymnasium.Env:
        """Builds one game by Gymnasium's wrappers: the same pixels as `make`, and the RGB screen by `render()`."""
        env = gymnasium.make(
            f"ALE/{self.game}-v5",
            frameskip=1,  # the wrapper below skips; v5 would skip four more
            repeat_action_probability=self.sticky,
            full_action_space=self.full_action_space,
            max_num_frames_per_episode=self.max_episode_frames,
            render_mode=render_mode,
        )
        env = AtariPreprocessing(
            env, noop_max=self.noop_max, frame_skip=self.frame_skip, screen_size=self.screen, grayscale_obs=True
        )
        return _Stack(env, self.stack)


@dataclasses.dataclass(frozen=True)
class Gymnasium:
    """Any Gymnasium environment with discrete actions and image or vector observations, by its id.

    Args:
      id: e.g. 'CartPole-v1', 'MinAtar/Breakout-v1', or 'my_module:MyEnv-v0', which imports my_module first.
      stack: observations in a state.
      kwargs: passed to `gymnasium.make`.
    """

    id: str
    stack: int = 1
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._refuse_atari(gymnasium.registry.get(self.id))

    def _refuse_atari(self, spec) -> None:
        """Raises ConfigError for what ALE has registered."""
        if spec is not None and str(spec.entry_point).startswith("ale_py."):
            game = rom_id_to_name(spec.kwargs["game"])
            raise ConfigError(f"{self.id} would get another protocol here; use --game {game}.")

    @property
    def name(self) -> str:
        """Name of the task, for run directories."""
        return task_name(self.id)

    @property
    def frames_per_step(self) -> int:
        """Frames per agent step."""
        return 1

    def make_single(self, render_mode: str | None = None) -> gymnasium.Env:
        """Builds one environment; observations are [stack, ...]."""
        if self.id.startswith("MinAtar/"):
            try:
                from minatar.gym import register_envs
            except ImportError as error:
                raise ConfigError(f"{self.id} needs the extra: pip install -e '.[minatar]'") from error
            if "MinAtar/Breakout-v1" not in gymnasium.registry:  # registering twice warns
                register_envs()
        try:
            render = {"render_mode": render_mode} if render_mode else {}
            env = gymnasium.make(self.id, disable_env_checker=True, **render, **self.kwargs)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(f"Cannot make the environment {self.id!r}: {error}") from error
        self._refuse_atari(env.spec)  # also by an id without a version, or with a module, which the registry lacks
        if self.id.startswith("MinAtar/"):
            env = _MinAtar(env)
        if not isinstance(env.action_space, gymnasium.spaces.Discrete) or env.action_space.start != 0:
            raise ConfigError(
                f"{self.id} has the action space {env.action_space}; only Discrete actions from 0 on can be trained."
            )
        if not isinstance(env.observation_space, gymnasium.spaces.Box):
            raise ConfigError(f"{self.id} has observations {env.observation_space}; only Box (arrays) can be trained.")
        return _Stack(env, self.stack)

    def make(self, num_envs: int):
        """Builds N environments, stepped one after the other; observations are [N, stack, ...]."""
        return _StepOnRecv([self.make_single] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


class _Stack(gymnasium.Wrapper):
    """Stacks the latest observations as the replay does: copies of them, and zeros before the first."""

    def __init__(self, env: gymnasium.Env, stack: int):
        super().__init__(env)
        space, zero = env.observation_space, env.observation_space.dtype.type(0)
        self._frames = np.zeros((stack, *space.shape), space.dtype)
        bounds = np.minimum(space.low, zero), np.maximum(space.high, zero)
        low, high = (np.broadcast_to(bound, self._frames.shape) for bound in bounds)
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype)

    def _push(self, observation) -> np.ndarray:
        if np.shape(observation) != self._frames.shape[1:]:
            raise ValueError(f"an observation has the shape {np.shape(observation)}, not {self._frames.shape[1:]}")
        self._frames[:-1] = self._frames[1:]
        np.copyto(self._frames[-1], observation, casting="same_kind")
        return self._frames.copy()

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames[:] = 0
        return self._push(observation), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        return self._push(observation), *rest


class _MinAtar(gymnasium.Wrapper):
    """Makes a game a function of its seed and the actions since: its last action, which may stick, outlasts a reset."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.unwrapped.game.last_action = 0
        return super().reset(seed=seed, options=options)


class _StepOnRecv(gymnasium.vector.SyncVectorEnv):
    """Gives Gymnasium's vector environment the two halves of a step that ALE's has."""

    def reset(self, *, seed=None, options=None):
        if isinstance(seed, np.ndarray):  # one per game that is reset; Gymnasium wants one for every game
            mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
            seeds = np.zeros(self.num_envs, np.int64)
            seeds[mask] = seed
            seed = seeds.tolist()
        return super().reset(seed=seed, options=options)

    def send(self, actions):
        self._sent = actions

    def recv(self):
        return self.step(self._sent)


def protocol(environment: Atari | Gymnasium) -> dict:
    """All settings of an environment, as manifests have them: with "environment", the name of its class."""
    return {"environment": type(environment).__name__, **dataclasses.asdict(environment)}


def game_of(protocol: dict) -> str:
    """Name of the task of an environment's settings, as its `name`; KeyError if they have none."""
    return task_name(str(protocol.get("game") or protocol["id"]))


def task_name(task: str) -> str:
    """What an id of Gymnasium, e.g. module:Space/Game-v0, is called in paths and tables; Atari's names are kept."""
    return task.rpartition(":")[2].replace("/", "-")


def seeds(num_envs: int, *entropy: int) -> np.ndarray:
    """Derives one seed per game [N] int32, unrelated between any two different `entropy` tuples."""
    # The length tells (1,) from (1, 0), which numpy pads to the same.
    return (np.random.SeedSequence((len(entropy), *entropy)).generate_state(num_envs) >> 1).astype(np.int32)
