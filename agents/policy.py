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

from agents.checkpointing.checkpoint import checkpoints, named
from agents.configuration import config
from agents.experiment import Experiment


@dataclasses.dataclass
class Policy:
    """A trained agent that can act.

    Attributes:
      experiment: the run's settings, with its environment.
      network: the Q-network.
      params: its parameters.
      agent_steps: agent steps of training behind them.
      run_dir: the run they are from, if any.
      head: the value head.
      act: compiled function `act(params, observation, key, epsilon, noise) -> actions [N]`.
    """

    experiment: Experiment
    network: Any
    params: Any
    agent_steps: int
    run_dir: Path | None = None

    def __post_init__(self):
        agent, head = self.experiment.agent, self.experiment.head
        self.head = head
        self.act = jax.jit(partial(agent.act, self.network, head), static_argnames="noise")
        self._logits = jax.jit(lambda params, observation: self.network.apply(params, observation)[0])
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Begins its exploration anew."""
        self._key = jax.random.key(seed)

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


def load(path, allow_import=()) -> Policy:
    """Loads the newest intact checkpoint of a run, or the one that is named. Nothing in the directory is executed.

    Args:
      path: the run directory, or `<run directory>/checkpoints/<steps>`.
      allow_import: packages that its config may import, e.g. with an environment of one's own.

    Raises:
      ConfigError: if its config names anything else.
      FileNotFoundError: if there is no run directory, or it has no checkpoint.
      replay.files.DamagedError: if the checkpoint that is named is not there, or not as it was written.
    """
    run_dir, checkpoint = named(path)
    if not (run_dir / "config.gin").is_file():
        raise FileNotFoundError(f"{run_dir} is not a run directory: it has no config.gin.")
    if checkpoint is None:
        damaged = checkpoints(run_dir)
        raise FileNotFoundError(f"{run_dir} has no {'intact checkpoint' if damaged else 'checkpoint yet'}.")
    experiment = config.load([run_dir / "config.gin"], allow_import=allow_import).experiment
    network, observation = experiment.build_network()
    params = jax.eval_shape(network.init, jax.random.key(0), observation)
    params = checkpoint.restore("learner/params", params)
    return Policy(experiment, network, params, checkpoint.agent_steps, run_dir)
