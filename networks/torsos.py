"""Torsos: observations [B, stack, ...] in, features [B, d] out. No other module assumes pixels.

A torso of your own is any flax module with this signature, named in a gin file; see the README.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

xavier_uniform = nn.initializers.xavier_uniform()


def to_image(observation, dtype):
    """Turns [B, stack, H, W] or [B, stack, H, W, C] into [B, H, W, channels]; scales uint8 to [0, 1]."""
    if observation.ndim not in (4, 5):
        raise ValueError(
            f"This torso takes images [H, W] or [H, W, C]; the observation has shape {observation.shape[2:]}. "
            "For vectors pass --torso mlp."
        )
    image = jnp.moveaxis(observation, 1, -1)
    image = image.reshape(*image.shape[:3], -1).astype(dtype)
    return image / 255 if observation.dtype == jnp.uint8 else image


class NatureCNN(nn.Module):
    """The convolutional torso of Mnih et al. 2015 (https://www.nature.com/articles/nature14236): d = 512.

    Attributes:
      padding: 'SAME' as Dopamine's JAX agents have it (7,744 features after the convolutions, for 84x84), or 'VALID' as
        in the original (3,136 features, about 0.6 of the arithmetic).
      kernel_init: initializer of all kernels.
      layer_norm: normalises before each ReLU.
      dtype: type of the computation, e.g. 'bfloat16'; parameters stay float32.
    """

    padding: str = "SAME"
    kernel_init: Callable[..., Any] = xavier_uniform
    layer_norm: bool = False
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, observation):
        dtype = jnp.dtype(self.dtype)
        activation = lambda x: nn.relu(nn.LayerNorm(dtype=dtype)(x) if self.layer_norm else x)
        x = to_image(observation, dtype)
        for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            conv = nn.Conv(
                features, (size, size), stride, padding=self.padding, kernel_init=self.kernel_init, dtype=dtype
            )
            x = activation(conv(x))
        x = nn.Dense(512, kernel_init=self.kernel_init, dtype=dtype)(x.reshape(x.shape[0], -1))
        return activation(x)


class MinAtarCNN(nn.Module):
    """The torso of Young & Tian 2019, MinAtar (https://arxiv.org/abs/1903.03176): one 3x3 convolution, d = 128.

    Attributes: as of `NatureCNN`.
    """

    kernel_init: Callable[..., Any] = xavier_uniform
    layer_norm: bool = False
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, observation):
        dtype = jnp.dtype(self.dtype)
        activation = lambda x: nn.relu(nn.LayerNorm(dtype=dtype)(x) if self.layer_norm else x)
        x = to_image(observation, dtype)
        x = activation(nn.Conv(16, (3, 3), padding="VALID", kernel_init=self.kernel_init, dtype=dtype)(x))
        return activation(nn.Dense(128, kernel_init=self.kernel_init, dtype=dtype)(x.reshape(x.shape[0], -1)))


class MLP(nn.Module):
    """A multi-layer perceptron for vector observations, or flattened images.

    Attributes:
      features: width of each layer; the last one is d.
      kernel_init, layer_norm, dtype: as of `NatureCNN`.
    """

    features: Sequence[int] = (256, 256)
    kernel_init: Callable[..., Any] = xavier_uniform
    layer_norm: bool = False
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, observation):
        dtype = jnp.dtype(self.dtype)
        scale = 255 if observation.dtype == jnp.uint8 else 1
        x = observation.reshape(observation.shape[0], -1).astype(dtype) / scale
        for width in self.features:
            x = nn.Dense(width, kernel_init=self.kernel_init, dtype=dtype)(x)
            x = nn.relu(nn.LayerNorm(dtype=dtype)(x) if self.layer_norm else x)
        return x
