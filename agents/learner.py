"""The learner: one gradient step.

`update(state, batch) -> (state, items, metrics)` knows nothing of where a batch comes from; `agents/step.py` feeds it
from the replay, online and offline.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.errors import ConfigError


class TrainState(NamedTuple):
    """All that training changes."""

    params: Any  # {"params": {"torso": ..., "head": ...}}
    target_params: Any
    opt_state: Any
    key: jax.Array
    updates: jax.Array  # int32, gradient steps so far


@dataclasses.dataclass(frozen=True)
class Learner:
    """Settings of the optimisation.

    Args:
      optimizer: an optax optimizer.
      batch_size: transitions per update.
      target_period_steps: agent steps between copies of the parameters to the target network, the first one so long
        after the first update. (Dopamine's first copy is at a multiple of the period: 24,000 steps, not 28,000.)
      max_grad_norm: clips the gradient to this global norm; None does not.
      num_devices: devices of this host that share each batch; the replay lies on the first of them.
    """

    optimizer: optax.GradientTransformation
    batch_size: int = 32
    target_period_steps: int = 8_000
    max_grad_norm: float | None = None
    num_devices: int = 1

    def __post_init__(self):
        if self.batch_size < 1 or self.target_period_steps < 1:
            raise ValueError(
                f"Learner.batch_size and .target_period_steps must be positive; got {self.batch_size} and "
                f"{self.target_period_steps}."
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"Learner.max_grad_norm must be positive, or None; got {self.max_grad_norm}.")
        if self.num_devices < 1 or self.batch_size % self.num_devices:
            raise ValueError(
                f"Learner.batch_size is {self.batch_size}; {self.num_devices} devices cannot share it equally. "
                "Pass another --mesh data=N."
            )

    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices that share each batch, along the axis "data"; None for one device.

        Raises:
          ConfigError: if the host has fewer.
        """
        devices = jax.local_devices()
        if self.num_devices > len(devices):
            raise ConfigError(f"--mesh data={self.num_devices} asks for more devices than there are: {len(devices)}.")
        return jax.sharding.Mesh(np.array(devices[: self.num_devices]), "data") if self.num_devices > 1 else None

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer, after gradient clipping if there is any."""
        if self.max_grad_norm is None:
            return self.optimizer
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), self.optimizer)

    def init(self, network, key, observation) -> TrainState:
        """Initialises parameters and optimizer for observations [1, stack, ...]."""
        init_key, key = jax.random.split(key)
        params = network.init(init_key, observation)
        target_params = jax.tree.map(jnp.copy, params)  # a donated state must not hold one buffer twice
        return TrainState(params, target_params, self.transformation().init(params), key, jnp.int32(0))


def make_update(learner: Learner, agent, network, head, replay_ratio: float):
    """Returns `update(state, batch) -> (state, items, metrics)`, to be jitted by the caller.

    `items` is a dict of what each item gave, [B]: its loss and the agent's diagnostics. `metrics` are scalars, among
    them the means of the items by their weights.

    Args:
      learner: settings.
      agent: gives the loss of each transition.
      network: the Q-network.
      head: its value head.
      replay_ratio: updates per agent step; converts the target period to updates.
    """
    transformation = learner.transformation()
    target_period = max(1, round(learner.target_period_steps * replay_ratio))

    def mean_loss(params, target_params, batch, key):
        losses, diagnostics = agent.loss(network, head, params, target_params, batch, key)
        return jnp.mean(batch.weight * losses), {"loss": losses, **diagnostics}

    def update(state: TrainState, batch):
        key, loss_key = jax.random.split(state.key)
        grads, items = jax.grad(mean_loss, has_aux=True)(state.params, state.target_params, batch, loss_key)
        changes, opt_state = transformation.update(grads, state.opt_state, state.params)
        if getattr(network, "freeze_torso", False):
            # Its gradients are zero, of which an optimizer may make something, e.g. weight decay.
            kept = {**changes["params"], "torso": jax.tree.map(jnp.zeros_like, changes["params"]["torso"])}
            changes = {**changes, "params": kept}
        params = optax.apply_updates(state.params, changes)
        updates = state.updates + 1
        target_params = _copied(params, state.target_params, updates % target_period == 0)
        # Of a batch without any transition, which is of weight 0, there is nothing to tell.
        share = batch.weight / jnp.maximum(jnp.sum(batch.weight), jnp.finfo(jnp.float32).tiny)
        metrics = {
            **{name: jnp.sum(share * item) for name, item in items.items()},
            "weight": jnp.mean(batch.weight),
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(params, target_params, opt_state, key, updates), items, metrics

    return update


def _copied(params, target_params, is_due):
    """Returns the parameters if a copy of them is due, else the target's."""
    if jax.default_backend() == "cpu":
        return jax.lax.cond(is_due, lambda: params, lambda: target_params)
    # A GPU takes longer to ask the host which branch to take than to read both.
    return jax.tree.map(partial(jnp.where, is_due), params, target_params)
