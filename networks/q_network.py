"""The Q-network: a torso, and one linear layer that gives each action the logits its value head asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from networks.layers import dense
from networks.torsos import xavier_uniform


class QNetwork(nn.Module):
    """Maps observations [B, stack, ...] to logits [B, A, m] and features [B, d].

    Its parameters are `{torso, head}`, so that a torso can be frozen, exported or probed on its own.

    Attributes:
      num_actions: A.
      num_logits: m, asked of the value head.
      torso: module from observations [B, stack, ...] to features [B, d].
      dueling: splits a value into that of the state and an advantage of the action whose mean over actions is zero,
        logit by logit (Wang et al. 2016, https://arxiv.org/abs/1511.06581, Equation 9).
      noise: initial noise of the last layer's weights, see `layers.NoisyDense`; 0 for an ordinary layer.
      kernel_init: initializer of the last layer.
      freeze_torso: no gradient goes beyond the last layer, so that only this is trained; set for linear probes by
        `Experiment.torso_from`. Without a trained torso these are random features.
    """

    num_actions: int
    num_logits: int
    torso: nn.Module
    dueling: bool = False
    noise: float = 0.0
    kernel_init: Callable[..., Any] = xavier_uniform
    freeze_torso: bool = False

    @nn.compact
    def __call__(self, observation):
        """Returns (logits [B, A, m], features [B, d])."""
        features = self.torso(observation)
        if self.freeze_torso:
            features = jax.lax.stop_gradient(features)
        rows = self.num_actions + self.dueling
        last = dense(rows * self.num_logits, self.noise, kernel_init=self.kernel_init, name="head")
        logits = last(features.astype(jnp.float32)).reshape(-1, rows, self.num_logits)
        if self.dueling:
            value, advantage = logits[:, :1], logits[:, 1:]
            logits = value + advantage - jnp.mean(advantage, axis=1, keepdims=True)
        return logits, features
