"""The ring against a naive twin that keeps everything and enumerates every transition the ring may draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replay.uniform import TimeStep, UniformReplay

ROWS = 24
DISCOUNT = 0.9
BATCH = 8192


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

    def __init__(self, history, rows, stack, n_step, max_abs_reward):
        self.history, self.rows, self.stack, self.n_step = history, rows, stack, n_step
        self.max_abs_reward = max_abs_reward or float("inf")

    def transitions(self):
        """Dict from the id of the newest frame of s_tm1 to (s_tm1, a_tm1, r_t, discount_t, s_t, a_t)."""
        num_rows = len(self.history)
        oldest = num_rows - self.rows + self.stack - 1 if num_rows >= self.rows else 0
        return {
            int(self.history[row].observation[game, 0]): self.transition(row, game)
            for game in range(len(self.history[0].first))
            for row in range(oldest, num_rows - self.n_step - 1)
            if not self.history[row + 1].first[game]
        }

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


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
@pytest.mark.parametrize("stack", [1, 2, 4])
def test_samples_are_the_twins_transitions_drawn_uniformly(stack, n_step):
    num_envs = 1 + (stack + n_step) % 3
    max_abs_reward = None if (stack + n_step) % 2 else 1.0
    replay = UniformReplay(num_envs * ROWS - num_envs + 1)  # rounds up to ROWS
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
    state, add = replay.init(num_envs, (2,), np.int32), jax.jit(replay.add, donate_argnums=0)
    # The fewest rows allowed, a ring half full, almost full, just full, just overwriting, overwritten three times.
    moments = (n_step + stack + 2, ROWS // 2, ROWS - 1, ROWS, ROWS + 1, 4 * ROWS - 5)
    for num_rows, step in enumerate(history, 1):
        state = add(state, step)
        if num_rows not in moments:
            continue
        twin = NaiveReplay(history[:num_rows], ROWS, stack, n_step, max_abs_reward).transitions()
        batch = sample(state, jax.random.key(num_rows))

        ids = np.asarray(batch.s_tm1[:, -1, 0])
        drawn, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
        assert drawn.tolist() == sorted(twin)  # all of them, nothing else
        s_tm1, a_tm1, r_t, discount_t, s_t, a_t = (
            np.stack(x)[index] for x in zip(*(twin[i] for i in drawn), strict=True)
        )
        np.testing.assert_array_equal(batch.s_tm1, s_tm1)
        np.testing.assert_array_equal(batch.a_tm1, a_tm1)
        np.testing.assert_allclose(batch.r_t, r_t, atol=1e-5)
        np.testing.assert_allclose(batch.discount_t, discount_t, atol=1e-6)
        np.testing.assert_array_equal(batch.s_t, s_t)
        np.testing.assert_array_equal(batch.a_t, a_t)
        np.testing.assert_array_equal(batch.weight, np.ones(BATCH, np.float32))

        # Six standard deviations of chi square; one transition drawn twice as often as the others exceeds it.
        expected, freedom = BATCH / len(twin), len(twin) - 1
        assert np.sum((counts - expected) ** 2 / expected) <= freedom + 6 * np.sqrt(2 * freedom)


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
    replay = UniformReplay(32)
    state, add = replay.init(1, (), np.float32), jax.jit(replay.add)
    for frame, action, reward, terminated, first in rows:
        state = add(state, TimeStep(*(np.array([x]) for x in (action, reward, terminated, first, frame))))
    sample = jax.jit(partial(replay.sample, batch_size=256, stack=2, n_step=3, discount=0.5))
    batch = jax.device_get(sample(state, jax.random.key(0)))
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


def test_a_million_atari_transitions_fit():
    assert UniformReplay(1_000_000).num_bytes(8, (84, 84), np.uint8) <= 7.3e9


@pytest.mark.parametrize(
    "num_envs, shape, dtype", [(1, (84, 84), "uint8"), (3, (4,), "float32"), (3, (5, 5, 2), "bool")]
)
def test_num_bytes_are_the_bytes_of_the_ring(num_envs, shape, dtype):
    replay = UniformReplay(100)
    steps = replay.init(num_envs, shape, dtype).steps
    assert replay.num_bytes(num_envs, shape, dtype) == sum(leaf.nbytes for leaf in jax.tree.leaves(steps))
    assert steps.observation.shape == (100 if num_envs == 1 else 34, num_envs, *shape)


def atari_step(num_envs):
    zeros = partial(np.zeros, num_envs)
    return TimeStep(
        zeros(np.int32), zeros(np.float32), zeros(bool), zeros(bool), np.zeros((num_envs, 84, 84), np.uint8)
    )


@pytest.mark.parametrize("capacity", [10_000, 1_000_000])
def test_add_is_in_place(capacity):
    # Compiled for shapes only: nothing is allocated.
    replay = UniformReplay(capacity)
    state = jax.eval_shape(partial(replay.init, 4, (84, 84), np.uint8))
    memory = jax.jit(replay.add, donate_argnums=0).lower(state, atari_step(4)).compile().memory_analysis()
    ring = replay.num_bytes(4, (84, 84), np.uint8)
    assert memory.alias_size_in_bytes >= ring
    assert memory.temp_size_in_bytes < 1e5  # a row of four games has 28 kB


def test_add_keeps_the_buffer():
    replay = UniformReplay(1000)
    state, add = replay.init(4, (84, 84), np.uint8), jax.jit(replay.add, donate_argnums=0)
    address = state.steps.observation.unsafe_buffer_pointer()
    for _ in range(3):
        state = add(state, atari_step(4))
    assert state.steps.observation.unsafe_buffer_pointer() == address


def test_add_and_sample_are_traced_once():
    replay, traces = UniformReplay(20), {"add": 0, "sample": 0}

    def add(state, step):
        traces["add"] += 1
        return replay.add(state, step)

    def sample(state, key):
        traces["sample"] += 1
        return replay.sample(state, key, batch_size=4)

    jit_add, jit_sample = jax.jit(add, donate_argnums=0), jax.jit(sample)
    state = replay.init(2, (2,), np.int32)
    for i, step in enumerate(random_history(np.random.default_rng(0), 50, 2)):
        state = jit_add(state, step)
        if i >= 5:
            jit_sample(state, jax.random.key(i))
    assert traces == {"add": 1, "sample": 1}
    assert int(state.size) == 10 and int(state.head) == 50 % 10 and state.head.dtype == jnp.int32
