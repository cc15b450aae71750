"""The ring and its samplers against naive twins, which keep everything and enumerate all that may be drawn."""

import unittest.mock
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replay import sum_tree
from replay.ring import Replay, TimeStep
from replay.samplers import Prioritized, Uniform

with unittest.mock.patch("gin.configurable", lambda cls: cls):  # keep its names out of our gin registry
    from dopamine.jax.replay_memory import accumulator, elements, replay_buffer, samplers

ROWS = 24
DISCOUNT = 0.9
BATCH = 8192
SAMPLERS = pytest.mark.parametrize("sampler", [Uniform(), Prioritized()], ids=["uniform", "prioritized"])


def random_history(rng, num_rows, num_envs):
    """Rows of random episodes, many of one step; each frame holds an id of its own, row * N + game + 1."""
    history, over = [], np.ones(num_envs, bool)
    for row in range(num_rows):
        first, over = over, ~over & (rng.random(num_envs) < 0.3)
        frame = np.repeat(row * num_envs + np.arange(1, num_envs + 1, dtype=np.int32)[:, None], 2, axis=1)
        action, reward = rng.integers(18, size=num_envs), rng.normal(scale=2, size=num_envs)
        # Half of all endings are time limits. What a first row holds besides its frame must not matter.
        terminated = over & (rng.random(num_envs) < 0.5) | first & (rng.random(num_envs) < 0.5)
        reward = np.where(first, 1e6, reward)
        history.append(TimeStep(action.astype(np.int32), reward.astype(np.float32), terminated, first, frame))
    return history


class NaiveReplay:
    """Keeps the full list of rows; builds all transitions of the last `rows` of them by plain loops."""

    def __init__(self, history, rows, stack, n_step, max_abs_reward=None):
        self.history, self.rows, self.stack, self.n_step = history, rows, stack, n_step
        self.max_abs_reward = max_abs_reward or float("inf")

    def places(self):
        """Dict from the id of the newest frame of s_tm1 to the row and game of the transition, for all valid ones."""
        num_rows = len(self.history)
        oldest = max(0, num_rows - self.rows + self.stack - 1)
        return {
            int(self.history[row].observation[game, 0]): (row, game)
            for game in range(len(self.history[0].first))
            for row in range(oldest, num_rows - self.n_step - 1)
            if not self.history[row + 1].first[game]
        }

    def transitions(self):
        """The same dict with (s_tm1, a_tm1, r_t, discount_t, s_t, a_t)."""
        return {id_: self.transition(*place) for id_, place in self.places().items()}

    def transition(self, row, game):
        r_t, taken = 0.0, 0
        while taken < self.n_step and not self.history[row + taken + 1].first[game]:
            taken += 1
            reward = float(self.history[row + taken].r_t[game])
            r_t += DISCOUNT ** (taken - 1) * min(max(reward, -self.max_abs_reward), self.max_abs_reward)
        discount_t = 0.0 if self.history[row + taken].terminated[game] else DISCOUNT**taken
        a_tm1, a_t = (self.history[row + k].action_tm1[game] for k in (1, taken + 1))
        return self.state(row, game), a_tm1, r_t, discount_t, self.state(row + taken, game), a_t

    def state(self, row, game):
        frames = [self.history[row].observation[game]]
        while len(frames) < self.stack and not self.history[row].first[game]:
            row -= 1
            frames.insert(0, self.history[row].observation[game])
        return np.stack([np.zeros_like(frames[0])] * (self.stack - len(frames)) + frames)


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes the trees of small rings have several blocks, and rows that lie in two of them."""
    monkeypatch.setattr(sum_tree, "BLOCK", 16)


class NaivePriorities:
    """Keeps the priorities of the valid transitions in a dict from their ids, and the largest priority ever set."""

    def __init__(self):
        self.of, self.largest = {}, np.float32(1)

    def add(self, valid):
        """After a row has been added: those that are valid now, and only those, have a priority."""
        self.of = {id_: self.of.get(id_, self.largest) for id_ in valid}

    def update(self, ids, priorities):
        self.of.update(zip(ids, priorities, strict=True))
        self.largest = max(self.largest, *priorities)

    def leaves(self, num_leaves, places):
        """The tree's leaves, by plain loops; `places` is how many transitions the ring has room for."""
        leaves = np.zeros(num_leaves, np.float32)
        for id_, priority in self.of.items():
            leaves[(id_ - 1) % places] = priority
        return leaves

    def probabilities(self):
        total = sum(float(priority) for priority in self.of.values())
        return {id_: float(priority) / total for id_, priority in sorted(self.of.items())}


def assert_chi_square(counts, probabilities):
    """Six standard deviations; among equals, one transition drawn twice as often as the others exceeds it."""
    expected, freedom = np.sum(counts) * np.asarray(probabilities), len(counts) - 1
    assert np.sum((counts - expected) ** 2 / expected) <= freedom + 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "sampler, stack, n_step",
    # What a transition is does not depend on who draws it: n = 3 is left to the other sampler.
    [(Uniform(), stack, n_step) for stack in (1, 2, 4) for n_step in (1, 2, 5)]
    + [(Prioritized(), stack, n_step) for stack, n_step in ((1, 1), (1, 3), (2, 3), (4, 3))],
    ids=lambda x: type(x).__name__.lower() if isinstance(x, Uniform | Prioritized) else None,
)
def test_samples_are_the_twins_transitions_drawn_uniformly(small_blocks, sampler, stack, n_step):
    # New transitions have one priority, so that Prioritized draws them uniformly too, and weights them all 1.
    num_envs = 1 + (stack + n_step) % 3
    max_abs_reward = None if (stack + n_step) % 2 else 1.0
    replay = Replay(num_envs * ROWS - num_envs + 1, sampler)  # rounds up to ROWS
    sample = jax.jit(
        partial(
            replay.sample,
            batch_size=BATCH,
            stack=stack,
            n_step=n_step,
            discount=DISCOUNT,
            max_abs_reward=max_abs_reward,
        )
    )
    history = random_history(np.random.default_rng([stack, n_step]), 4 * ROWS, num_envs)
    state = replay.init(num_envs, (2,), np.int32)
    add = jax.jit(partial(replay.add, stack=stack, n_step=n_step), donate_argnums=0)
    # The fewest rows allowed, a ring half full, almost full, just full, just overwriting, overwritten three times.
    moments = (n_step + stack + 2, ROWS // 2, ROWS - 1, ROWS, ROWS + 1, 4 * ROWS - 5)
    for num_rows, step in enumerate(history, 1):
        state = add(state, step)
        if num_rows not in moments:
            continue
        twin = NaiveReplay(history[:num_rows], ROWS, stack, n_step, max_abs_reward).transitions()
        batch, index = sample(state, jax.random.key(num_rows))

        ids = np.asarray(batch.s_tm1[:, -1, 0])
        np.testing.assert_array_equal(index, (ids - 1) % (ROWS * num_envs))
        drawn, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
        assert drawn.tolist() == sorted(twin)  # all of them, nothing else
        s_tm1, a_tm1, r_t, discount_t, s_t, a_t = (
            np.stack(x)[inverse] for x in zip(*(twin[i] for i in drawn), strict=True)
        )
        np.testing.assert_array_equal(batch.s_tm1, s_tm1)
        np.testing.assert_array_equal(batch.a_tm1, a_tm1)
        np.testing.assert_allclose(batch.r_t, r_t, atol=1e-5)
        np.testing.assert_allclose(batch.discount_t, discount_t, atol=1e-6)
        np.testing.assert_array_equal(batch.s_t, s_t)
        np.testing.assert_array_equal(batch.a_t, a_t)
        np.testing.assert_allclose(batch.weight, np.ones(BATCH), rtol=0 if sampler == Uniform() else 1e-6)
        assert_chi_square(counts, np.full(len(twin), 1 / len(twin)))


def draw_beyond_32_bits():
    """Frames of a ring of more than 2^31 bytes are where they were written, also past its end."""
    num_envs, shape = 64, (84, 84)
    replay = Replay(330_000)
    rows = replay.num_rows(num_envs)
    state = replay.init(num_envs, shape, np.uint8)
    assert state.steps.observation.nbytes > 2**31
    game = jnp.arange(num_envs, dtype=jnp.int32)

    def add(row, state):  # each frame shows its number, a byte in each of its first rows
        shown = (row * num_envs + game)[:, None] >> jnp.array([0, 8, 16, 24])[None, :] & 255
        frame = jnp.zeros((num_envs, *shape), jnp.uint8).at[:, :4].set(shown[..., None].astype(jnp.uint8))
        flags = jnp.zeros(num_envs, bool)
        return replay.add(state, TimeStep(game, jnp.zeros(num_envs), flags, flags, frame), 4, 3)

    total = rows + 1000
    state = jax.jit(partial(jax.lax.fori_loop, 0, total, add), donate_argnums=0)(state)
    batch, index = jax.jit(partial(replay.sample, batch_size=2048, stack=4, n_step=3))(state, jax.random.key(0))
    row, game = np.divmod(np.asarray(index, np.int64), num_envs)
    row += rows * (row < 1000)  # those above have been overwritten
    assert row.min() < 1100 and row.max() > total - 100
    for states, first in ((batch.s_tm1, row - 3), (batch.s_t, row)):
        shown = np.asarray(states[:, :, :4]).astype(np.int64) @ np.ones(84, np.int64) // 84  # [B, stack, 4]
        numbers = shown @ 256 ** np.arange(4)
        np.testing.assert_array_equal(numbers, (first[:, None] + np.arange(4)) * num_envs + game[:, None])
        np.testing.assert_array_equal(states[:, :, 4:], 0)


@pytest.mark.slow
def test_a_ring_beyond_32_bits():
    draw_beyond_32_bits()


@pytest.mark.parametrize("stack, n_step", [(4, 1), (4, 3), (1, 5)])
def test_is_dopamines_prioritised_replay(small_blocks, stack, n_step):
    """What is kept of a long episode, what it is drawn by, and how likely: Dopamine's Rainbow, with ours beside it.

    Ends of episodes are left out: Dopamine's accumulator drops the last action and repeats the one before it.
    """
    rng, num_rows = np.random.default_rng([stack, n_step]), 3 * ROWS
    replay = Replay(ROWS, Prioritized())
    add = jax.jit(partial(replay.add, stack=stack, n_step=n_step), donate_argnums=0)
    update = jax.jit(replay.sampler.update, donate_argnums=0)
    capacity = ROWS - n_step - stack  # rows without the newest, and those whose stack has been overwritten
    theirs = replay_buffer.ReplayBuffer(
        accumulator.TransitionAccumulator(stack, n_step, DISCOUNT),
        samplers.PrioritizedSamplingDistribution(0, max_capacity=capacity),
        batch_size=BATCH,
        max_capacity=capacity,
        compress=False,
    )
    frames, largest = rng.integers(1000, size=(num_rows, 1, 2), dtype=np.int32), 1.0
    actions, rewards = rng.integers(18, size=num_rows), rng.normal(size=num_rows).astype(np.float32)
    state = replay.init(1, (2,), np.int32)
    for row in range(num_rows):  # its number is the key of Dopamine's transition from there
        first = np.array([row == 0])
        state = add(state, TimeStep(actions[row : row + 1], rewards[row : row + 1], first & ~first, first, frames[row]))
        if row:  # Dopamine stores an observation with the action in it, ours with the one that led to it
            step = elements.TransitionElement(frames[row - 1, 0], actions[row], rewards[row], False, False)
            theirs.add(step, priority=largest)
        if theirs.add_count and rng.random() < 0.6:
            keys = theirs.sample(8, with_sample_metadata=True)[1].keys
            losses = rng.gamma(0.5, size=theirs.add_count)[keys].astype(np.float32)  # one for each key
            items = {"loss": losses, "excess_loss": losses, "td_error": losses}
            state = state._replace(priorities=update(state.priorities, keys % ROWS, items))
            priorities = np.sqrt(losses + np.float32(1e-10))
            theirs.update(keys, priorities=priorities)
            largest = max(largest, priorities.max())

    batch, metadata = theirs.sample(BATCH, with_sample_metadata=True)
    keys, first = np.unique(metadata.keys, return_index=True)
    tree = state.priorities["tree"]
    leaves = np.asarray(tree.leaves, np.float64).reshape(-1)
    assert len(np.unique(leaves)) > 4
    assert np.flatnonzero(leaves).tolist() == sorted(key % ROWS for key in theirs._memory)
    np.testing.assert_allclose(leaves[keys % ROWS] / leaves.sum(), metadata.probabilities[first], rtol=1e-6)
    window = {"stack": stack, "n_step": n_step, "discount": DISCOUNT}
    ours = replay.gather(state, keys % ROWS, 0 * keys, np.ones(len(keys), np.float32), **window)
    np.testing.assert_array_equal(np.moveaxis(ours.s_tm1, 1, -1), batch.state[first])
    np.testing.assert_array_equal(np.moveaxis(ours.s_t, 1, -1), batch.next_state[first])
    np.testing.assert_array_equal(ours.a_tm1, batch.action[first])
    np.testing.assert_allclose(ours.r_t, batch.reward[first], rtol=1e-5)
    np.testing.assert_allclose(ours.discount_t, DISCOUNT**n_step, rtol=1e-6)


def random_play(replay, num_envs, stack, n_step, num_rows):
    """Yields the ring, the ids that are valid and their priorities after each of a random sequence of add and update.

    The priorities of valid transitions are updated in no order, some twice at once, as learners do that draw them.
    """
    rng, rows = np.random.default_rng([num_envs, stack, n_step]), replay.num_rows(num_envs)
    history, twin = random_history(rng, num_rows, num_envs), NaivePriorities()
    state = replay.init(num_envs, (2,), np.int32)
    add = jax.jit(partial(replay.add, stack=stack, n_step=n_step), donate_argnums=0)
    update = jax.jit(replay.sampler.update, donate_argnums=0)
    for written, step in enumerate(history, 1):
        state = add(state, step)
        valid = sorted(NaiveReplay(history[:written], rows, stack, n_step).places())
        twin.add(valid)
        yield state, twin
        if valid and rng.random() < 0.6:
            # Losses seldom exceed the first priority 1, so that the largest is at times the first, at times another.
            losses = rng.gamma(0.5, size=len(valid)).astype(np.float32) * np.float32(2 if rng.random() < 0.2 else 0.2)
            losses = np.where(rng.random(len(valid)) < 0.1, np.float32(0), losses)
            chosen = rng.integers(len(valid), size=8)
            ids, losses = np.array(valid)[chosen], losses[chosen]
            items = {"loss": losses, "excess_loss": losses - 7, "td_error": losses + 7}
            state = state._replace(priorities=update(state.priorities, (ids - 1) % (rows * num_envs), items))
            twin.update(ids.tolist(), np.sqrt(losses + np.float32(1e-10)))
            yield state, twin


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(
    "rows, stack, n_step",
    [(ROWS, stack, n_step) for stack in (1, 4) for n_step in (1, 3)] + [(9, 4, 3)],  # the fewest rows
)
def test_every_leaf_is_the_twins_priority(small_blocks, rows, stack, n_step, num_envs):
    replay = Replay(rows * num_envs, Prioritized())
    largest, most = set(), 0
    for state, twin in random_play(replay, num_envs, stack, n_step, 4 * ROWS):
        tree = state.priorities["tree"]
        np.testing.assert_array_equal(tree.leaves.reshape(-1), twin.leaves(tree.leaves.size, rows * num_envs))
        np.testing.assert_allclose(tree.sums, np.sum(tree.leaves, axis=1), rtol=1e-6)
        assert state.priorities["largest"] == twin.largest
        largest.add(float(twin.largest))
        most = max(most, len(twin.of))
    assert len(largest) > 2 and most > 1  # of what was compared


def test_transitions_are_drawn_and_weighted_by_their_priorities(small_blocks):
    stack, n_step = 2, 2
    replays = {beta: Replay(3 * ROWS, Prioritized(beta=beta)) for beta in (0, 0.5, 1)}

    @jax.jit
    def sample(state, key):
        draw = lambda replay: replay.sample(state, key, BATCH, stack, n_step, DISCOUNT)
        batches, indices = zip(*map(draw, replays.values()), strict=True)
        return batches[0], indices, [batch.weight for batch in batches]

    play = random_play(replays[0], 3, stack, n_step, 4 * ROWS)
    for moment, (state, twin) in enumerate(play):
        if moment % 17 != 16:
            continue
        batch, indices, weights = sample(state, jax.random.key(moment))
        ids = np.asarray(batch.s_tm1[:, -1, 0])
        assert set(ids.tolist()) <= set(twin.of)  # nothing else
        for index in indices:  # beta has no part in what is drawn
            np.testing.assert_array_equal(index, (ids - 1) % (3 * ROWS))

        probabilities = twin.probabilities()
        counts = np.array([np.sum(ids == id_) for id_ in probabilities])
        expected = BATCH * np.array(list(probabilities.values()))
        rare = expected < 5  # too few for chi square; those without a loss are not drawn at all
        assert np.sum(counts[rare]) <= np.sum(expected[rare]) + 6 * np.sqrt(np.sum(expected[rare])) + 1
        assert np.sum(~rare) > 10
        assert_chi_square(counts[~rare], expected[~rare] / np.sum(expected[~rare]))

        drawn = np.array([probabilities[id_] for id_ in ids.tolist()])
        for beta, weight in zip(replays, weights, strict=True):
            expected = drawn ** -float(beta)
            np.testing.assert_allclose(weight, expected / np.max(expected), rtol=1e-5)
        assert np.max(drawn) > 2 * np.min(drawn)


@pytest.mark.parametrize(
    "priority, squared",
    [("sqrt_loss", [4.0, 2.25, 0.0, 9.0]), ("sqrt_kl", [1.0, 0.25, 0.0, 0.0]), ("abs_td", [6.25, 0.0, 0.01, 1e4])],
)
def test_golden_priorities(priority, squared):
    items = {
        "loss": jnp.array([4.0, 2.25, 0.0, 9.0]),
        "excess_loss": jnp.array([1.0, 0.25, 0.0, -1e-3]),  # a little below 0 by rounding
        "td_error": jnp.array([-2.5, 0.0, 0.1, 100.0]),
    }
    sampler, index = Prioritized(priority), np.array([5, 2999, 0, 1024])
    priorities = sampler.update(sampler.init(1000, 3), index, items)
    expected = np.zeros(3072)
    expected[index] = np.sqrt(np.array(squared) + 1e-10)
    np.testing.assert_allclose(priorities["tree"].leaves.reshape(-1), expected, rtol=1e-6)
    np.testing.assert_allclose(priorities["largest"], max(1, np.sqrt(max(squared))), rtol=1e-6)


def test_what_is_no_transition_has_no_weight():
    """Uniform draws from a game that is over after each step, and one that begins anew with each row."""
    replay, state = Replay(64, Uniform()), Replay(64, Uniform()).init(2, (1,), np.int32)
    for row in range(32):
        first, no = np.array([row % 2 == 0, True]), np.zeros(2, bool)
        frame = np.array([[row], [-1]], np.int32)
        state = replay.add(state, TimeStep(np.zeros(2, np.int32), np.ones(2, np.float32), no, first, frame))
    batch, _ = replay.sample(state, jax.random.key(0), 4096)
    valid = np.asarray(batch.s_tm1[:, -1, 0]) % 2 == 0
    np.testing.assert_array_equal(batch.weight, valid.astype(np.float32))
    # A quarter of all places is a transition: 16 tries miss with probability 0.01.
    assert 0.003 < np.mean(~valid) < 0.03


def test_the_default_priority_is_dopamines():
    assert (Prioritized().priority, Prioritized().beta) == ("sqrt_loss", 0.5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"priority": "loss"}, "Prioritized.priority is 'loss'; allowed: 'sqrt_loss', 'sqrt_kl', 'abs_td'"),
        ({"priority": None}, "Prioritized.priority is None"),
        ({"beta": -0.1}, r"Prioritized.beta lies in \[0, 1\]; got -0.1"),
        ({"beta": 1.1}, r"Prioritized.beta lies in \[0, 1\]; got 1.1"),
        ({"beta": float("nan")}, "Prioritized.beta lies in"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Prioritized(**settings)


def test_golden_truncation_bootstraps_and_termination_does_not():
    # Frame, action that led here, reward, terminated, first; by hand for n = 3, discount 1/2, stack 2.
    rows = [
        (1, 0, 0, False, True),
        (2, 1, 1, False, False),
        (3, 2, 2, True, False),  # the game is over
        (4, 3, 0, False, True),
        (5, 4, 3, False, False),
        (6, 5, 4, False, False),  # time limit: the next row is a first one though nothing has terminated
        (7, 6, 0, False, True),
        (8, 7, 5, False, False),
        (9, 8, 6, False, False),
        (10, 9, 7, False, False),
        (11, 10, 8, False, False),
    ]
    replay = Replay(32)
    state, add = replay.init(1, (), np.float32), jax.jit(partial(replay.add, stack=2, n_step=3))
    for frame, action, reward, terminated, first in rows:
        state = add(state, TimeStep(*(np.array([x]) for x in (action, reward, terminated, first, frame))))
    sample = jax.jit(partial(replay.sample, batch_size=256, stack=2, n_step=3, discount=0.5))
    batch, _ = jax.device_get(sample(state, jax.random.key(0)))
    fields = (batch.s_tm1, batch.a_tm1, batch.r_t, batch.discount_t, batch.s_t, batch.a_t)
    found = {tuple(np.concatenate([np.atleast_1d(field[i]) for field in fields]).tolist()) for i in range(256)}
    assert found == {
        # s_tm1, a_tm1, r_t, discount_t, s_t, a_t
        (0, 1, 1, 2.0, 0.0, 2, 3, 3),
        (1, 2, 2, 2.0, 0.0, 2, 3, 3),
        (0, 4, 4, 5.0, 0.25, 5, 6, 6),
        (4, 5, 5, 4.0, 0.5, 5, 6, 6),
        (0, 7, 7, 9.75, 0.125, 9, 10, 10),
    }


@SAMPLERS
def test_a_million_atari_transitions_fit(sampler):
    assert Replay(1_000_000, sampler).num_bytes(8, (84, 84), np.uint8) <= 7.3e9


@SAMPLERS
@pytest.mark.parametrize(
    "num_envs, shape, dtype", [(1, (84, 84), "uint8"), (3, (4,), "float32"), (3, (5, 5, 2), "bool")]
)
def test_num_bytes_are_the_bytes_of_the_ring(sampler, num_envs, shape, dtype):
    replay = Replay(100, sampler)
    state = replay.init(num_envs, shape, dtype)
    assert replay.num_bytes(num_envs, shape, dtype) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert state.steps.observation.shape == (100 if num_envs == 1 else 34, num_envs, *shape)


def atari_step(num_envs):
    zeros = partial(np.zeros, num_envs)
    return TimeStep(
        zeros(np.int32), zeros(np.float32), zeros(bool), zeros(bool), np.zeros((num_envs, 84, 84), np.uint8)
    )


@SAMPLERS
@pytest.mark.parametrize("capacity", [10_000, 1_000_000])
def test_add_is_in_place(sampler, capacity):
    # Compiled for shapes only: nothing is allocated.
    replay = Replay(capacity, sampler)
    state = jax.eval_shape(partial(replay.init, 4, (84, 84), np.uint8))
    add = jax.jit(partial(replay.add, stack=4, n_step=3), donate_argnums=0)
    memory = add.lower(state, atari_step(4)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= replay.num_bytes(4, (84, 84), np.uint8)
    assert memory.temp_size_in_bytes < 2e5  # a row of four games has 28 kB, the tree's blocks around them 64 kB


@SAMPLERS
def test_add_keeps_the_buffers(sampler):
    replay = Replay(1000, sampler)
    state, add = replay.init(4, (84, 84), np.uint8), jax.jit(replay.add, donate_argnums=0)
    large = lambda: [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 1000]
    addresses = [leaf.unsafe_buffer_pointer() for leaf in large()]
    for _ in range(3):
        state = add(state, atari_step(4))
    assert [leaf.unsafe_buffer_pointer() for leaf in large()] == addresses


@SAMPLERS
def test_add_sample_and_update_are_traced_once(sampler):
    replay, traces = Replay(20, sampler), {"add": 0, "sample": 0, "update": 0}

    def add(state, step):
        traces["add"] += 1
        return replay.add(state, step)

    def sample(state, key):
        traces["sample"] += 1
        return replay.sample(state, key, batch_size=4)

    def update(priorities, index, items):
        traces["update"] += 1
        return replay.sampler.update(priorities, index, items)

    jit_add, jit_update = jax.jit(add, donate_argnums=0), jax.jit(update, donate_argnums=0)
    jit_sample = jax.jit(sample)
    state = replay.init(2, (2,), np.int32)
    for i, step in enumerate(random_history(np.random.default_rng(0), 50, 2)):
        state = jit_add(state, step)
        if i >= 5:
            batch, index = jit_sample(state, jax.random.key(i))
            items = {"loss": batch.r_t**2, "excess_loss": batch.r_t**2, "td_error": batch.r_t}
            state = state._replace(priorities=jit_update(state.priorities, index, items))
    assert traces == {"add": 1, "sample": 1, "update": 1}
    assert int(state.size) == 10 and int(state.head) == 50 % 10 and state.head.dtype == jnp.int32
