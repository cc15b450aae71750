"""DQN (Mnih et al. 2015, https://www.nature.com/articles/nature14236) with any value head; Rainbow, CQL by settings.

Settings and pure functions only: which value is bootstrapped from, the loss of one transition, and epsilon-greedy
acting. Defaults are Table B.1 of "Stop Regressing" (https://arxiv.org/abs/2403.03950), which are those of Dopamine's
JAX DQN; the optimizer belongs to the learner.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

TARGETS = ("max", "sarsa", "monte_carlo")


@dataclasses.dataclass(frozen=True)
class DQN:
    """Settings of the agent.

    Args:
      discount: per-step discount.
      n_step: number of rewards before bootstrapping.
      target: what the value of the next state is bootstrapped from: 'max', its best action; 'sarsa', the action that
        was taken there; 'monte_carlo', nothing: the target is the discounted sum of the rewards that followed. Offline,
        Section 5.2.3 of the paper asks how much of its gain these leave. Monte Carlo needs a data set.
      double: with 'max', picks the action by the online network (van Hasselt et al. 2016,
        https://arxiv.org/abs/1509.06461).
      cql_alpha: adds this times log sum_a exp Q(s, a) - Q(s, a taken) to each loss, which keeps the values of actions
        that a data set lacks low (Kumar et al. 2020, https://arxiv.org/abs/2006.04779, Equation 4). The paper prints
        the next state there; the authors' released code takes the current one, as here.
      max_abs_reward: the learner sees rewards clipped to [-x, x]; None leaves them raw. Reported returns are raw.
      epsilon_initial: exploration rate during the warm-up. 0, with `epsilon_train` 0, leaves exploring to noisy layers.
      epsilon_train: final exploration rate.
      epsilon_eval: exploration rate in evaluations.
      epsilon_decay_steps: agent steps over which epsilon goes from the one to the other linearly, after the warm-up.
    """

    discount: float = 0.99
    n_step: int = 1
    target: str = "max"
    double: bool = False
    cql_alpha: float = 0.0
    max_abs_reward: float | None = 1.0
    epsilon_initial: float = 1.0
    epsilon_train: float = 0.01
    epsilon_eval: float = 0.001
    epsilon_decay_steps: int = 250_000

    def __post_init__(self):
        if self.n_step < 1 or self.epsilon_decay_steps < 0:
            raise ValueError(f"DQN needs n_step >= 1 and epsilon_decay_steps >= 0; got {self}.")
        if self.target not in TARGETS:
            raise ValueError(f"DQN.target is {self.target!r}; allowed: {', '.join(map(repr, TARGETS))}.")
        if self.target != "max" and self.double:
            raise ValueError(
                f"DQN.double picks the best action, which DQN.target = {self.target!r} does not take: "
                "add DQN.double = False."
            )
        if self.target == "monte_carlo" and self.n_step != 1:
            raise ValueError(f"DQN.target = 'monte_carlo' sums up all rewards: DQN.n_step is 1; got {self.n_step}.")
        if not 0 <= self.cql_alpha < float("inf"):
            raise ValueError(f"DQN.cql_alpha must be a number from 0 on; got {self.cql_alpha}.")
        if self.max_abs_reward is not None and not self.max_abs_reward > 0:
            raise ValueError(f"DQN.max_abs_reward must be positive, or None; got {self.max_abs_reward}.")
        rates = (self.discount, self.epsilon_initial, self.epsilon_train, self.epsilon_eval)
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError(f"DQN's discount and its three epsilons lie in [0, 1]; got {self}.")

    def epsilon(self, agent_steps: int, warmup_steps: int) -> float:
        """Exploration rate after `agent_steps`: constant during the warm-up, then linear, then constant."""
        if agent_steps < warmup_steps:
            return self.epsilon_initial
        left = 1 - (agent_steps - warmup_steps) / self.epsilon_decay_steps if self.epsilon_decay_steps else 0.0
        return self.epsilon_train + (self.epsilon_initial - self.epsilon_train) * max(left, 0.0)

    def act(self, network, head, params, observation, key, epsilon, noise: bool = True):
        """Chooses actions, each at random with probability epsilon.

        Args:
          network: the Q-network.
          head: its value head.
          params: parameters.
          observation: [N, stack, ...].
          key: random key.
          epsilon: exploration rate.
          noise: whether to move the weights of noisy layers, if the network has any.

        Returns:
          The actions, int32 [N].
        """
        random_key, choice_key, noise_key = jax.random.split(key, 3)
        logits, _ = network.apply(params, observation, rngs={"noise": noise_key} if noise else {})
        q = head.decode(logits)  # [N, A]
        explore = jax.random.uniform(choice_key, q.shape[:1]) < epsilon
        random = jax.random.randint(random_key, q.shape[:1], 0, q.shape[1])
        return jnp.where(explore, random, jnp.argmax(q, axis=-1)).astype(jnp.int32)

    def loss(self, network, head, params, target_params, batch, key):
        """Computes the loss of each transition.

        Args:
          network: the Q-network.
          head: its value head.
          params: parameters that are trained.
          target_params: parameters that are bootstrapped from.
          batch: `replay.ring.Transition` of size B.
          key: random key, for noisy layers.

        Returns:
          The losses [B], and a dict of diagnostics, each [B].
        """
        # The noise of each of the three is its own (Fortunato et al. 2018, Section 3.1).
        keys = jax.random.split(key, 3)
        logits = lambda params, s, key: network.apply(params, s, rngs={"noise": key})[0]  # [B, A, m]
        logits_tm1 = logits(params, batch.s_tm1, keys[0])
        if self.target == "monte_carlo":  # the data set has summed up the rewards
            batch = batch._replace(discount_t=jnp.zeros_like(batch.discount_t))
            logits_t = logits_tm1
        else:
            logits_t = logits(target_params, batch.s_t, keys[1])
        selector_t = logits(params, batch.s_t, keys[2]) if self.double else logits_t
        return jax.vmap(partial(self._loss, head))(
            logits_tm1, batch.a_tm1, batch.r_t, batch.discount_t, logits_t, selector_t, batch.a_t
        )

    def _loss(self, head, logits_tm1, a_tm1, r_t, discount_t, logits_t, selector_t, a_t):
        """The loss of one transition; logits are [A, m]."""
        bootstrap_t = logits_t[a_t if self.target == "sarsa" else jnp.argmax(head.decode(selector_t))]
        target_tm1 = jax.lax.stop_gradient(head.bootstrap(r_t, discount_t, bootstrap_t))
        loss = head.loss(logits_tm1[a_tm1], target_tm1)

        q_tm1 = head.decode(logits_tm1)
        y = r_t + discount_t * head.decode(bootstrap_t)
        conservative = {}
        if self.cql_alpha:
            conservative["conservative_loss"] = jax.nn.logsumexp(q_tm1) - q_tm1[a_tm1]
        diagnostics = {
            "q_mean": jnp.mean(q_tm1),
            "q_max": jnp.max(q_tm1),
            "td_error": jnp.abs(y - q_tm1[a_tm1]),
            "excess_loss": loss - head.min_loss(target_tm1),
            "target": y,
            **conservative,
            **{f"head/{name}": value for name, value in head.diagnostics(logits_tm1[a_tm1], y).items()},
        }
        loss += self.cql_alpha * sum(conservative.values())
        return loss, jax.lax.stop_gradient(diagnostics)
