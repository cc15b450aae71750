"""What the networks share beside flax's layers: noisy layers, max-pooling, other convolutions, checks of attributes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def dense(features: int, noise: float = 0.0, *, kernel_init, **options) -> nn.Module:
    """Makes a dense layer, or one with `noise` (its `sigma`) unless that is 0; a noisy one has its own initializer."""
    if not isinstance(noise, (int, float)) or noise < 0:
        raise ValueError(f"The noise of a layer (NOISE in a config) must be a number, not negative; got {noise!r}.")
    if noise:
        return NoisyDense(features, sigma=noise, **options)
    return nn.Dense(features, kernel_init=kernel_init, **options)


class NoisyDense(nn.Module):
    """A dense layer whose weights are moved by learned, factorised Gaussian noise.

    Fortunato et al. 2018, Noisy Networks for Exploration (https://arxiv.org/abs/1706.10295), Equations 8 to 11. Takes
    the place of `flax.linen.Dense`. Without a random stream named "noise" the means are used, as in evaluations. One
    noise for the whole batch. All begins as in its Section 3.2: the means uniform within 1 / sqrt(d) for inputs [B, d].

    Attributes:
      features: width of the output.
      dtype: type of the computation; parameters stay float32.
      sigma: initial scale of the noise, divided by the square root of the input's width: 0.5 in the paper, 0.1 in
        Dopamine.
    """

    features: int
    dtype: Any = "float32"
    sigma: float = 0.5

    @nn.compact
    def __call__(self, x):
        """Maps [B, d] to [B, features]."""
        width = x.shape[-1]
        limit = 1 / width**0.5
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)
        scale = nn.initializers.constant(self.sigma * limit)
        kernel = self.param("kernel", uniform, (width, self.features))
        bias = self.param("bias", uniform, (self.features,))
        kernel_sigma = self.param("kernel_sigma", scale, kernel.shape)
        bias_sigma = self.param("bias_sigma", scale, bias.shape)
        if self.has_rng("noise"):
            key_in, key_out = jax.random.split(self.make_rng("noise"))
            noise_in, noise_out = (
                jnp.sign(e) * jnp.sqrt(jnp.abs(e))
                for e in (jax.random.normal(key_in, (width, 1)), jax.random.normal(key_out, (1, self.features)))
            )
            kernel = kernel + kernel_sigma * noise_in * noise_out
            bias = bias + bias_sigma * noise_out[0]
        dtype = jnp.dtype(self.dtype)
        return x.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)[None]


def max_pool(x):
    """Max-pools images [B, h, w, c] over 3x3 windows with stride 2 and SAME padding, to [B, ceil(h/2), ceil(w/2), c].

    Equal to `flax.linen.max_pool`, one axis after the other: the gradient of XLA's windowed maximum takes a CPU
    four times as long, a third of an update of `ImpalaCNN`. The gradient of a tie is shared; XLA gives it to the first.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        outputs = -(-size // 2)
        before = (2 * outputs + 1 - size) // 2
        padding = [(0, 0)] * x.ndim
        padding[axis] = (before, 2 * outputs + 1 - size - before)
        x = jnp.pad(x, padding, constant_values=-jnp.inf)
        a, b, c = (jax.lax.slice_in_dim(x, i, i + 2 * outputs - 1, stride=2, axis=axis) for i in range(3))
        x = jnp.maximum(jnp.maximum(a, b), c)
    return x


def convolve_by_product(next_call, args, kwargs, context):
    """Makes `flax.linen.Conv` compute a matrix product of patches; to be passed to `flax.linen.intercept_methods`.

    For networks under `vmap` over their parameters: their convolutions become one with a group for each, slow on a GPU;
    products of matrices become one batched product.
    """
    if isinstance(context.module, nn.Conv) and context.module.conv_general_dilated is None:
        object.__setattr__(context.module, "conv_general_dilated", product_of_patches)  # flax's modules are frozen
    return next_call(*args, **kwargs)


def product_of_patches(x, kernel, strides, padding, *, precision=None, **options):
    """`jax.lax.conv_general_dilated` as a matrix product; what is dilated, grouped or no image is left to that.

    Args:
      x: images [B, h, w, c].
      kernel: [kh, kw, c, features].
      strides, padding, precision, options: as of `jax.lax.conv_general_dilated`.

    Returns:
      Images [B, h', w', features].
    """
    dilations = (*options.get("lhs_dilation", ()), *options.get("rhs_dilation", ()))
    if x.ndim != 4 or options.get("feature_group_count", 1) != 1 or any(dilation != 1 for dilation in dilations):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, precision=precision, **options)
    (height, width, _, features), (down, right) = kernel.shape, strides
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // right + 1
    patches = [
        x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.dot(jnp.concatenate(patches, -1), kernel.reshape(-1, features), precision=precision)


def check_positive(module, *names: str) -> None:
    """Raises ValueError for the first of a module's attributes that is not positive."""
    for name in names:
        if not getattr(module, name) > 0:
            raise ValueError(f"{type(module).__name__}.{name} must be positive; got {getattr(module, name)}.")


def check_widths(module, name: str, fewest: int = 0) -> None:
    """Raises ValueError unless an attribute of a module is a sequence of positive whole numbers, `fewest` or more."""
    widths = getattr(module, name)
    whole = all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in widths)
    if not whole or len(widths) < fewest:
        least = ", one at least" if fewest else ""
        raise ValueError(f"{type(module).__name__}.{name} must be positive whole numbers{least}; got {widths}.")
