"""Which transitions of the ring are drawn: all alike, or by their priority.

A sampler is a set of pure functions around `ReplayState.priorities`, which only it reads.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from replay import sum_tree


class Sampler:
    """The interface of samplers. The default keeps nothing."""

    def init(self, rows: int, num_envs: int):
        """Returns what the sampler keeps, a pytree of arrays, for an empty ring of `rows` rows of N games."""
        del rows, num_envs
        return ()

    def add(self, state, stack: int, n_step: int):
        """Returns what it keeps after a row has been written.

        Args:
          state: the `ring.ReplayState` with that row, and with what was kept before.
          stack, n_step: of the transitions that are drawn; a row completes the one n_step + 1 rows before it.
        """
        del stack, n_step
        return state.priorities

    def draw(self, state, key, batch_size: int, stack: int, n_step: int):
        """Draws transitions with replacement.

        Args:
          state: the `ring.ReplayState`.
          key: random key.
          batch_size: B.
          stack, n_step: the frames of a state, and the rewards of a transition: both must be in the ring.

        Returns:
          Row of s_tm1 and game, int32 [B], and the factor of each loss, float32 [B], 0 where no transition was found.
        """
        raise NotImplementedError

    def update(self, priorities, index, items):
        """Returns what it keeps after an update.

        Args:
          priorities: what it kept before.
          index: row * N + game of the transitions of the update, int32 [B].
          items: a dict with loss, excess_loss and td_error of each, float32 [B].
        """
        del index, items
        return priorities


@dataclasses.dataclass(frozen=True)
class Uniform(Sampler):
    """Draws every transition with the same probability.

    An item is the first transition among 16 places of the ring; it has weight 0 if none of them is one. Where half of
    all rows begin an episode, the most there can be, that is one item in 65,536.
    """

    def draw(self, state, key, batch_size, stack, n_step):
        rows, num_envs = state.steps.first.shape
        lowest = jnp.maximum(state.size + stack - 1 - rows, 0)  # of those before it, frames are lost
        highest = state.size - n_step - 1  # exclusive: s_t and the row that holds a_t must exist
        # Drawn at once: a GPU would wait for the host after each turn of a loop that goes on until all are transitions.
        place = jax.random.randint(key, (16, batch_size), lowest * num_envs, highest * num_envs)
        age, game = jnp.divmod(place, num_envs)
        row = (state.head - state.size + age) % rows
        # The step from the last observation of one episode to the first of the next is no transition.
        valid = ~state.steps.first[(row + 1) % rows, game]
        first = jnp.argmax(valid, axis=0), jnp.arange(batch_size)
        # The barrier keeps XLA from fusing this into the gather of frames, which would do it again for each of them.
        return jax.lax.optimization_barrier((row[first], game[first], valid[first].astype(jnp.float32)))


@dataclasses.dataclass(frozen=True)
class Prioritized(Sampler):
    """Proportional prioritised replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952) as in Dopamine's Rainbow.

    A transition is drawn with a probability proportional to its priority. The priority is used as it is: its square
    root stands for the exponent alpha = 0.5 of Hessel et al. 2018 (https://arxiv.org/abs/1710.02298). New transitions
    get the largest priority seen so far, 1 at least. Losses are weighted by probability^-beta over the batch's largest
    such weight.

    Args:
      priority: 'sqrt_loss' is sqrt(loss + 1e-10), Dopamine's. With a cross-entropy the loss cannot fall below the
        target's entropy, which for HL-Gauss is about 1.2 nats and flattens the priorities; 'sqrt_kl' takes the loss
        without that floor, the Kullback-Leibler divergence, which has the same gradient. 'abs_td' is the absolute TD
        error in units of the return, comparable between heads. For squared errors all three are the same.
      beta: exponent of the correction for drawing with unequal probabilities; 0 does not correct, 1 does fully.
    """

    priority: str = "sqrt_loss"
    beta: float = 0.5

    def __post_init__(self):
        if self.priority not in ("sqrt_loss", "sqrt_kl", "abs_td"):
            raise ValueError(f"Prioritized.priority is {self.priority!r}; allowed: 'sqrt_loss', 'sqrt_kl', 'abs_td'.")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"Prioritized.beta lies in [0, 1]; got {self.beta}.")

    def init(self, rows, num_envs):
        """Makes an empty tree, whose leaf row * N + game is the transition from there, and the first priority."""
        return {"tree": sum_tree.init(rows * num_envs), "largest": jnp.float32(1)}

    def add(self, state, stack, n_step):
        """Sets the largest priority for what the newest row completes, and 0 for those whose frame it has replaced."""
        tree, largest = state.priorities["tree"], state.priorities["largest"]
        rows, num_envs = state.steps.first.shape
        newest = state.head - 1
        complete = (newest - n_step - 1) % rows
        # Not a transition: the step between two episodes, and rows not written yet.
        valid = ~state.steps.first[(complete + 1) % rows] & (state.size > n_step + 1)
        cut_off = (newest + stack - 1) % rows  # the newest row has taken the place of its oldest frame
        index = jnp.stack([complete, cut_off])[:, None] * num_envs + jnp.arange(num_envs)[None, :]
        weight = jnp.stack([jnp.where(valid, largest, 0.0), jnp.zeros(num_envs)])
        return {"tree": sum_tree.update(tree, index.reshape(-1), weight.reshape(-1)), "largest": largest}

    def draw(self, state, key, batch_size, stack, n_step):
        del stack, n_step  # minded by `add`
        index, probability = sum_tree.sample(state.priorities["tree"], key, batch_size)
        weight = (probability + 1e-10) ** -self.beta
        row, game = jnp.divmod(index, state.steps.first.shape[1])
        return row, game, weight / jnp.max(weight)

    def update(self, priorities, index, items):
        squared = {
            "sqrt_loss": items["loss"],
            "sqrt_kl": items["excess_loss"],
            "abs_td": jnp.square(items["td_error"]),
        }[self.priority]
        weight = jnp.sqrt(jnp.maximum(squared, 0.0) + 1e-10)  # rounding can make a divergence negative
        return {
            "tree": sum_tree.update(priorities["tree"], index, weight),
            "largest": jnp.maximum(priorities["largest"], jnp.max(weight)),
        }
