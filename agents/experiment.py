"""An experiment: every part of a run and its schedule, in agent steps. Gin fills it in; `agents/loop.py` runs it.

One agent step is one action of one game; on Atari it is four emulator frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from agents import launch
from agents.dataset import Dataset
from agents.dqn import DQN
from agents.environments import Atari, Gymnasium
from agents.errors import ConfigError, plain
from agents.learner import Learner
from networks.value_heads import ValueHead
from replay.ring import Replay
from replay.samplers import Uniform

OFFLINE_UPDATES_PER_CALL = 10  # an accelerator would idle between single ones


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings of a run.

    Args:
      environment: `environments.Atari` or `environments.Gymnasium`.
      agent: e.g. `dqn.DQN`.
      head: a value head.
      network: factory `network(num_actions=..., num_logits=...)`, e.g. `q_network.QNetwork`.
      learner: `learner.Learner`.
      replay: `ring.Replay`.
      dataset: `dataset.Dataset` to learn from offline, instead of games. Wherever agent steps are counted, updates are
        then, one for each; the games are for evaluations alone.
      total_steps: agent steps in the run, over all games.
      torso_from: run directory, or one of its checkpoints, whose torso is taken over and frozen, so that only the
        last layer is trained: the linear probe of Section 5.2.2.
      seed: determines initial parameters, games, exploration and sampling.
      num_envs: games stepped in parallel; 0 chooses by the machine.
      overlap: steps the games while the learner computes. Updates then come exactly one step of all games later than
        without. Without it, an update is made between storing a step and choosing the next action.
      warmup_steps: agent steps before the first update; epsilon is `DQN.epsilon_initial` until then.
      replay_ratio: updates per agent step.
      reseed_every_steps: agent steps between new seeds of the games, at the next end of an episode. To resume, the
        games are played again from their last seeds.
      log_every_steps: agent steps between log points.
      diagnose_every_steps: agent steps between measurements of the features (dormant units, rank).
      checkpoint_every_steps: agent steps between checkpoints; one is also written at the end and on SIGINT or SIGTERM.
      log_replay: keeps every transition of the run on disk (`replay/log.py`), not only those that the replay holds.
      eval_every_steps: agent steps between evaluations; 0 evaluates at the end only.
      eval_episodes: episodes per evaluation.
    """

    environment: Atari | Gymnasium
    agent: DQN
    head: ValueHead
    network: Callable[..., Any]
    learner: Learner
    replay: Replay
    total_steps: int
    dataset: Dataset | None = None
    torso_from: str | None = None
    seed: int = 0
    num_envs: int = 1
    overlap: bool = False
    warmup_steps: int = 20_000
    replay_ratio: float = 0.25
    reseed_every_steps: int = 250_000
    log_every_steps: int = 2_000
    diagnose_every_steps: int = 50_000
    checkpoint_every_steps: int = 250_000
    log_replay: bool = False
    eval_every_steps: int = 0
    eval_episodes: int = 10

    def __post_init__(self):
        if self.num_envs == 0:
            object.__setattr__(self, "num_envs", default_num_envs())
        every = ("reseed_every_steps", "log_every_steps", "diagnose_every_steps", "checkpoint_every_steps")
        for name in ("total_steps", "num_envs", *every, "eval_episodes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Experiment.{name} must be positive; got {getattr(self, name)}.")
        if self.total_steps >= 2**31:  # which 32 bits count
            raise ValueError(f"Experiment.total_steps must be below 2^31; got {self.total_steps}.")
        if self.eval_episodes > 1_000_000:
            raise ValueError(f"Experiment.eval_episodes is at most 1,000,000; got {self.eval_episodes}.")
        if self.seed >= 2**32:
            raise ValueError(f"Experiment.seed must be below 2^32; got {self.seed}.")
        for name in ("seed", "eval_every_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"Experiment.{name} must not be negative; got {getattr(self, name)}.")
        if self.replay.capacity < self.learner.batch_size:
            raise ValueError(
                f"The replay's capacity ({self.replay.capacity}) is smaller than Learner.batch_size "
                f"({self.learner.batch_size}). Raise --replay_capacity."
            )
        if self.dataset is None:
            self._check_games()
        else:
            self._check_dataset()

    def _check_dataset(self) -> None:
        """Raises ValueError for settings that are of no use without games to train in."""
        games = {"num_envs": 1, "overlap": False, "warmup_steps": 0, "replay_ratio": 1.0}
        games |= {"reseed_every_steps": Experiment.reseed_every_steps}
        used = [f"Experiment.{name}" for name, value in games.items() if getattr(self, name) != value]
        exploration = ("epsilon_initial", "epsilon_train", "epsilon_decay_steps")
        used += [f"DQN.{name}" for name in exploration if getattr(self.agent, name)]
        used += ["Experiment.log_replay"] if self.log_replay else []
        if used:
            raise ValueError(
                f"A data set is learned from without playing: {', '.join(used)} would have no effect. Leave out what "
                "sets it, e.g. --num_envs; configs/cql.gin has the values that stand for none."
            )
        if self.total_steps % OFFLINE_UPDATES_PER_CALL:
            raise ValueError(
                f"An offline run makes {OFFLINE_UPDATES_PER_CALL} updates at a time: --updates is a multiple of that; "
                f"got {self.total_steps}."
            )
        minimum = self.agent.n_step + self.environment.stack + 2
        if self.replay.capacity < minimum:
            raise ValueError(
                f"The replay's capacity ({self.replay.capacity}) is below {minimum}. Raise --replay_capacity."
            )
        if type(self.replay.sampler) is not Uniform:
            raise ValueError(f"Transitions of a data set are drawn alike; Replay.sampler is {self.replay.sampler}.")

    def _check_games(self) -> None:
        """Raises ValueError for a schedule that cannot be kept."""
        if self.agent.target == "monte_carlo":
            raise ValueError("DQN.target = 'monte_carlo' needs whole episodes: it is for data sets, --agent cql.")
        if not self.replay_ratio > 0 or abs(self._ratio - self.replay_ratio) > 1e-6 * self.replay_ratio:
            raise ValueError(
                "Experiment.replay_ratio must be positive and a fraction of whole numbers up to 1000, e.g. 0.25; "
                f"got {self.replay_ratio}."
            )
        if (self.learner.target_period_steps * self._ratio).denominator != 1:
            raise ValueError(
                f"Learner.target_period_steps is {self.learner.target_period_steps}; at {self.replay_ratio} updates "
                f"per agent step it must be a multiple of {self._ratio.denominator}."
            )
        per_step = self.updates_per_vector_step
        if per_step.denominator != 1 and per_step.numerator != 1:
            raise ValueError(
                f"{self.num_envs} games at {self.replay_ratio} updates per agent step make {per_step} updates per step "
                "of all games: neither a whole number nor one every whole number of steps. Use --num_envs "
                f"{self._ratio.denominator} or a multiple{' or a divisor' * (self._ratio.numerator == 1)} of it."
            )
        learning_ends = self.total_steps - self.num_envs * self.overlap
        if self.updates_due(learning_ends) < self.updates_per_call:
            raise ValueError(
                f"The run has {self.total_steps:,} agent steps, of {self.num_envs:,} games together, and a warm-up of "
                f"{self.warmup_steps:,}: nothing would be learned. Raise --steps (or --frames) or lower --warmup_steps "
                "or --num_envs."
            )
        minimum = (self.agent.n_step + self.environment.stack + 2) * self.num_envs
        if self.warmup_steps < minimum:
            raise ValueError(
                f"Experiment.warmup_steps is {self.warmup_steps}; sampling {self.agent.n_step}-step transitions from "
                f"{self.num_envs} games needs at least {minimum}."
            )
        if self.replay.capacity < self.warmup_steps:
            raise ValueError(
                f"The replay's capacity ({self.replay.capacity}) is smaller than Experiment.warmup_steps "
                f"({self.warmup_steps}) and could not hold it. Raise --replay_capacity or lower --warmup_steps."
            )

    def build_network(self):
        """Builds the Q-network for the environment; returns it with an observation [1, stack, ...] of zeros.

        Raises:
          ConfigError: if the environment cannot be made, or its network has no torso to freeze.
        """
        try:
            env = self.environment.make_single()  # for its spaces
        except ConfigError:
            raise
        except Exception as error:  # whatever emulators and wrappers raise
            raise ConfigError(f"Cannot make {self.environment}: {type(error).__name__}: {plain(error)}") from error
        network = self.network(num_actions=int(env.action_space.n), num_logits=self.head.num_logits)
        if self.torso_from is not None:
            if not hasattr(network, "freeze_torso"):
                raise ConfigError(f"--freeze_torso needs a QNetwork; Experiment.network is {type(network).__name__}.")
            network = network.clone(freeze_torso=True)
        observation = np.zeros((1, *env.observation_space.shape), env.observation_space.dtype)
        env.close()
        return network, observation

    @property
    def unit(self) -> str:
        """What is counted."""
        return "agent steps" if self.dataset is None else "updates"

    @property
    def frames_per_step(self) -> int | None:
        """Emulator frames per agent step; None offline."""
        return self.environment.frames_per_step if self.dataset is None else None

    @property
    def _ratio(self) -> Fraction:
        return Fraction(self.replay_ratio).limit_denominator(1000)

    @property
    def updates_per_vector_step(self) -> Fraction:
        """Updates due per step of all games."""
        return self.num_envs * self._ratio

    @property
    def updates_per_call(self) -> int:
        """Updates in one compiled call: those of one step of all games, at least one; offline ten."""
        if self.dataset is not None:
            return OFFLINE_UPDATES_PER_CALL
        return max(1, int(self.updates_per_vector_step))

    def updates_due(self, agent_steps: int) -> int:
        """Updates that must have been made after `agent_steps`."""
        return max(0, int((agent_steps - self.warmup_steps) * self._ratio))


def default_num_envs() -> int:
    """Games for this machine: four per core, a power of two from 8 to 64."""
    return min(64, max(8, 1 << (4 * launch.cores() - 1).bit_length()))
