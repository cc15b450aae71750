"""The replay: one ring of single observations, laid out [T, N, ...] for T steps of N games.

A row holds what arrives together after one step of the games: the action that led here, the reward, and the new
observation. Frame stacks, n-step returns and next actions are rebuilt when sampling, so 1,000,000 Atari transitions
take 7.07 GB instead of the 56 GB of stored stacks of both states. The layout follows Mnih et al. 2015
(https://www.nature.com/articles/nature14236) and Dopamine's circular replay buffer.

All functions are pure; the ring is a pytree that lives on the learner's device and is donated on every `add`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from replay.samplers import Sampler, Uniform


class TimeStep(NamedTuple):
    """What one step of N games gives. The first step of an episode has no reward and ends nothing; both are ignored."""

    action_tm1: np.ndarray  # [N] int32, the action that led here; in a first step the one chosen in the last state
    r_t: np.ndarray  # [N] float32, the raw reward
    terminated: np.ndarray  # [N] bool, the episode ended here by the rules of the game (not by a time limit)
    first: np.ndarray  # [N] bool, this is the first observation of an episode
    observation: np.ndarray  # [N, ...] the newest frame, not the stack


class Transition(NamedTuple):
    """A batch of n-step transitions."""

    s_tm1: jax.Array  # [B, stack, ...]
    a_tm1: jax.Array  # [B] int32
    r_t: jax.Array  # [B] float32, sum of k <= n discounted rewards
    discount_t: jax.Array  # [B] float32, discount^k, and 0 if the episode terminated
    s_t: jax.Array  # [B, stack, ...]
    a_t: jax.Array  # [B] int32, the action chosen in s_t
    weight: jax.Array  # [B] float32, factor of each item's loss; 0 leaves it out


class ReplayState(NamedTuple):
    """The ring. Rows are written at `head`; the `size` rows before it are filled."""

    steps: TimeStep  # leaves [T, N, ...]
    head: jax.Array  # int32
    size: jax.Array  # int32
    priorities: Any  # what the sampler keeps


@dataclasses.dataclass(frozen=True)
class Replay:
    """Settings of the ring.

    Args:
      capacity: number of transitions kept, over all games; an episode's first observation takes the place of one.
      sampler: which of them are drawn, `samplers.Uniform` or `samplers.Prioritized`.
    """

    capacity: int = 1_000_000
    sampler: Sampler = Uniform()

    def __post_init__(self):
        if not isinstance(self.sampler, Sampler):
            raise ValueError(
                f"Replay.sampler is {self.sampler!r}; it takes a sampler, e.g. @samplers.Prioritized() with ()."
            )
        if self.capacity >= 2**31:  # transitions are drawn by 32 bits
            raise ValueError(f"Replay.capacity must be below 2^31; got {self.capacity}.")

    def num_rows(self, num_envs: int) -> int:
        """T, the rows of the ring."""
        return math.ceil(self.capacity / num_envs)

    def num_bytes(self, num_envs: int, shape, dtype) -> int:
        """Size of the ring in bytes, for observations of `shape` and `dtype`."""
        state = jax.eval_shape(lambda: self.init(num_envs, shape, dtype))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def init(self, num_envs: int, shape, dtype) -> ReplayState:
        """Allocates an empty ring for N games whose single observations have `shape` and `dtype`."""
        rows = self.num_rows(num_envs)
        zeros = lambda *trailing, dtype: jnp.zeros((rows, num_envs, *trailing), dtype)
        steps = TimeStep(
            action_tm1=zeros(dtype=jnp.int32),
            r_t=zeros(dtype=jnp.float32),
            terminated=zeros(dtype=bool),
            first=zeros(dtype=bool),
            observation=zeros(*shape, dtype=jax.dtypes.canonicalize_dtype(dtype)),  # JAX has no float64
        )
        return ReplayState(steps, jnp.int32(0), jnp.int32(0), self.sampler.init(rows, num_envs))

    def add(self, state: ReplayState, step: TimeStep, stack: int = 1, n_step: int = 1) -> ReplayState:
        """Writes one row over the oldest. The cost does not depend on the capacity when `state` is donated.

        Args:
          state: the ring.
          step: the row.
          stack, n_step: those that `sample` is called with; they decide when a transition is complete.
        """
        rows = state.steps.first.shape[0]
        steps = jax.tree.map(lambda ring, new: ring.at[state.head].set(new), state.steps, step)
        state = ReplayState(steps, (state.head + 1) % rows, jnp.minimum(state.size + 1, rows), state.priorities)
        return state._replace(priorities=self.sampler.add(state, stack, n_step))

    def extend(self, state: ReplayState, steps: TimeStep) -> ReplayState:
        """Writes consecutive rows [rows, N, ...] over the oldest, for samplers that keep nothing.

        Their number must divide that of the ring's rows, so that no block goes beyond its end.
        """
        rows, number = state.steps.first.shape[0], steps.first.shape[0]
        written = _write(state.steps, steps, state.head)
        head, size = (state.head + number) % rows, jnp.minimum(state.size + number, rows)
        return ReplayState(written, head, size, state.priorities)

    def restore(self, empty: ReplayState, pieces, priorities) -> ReplayState:
        """Puts rows back where they were. `empty` is donated; no more memory is needed than for one piece.

        Args:
          empty: from `init`.
          pieces: consecutive (row, `TimeStep` of arrays [rows, N, ...]), of which `row` counts all that were ever
            added; those that the ring had, to the last.
          priorities: what the sampler kept.

        Raises:
          ValueError: if the rows have another shape.
        """
        rows = empty.steps.first.shape[0]
        steps, size, end = empty.steps, 0, 0
        for row, piece in pieces:
            if piece.observation.shape[1:] != steps.observation.shape[1:]:
                raise ValueError(
                    f"The replay holds {steps.observation.shape[1:]} per row, not {piece.observation.shape[1:]}."
                )
            cut = rows - row % rows  # where the ring begins again
            for start, part in ((row % rows, slice(cut)), (0, slice(cut, None))):
                if len(piece.first[part]):
                    steps = _write(steps, TimeStep(*(array[part] for array in piece)), start)
            size, end = size + len(piece.first), row + len(piece.first)
        return ReplayState(steps, jnp.int32(end % rows), jnp.int32(size), priorities)

    def sample(
        self,
        state: ReplayState,
        key: jax.Array,
        batch_size: int,
        stack: int = 1,
        n_step: int = 1,
        discount: float = 0.99,
        max_abs_reward: float | None = None,
    ) -> tuple[Transition, jax.Array]:
        """Draws transitions, with replacement, from all that are complete and not overwritten.

        Complete means that n + 1 later rows exist. Rows are left out once a newer row has taken the place of a frame of
        their stack. There must be a transition to draw: call it only after `n_step + stack + 2` rows.

        Args:
          state: the ring.
          key: random key.
          batch_size: B.
          stack: number of frames in a state. Those before the episode's start are zeros, as ALE pads them.
          n_step: n, the number of rewards to sum up. An episode that ends earlier cuts the sum: a time limit at k < n
            still bootstraps, with discount^k; termination does not.
          discount: per-step discount.
          max_abs_reward: clips each reward to [-x, x] before summing; None leaves it raw.

        Returns:
          The batch, and where its items lie [B], for the sampler's `update`.
        """
        row, game, weight = self.sampler.draw(state, key, batch_size, stack, n_step)
        batch = self.gather(state, row, game, weight, stack, n_step, discount, max_abs_reward)
        return batch, row * state.steps.first.shape[1] + game

    def gather(
        self,
        state: ReplayState,
        row: jax.Array,
        game: jax.Array,
        weight: jax.Array,
        stack: int = 1,
        n_step: int = 1,
        discount: float = 0.99,
        max_abs_reward: float | None = None,
    ) -> Transition:
        """Returns the transitions that begin at (row, game), with weights, all [B]; the rest as in `sample`."""
        steps, rows = state.steps, state.steps.first.shape[0]
        at = lambda ring, offset: ring[(row + offset) % rows, game]

        # Steps taken: up to n, stopping where the next row starts another episode.
        firsts = jnp.stack([at(steps.first, k) for k in range(1, n_step + 1)])  # [n, B]
        alive = jnp.cumsum(firsts, axis=0) == 0
        taken = jnp.sum(alive, axis=0)
        rewards = jnp.stack([at(steps.r_t, k) for k in range(1, n_step + 1)])
        if max_abs_reward is not None:
            rewards = jnp.clip(rewards, -max_abs_reward, max_abs_reward)
        powers = jnp.asarray(discount, jnp.float32) ** jnp.arange(n_step, dtype=jnp.float32)
        return Transition(
            s_tm1=_stack(steps, row, game, stack),
            a_tm1=at(steps.action_tm1, 1),
            r_t=jnp.sum(powers[:, None] * rewards * alive, axis=0),
            discount_t=jnp.float32(discount) ** taken * ~at(steps.terminated, taken),
            s_t=_stack(steps, (row + taken) % rows, game, stack),
            a_t=at(steps.action_tm1, taken + 1),
            weight=weight,
        )


@partial(jax.jit, donate_argnums=0)
def _write(steps, piece, start):
    """Writes rows to the ring from the row `start` on."""
    return jax.tree.map(lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, start, 0), steps, piece)


def _stack(steps, row, game, stack):
    """Gathers the `stack` frames that end at (row, game) [B]; frames of an earlier episode become zeros."""
    rows = steps.first.shape[0]
    offsets = jnp.arange(1 - stack, 1)
    index = (row[:, None] + offsets[None, :]) % rows  # [B, stack]
    frames = steps.observation[index, game[:, None]]
    # Frame k belongs to the episode if none of the frames k+1 ... stack starts a new one.
    starts = steps.first[index, game[:, None]].astype(jnp.int32)
    starts_after = jnp.cumsum(starts[:, ::-1], axis=1)[:, ::-1] - starts
    mask = (starts_after == 0).reshape(*index.shape, *(1,) * (frames.ndim - 2))
    return jnp.where(mask, frames, jnp.zeros((), frames.dtype))
