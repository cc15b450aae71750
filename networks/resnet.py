"""ResNet torsos (He et al. 2016, https://arxiv.org/abs/1512.03385) for large-scale and multi-game Atari.

"Stop Regressing" (Section 4.2.2) scales Scaled Q-Learning (Kumar et al. 2023, https://arxiv.org/abs/2211.15144):
ResNets with group norm instead of batch norm and learned spatial embeddings instead of average pooling. What the
published text leaves open was chosen to meet the sizes in the paper's Figure 7, 31 M, 60 M and 79 M for ResNet-34, -50
and -101 (18 actions, 51 bins): no max-pooling after the first convolution, so that 84x84 images become 6x6 positions;
32 embeddings; one dense layer of 512; the last layer of a single game. Groups are 32, as in Wu & He 2018
(https://arxiv.org/abs/1803.08494), blocks as in He et al. 2016. Kumar et al. normalise the features to unit length, not
done here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from networks.layers import check_positive, dense
from networks.torsos import to_image, xavier_uniform

# Depth: blocks per stage, and whether they are bottlenecks (He et al. 2016, Table 1).
LAYOUTS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class ResNet(nn.Module):
    """A residual network with group norm, learned spatial embeddings and one dense layer; d = `hidden`.

    Attributes:
      depth: 18, 34, 50 or 101.
      channels: of the first stage; doubled at each of the next three. A multiple of `groups`.
      groups: of each group norm.
      num_embeddings: spatial embeddings; each is a weighted sum over the positions of every channel.
      hidden: width of the dense layer.
      kernel_init: initializer of the dense layer; convolutions have He's (fan_out).
      noise: as of `NatureCNN`, of the dense layer.
      dtype: type of the computation, e.g. 'bfloat16'; parameters stay float32.
    """

    depth: int = 50
    channels: int = 64
    groups: int = 32
    num_embeddings: int = 32
    hidden: int = 512
    kernel_init: Callable[..., Any] = xavier_uniform
    noise: float = 0.0
    dtype: Any = "float32"

    def __post_init__(self):
        if self.depth not in LAYOUTS:
            raise ValueError(f"ResNet.depth is {self.depth}; allowed: {', '.join(map(str, LAYOUTS))}.")
        check_positive(self, "channels", "groups", "num_embeddings", "hidden")
        if self.channels % self.groups:
            raise ValueError(f"ResNet.channels ({self.channels}) is no multiple of ResNet.groups ({self.groups}).")
        super().__post_init__()

    @nn.compact
    def __call__(self, observation):
        """Maps observations [B, stack, ...] to features [B, hidden]."""
        dtype = jnp.dtype(self.dtype)
        conv = partial(nn.Conv, use_bias=False, dtype=dtype, kernel_init=he_normal)
        norm = partial(nn.GroupNorm, num_groups=self.groups, dtype=dtype)
        stages, bottleneck = LAYOUTS[self.depth]
        block = partial(self._block, conv, norm, bottleneck)

        x = nn.relu(norm()(conv(self.channels, (7, 7), 2)(to_image(observation, dtype))))
        for stage, num_blocks in enumerate(stages):
            for i in range(num_blocks):
                x = block(x, self.channels * 2**stage, stride=2 if stage and i == 0 else 1)
        embeddings = self.param(
            "embeddings", nn.initializers.lecun_normal(), (*x.shape[1:], self.num_embeddings)
        ).astype(dtype)
        x = jnp.einsum("bhwc,hwce->bce", x, embeddings)
        x = dense(self.hidden, self.noise, kernel_init=self.kernel_init, dtype=dtype)(x.reshape(x.shape[0], -1))
        return nn.relu(x)

    @staticmethod
    def _block(conv, norm, bottleneck, x, channels, stride):
        """One residual block, with its stride in the 3x3 convolution."""
        shortcut = x
        if bottleneck:
            x = nn.relu(norm()(conv(channels, (1, 1))(x)))
            x = nn.relu(norm()(conv(channels, (3, 3), stride)(x)))
            x = norm()(conv(4 * channels, (1, 1))(x))
        else:
            x = nn.relu(norm()(conv(channels, (3, 3), stride)(x)))
            x = norm()(conv(channels, (3, 3))(x))
        if shortcut.shape != x.shape:
            shortcut = norm()(conv(x.shape[-1], (1, 1), stride)(shortcut))
        return nn.relu(x + shortcut)
