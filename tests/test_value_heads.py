"""Value heads against the paper's listing, a naive C51, hand-computed vectors, and targets meant to break them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from networks.value_heads import C51, HLGauss, Scalar, ScalarSoftmax, TwoHot

ENCODERS = {
    "two_hot": TwoHot(),
    "two_hot_symlog": TwoHot(symlog=True),
    "hl_gauss": HLGauss(),
    "hl_gauss_widened": HLGauss(widen_support=True),
    "hl_gauss_symlog": HLGauss(symlog=True),
    "hl_gauss_narrow": HLGauss(sigma_ratio=0.05),
    "c51": C51(),
}
REGRESSIONS = {"mse": Scalar("mse"), "huber": Scalar("huber"), "scalar_softmax": ScalarSoftmax()}
HEADS = {**ENCODERS, **REGRESSIONS}
FLOAT32_MAX = float(np.finfo(np.float32).max)
# -3.0, 2.8 and 3.4 are atoms or edges of one head or another.
TARGETS = [0.0, -3.0, 2.8, 3.4, 10.0, -10.0, 11.6, -11.6, 12.0, 1e3, 1e30, -1e30, FLOAT32_MAX, -FLOAT32_MAX]

each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
each_encoder = pytest.mark.parametrize("head", ENCODERS.values(), ids=ENCODERS.keys())


def encode(head, y):
    """Targets [n, m] of returns [n]."""
    return np.asarray(jax.jit(jax.vmap(head.encode))(jnp.asarray(y, jnp.float32)))


def encode_decode(head, y):
    """Returns [n] after a round trip through the head."""
    return np.asarray(jax.jit(lambda y: head.decode(jnp.log(jax.vmap(head.encode)(y))))(jnp.asarray(y, jnp.float32)))


def loss_of_return(head, logits, y):
    return head.loss(logits, head.encode(y))


# HL-Gauss


def listing(y, v_min, v_max, num_bins, sigma_ratio):
    """The paper's Listing 1 in float64: probabilities [m] and their mean."""
    edges = np.linspace(v_min, v_max, num_bins + 1)
    sigma = sigma_ratio * (v_max - v_min) / num_bins
    cdf = erf((edges - y) / (math.sqrt(2) * sigma))
    p = np.diff(cdf) / (cdf[-1] - cdf[0])
    return p, p @ ((edges[:-1] + edges[1:]) / 2)


@pytest.mark.parametrize(
    "v_min, v_max, num_bins, sigma_ratio",
    [(-10, 10, 51, 0.75), (-10, 10, 51, 0.25), (-1, 1, 11, 2.0), (0, 100, 101, 0.75), (-5, 20, 2, 0.75)],
)
def test_hl_gauss_is_the_papers_listing(v_min, v_max, num_bins, sigma_ratio):
    head = HLGauss(v_min, v_max, num_bins, sigma_ratio=sigma_ratio)
    y = np.linspace(v_min, v_max, 201).astype(np.float32)
    twin = partial(listing, v_min=v_min, v_max=v_max, num_bins=num_bins, sigma_ratio=sigma_ratio)
    p, mean = zip(*map(twin, y.astype(np.float64)), strict=True)
    np.testing.assert_allclose(encode(head, y), p, atol=1e-5)
    np.testing.assert_allclose(encode_decode(head, y), mean, atol=1e-5 * (v_max - v_min))


@pytest.mark.parametrize("v_min, v_max, num_bins, sigma_ratio", [(-10, 10, 51, 0.75), (-5, 20, 9, 0.75), (0, 1, 31, 5)])
def test_a_widened_support_has_three_sigma_beside_the_returns(v_min, v_max, num_bins, sigma_ratio):
    head = HLGauss(v_min, v_max, num_bins, sigma_ratio=float(sigma_ratio), widen_support=True)
    assert head.sigma == pytest.approx(sigma_ratio * np.diff(head.edges).mean(), rel=1e-5)
    assert (v_min - head.edges[0]) / head.sigma == pytest.approx(3, rel=1e-4)
    assert (head.edges[-1] - v_max) / head.sigma == pytest.approx(3, rel=1e-4)
    y = np.linspace(v_min, v_max, 201).astype(np.float32)
    twin = partial(listing, v_min=head.edges[0], v_max=head.edges[-1], num_bins=num_bins, sigma_ratio=sigma_ratio)
    p, mean = zip(*map(twin, y.astype(np.float64)), strict=True)
    np.testing.assert_allclose(encode(head, y), p, atol=1e-5)
    np.testing.assert_allclose(mean, y, atol=5e-3 * head.sigma)  # what is cut off at three sigma


def test_hl_gauss_symlog_is_the_listing_on_a_log_scale():
    head = HLGauss(-100.0, 300.0, 31, symlog=True)
    y = np.linspace(-100, 300, 201).astype(np.float32)
    log = lambda v: math.copysign(math.log1p(abs(v)), v)
    p, _ = zip(*(listing(log(v), log(-100), log(300), 31, 0.75) for v in y.tolist()), strict=True)
    np.testing.assert_allclose(encode(head, y), p, atol=1e-5)


@pytest.mark.parametrize("head", [TwoHot, HLGauss])
@pytest.mark.parametrize("symlog, expected, atol", [(False, 1.0, 2e-2), (True, math.expm1(math.log(101) / 100), 1e-3)])
def test_what_varying_returns_decode_to(head, symlog, expected, atol):
    """Their mean; with symlog the smaller one of that transform, here of 99 returns of 0 and one of 100."""
    head = head(-1000.0, 1000.0, 255, symlog=symlog)
    target = encode(head, [0.0] * 99 + [100.0]).mean(axis=0)
    optimum = jnp.log(target)  # of the cross-entropy
    assert float(head.decode(optimum)) == pytest.approx(expected, abs=atol)


def test_hl_gauss_golden_facts():
    # The bias of the truncated Gaussian near the edge, as in the paper; widening removes it.
    np.testing.assert_allclose(encode_decode(HLGauss(), [9.8, 10.0, -10.0]), [9.657, 9.729, -9.729], atol=1e-3)
    np.testing.assert_allclose(encode_decode(HLGauss(widen_support=True), [10.0]), [9.9983], atol=1e-4)
    # Inside, the mean is the return.
    inside = np.linspace(-8.5, 8.5, 333).astype(np.float32)
    np.testing.assert_allclose(encode_decode(HLGauss(), inside), inside, atol=1e-5)
    np.testing.assert_allclose(encode_decode(HLGauss(), [9.0]), [9.0 - 4.03e-4], atol=1e-5)
    # A Gaussian much narrower than a bin cannot place its mean between centres.
    np.testing.assert_allclose(encode_decode(HLGauss(sigma_ratio=0.25), [0.1]) - 0.1, [-0.036], atol=1e-3)
    for p in encode(HLGauss(), [0.0, 0.05, 0.1, 0.2]).astype(np.float64):
        p = p[p > 0]
        assert -np.sum(p * np.log(p)) == pytest.approx(1.2, abs=0.05)


# TwoHot


def test_two_hot_golden_vectors():
    targets = encode(TwoHot(-1.0, 1.0, 3), [0.25, -0.6, 0.0, 1.0, -1.0, 5.0, -5.0])
    expected = [[0, 0.75, 0.25], [0.6, 0.4, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_two_hot_uses_the_two_neighbours_only():
    y = np.random.default_rng(0).uniform(-10, 10, 1000).astype(np.float32)
    head = TwoHot()
    targets = encode(head, y)
    for target, value in zip(targets, y, strict=True):
        (nonzero,) = np.nonzero(target)
        assert len(nonzero) <= 2
        assert np.all(np.abs(head.support[nonzero] - value) <= 0.4 + 1e-5)
    np.testing.assert_allclose(targets @ head.support, y, atol=1e-5)


# C51


def algorithm_1(r, discount, p, v_min, v_max):
    """Bellemare et al. 2017, Algorithm 1, loop by loop in float64; an atom that lands on another keeps its mass."""
    m = len(p)
    width = (v_max - v_min) / (m - 1)
    target = [0.0] * m
    for j in range(m):
        atom = min(max(r + discount * (v_min + j * width), v_min), v_max)
        b = (atom - v_min) / width
        low, high = min(math.floor(b), m - 1), min(math.ceil(b), m - 1)
        if low == high:
            target[low] += p[j]
        else:
            target[low] += p[j] * (high - b)
            target[high] += p[j] * (b - low)
    return target


@pytest.mark.parametrize("v_min, v_max, num_bins", [(-10.0, 10.0, 51), (0.0, 1.0, 2), (-3.0, 7.0, 8), (0.0, 200.0, 21)])
def test_c51_bootstrap_is_algorithm_1(v_min, v_max, num_bins):
    rng = np.random.default_rng(0)
    n, span = 60, v_max - v_min
    r = rng.uniform(-span, span, n).astype(np.float32)
    r[:20] /= 20  # small rewards clip nothing, large ones everything
    discount = rng.choice([0.0, 0.5, 0.99, 1.0], n).astype(np.float32)
    logits = rng.normal(size=(n, num_bins)).astype(np.float32) * rng.choice([0.1, 1, 10], (n, 1)).astype(np.float32)
    targets = jax.jit(jax.vmap(C51(v_min, v_max, num_bins).bootstrap))(r, discount, logits)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    twin = [algorithm_1(*item, v_min, v_max) for item in zip(r.tolist(), discount.tolist(), p, strict=True)]
    np.testing.assert_allclose(targets, twin, atol=1e-5)


def test_c51_golden_vectors():
    logits = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    bootstrap = lambda r, discount: C51(-1.0, 1.0, 3).bootstrap(jnp.float32(r), jnp.float32(discount), logits)
    np.testing.assert_allclose(bootstrap(0.0, 1.0), [0.2, 0.3, 0.5], atol=1e-6)
    np.testing.assert_allclose(bootstrap(0.25, 0.5), [0.05, 0.5, 0.45], atol=1e-6)
    np.testing.assert_allclose(bootstrap(1.0, 1.0), [0.0, 0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(bootstrap(-9.0, 1.0), [1.0, 0.0, 0.0], atol=1e-6)


def test_c51_at_the_end_of_an_episode_encodes_the_reward():
    r = jnp.linspace(-12.0, 12.0, 49)
    logits = jax.random.normal(jax.random.key(0), (49, 51))
    targets = jax.jit(jax.vmap(C51().bootstrap))(r, jnp.zeros(49), logits)
    np.testing.assert_allclose(targets, encode(C51(), r), atol=1e-6)


def test_c51_keeps_the_mean_where_nothing_is_clipped():
    r = jnp.linspace(-1.0, 1.0, 21)
    logits = 3 * jax.random.normal(jax.random.key(0), (21, 51))
    targets = jax.jit(jax.vmap(C51().bootstrap, (0, None, 0)))(r, 0.9, logits)
    np.testing.assert_allclose(C51().decode(jnp.log(targets)), r + 0.9 * C51().decode(logits), atol=1e-5)


# Regression


def test_regression_golden_losses():
    loss = lambda head, logit, y: float(loss_of_return(head, jnp.array([logit]), y))
    assert loss(Scalar("mse"), 1.0, 4.0) == 9.0  # no half
    assert [loss(Scalar("huber"), 0.0, y) for y in (0.5, 1.0, -2.0)] == [0.125, 0.5, 1.5]
    # softmax (1/4, 0, 3/4) over atoms -1, 0, 1 has the mean 0.5.
    logits = jnp.array([0.0, -1e4, math.log(3.0)])
    head = ScalarSoftmax(-1.0, 1.0, 3)
    assert float(loss_of_return(head, logits, 2.5)) == pytest.approx(4.0)


# All heads


@pytest.mark.parametrize(
    "head, limit, atol",
    [
        (TwoHot(), 10.0, 1e-5),
        (TwoHot(symlog=True), 10.0, 1e-5),
        (TwoHot(-1000.0, 1000.0, symlog=True), 1000.0, 1e-2),  # far beyond symlog(v_max) = 6.9
        (HLGauss(), 8.5, 1e-5),
        (HLGauss(widen_support=True), 10.0, 2e-3),
        (HLGauss(symlog=True), 7.0, 1e-3),
        (HLGauss(symlog=True, widen_support=True), 10.0, 1e-2),
        (C51(), 10.0, 1e-5),
    ],
    ids=repr,
)
def test_round_trip(head, limit, atol):
    y = np.linspace(-limit, limit, 401).astype(np.float32)
    np.testing.assert_allclose(encode_decode(head, y), y, atol=atol)


@each_encoder
def test_targets_are_distributions(head):
    targets = encode(head, [*np.linspace(-12, 12, 2001), *TARGETS])
    assert np.all(targets >= 0)  # though the float32 erf is not quite monotone
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("head", [TwoHot(100.0, 101.0, 1001), C51(100.0, 101.0, 1001)])
def test_fine_supports_far_from_zero_lose_no_mass(head):
    """Float32 has steps of 0.8 % of the distance between these atoms."""
    targets = encode(head, np.linspace(100, 101, 777))
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("head", [HLGauss(), HLGauss(widen_support=True), TwoHot(symlog=True), C51(-3.0, 7.0, 8)])
def test_width_is_the_distance_between_locations(head):
    np.testing.assert_allclose(np.diff(head.support), head.width, rtol=1e-4)


@each_encoder
def test_targets_beyond_the_support_are_those_at_its_ends(head):
    np.testing.assert_array_equal(encode(head, [11.6, 1e30, -1e3]), encode(head, [10.0, 10.0, -10.0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", HEADS)
def test_losses_and_gradients_are_finite(name, dtype):
    head = HEADS[name]
    # A squared error of 1e30 overflows float32, as it should: regression gets targets whose square does not.
    y = jnp.array([y for y in TARGETS if abs(y) <= 1e3 or name not in ("mse", "scalar_softmax")])
    noise = np.random.default_rng(0).normal(size=head.num_logits)
    extreme = 1e4 * np.sign(noise)
    logits = jnp.asarray(np.stack([0 * noise, noise, extreme, -extreme]), dtype)
    one = jax.value_and_grad(partial(loss_of_return, head), argnums=(0, 1))
    loss, gradients = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(logits, y)
    assert loss.dtype == jnp.float32 and np.all(np.isfinite(loss))
    assert gradients[0].dtype == logits.dtype
    for gradient in gradients:
        assert np.all(np.isfinite(gradient.astype(jnp.float32)))


@each_encoder
def test_gradient_of_the_cross_entropy_is_prediction_minus_target(head):
    logits, y = jax.random.normal(jax.random.key(0), (head.num_logits,)), jnp.float32(1.23)
    gradient = jax.jit(jax.grad(partial(loss_of_return, head)))(logits, y)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - encode(head, [y])[0], atol=1e-6)


@each_head
def test_broken_targets_are_not_hidden(head):
    y = jnp.array([math.nan, math.inf, -math.inf])
    logits = jnp.zeros(head.num_logits)
    losses = np.asarray(jax.jit(jax.vmap(partial(loss_of_return, head), (None, 0)))(logits, y))
    assert np.isnan(losses[0])
    assert not np.any(np.isfinite(losses))
    # Nor is a network that has diverged.
    target = jax.jit(head.bootstrap)(jnp.float32(0), jnp.float32(0.99), logits.at[0].set(math.nan))
    assert np.isnan(head.loss(logits, target))


@pytest.mark.parametrize("name", [name for name in HEADS if name != "c51"])
def test_bootstrap_encodes_the_scalar_target(name):
    head = HEADS[name]
    r, discount = jnp.linspace(-2.0, 2.0, 7), jnp.array([0.0, 0.5, 0.99, 0.0, 0.5, 0.99, 1.0])
    logits = jax.random.normal(jax.random.key(0), (7, head.num_logits))
    targets = jax.jit(jax.vmap(head.bootstrap))(r, discount, logits)
    np.testing.assert_allclose(targets, encode(head, r + discount * head.decode(logits)), atol=1e-5)


@each_head
def test_decode_takes_batches(head):
    logits = jax.random.normal(jax.random.key(0), (5, 3, head.num_logits))
    values = jax.jit(head.decode)(logits)
    assert values.shape == (5, 3) and values.dtype == jnp.float32
    single = jax.jit(jax.vmap(head.decode))(logits.reshape(15, -1))
    np.testing.assert_allclose(values, single.reshape(5, 3), atol=1e-5)


@each_head
def test_bfloat16_logits_are_computed_with_in_float32(head):
    logits = 3 * jax.random.normal(jax.random.key(0), (head.num_logits,), jnp.bfloat16)
    both = jax.jit(lambda logits: (head.decode(logits), loss_of_return(head, logits, jnp.float32(1.23))))
    np.testing.assert_allclose(both(logits), both(logits.astype(jnp.float32)), rtol=1e-6)


@each_encoder
def test_diagnostics(head):
    m = head.num_logits
    y = jnp.array([-10.1, -10.0, 0.0, 10.0, 10.1])
    diagnostics = jax.jit(jax.vmap(head.diagnostics, (None, 0)))
    found = diagnostics(jnp.zeros(m), y)
    np.testing.assert_allclose(found["entropy"], np.full(5, math.log(m)), rtol=1e-5)
    np.testing.assert_allclose(found["edge_mass"], np.full(5, 2 / m), rtol=1e-5)
    np.testing.assert_array_equal(found["targets_outside_support"], [1, 0, 0, 0, 1])
    # A certain prediction: 0 log 0 is 0.
    certain = diagnostics(jnp.zeros(m).at[3].set(1e4), y)
    assert not np.any(certain["entropy"]) and not np.any(certain["edge_mass"])
    for end in (0, m - 1):
        assert np.all(diagnostics(jnp.zeros(m).at[end].set(1e4), y)["edge_mass"] == 1)


@pytest.mark.parametrize("head_class", [TwoHot, HLGauss, C51, ScalarSoftmax])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"v_min": 1.0, "v_max": 1.0}, "finite v_min < v_max; got v_min=1.0, v_max=1.0"),
        ({"v_min": 2.0, "v_max": 1.0}, "finite v_min < v_max"),
        ({"v_min": math.nan}, "finite v_min < v_max"),
        ({"num_bins": 1}, "2 <= num_bins <= 1,000,000; got 1"),
    ],
)
def test_bad_supports_are_refused(head_class, settings, message):
    with pytest.raises(ValueError, match=f"{head_class.__name__} needs {message}"):
        head_class(**settings)


def test_other_bad_settings_are_refused():
    for sigma_ratio in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma_ratio .* must be positive; got"):
            HLGauss(sigma_ratio=sigma_ratio)
    with pytest.raises(ValueError, match="takes three sigma, 1.5 bins, at each end: num_bins must be above 3; got 3"):
        HLGauss(num_bins=3, sigma_ratio=0.5, widen_support=True)
    with pytest.raises(ValueError, match="'mae'; allowed: 'mse', 'huber'"):
        Scalar("mae")


# The floor of a loss


@each_head
def test_min_loss_is_reached_and_not_undercut(head):
    """At the logits that are trained for; the rest of the loss, the divergence, has the loss's gradient."""
    y = jnp.float32(0.3)
    target = head.encode(y)
    logits = jax.random.normal(jax.random.key(0), (100, head.num_logits)) * 5
    losses = jax.vmap(lambda logits: head.loss(logits, target))(logits)
    assert np.all(losses > head.min_loss(target) + 1e-4)
    if head in ENCODERS.values():
        best = jnp.log(target + 1e-30)
        assert float(head.loss(best, target)) == pytest.approx(float(head.min_loss(target)), abs=1e-5)
    else:
        assert head.min_loss(target) == 0


def test_entropy_floor_of_hl_gauss():
    """About the same 1.2 nats for most returns, which flattens priorities made of the loss; less at the edges."""
    floors = [float(HLGauss().min_loss(HLGauss().encode(y))) for y in (-7.3, 0.0, 0.1, 5.0)]
    np.testing.assert_allclose(floors, 1.2, atol=0.1)
    assert float(HLGauss().min_loss(HLGauss().encode(10.0))) == pytest.approx(0.507, abs=1e-3)
    # Two-Hot's depends on where the return lies between two atoms.
    assert float(TwoHot().min_loss(TwoHot().encode(0.0))) == 0
    assert float(TwoHot().min_loss(TwoHot().encode(0.2))) == pytest.approx(math.log(2), abs=1e-4)
