"""A sum tree of two levels: draws leaves in proportion to their weights, on the device.

The classical binary tree (Schaul et al. 2016, https://arxiv.org/abs/1511.05952, Appendix B.2.1) walks 20 levels for a
million leaves. Here each block of 1,024 leaves has one sum: every operation is a handful of array operations. A changed
block is summed up afresh, so that no rounding error ever accumulates.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 1024


class SumTree(NamedTuple):
    """Weights of the leaves, and the sum of each block of them; all float32, non-negative and finite."""

    leaves: jax.Array  # [blocks, BLOCK]
    sums: jax.Array  # [blocks]


def init(num_leaves: int) -> SumTree:
    """Makes a tree of leaves of weight 0."""
    blocks = -(-num_leaves // BLOCK)
    return SumTree(jnp.zeros((blocks, BLOCK), jnp.float32), jnp.zeros(blocks, jnp.float32))


def update(tree: SumTree, index, weight) -> SumTree:
    """Sets the leaves at index [n] to weight [n]. Where an index occurs twice, one of its weights is taken."""
    block, offset = jnp.divmod(index, BLOCK)
    leaves = tree.leaves.at[block, offset].set(weight)
    return SumTree(leaves, tree.sums.at[block].set(jnp.sum(leaves[block], axis=-1)))


def sample(tree: SumTree, key: jax.Array, n: int):
    """Draws n leaves with replacement; one leaf at least must have a positive weight.

    A random number for each level: a single float32 has too few digits to tell a million leaves apart.

    Returns:
      Indices [n] int32 and their probabilities [n].
    """
    of_block, of_leaf = jax.random.uniform(key, (2, n))
    block = search(tree.sums[None], of_block)
    leaves = tree.leaves[block]
    offset = search(leaves, of_leaf)
    weight = jnp.take_along_axis(leaves, offset[:, None], axis=1)[:, 0]
    return block * BLOCK + offset, weight / jnp.sum(tree.sums)


def search(weights, fraction):
    """Finds, in each row of weights [n or 1, m], where the running sum exceeds a fraction [n] in [0, 1) of the total.

    Never returns an entry of weight 0, though sums in parallel are not quite monotone: such entries are left out.
    """
    running = jnp.where(weights > 0, jnp.cumsum(weights, axis=1), -1.0)
    return jnp.argmax(running > fraction[:, None] * jnp.max(running, axis=1, keepdims=True), axis=1).astype(jnp.int32)
