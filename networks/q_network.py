"""The Q-network: a torso, and one linear layer that gives each action the logits its value head asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from networks.torsos import xavier_uniform


class QNetwork(nn.Module):
    """Maps observations [B, stack, ...] to logits [B, A, m] and features [B, d].

    Its parameters are `{torso, head}`, so that a torso can be frozen, exported or probed on its own.

    Attributes:
      num_actions: A.
      num_logits: m, asked of the value head.
      torso: module from observations [B, stack, ...] to features [B, d].
      kernel_init: initializer of the last layer.
    """

    num_actions: int
    num_logits: int
    torso: nn.Module
    kernel_init: Callable[..., Any] = xavier_uniform

    @nn.compact
    def __call__(self, observation):
        """Returns (logits [B, A, m], features [B, d])."""
        features = self.torso(observation)
        logits = nn.Dense(self.num_actions * self.num_logits, kernel_init=self.kernel_init, name="head")(
            features.astype(jnp.float32)
        )
        return logits.reshape(-1, self.num_actions, self.num_logits), features
