"""A trained policy: load a run and act."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from safetensors.numpy import save

from agents import config
from agents.checkpoint import checkpoints, newest
from agents.experiment import Experiment


@dataclasses.dataclass
class Policy:
    """A trained agent that can act.

    Attributes:
      experiment: the run's settings, with its environment.
      network: the Q-network.
      params: its parameters.
      agent_steps: agent steps of training behind them.
      head: the value head.
      act: compiled function `act(params, observation, key, epsilon, noise) -> actions [N]`.
    """

    experiment: Experiment
    network: Any
    params: Any
    agent_steps: int

    def __post_init__(self):
        agent, head = self.experiment.agent, self.experiment.head
        self.head = head
        self.act = jax.jit(partial(agent.act, self.network, head), static_argnames="noise")
        self._logits = jax.jit(lambda params, observation: self.network.apply(params, observation)[0])
        self._key = jax.random.key(0)

    def __call__(self, observation, epsilon: float = 0.0) -> np.ndarray:
        """Chooses actions [N] for observations [N, stack, ...]."""
        self._key, key = jax.random.split(self._key)
        return np.asarray(self.act(self.params, observation, key, epsilon, noise=False))

    def export(self, path) -> None:
        """Writes the parameters to a safetensors file, named like 'torso/Conv_0/kernel'.

        Raises:
          OSError: if it cannot be written.
        """
        flat = flax.traverse_util.flatten_dict(self.params["params"], sep="/")
        Path(path).write_bytes(save({name: np.asarray(value) for name, value in flat.items()}))

    def logits(self, observation) -> np.ndarray:
        """Returns the head's logits [N, A, m] for observations [N, stack, ...]."""
        return np.asarray(self._logits(self.params, observation))


def load(run_dir, allow_import=()) -> Policy:
    """Loads the newest intact checkpoint of a run. Nothing that is in the directory is executed.

    Args:
      run_dir: the run directory.
      allow_import: packages that its config may import, e.g. with an environment of one's own.

    Raises:
      ConfigError: if its config names anything else.
      FileNotFoundError: if `run_dir` is no run directory, or has no checkpoint.
    """
    path = Path(run_dir)
    if not (path / "config.gin").is_file():
        raise FileNotFoundError(f"{run_dir} is not a run directory: it has no config.gin.")
    checkpoint = newest(path, verified=True)
    if checkpoint is None:
        damaged = checkpoints(path)
        raise FileNotFoundError(f"{run_dir} has no {'intact checkpoint' if damaged else 'checkpoint yet'}.")
    experiment = config.load([path / "config.gin"], allow_import=allow_import).experiment
    network, observation = experiment.build_network()
    params = jax.eval_shape(network.init, jax.random.key(0), observation)
    return Policy(experiment, network, checkpoint.restore("learner/params", params), checkpoint.agent_steps)
