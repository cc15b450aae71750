"""The sum tree against a naive twin, plain loops over Python floats, and against Dopamine's."""

import math
import unittest.mock
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replay import sum_tree
from replay.ring import Replay
from replay.samplers import Prioritized
from replay.sum_tree import BLOCK

with unittest.mock.patch("gin.configurable", lambda cls: cls):  # keep its names out of our gin registry
    from dopamine.jax.replay_memory.sum_tree import SumTree as DopaminesSumTree

LAST = 1 - 2.0**-24  # the largest float32 below 1
NUM_LEAVES = pytest.mark.parametrize("num_leaves", [1, 7, BLOCK, BLOCK + 1, 3000])


class NaiveTree:
    """A list of weights."""

    def __init__(self, num_leaves):
        self.leaves = [0.0] * num_leaves

    def update(self, index, weight):
        for i, w in zip(index.tolist(), weight.tolist(), strict=True):
            self.leaves[i] = w

    def sums(self):
        return [math.fsum(self.leaves[i : i + BLOCK]) for i in range(0, len(self.leaves), BLOCK)]

    def probability(self, index):
        total = math.fsum(self.leaves)
        return [self.leaves[i] / total for i in index.tolist()]

    def find(self, target):
        """The first leaf up to which the weights exceed the target."""
        running = 0.0
        for i, weight in enumerate(self.leaves):
            running += weight
            if running > target:
                return i


update = jax.jit(sum_tree.update, donate_argnums=0)
search = jax.jit(sum_tree.search)
sample = jax.jit(partial(sum_tree.sample, n=4096))


@partial(jax.jit, donate_argnums=0)
def update_all(tree, index, weight):
    """Many updates [steps, n] one after the other."""
    return jax.lax.scan(lambda tree, xs: (sum_tree.update(tree, *xs), None), tree, (index, weight))[0]


def distinct(rng, num_leaves):
    """Some leaves, each once."""
    return rng.choice(num_leaves, size=min(16, num_leaves), replace=False)


def heavy_tailed(rng, shape):
    """Positive float32 weights over many orders of magnitude, as priorities may be."""
    return np.sqrt(rng.gamma(0.1, size=shape) * 10.0 ** rng.integers(-3, 4, size=shape) + 1e-10).astype(np.float32)


def find(tree, target):
    """The leaves of integer targets [n] in a tree of integer weights, by `search` in both levels.

    Each level is asked for the middle between the target and the next integer: no rounding of that fraction can move it
    across either, so that whatever the total, the answer is the one for the target itself.
    """
    sums, n = np.asarray(tree.sums, np.float64), len(target)
    target = np.resize(target, -(-n // 2000) * 2000)  # repeats some, so that few sizes are compiled
    weights = jnp.broadcast_to(tree.sums, (len(target), len(sums)))
    block = np.asarray(search(weights, ((target + 0.5) / np.sum(sums)).astype(np.float32)))
    rest = target - (np.cumsum(sums) - sums)[block]
    assert np.all((0 <= rest) & (rest < sums[block]))
    offset = search(tree.leaves[block], ((rest + 0.5) / sums[block]).astype(np.float32))
    return (block * BLOCK + np.asarray(offset))[:n]


@NUM_LEAVES
def test_a_new_tree_is_empty(num_leaves):
    tree = sum_tree.init(num_leaves)
    assert tree.leaves.dtype == tree.sums.dtype == jnp.float32
    assert tree.leaves.shape == (-(-num_leaves // BLOCK), BLOCK) and tree.sums.shape == tree.leaves.shape[:1]
    assert not np.any(tree.leaves) and not np.any(tree.sums)


@NUM_LEAVES
def test_integer_weights_are_exact(num_leaves):
    rng = np.random.default_rng(num_leaves)
    tree, twin = sum_tree.init(num_leaves), NaiveTree(num_leaves)
    for _ in range(40):
        index = distinct(rng, num_leaves)
        weight = rng.choice([0, 1, 2, 9], size=len(index)).astype(np.float32)
        tree = update(tree, index, weight)
        twin.update(index, weight)
        np.testing.assert_array_equal(tree.leaves.reshape(-1)[:num_leaves], twin.leaves)
        np.testing.assert_array_equal(tree.sums, twin.sums())
    tree, last = update(tree, np.array([num_leaves - 1]), np.float32([3])), np.array([num_leaves - 1])
    twin.update(last, np.float32([3]))
    assert not np.any(tree.leaves.reshape(-1)[num_leaves:])
    targets = np.arange(sum(twin.sums()))
    np.testing.assert_array_equal(find(tree, targets), [twin.find(target) for target in targets])


@pytest.mark.parametrize("num_weights", [3, 100, BLOCK])
def test_search_at_exact_borders(num_weights):
    # Multiples of 1 over a power of two are exact: an entry's share begins where the running sum before it ends.
    rng, twin = np.random.default_rng(num_weights), NaiveTree(num_weights)
    weight = rng.choice([0, 1, 5], size=num_weights, p=[0.6, 0.3, 0.1])
    total = 2 ** math.ceil(math.log2(np.sum(weight) + 1))
    weight[num_weights // 2] += total - np.sum(weight)
    twin.update(np.arange(num_weights), weight)
    weights = np.broadcast_to(weight.astype(np.float32), (total, num_weights))
    found = search(weights, np.arange(total, dtype=np.float32) / np.float32(total))
    np.testing.assert_array_equal(found, [twin.find(target) for target in range(total)])


def test_search_looks_at_each_row_by_itself():
    weights = np.float32([[1, 0, 3], [0, 4, 0], [2, 2, 2], [0, 0, 0.5]])
    np.testing.assert_array_equal(search(weights, np.float32([0.5, 0.1, 0.4, 0.9])), [2, 1, 1, 2])


def test_duplicates_in_one_update():
    # Leaf 5 three times and leaf 6 beside it, leaf 2000 twice: one of the weights each, and sums that agree.
    tree = update(sum_tree.init(3000), np.array([5, 2000, 5, 6, 2000, 5]), np.float32([1, 2, 4, 8, 16, 32]))
    leaves = np.asarray(tree.leaves).reshape(-1)
    assert leaves[5] in (1, 4, 32) and leaves[6] == 8 and leaves[2000] in (2, 16)
    assert np.count_nonzero(leaves) == 3
    np.testing.assert_array_equal(tree.sums, [leaves[5] + leaves[6], leaves[2000], 0])


@pytest.mark.parametrize("num_leaves, steps, batch", [(10, 50, 8), (5000, 100, 64), (1_000_000, 200, 1024)])
def test_probabilities_of_float_weights(num_leaves, steps, batch):
    rng = np.random.default_rng(num_leaves)
    index, weight = rng.integers(num_leaves, size=(steps, batch)), heavy_tailed(rng, (steps, batch))
    weight[rng.random((steps, batch)) < 0.2] = 0
    # What occurs twice in one update has the same weight, as it has in life: its order is not defined.
    for i, w in zip(index, weight, strict=True):
        _, occurrence, inverse = np.unique(i, return_index=True, return_inverse=True)
        w[:] = w[occurrence][inverse]
    tree = update_all(sum_tree.init(num_leaves), index, weight)
    twin = NaiveTree(num_leaves)
    twin.update(index.reshape(-1), weight.reshape(-1))
    np.testing.assert_array_equal(tree.leaves.reshape(-1)[:num_leaves], twin.leaves)
    np.testing.assert_allclose(tree.sums, twin.sums(), rtol=1e-6)

    drawn, probability = jax.device_get(sample(tree, jax.random.key(0)))
    assert drawn.dtype == np.int32 and len(np.unique(drawn)) >= min(num_leaves // 2, 300)
    np.testing.assert_allclose(probability, twin.probability(drawn), rtol=1e-6)
    assert np.all(probability > 0)


# Rows in which a rounding error of the running sum may point to an entry of weight 0.
ADVERSARIAL = {
    "one": lambda rng, w: np.where(np.arange(BLOCK) == rng.integers(BLOCK, size=(len(w), 1)), w, 0),
    "mostly zeros": lambda rng, w: np.where(rng.random(w.shape) < 0.02, w, 0),
    "half zeros": lambda rng, w: np.where(rng.random(w.shape) < 0.5, w, 0),
    "leading zeros": lambda rng, w: np.where(np.arange(BLOCK) >= rng.integers(BLOCK, size=(len(w), 1)), w, 0),
    "trailing zeros": lambda rng, w: np.where(np.arange(BLOCK) <= rng.integers(BLOCK, size=(len(w), 1)), w, 0),
    "tiny beside large": lambda rng, w: rng.choice(np.float32([0, 1e-5, 1e4]), size=w.shape, p=[0.5, 0.45, 0.05]),
    "large among tiny": lambda rng, w: np.where(rng.random(w.shape) < 0.002, 1e4, np.where(w < 1, 1e-5, 0)),
    "tiny": lambda rng, w: np.where(rng.random(w.shape) < 0.1, 1e-5, 0),
}


@pytest.mark.parametrize("pattern", ADVERSARIAL)
def test_nothing_of_weight_0_is_found(pattern):
    rng, n = np.random.default_rng(list(pattern.encode())), 512
    weights = ADVERSARIAL[pattern](rng, heavy_tailed(rng, (n, BLOCK))).astype(np.float32)
    weights[~np.any(weights, axis=1), 17] = 1
    found = [
        np.asarray(search(weights, np.full(n, fraction, np.float32)))
        for fraction in (0, 2.0**-24, 0.5, 1 - 2.0**-23, LAST)
    ]
    for offset in [*found, np.asarray(search(weights, rng.random(n, np.float32)))]:
        assert np.all(weights[np.arange(n), offset] > 0)
    np.testing.assert_array_equal(found[0], np.argmax(weights > 0, axis=1))  # the first of all that have a weight

    # The same leaves as a tree, with empty blocks before, between and after.
    leaves = np.zeros((64, BLOCK), np.float32)
    leaves[3:60:3] = weights[:19]
    tree = sum_tree.SumTree(jnp.asarray(leaves), jnp.sum(leaves, axis=1))
    index, probability = sample(tree, jax.random.key(n))
    assert np.all(leaves.reshape(-1)[np.asarray(index)] > 0) and np.all(np.asarray(probability) > 0)


def test_the_only_leaf_of_a_million_is_drawn():
    for only in (0, 123_456, 999_999):
        tree = update(sum_tree.init(1_000_000), np.array([only]), np.float32([1e-5]))
        index, probability = sample(tree, jax.random.key(only))
        assert np.all(np.asarray(index) == only)
        np.testing.assert_allclose(probability, np.ones(4096), rtol=1e-6)


@pytest.mark.parametrize("updates", [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_sums_do_not_drift(updates):
    # A tree that adds differences up has lost the digits of small sums by then.
    num_leaves, batch = 100_000, 256
    rng = np.random.default_rng(0)
    index = rng.integers(num_leaves, size=(updates // batch + 1, batch), dtype=np.int32)
    weight = rng.choice(heavy_tailed(rng, 1000), size=index.shape)
    tree = update_all(sum_tree.init(num_leaves), index, weight)
    leaves = np.asarray(tree.leaves)
    np.testing.assert_allclose(tree.sums, np.sum(leaves, axis=1, dtype=np.float64), rtol=1e-6)
    # To the last bit what a new tree makes of the same leaves, however they came about.
    index = np.resize(np.arange(num_leaves, dtype=np.int32), (num_leaves // batch + 1, batch))
    fresh = update_all(sum_tree.init(num_leaves), index, leaves.reshape(-1)[index])
    np.testing.assert_array_equal(fresh.leaves, leaves)
    np.testing.assert_array_equal(fresh.sums, tree.sums)


def test_the_cost_of_update_does_not_depend_on_the_capacity():
    # Compiled for shapes only.
    flops, temporary = set(), set()
    for capacity in (10_000, 1_000_000, 100_000_000):
        tree = jax.eval_shape(partial(sum_tree.init, capacity))
        compiled = update.lower(tree, np.zeros(32, np.int32), np.zeros(32, np.float32)).compile()
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes >= 4 * capacity  # in place
        flops.add(compiled.cost_analysis()["flops"])
        temporary.add(memory.temp_size_in_bytes)
    assert len(flops) == len(temporary) == 1
    assert flops.pop() < 2 * 32 * BLOCK and temporary.pop() < 2 * 4 * 32 * BLOCK  # the blocks of the leaves, once


def test_sample_frequencies():
    # Weights over three orders of magnitude in three blocks, a third of them 0.
    rng, num_leaves = np.random.default_rng(1), 2500
    weight = np.where(rng.random(num_leaves) < 0.3, 0, 10 ** rng.uniform(-1, 2, num_leaves)).astype(np.float32)
    tree = update(sum_tree.init(num_leaves), np.arange(num_leaves), weight)
    index = np.concatenate([sample(tree, key)[0] for key in jax.random.split(jax.random.key(2), 12)])
    counts = np.bincount(index, minlength=num_leaves)
    expected = len(index) * weight.astype(np.float64) / np.sum(weight, dtype=np.float64)
    rare = expected < 5  # too few for chi square; together they make one more bin
    assert np.all(counts[weight == 0] == 0) and 0 < np.sum(rare) < num_leaves - 500
    counts, expected = (np.append(x[~rare], np.sum(x[rare])) for x in (counts, expected))
    freedom = len(counts) - 1
    assert np.sum((counts - expected) ** 2 / expected) <= freedom + 6 * np.sqrt(2 * freedom)


def filled_alike(rng, num_leaves, updates, weights):
    """Our tree and Dopamine's after the same random updates; `weights(n)` draws those of one."""
    tree, oracle = sum_tree.init(num_leaves), DopaminesSumTree(num_leaves)
    for _ in range(updates):
        index = distinct(rng, num_leaves)
        weight = weights(len(index)).astype(np.float32)
        tree = update(tree, index, weight)
        oracle.set(index, weight.astype(np.float64))
    return tree, oracle


@NUM_LEAVES
def test_float_weights_agree_with_dopamines(num_leaves):
    rng = np.random.default_rng([1, num_leaves])
    weights = lambda n: np.where(rng.random(n) < 0.1, 0, heavy_tailed(rng, n))
    tree, oracle = filled_alike(rng, num_leaves, 100, weights)
    tree, last = update(tree, np.array([num_leaves - 1]), np.float32([0.7])), np.array([num_leaves - 1])
    oracle.set(last, np.float32([0.7]).astype(np.float64))
    # Its sums have taken on rounding errors, of float64; its leaves have none.
    np.testing.assert_array_equal(tree.leaves.reshape(-1)[:num_leaves], oracle.get(np.arange(num_leaves)))
    np.testing.assert_allclose(np.sum(tree.sums), oracle.root, rtol=1e-6)
    drawn, probability = jax.device_get(sample(tree, jax.random.key(3)))
    np.testing.assert_allclose(probability, oracle.get(drawn) / oracle.root, rtol=1e-6)


@NUM_LEAVES
def test_integer_targets_find_the_leaves_that_dopamines_finds(num_leaves):
    rng = np.random.default_rng([2, num_leaves])
    weights = lambda n: np.append(rng.choice([0, 1, 2, 9], size=n - 1), 2)
    tree, oracle = filled_alike(rng, num_leaves, 60, weights)
    assert np.sum(tree.sums) == oracle.root > 0
    targets = np.arange(oracle.root)
    np.testing.assert_array_equal(find(tree, targets), oracle.query(targets))


def test_weights_of_the_loss_are_dopamines():
    # Rare transitions among a million: there the 1e-10 shows.
    rng, replay = np.random.default_rng(3), Replay(1_000_000, Prioritized(beta=0.5))
    state = jax.eval_shape(partial(replay.init, 4, (), np.uint8))
    leaves = np.where(rng.random(1_000_448) < 0.001, 1000, 1).astype(np.float32).reshape(-1, BLOCK)
    tree = sum_tree.SumTree(jnp.asarray(leaves), jnp.sum(leaves, axis=1))
    draw = lambda tree, key: replay.sampler.draw(
        state._replace(priorities={"tree": tree, "largest": 1.0}), key, 512, stack=4, n_step=3
    )
    row, game, weight = jax.jit(draw)(tree, jax.random.key(0))
    probability = leaves.reshape(-1)[np.asarray(row * 4 + game)] / np.sum(leaves, dtype=np.float64)
    assert np.min(probability) < 1e-6 < 1e-4 < np.max(probability)
    # dopamine/jax/agents/full_rainbow/full_rainbow_agent.py
    expected = 1.0 / np.sqrt(probability + 1e-10)
    np.testing.assert_allclose(weight, expected / np.max(expected), rtol=3e-6)
