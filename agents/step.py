"""The training step: sample from the replay, update, set new priorities, K times in one compiled call.

For one seed, for several seeds at once, and for one seed on several devices.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from networks.layers import convolve_by_product


def make_step(update, sample, update_priorities, num_updates: int, mesh: jax.sharding.Mesh | None = None):
    """Returns `step(states, replay_states, sums) -> (states, replay_states, sums)`, compiled; all are lists over seeds.

    It runs num_updates times sample, update, and the new priorities. The states and the priorities are donated. A sum
    is a dict of metrics added up over updates on the device, so that nothing is fetched in between; its entry "updates"
    counts them. Pass `{}` to start a new one. Each seed draws from its own replay by its own random numbers, as it
    would alone; the updates of several are one batched computation (`vmap`), which fills an accelerator better. The
    entry "not_finite" is no sum but tells of the first batch whose loss or gradient was not: `found`, its `index` in
    the replay and `weight` [B], and the number of its `update`.

    Args:
      update: from `make_update`.
      sample: `sample(replay_state, key) -> (batch, index)`.
      update_priorities: `update_priorities(priorities, index, items) -> priorities`.
      num_updates: K.
      mesh: devices that share each batch of a single seed. Its state is then on all of them (`spread`), the replay on
        the first one.
    """

    def counted(state, batch):
        state, items, metrics = update(state, batch)
        return state, items, {**metrics, "updates": jnp.float32(1)}

    on_cpu = jax.default_backend() == "cpu"
    # XLA:CPU runs convolutions inside a loop 10 times slower, and a call costs it next to nothing.
    in_calls = mesh is not None or on_cpu

    if mesh is None:
        times = 1 if in_calls else num_updates
        one = _repeat(_one(counted, sample, update_priorities), times, _total)
        batched = counted if on_cpu else nn.intercept_methods(convolve_by_product)(counted)
        several = _repeat(_several(batched, sample, update_priorities), times, jax.vmap(_total, in_axes=1))

        @partial(jax.jit, donate_argnums=(0, 1))
        def run(states, priorities, rings):
            if len(states) == 1:
                return [[result] for result in one(*states, *priorities, *rings)]
            state, priorities, metrics = several(_stack(states), priorities, rings)
            return _unstack(state, len(states)), priorities, _unstack(metrics, len(states))

    else:
        split = _split(counted, sample, update_priorities, mesh)
        run = lambda states, priorities, rings: [[result] for result in split(*states, *priorities, *rings)]
    add = jax.jit(_add, donate_argnums=0)

    def step(states, replay_states, sums):
        states = list(states)  # as `run` returns them: of a tuple it would be traced, and compiled, once more
        priorities = [replay_state.priorities for replay_state in replay_states]
        rings = [replay_state._replace(priorities=None) for replay_state in replay_states]  # frames are never copied
        for _ in range(num_updates if in_calls else 1):
            states, priorities, metrics = run(states, priorities, rings)
            sums = [add(old, new) if old else new for old, new in zip(sums, metrics, strict=True)]
        return states, [ring._replace(priorities=own) for ring, own in zip(rings, priorities, strict=True)], sums

    return step


def _one(update, sample, update_priorities):
    """One update of one seed. Here and below `ring` is the replay's state without the priorities."""

    def one(state, priorities, ring):
        key, sample_key = jax.random.split(state.key)
        # The barrier keeps XLA from fusing the gather of frames into the first convolution (36x slower on a CPU).
        batch, index = jax.lax.optimization_barrier(sample(ring._replace(priorities=priorities), sample_key))
        state, items, metrics = update(state._replace(key=key), batch)
        return state, update_priorities(priorities, index, items), _watch(metrics, batch, index, state.updates)

    return one


def _several(update, sample, update_priorities):
    """One update of several seeds: the leaves of `state` are [seeds, ...], priorities and rings are lists."""

    def several(state, priorities, rings):
        keys = jax.vmap(jax.random.split)(state.key)  # [seeds, 2]
        replay_states = [ring._replace(priorities=own) for ring, own in zip(rings, priorities, strict=True)]
        draws = [sample(replay_state, key) for replay_state, key in zip(replay_states, keys[:, 1], strict=True)]
        batches, indices = zip(*jax.lax.optimization_barrier(draws), strict=True)
        batch = _stack(batches)
        state, items, metrics = jax.vmap(update)(state._replace(key=keys[:, 0]), batch)
        metrics = jax.vmap(_watch)(metrics, batch, jnp.stack(indices), state.updates)
        updated = zip(priorities, indices, _unstack(items, len(rings)), strict=True)
        return state, [update_priorities(*of_one) for of_one in updated], metrics

    return several


def _repeat(one, times: int, total):
    """`one`, a number of times; `total` sums its metrics up."""

    def scan(state, priorities, ring):
        def body(carry, _):
            *carry, metrics = one(*carry, ring)
            return carry, metrics

        (state, priorities), metrics = jax.lax.scan(body, [state, priorities], length=times)
        return state, priorities, total(metrics)

    return one if times == 1 else scan


def _watch(metrics, batch, index, updates):
    """Adds which batch it was, and whether something in it was not finite."""
    found = ~(jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"]))
    not_finite = {"found": found, "index": index, "weight": batch.weight, "update": updates}
    return {**metrics, "not_finite": not_finite}


def _add(sums, metrics):
    """Adds metrics up; of what is not finite, the first is kept."""
    sums, metrics = dict(sums), dict(metrics)
    old, new = sums.pop("not_finite"), metrics.pop("not_finite")
    first = jax.tree.map(partial(jnp.where, old["found"] | ~new["found"]), old, new)
    return {**jax.tree.map(jnp.add, sums, metrics), "not_finite": first}


def _total(metrics):
    """The same, for metrics of several updates [K, ...]."""
    metrics = dict(metrics)
    not_finite = metrics.pop("not_finite")
    first = jax.tree.map(lambda leaf: leaf[jnp.argmax(not_finite["found"])], not_finite)
    return {**jax.tree.map(partial(jnp.sum, axis=0), metrics), "not_finite": first}


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree, number: int):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(number)]


def _split(update, sample, update_priorities, mesh):
    """One update of one seed: sampled on the first device, learned from on all, each its part of the batch."""
    everywhere, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    split_key = jax.jit(jax.random.split)
    draw = jax.jit(lambda priorities, ring, key: sample(ring._replace(priorities=priorities), key))
    learn = jax.jit(update, donate_argnums=0, out_shardings=(everywhere, parts, everywhere))
    prioritise = jax.jit(update_priorities, donate_argnums=0)
    watch = jax.jit(_watch)

    def one(state, priorities, ring):
        key, sample_key = split_key(state.key)
        batch, index = draw(priorities, ring, gather(mesh, sample_key))
        state, items, metrics = learn(state._replace(key=key), jax.device_put(batch, parts))
        items, metrics, updates = gather(mesh, (items, metrics, state.updates))
        metrics = watch(metrics, batch, index, updates)
        return state, prioritise(priorities, index, items), metrics

    return one


def spread(mesh: jax.sharding.Mesh, tree):
    """Copies arrays to every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def gather(mesh: jax.sharding.Mesh, tree):
    """Brings arrays to the first device of a mesh. They share its memory: use them before the originals are donated."""
    return jax.device_put(tree, mesh.devices.flat[0])
