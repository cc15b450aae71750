"""The learner: one gradient step, and the online step `update . sample` that runs K of them.

`update(state, batch) -> (state, items, metrics)` is the unit that all data sources share: the online loop feeds
it from the replay, other domains feed it batches of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec


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
        if self.num_devices < 1 or self.batch_size % self.num_devices:
            raise ValueError(
                f"Learner.batch_size is {self.batch_size}; {self.num_devices} devices cannot share it equally. "
                "Pass another --mesh data=N."
            )

    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices that share each batch, along the axis "data"; None for one device.

        Raises:
          ValueError: if the host has fewer.
        """
        devices = jax.local_devices()
        if self.num_devices > len(devices):
            raise ValueError(f"--mesh data={self.num_devices} asks for more devices than there are: {len(devices)}.")
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
        params = optax.apply_updates(state.params, changes)
        updates = state.updates + 1
        target_params = optax.periodic_update(params, state.target_params, updates, target_period)
        metrics = {
            **{name: jnp.average(item, weights=batch.weight) for name, item in items.items()},
            "weight": jnp.mean(batch.weight),
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(params, target_params, opt_state, key, updates), items, metrics

    return update


def spread(mesh: jax.sharding.Mesh, tree):
    """Copies arrays to every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def gather(mesh: jax.sharding.Mesh, tree):
    """Brings arrays to the first device of a mesh. They share its memory: use them before the originals are donated."""
    return jax.device_put(tree, mesh.devices.flat[0])


def make_step(update, sample, update_priorities, num_updates: int, mesh: jax.sharding.Mesh | None = None):
    """Returns `step(state, replay_state, sums) -> (state, replay_state, sums)`, compiled.

    It runs num_updates times sample, update, and the new priorities. `state` and the priorities are donated. `sums` is
    a dict of metrics added up over updates on the device, so that nothing is fetched in between; its entry "updates"
    counts them. Pass `{}` to start a new sum.

    Args:
      update: from `make_update`.
      sample: `sample(replay_state, key) -> (batch, index)`.
      update_priorities: `update_priorities(priorities, index, items) -> priorities`.
      num_updates: K.
      mesh: devices that share each batch. The state is then on all of them (`spread`), the replay on the first one.
    """

    def counted(state, batch):
        state, items, metrics = update(state, batch)
        return state, items, {**metrics, "updates": jnp.float32(1)}

    def one(state, priorities, ring):  # `ring` is the replay's state but for the priorities: frames are never copied
        key, sample_key = jax.random.split(state.key)
        # The barrier keeps XLA from fusing the gather of frames into the first convolution (36x slower on a CPU).
        batch, index = jax.lax.optimization_barrier(sample(ring._replace(priorities=priorities), sample_key))
        state, items, metrics = counted(state._replace(key=key), batch)
        return state, update_priorities(priorities, index, items), metrics

    def scan(state, priorities, ring):
        def body(carry, _):
            *carry, metrics = one(*carry, ring)
            return carry, metrics

        (state, priorities), metrics = jax.lax.scan(body, [state, priorities], length=num_updates)
        return state, priorities, jax.tree.map(jnp.sum, metrics)

    # XLA:CPU runs convolutions inside a loop 10 times slower, and a call costs it next to nothing.
    in_calls = mesh is not None or jax.default_backend() == "cpu"
    if mesh is None:
        compiled = jax.jit(one if in_calls else scan, donate_argnums=(0, 1))
    else:
        compiled = _split(counted, sample, update_priorities, mesh)
    add = jax.jit(lambda sums, metrics: jax.tree.map(jnp.add, sums, metrics), donate_argnums=0)

    def step(state, replay_state, sums):
        priorities, ring = replay_state.priorities, replay_state._replace(priorities=None)
        for _ in range(num_updates if in_calls else 1):
            state, priorities, metrics = compiled(state, priorities, ring)
            sums = add(sums, metrics) if sums else metrics
        return state, ring._replace(priorities=priorities), sums

    return step


def _split(update, sample, update_priorities, mesh):
    """`one` of `make_step` for a mesh: sampled on the first device, learned from on all, each its part of the batch."""
    everywhere, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    split_key = jax.jit(jax.random.split)
    draw = jax.jit(lambda priorities, ring, key: sample(ring._replace(priorities=priorities), key))
    learn = jax.jit(update, donate_argnums=0, out_shardings=(everywhere, parts, everywhere))
    prioritise = jax.jit(update_priorities, donate_argnums=0)

    def one(state, priorities, ring):
        key, sample_key = split_key(state.key)
        batch, index = draw(priorities, ring, gather(mesh, sample_key))
        state, items, metrics = learn(state._replace(key=key), jax.device_put(batch, parts))
        priorities = prioritise(priorities, index, gather(mesh, items))
        return state, priorities, metrics

    return one


def make_diagnose(agent, network, head, sample, num_batches: int):
    """Returns `diagnose(state, replay_state, key) -> (metrics, targets)` on several batches, B states in all.

    The metrics are the paper's motive for classification. Of the features [B, d] of the online network:
    `dormant_units`, the fraction of units whose mean activation is below 0.025 of the layer's mean (Sokar et al. 2023,
    https://arxiv.org/abs/2302.12902), and `effective_rank`, the number of singular values that carry 99 % of their sum
    (Kumar et al. 2021, https://arxiv.org/abs/2010.14498). Then what the network itself sows in its collection
    "diagnostics", each entry of a vector by its number. `targets` are the scalar TD targets [B].
    """

    @jax.jit
    def look(state, replay_state, key):
        sample_key, loss_key = jax.random.split(key)
        batch, _ = jax.lax.optimization_barrier(sample(replay_state, sample_key))
        (_, features), sown = network.apply(state.params, batch.s_tm1, mutable=["diagnostics"])
        _, items = agent.loss(network, head, state.params, state.target_params, batch, loss_key)
        return features.astype(jnp.float32), items["target"], sown.get("diagnostics", {})

    @jax.jit
    def measure(features):
        activity = jnp.mean(jnp.abs(features), axis=0)
        singular_values = jnp.linalg.svd(features, compute_uv=False)
        carried = jnp.cumsum(singular_values) / jnp.sum(singular_values)
        return {
            "dormant_units": jnp.mean(activity <= 0.025 * jnp.mean(activity)),
            "effective_rank": 1 + jnp.sum(carried < 0.99),
        }

    def diagnose(state, replay_state, key):
        looks = [look(state, replay_state, key) for key in jax.random.split(key, num_batches)]
        features, targets, sown = zip(*looks, strict=True)
        metrics = measure(jnp.concatenate(features))
        for path, value in flatten_dict(jax.tree.map(lambda *values: sum(values) / num_batches, *sown)).items():
            single = {path[-1]: value} if value.ndim == 0 else {f"{path[-1]}_{i}": x for i, x in enumerate(value)}
            metrics.update(single)
        return metrics, jnp.concatenate(targets)

    return diagnose
