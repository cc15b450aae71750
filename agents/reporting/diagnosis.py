"""What the features of a network look like, the paper's motive for classification."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict


def make_diagnose(agent, network, head, sample, num_batches: int):
    """Returns `diagnose(state, replay_state, key) -> (metrics, targets)` on several batches, B states in all.

    The metrics are the paper's motive for classification. Of the features [B, d] of the online network:
    `dormant_units`, the fraction of units whose mean activation is at most 0.025 of the layer's mean (Sokar et al.
    2023, https://arxiv.org/abs/2302.12902), and `effective_rank`, the number of singular values that carry 99 % of
    their sum (Kumar et al. 2021, https://arxiv.org/abs/2010.14498; 0 if all are 0). Then what the network itself sows
    in its collection "diagnostics", each entry of a vector by its number. `targets` are the scalar TD targets [B].
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
            "effective_rank": jnp.where(jnp.any(singular_values > 0), 1 + jnp.sum(carried < 0.99), 0),
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
