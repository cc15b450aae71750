"""Soft mixtures of experts (Puigcerver et al. 2024, https://arxiv.org/abs/2308.00951) as the last layer of a torso.

As Obando-Ceron et al. 2024 (https://arxiv.org/abs/2402.08609) scale DQN, and "Stop Regressing" after them (Section
4.2.1): every position of the encoder's output is a token. Values follow Dopamine's labs/moes/architectures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from networks.layers import check_positive
from networks.torsos import ImpalaEncoder, xavier_uniform


class SoftMoE(nn.Module):
    """A torso: tokens from an encoder, mixed into slots, transformed by experts, and mixed back.

    Each of n experts has p = ceil(capacity * tokens / n) slots. A slot's input is a convex combination of all tokens,
    a token's output a convex combination of all slots, with weights from the same logits (paper, Equations 1 to 3).

    Attributes:
      encoder: module from observations to positions [B, h, w, c].
      num_experts: n.
      hidden: width of each expert's hidden layer.
      capacity: slots per token, over all experts.
      normalize: routes by the cosine of token and slot times a learned scale (paper, Section 2.3); off in Dopamine.
      kernel_init: initializer of the experts' layers.
    """

    encoder: nn.Module = ImpalaEncoder()
    num_experts: int = 8
    hidden: int = 512
    capacity: float = 1.0
    normalize: bool = False
    kernel_init: Callable[..., Any] = xavier_uniform

    def __post_init__(self):
        check_positive(self, "num_experts", "hidden", "capacity")
        super().__post_init__()

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to features [B, h * w * c]: the tokens, one after the other."""
        x = self.encoder(observation)
        if x.ndim != 4:
            raise ValueError(
                f"SoftMoE.encoder must give positions [B, h, w, c], as ImpalaEncoder does; "
                f"{type(self.encoder).__name__} gives an array of shape {x.shape}."
            )
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, t, c]
        dispatch, combine = self._route(tokens)  # [B, t, n, p]
        slots = jnp.einsum("btc,btnp->bnpc", tokens, dispatch.astype(x.dtype))
        outputs = jnp.einsum("bnpc,btnp->btc", self._experts(slots), combine.astype(x.dtype))
        if not self.is_initializing():
            self._sow(dispatch, combine)
        return outputs.reshape(x.shape[0], -1)

    def _route(self, tokens):
        """Weights of the tokens in each slot (they sum to 1 over t), and of the slots in each token (over n, p)."""
        tokens = tokens.astype(jnp.float32)
        num_slots = math.ceil(self.capacity * tokens.shape[1] / self.num_experts)
        phi = self.param("phi", nn.initializers.lecun_normal(), (tokens.shape[-1], self.num_experts, num_slots))
        if self.normalize:
            scale = self.param("scale", nn.initializers.ones, ())
            unit = lambda x, axis: x * jax.lax.rsqrt(jnp.sum(x**2, axis=axis, keepdims=True) + 1e-12)
            tokens, phi = unit(tokens, -1), scale * unit(phi, 0)
        logits = jnp.einsum("btc,cnp->btnp", tokens, phi)
        return nn.softmax(logits, axis=1), nn.softmax(logits, axis=(2, 3))

    def _experts(self, slots):
        """Applies each expert, a perceptron of one hidden layer, to its slots [B, n, p, c]; all of them at once."""
        n, width = self.num_experts, slots.shape[-1]

        def each(key, shape):  # initializes every expert as a layer of its own
            return jax.vmap(lambda key: self.kernel_init(key, shape[1:], jnp.float32))(jax.random.split(key, n))

        def dense(x, name, features):
            kernel = self.param(f"{name}_kernel", each, (n, x.shape[-1], features)).astype(x.dtype)
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (n, features)).astype(x.dtype)
            return jnp.einsum("bnpc,ncd->bnpd", x, kernel) + bias[None, :, None]

        return dense(nn.relu(dense(slots, "hidden", self.hidden)), "output", width)

    def _sow(self, dispatch, combine):
        """Notes each expert's share of the tokens' outputs, and the entropy of the tokens in a slot in nats."""
        entropy = jnp.sum(jax.scipy.special.entr(dispatch), axis=1)
        keep_last = {"reduce_fn": lambda _, new: new, "init_fn": lambda: None}
        self.sow("diagnostics", "expert_load", jnp.mean(jnp.sum(combine, axis=3), axis=(0, 1)), **keep_last)
        self.sow("diagnostics", "dispatch_entropy", jnp.mean(entropy), **keep_last)
