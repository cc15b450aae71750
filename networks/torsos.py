"""Torsos: observations [B, stack, ...] in, features [B, d] out. No other module assumes pixels.

A torso of your own is any flax module with this signature, named in a gin file; see the README.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from networks.layers import check_positive, check_widths, dense, max_pool

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


def flatten(positions):
    """Turns [B, h, w, c] into [B, h * w * c]; refuses images of which the convolutions have left nothing."""
    if not positions.size:
        raise ValueError(
            "its images are too small for the convolutions of this torso, which leave nothing of them. Take larger "
            "images, NatureCNN.padding = 'SAME', or --torso mlp."
        )
    return positions.reshape(positions.shape[0], -1)


class NatureCNN(nn.Module):
    """The convolutional torso of Mnih et al. 2015 (https://www.nature.com/articles/nature14236): d = 512.

    Attributes:
      padding: 'SAME' as Dopamine's JAX agents have it (7,744 features after the convolutions, for 84x84), or 'VALID' as
        in the original (3,136 features, about 0.6 of the arithmetic).
      kernel_init: initializer of all kernels but those of a noisy layer.
      layer_norm: normalises before each ReLU.
      noise: initial noise of the dense layer's weights, see `layers.NoisyDense`; 0 for an ordinary layer.
      dtype: type of the computation, e.g. 'bfloat16'; parameters stay float32.
    """

    padding: str = "SAME"
    kernel_init: Callable[..., Any] = xavier_uniform
    layer_norm: bool = False
    noise: float = 0.0
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to features [B, 512]."""
        dtype = jnp.dtype(self.dtype)
        activation = lambda x: nn.relu(nn.LayerNorm(dtype=dtype)(x) if self.layer_norm else x)
        x = to_image(observation, dtype)
        for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            conv = nn.Conv(
                features, (size, size), stride, padding=self.padding, kernel_init=self.kernel_init, dtype=dtype
            )
            x = activation(conv(x))
        x = dense(512, self.noise, kernel_init=self.kernel_init, dtype=dtype)(flatten(x))
        return activation(x)


class ImpalaEncoder(nn.Module):
    """The residual convolutions of IMPALA (Espeholt et al. 2018, https://arxiv.org/abs/1802.01561, Figure 3).

    As in Dopamine's jax/networks.py: three stacks of a convolution, max-pooling by two and two residual blocks, all
    with SAME padding; 84x84 images become 11x11 positions.

    Attributes:
      channels: output channels of each stack.
      width: multiplies them.
      kernel_init: initializer of each stack's first convolution; the residual blocks keep flax's default (LeCun).
      dtype: type of the computation; parameters stay float32.
    """

    channels: Sequence[int] = (16, 32, 32)
    width: int = 1
    kernel_init: Callable[..., Any] = xavier_uniform
    dtype: Any = "float32"

    def __post_init__(self):
        check_positive(self, "width")
        check_widths(self, "channels", fewest=1)
        super().__post_init__()

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to positions [B, h, w, channels]."""
        dtype = jnp.dtype(self.dtype)
        conv = lambda features, **options: nn.Conv(features, (3, 3), dtype=dtype, **options)
        x = to_image(observation, dtype)
        for channels in self.channels:
            x = conv(channels * self.width, kernel_init=self.kernel_init)(x)
            x = max_pool(x)
            for _ in range(2):
                y = conv(x.shape[-1])(nn.relu(x))
                x = x + conv(x.shape[-1])(nn.relu(y))
        return nn.relu(x)


class ImpalaCNN(nn.Module):
    """The residual torso of IMPALA with one dense layer, Dopamine's ImpalaDQNNetwork.

    Attributes:
      encoder: module from observations to positions [B, h, w, c].
      hidden: width d of the dense layer; 512 n is the widened baseline of Obando-Ceron et al. 2024
        (https://arxiv.org/abs/2402.08609) for n experts.
      kernel_init, noise: as of `NatureCNN`, of the dense layer.
    """

    encoder: nn.Module = ImpalaEncoder()
    hidden: int = 512
    kernel_init: Callable[..., Any] = xavier_uniform
    noise: float = 0.0

    def __post_init__(self):
        check_positive(self, "hidden")
        super().__post_init__()

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to features [B, hidden]."""
        x = self.encoder(observation)
        x = dense(self.hidden, self.noise, kernel_init=self.kernel_init, dtype=x.dtype)(flatten(x))
        return nn.relu(x)


class MinAtarCNN(nn.Module):
    """The torso of Young & Tian 2019, MinAtar (https://arxiv.org/abs/1903.03176): one 3x3 convolution, d = 128.

    Attributes: as of `NatureCNN`.
    """

    kernel_init: Callable[..., Any] = xavier_uniform
    layer_norm: bool = False
    noise: float = 0.0
    dtype: Any = "float32"

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to features [B, 128]."""
        dtype = jnp.dtype(self.dtype)
        activation = lambda x: nn.relu(nn.LayerNorm(dtype=dtype)(x) if self.layer_norm else x)
        x = to_image(observation, dtype)
        x = activation(nn.Conv(16, (3, 3), padding="VALID", kernel_init=self.kernel_init, dtype=dtype)(x))
        return activation(dense(128, self.noise, kernel_init=self.kernel_init, dtype=dtype)(flatten(x)))


class MLP(nn.Module):
    """A multi-layer perceptron for vector observations, or flattened images.

    Attributes:
      features: width of each layer; the last one is d.
      kernel_init, layer_norm, noise, dtype: as of `NatureCNN`.
    """

    features: Sequence[int] = (256, 256)
    kernel_init: Callable[..., Any] = xavier_uniform
    layer_norm: bool = False
    noise: float = 0.0
    dtype: Any = "float32"

    def __post_init__(self):
        check_widths(self, "features")
        super().__post_init__()

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to features [B, features[-1]]."""
        dtype = jnp.dtype(self.dtype)
        scale = 255 if observation.dtype == jnp.uint8 else 1
        x = observation.reshape(observation.shape[0], -1).astype(dtype) / scale
        for width in self.features:
            x = dense(width, self.noise, kernel_init=self.kernel_init, dtype=dtype)(x)
            x = nn.relu(nn.LayerNorm(dtype=dtype)(x) if self.layer_norm else x)
        return x
