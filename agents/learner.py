"""The learner: one gradient step, and the online step `update . sample` that runs K of them.

`update(state, batch) -> (state, per_item_loss, metrics)` is the unit that all data sources share: the online loop feeds
it from the replay, other domains feed it batches of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


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
      target_period_steps: agent steps between copies of the parameters to the target network.
      max_grad_norm: clips the gradient to this global norm; None does not.
    """

    optimizer: optax.GradientTransformation
    batch_size: int = 32
    target_period_steps: int = 8_000
    max_grad_norm: float | None = None

    def __post_init__(self):
        if self.batch_size < 1 or self.target_period_steps < 1:
            raise ValueError(
                f"Learner.batch_size and .target_period_steps must be positive; got {self.batch_size} and "
                f"{self.target_period_steps}."
            )

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
    """Returns `update(state, batch) -> (state, per_item_loss [B], metrics)`, to be jitted by the caller.

    Args:
      learner: settings.
      agent: gives the loss of each transition.
      network: the Q-network.
      head: its value head.
      replay_ratio: updates per agent step; converts the target period to updates.
    """
    transformation = learner.transformation()
    target_period = max(1, round(learner.target_period_steps * replay_ratio))

    def mean_loss(params, target_params, batch):
        losses, diagnostics = agent.loss(network, head, params, target_params, batch)
        return jnp.mean(batch.weight * losses), (losses, diagnostics)

    def update(state: TrainState, batch):
        grads, (losses, diagnostics) = jax.grad(mean_loss, has_aux=True)(state.params, state.target_params, batch)
        changes, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        updates = state.updates + 1
        target_params = optax.periodic_update(params, state.target_params, updates, target_period)
        metrics = {
            "loss": jnp.mean(batch.weight * losses),
            "grad_norm": optax.tree.norm(grads),
            **jax.tree.map(jnp.mean, diagnostics),
        }
        return TrainState(params, target_params, opt_state, state.key, updates), losses, metrics

    return update


def make_step(update, sample, num_updates: int):
    """Returns `step(state, replay_state, sums) -> (state, sums)`: num_updates times sample and update, compiled.

    `sums` is a dict of metrics added up over updates on the device, so that nothing is fetched in between; its entry
    "updates" counts them. Pass `{}` to start a new sum.

    Args:
      update: from `make_update`.
      sample: `sample(replay_state, key) -> batch`.
      num_updates: K.
    """

    def one(state, replay_state):
        key, sample_key = jax.random.split(state.key)
        # The barrier keeps XLA from fusing the gather of frames into the first convolution (36x slower on a CPU).
        batch = jax.lax.optimization_barrier(sample(replay_state, sample_key))
        state, _, metrics = update(state._replace(key=key), batch)
        return state, {**metrics, "updates": jnp.float32(1)}

    def scan(state, replay_state):
        state, metrics = jax.lax.scan(lambda state, _: one(state, replay_state), state, length=num_updates)
        return state, jax.tree.map(jnp.sum, metrics)

    # XLA:CPU runs convolutions inside a loop 10 times slower, and a call costs it next to nothing.
    in_calls = jax.default_backend() == "cpu"
    compiled = jax.jit(one if in_calls else scan, donate_argnums=0)
    add = jax.jit(lambda sums, metrics: jax.tree.map(jnp.add, sums, metrics), donate_argnums=0)

    def step(state, replay_state, sums):
        for _ in range(num_updates if in_calls else 1):
            state, metrics = compiled(state, replay_state)
            sums = add(sums, metrics) if sums else metrics
        return state, sums

    return step


def make_diagnose(agent, network, head, sample):
    """Returns a compiled `diagnose(state, replay_state, key) -> (metrics, targets)` on one large batch.

    The metrics are the paper's motive for classification. Of the features [B, d] of the online network:
    `dormant_units`, the fraction of units whose mean activation is below 0.025 of the layer's mean (Sokar et al. 2023,
    https://arxiv.org/abs/2302.12902), and `effective_rank`, the number of singular values that carry 99 % of their sum
    (Kumar et al. 2021, https://arxiv.org/abs/2010.14498). `targets` are the scalar TD targets [B].
    """

    @jax.jit
    def diagnose(state, replay_state, key):
        batch = jax.lax.optimization_barrier(sample(replay_state, key))
        _, features = network.apply(state.params, batch.s_tm1)
        _, diagnostics = agent.loss(network, head, state.params, state.target_params, batch)
        features = features.astype(jnp.float32)
        activity = jnp.mean(jnp.abs(features), axis=0)
        singular_values = jnp.linalg.svd(features, compute_uv=False)
        carried = jnp.cumsum(singular_values) / jnp.sum(singular_values)
        return {
            "dormant_units": jnp.mean(activity <= 0.025 * jnp.mean(activity)),
            "effective_rank": 1 + jnp.sum(carried < 0.99),
        }, diagnostics["target"]

    return diagnose
