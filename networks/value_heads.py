"""Value heads: how a scalar return becomes a training target, and logits become a value again.

Farebrother et al., "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL" (ICML 2024,
https://arxiv.org/abs/2403.03950) replaces the squared error of value learning by the cross-entropy to a categorical
distribution that encodes the same scalar target. A head is that codec and the loss that goes with it. It owns its
support, bins and smoothing; networks ask it for `num_logits`, and nothing else knows which head it is talking to.

The maths is written for a single value, `jax.vmap` makes the batch. m is the number of logits per value.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Accelerators may compute a plain float32 dot in tf32: three digits, too few for the mean of a distribution.
_dot = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)


class ValueHead:
    """The interface of all heads. A new head defines `num_logits`, `encode`, `decode` and `loss`."""

    num_logits: int

    def encode(self, y):
        """Turns a scalar return into the target that `loss` takes: float32, [] for one logit, else [m] mostly."""
        raise NotImplementedError

    def decode(self, logits):
        """Turns logits [..., m] of any float type into values [...], float32."""
        raise NotImplementedError

    def loss(self, logits, target):
        """Scores logits [m] against an encoded target; a scalar, float32."""
        raise NotImplementedError

    def min_loss(self, target):
        """The smallest value of `loss` that any logits reach for an encoded target; a scalar."""
        del target
        return 0.0

    def bootstrap(self, r_t, discount_t, logits_t):
        """Encodes the one-sample Bellman target r_t + discount_t * V(s_t), with V(s_t) given as logits_t [m]."""
        return self.encode(r_t + discount_t * self.decode(logits_t))

    def diagnostics(self, logits, y):
        """Returns a dict of scalars worth watching, for logits [m] and the scalar return y they are trained on."""
        del logits, y
        return {}


LARGEST, MOST_BINS = 1e30, 1_000_000  # bounds of a support in float32, and its locations


@dataclasses.dataclass(frozen=True)
class Scalar(ValueHead):
    """One output per value, trained by regression: the baseline of the paper.

    Args:
      loss_type: 'mse' is (y - Q)^2 without a half, as in Dopamine's `mse_loss`; 'huber' is its `huber_loss`, delta 1.
    """

    loss_type: str = "mse"

    def __post_init__(self):
        if self.loss_type not in ("mse", "huber"):
            raise ValueError(f"Scalar.loss_type is {self.loss_type!r}; allowed: 'mse', 'huber'.")

    num_logits = 1

    def encode(self, y):
        return jnp.asarray(y, jnp.float32)

    def decode(self, logits):
        return logits[..., 0].astype(jnp.float32)

    def loss(self, logits, target):
        error = self.decode(logits) - target
        return optax.huber_loss(error) if self.loss_type == "huber" else jnp.square(error)


@dataclasses.dataclass(frozen=True)
class Categorical(ValueHead):
    """What the heads with a softmax share: m locations, a mean, the cross-entropy.

    Args:
      v_min: smallest return that can be told apart, in units of the (clipped, discounted) return.
      v_max: largest one. Heads that encode a distribution clip targets to these; `diagnostics` tells how many.
      num_bins: number of locations m.
    """

    v_min: float = -10.0
    v_max: float = 10.0
    num_bins: int = 51

    def __post_init__(self):
        name = type(self).__name__
        if not -LARGEST < self.v_min < self.v_max < LARGEST:
            raise ValueError(f"{name} needs finite v_min < v_max; got v_min={self.v_min}, v_max={self.v_max}.")
        if not 2 <= self.num_bins <= MOST_BINS:
            raise ValueError(f"{name} needs 2 <= num_bins <= {MOST_BINS:,}; got {self.num_bins}.")

    @property
    def num_logits(self) -> int:
        return self.num_bins

    def _bounds(self) -> tuple[float, float]:
        """First and last location."""
        return self.v_min, self.v_max

    @property
    def support(self) -> np.ndarray:
        """The m locations, float32 [m]: atoms that include both ends."""
        return np.linspace(*self._bounds(), self.num_bins).astype(np.float32)

    @property
    def width(self) -> float:
        """Distance between neighbouring locations."""
        return float(self.support[-1] - self.support[0]) / (self.num_bins - 1)

    def clip(self, y):
        """Clips a return to [v_min, v_max]; NaN and infinity come out as NaN, so that a broken target is seen."""
        y = jnp.asarray(y, jnp.float32)
        return jnp.where(jnp.isfinite(y), jnp.clip(y, self.v_min, self.v_max), jnp.nan)

    def split(self, y):
        """Splits a value between its two neighbouring locations, so that the mean is exact; returns [m]."""
        # A triangular kernel of one spacing around y is non-zero at its two neighbours only. In units of the spacing,
        # since float32 has few digits for locations as close as in 100, 100.001, ...
        position = (y - self.support[0]) / self.width
        return jnp.clip(1.0 - jnp.abs(np.arange(self.num_bins) - position), 0.0, 1.0)

    def decode(self, logits):
        return _dot(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), self.support)

    def loss(self, logits, target):
        return optax.softmax_cross_entropy(logits.astype(jnp.float32), target)

    def min_loss(self, target):
        return jnp.sum(jax.scipy.special.entr(target))  # the entropy of the target

    def diagnostics(self, logits, y):
        """Entropy of the prediction in nats, its mass in the two outer bins, and whether y lies outside the support."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        p = jnp.exp(log_p)
        outside = (y < self.v_min) | (y > self.v_max)
        return {
            "entropy": -jnp.sum(p * log_p),
            "edge_mass": p[0] + p[-1],
            "targets_outside_support": outside.astype(jnp.float32),
        }


@dataclasses.dataclass(frozen=True)
class ScalarSoftmax(Categorical):
    """Softmax outputs read as a mean and trained by squared error: the paper's control "MSE+Softmax" (Section 5.1.1).

    It separates what the parametrisation brings from what the cross-entropy brings.
    """

    def encode(self, y):
        return jnp.asarray(y, jnp.float32)

    def loss(self, logits, target):
        return jnp.square(self.decode(logits) - target)

    def min_loss(self, target):
        del target
        return 0.0


def symlog(x):
    """Compresses a scale symmetrically, sign(x) log(1 + |x|) (Hafner et al. 2023, https://arxiv.org/abs/2301.04104)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x):
    """Inverts `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@dataclasses.dataclass(frozen=True)
class _Encoded(Categorical):
    """Categorical heads that encode a scalar: TwoHot and HLGauss.

    Args:
      symlog: encodes symlog(return) on evenly spaced locations, and decodes symexp of the mean. v_min and v_max stay in
        units of the return. Off in the paper; its authors' configuration has the option. As with every such transform,
        the value that minimises the loss is not the mean of varying returns: of 99 times 0 and once 100 it is 0.05.
    """

    symlog: bool = dataclasses.field(default=False, kw_only=True)

    def _bounds(self):
        if not self.symlog:
            return self.v_min, self.v_max
        low, high = (float(np.sign(v) * np.log1p(np.abs(v))) for v in (self.v_min, self.v_max))
        return low, high

    def encode(self, y):
        y = self.clip(y)
        return self._encode(symlog(y) if self.symlog else y)

    def decode(self, logits):
        mean = super().decode(logits)
        return symexp(mean) if self.symlog else mean


@dataclasses.dataclass(frozen=True)
class TwoHot(_Encoded):
    """Splits the mass of a return between the two nearest atoms so that the mean is exact (paper, Section 3.1).

    The numerators printed in Equation 3.2 of arXiv v1 are swapped; this is the form whose mean is y.
    """

    def _encode(self, y):
        return self.split(y)


@dataclasses.dataclass(frozen=True)
class HLGauss(_Encoded):
    """Spreads a return over neighbouring bins by the mass a Gaussian around it puts there (paper, Section 3.1).

    v_min and v_max are the outer *edges* of the bins (for TwoHot and C51 they are atoms), values are read at the bin
    centres, and the Gaussian is truncated to the support and renormalised, as in the paper's Listings 1 and 2. There,
    a return more than 5 sigma outside the support gives 0/0; here it is clipped to the support first.

    Args:
      sigma_ratio: standard deviation of the Gaussian in bin widths (the paper's sigma / varsigma, Table B.3).
      widen_support: moves both edges out by three sigma, because the truncated Gaussian is biased near an edge: by
        default y = 10 decodes to 9.73. Targets are still clipped to [v_min, v_max]. Off in the paper.
    """

    sigma_ratio: float = 0.75
    widen_support: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.sigma_ratio > 0:
            raise ValueError(f"HLGauss.sigma_ratio is sigma / bin width and must be positive; got {self.sigma_ratio}.")
        if self.widen_support and not self.num_bins > 6 * self.sigma_ratio:
            raise ValueError(
                f"HLGauss.widen_support takes three sigma, {3 * self.sigma_ratio:g} bins, at each end: num_bins must "
                f"be above {6 * self.sigma_ratio:g}; got {self.num_bins}."
            )

    @property
    def edges(self) -> np.ndarray:
        """The m + 1 bin edges, float32; in symlog units with `symlog`."""
        low, high = self._bounds()
        if self.widen_support:
            # Three sigma of the bins that result: margin = 3 r (high - low + 2 margin) / m.
            margin = 3 * self.sigma_ratio * (high - low) / (self.num_bins - 6 * self.sigma_ratio)
            low, high = low - margin, high + margin
        return np.linspace(low, high, self.num_bins + 1).astype(np.float32)

    @property
    def support(self) -> np.ndarray:
        """The m bin centres, float32."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    @property
    def sigma(self) -> float:
        """Standard deviation of the Gaussian, in the units of `edges`."""
        edges = self.edges
        return self.sigma_ratio * float(edges[-1] - edges[0]) / self.num_bins

    def _encode(self, y):
        cdf = jax.scipy.special.erf((self.edges - y) / (np.sqrt(2.0).astype(np.float32) * self.sigma))
        # float32 erf is not quite monotone: without the maximum a bin can come out as -1e-7.
        return jnp.maximum(cdf[1:] - cdf[:-1], 0.0) / (cdf[-1] - cdf[0])


@dataclasses.dataclass(frozen=True)
class C51(Categorical):
    """Learns the distribution of returns (Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, Algorithm 1).

    Unlike the other heads it bootstraps from the whole distribution of s_t, not from its mean.
    """

    def encode(self, y):
        return self._project(jnp.asarray(y, jnp.float32)[None], jnp.ones(1))

    def bootstrap(self, r_t, discount_t, logits_t):
        atoms = r_t + discount_t * self.support
        return self._project(atoms, jax.nn.softmax(logits_t.astype(jnp.float32)))

    def _project(self, atoms, p):
        """Moves masses p [n] at arbitrary atoms [n] onto the support, each to its two neighbours; float32 [m]."""
        return _dot(jax.vmap(self.split, out_axes=1)(self.clip(atoms)), p)
