"""SoftMoE against a naive twin with plain loops, and against Dopamine's module with the same parameters."""

import math
import unittest.mock
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networks.q_network import QNetwork
from networks.soft_moe import SoftMoE
from networks.torsos import MLP, ImpalaEncoder

with unittest.mock.patch("gin.configurable", lambda cls: cls):  # keep its names out of our gin registry
    from dopamine.labs.moes.architectures.softmoe import SoftMoE as DopaminesSoftMoE

HIDDEN = 7


class Positions(nn.Module):
    """An encoder whose positions [B, h, w, c] are the observation."""

    @nn.compact
    def __call__(self, observation):
        return observation


def positions(batch=2, height=3, width=4, channels=5, seed=0):
    """Twelve tokens of five channels."""
    return np.random.default_rng(seed).normal(size=(batch, height, width, channels)).astype(np.float32)


def make(num_experts, capacity=1.0, normalize=False, **options):
    return SoftMoE(Positions(), num_experts, HIDDEN, capacity, normalize, **options)


def draw(torso, x, seed=1):
    """Parameters far from their initialisation: routing that is neither even nor all or nothing, no bias of zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(torso.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    if torso.normalize:
        params["params"]["scale"] = jnp.asarray(2.5)
    return params


def init(torso, x, *names, **options):
    """Some parameters as initialised; the others are not even compiled."""

    @jax.jit
    def pick(key):
        params = torso.init(key, x, **options)["params"]
        return {name: params[name] for name in names}

    return jax.tree.map(np.asarray, pick(jax.random.key(0)))


@partial(jax.jit, static_argnums=0)
def run(torso, params, x):
    """Features, the dispatch and combine weights [B, t, n, p] that the module used, and its diagnostics."""
    collections = ["intermediates", "diagnostics"]
    features, state = torso.apply(params, x, capture_intermediates=lambda _, f: f == "_route", mutable=collections)
    ((dispatch, combine),) = state["intermediates"]["_route"]
    return features, dispatch, combine, state["diagnostics"]


# A naive twin


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def naive(params, x, normalize):
    """One example's tokens [t, c]: outputs [t, c], dispatch and combine [t, n, p]; token by token, in float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params["params"].items()}
    (num_tokens, _), (_, num_experts, num_slots) = x.shape, p["phi"].shape
    x = x.astype(np.float64)

    logits = np.empty((num_tokens, num_experts, num_slots))
    for t in range(num_tokens):
        for n in range(num_experts):
            for s in range(num_slots):
                logits[t, n, s] = x[t] @ p["phi"][:, n, s]
                if normalize:
                    logits[t, n, s] *= p["scale"] / np.sqrt((x[t] ** 2).sum() * (p["phi"][:, n, s] ** 2).sum())

    dispatch, combine = np.empty_like(logits), np.empty_like(logits)
    for t in range(num_tokens):  # a token's output is shared among all slots of all experts
        combine[t] = softmax(logits[t].reshape(-1)).reshape(num_experts, num_slots)
    outputs = np.zeros_like(x)
    for n in range(num_experts):
        for s in range(num_slots):
            dispatch[:, n, s] = softmax(logits[:, n, s])  # a slot is shared among all tokens
            slot = sum(dispatch[t, n, s] * x[t] for t in range(num_tokens))
            hidden = np.maximum(slot @ p["hidden_kernel"][n] + p["hidden_bias"][n], 0)
            output = hidden @ p["output_kernel"][n] + p["output_bias"][n]
            for t in range(num_tokens):
                outputs[t] += combine[t, n, s] * output
    return outputs, dispatch, combine


@pytest.mark.parametrize("capacity, normalize", [(1.0, False), (1.0, True), (0.5, False), (2.0, True)])
@pytest.mark.parametrize("num_experts", [1, 2, 3, 8])
def test_equals_a_naive_twin(num_experts, capacity, normalize):
    """Features, routing weights and diagnostics; the twin rounds the slots of an expert up."""
    x, torso = positions(), make(num_experts, capacity, normalize)
    params = draw(torso, x)
    assert params["params"]["phi"].shape == (5, num_experts, -(-12 * capacity // num_experts))
    assert ("scale" in params["params"]) == normalize
    features, dispatch, combine, diagnostics = jax.tree.map(np.asarray, run(torso, params, x))
    assert features.shape == (2, 12 * 5)
    np.testing.assert_allclose(np.sum(dispatch, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(combine, axis=(2, 3)), 1, rtol=1e-5)

    loads, entropies = [], []
    for b in range(2):
        twin = naive(params, x[b].reshape(12, 5), normalize)
        for ours, theirs in zip((features[b].reshape(12, 5), dispatch[b], combine[b]), twin, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
        _, naive_dispatch, naive_combine = twin
        loads += [[naive_combine[t, n].sum() for n in range(num_experts)] for t in range(12)]
        slots = naive_dispatch.reshape(12, -1).T
        entropies += [-sum(weight * math.log(weight) for weight in slot) for slot in slots]
    np.testing.assert_allclose(diagnostics["expert_load"], np.mean(loads, axis=0), rtol=1e-5)
    assert diagnostics["expert_load"].sum() == pytest.approx(1, abs=1e-5)
    assert diagnostics["dispatch_entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert 0 < diagnostics["dispatch_entropy"] < math.log(12)


def test_entropy_is_at_its_limits_where_routing_is():
    """log(tokens) where all tokens are alike to a slot, nothing where each slot takes one; never NaN."""
    x, torso = positions(), make(2)
    params = draw(torso, x)
    phi = params["params"]["phi"]
    for factor, entropy in ((0.0, math.log(12)), (1e4, 0.0)):
        params["params"]["phi"] = factor * phi
        *_, diagnostics = run(torso, params, x)
        assert diagnostics["dispatch_entropy"] == pytest.approx(entropy, abs=1e-4)


def test_the_encoders_positions_are_the_tokens():
    """Row by row, with the channels innermost; and the example beside it changes nothing."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 9, 12), np.uint8)
    encoder = ImpalaEncoder(channels=(4, 5))  # 3 x 3 positions of 5 channels
    torso = SoftMoE(encoder, num_experts=2, hidden=HIDDEN)
    params = draw(torso, frames)
    features = jax.jit(torso.apply)(params, frames)
    encoded = np.asarray(encoder.apply({"params": params["params"]["encoder"]}, frames))
    own = {"params": {name: leaf for name, leaf in params["params"].items() if name != "encoder"}}
    for b in range(2):
        tokens = np.array([encoded[b, i, j] for i in range(3) for j in range(3)])
        twin, _, _ = naive(own, tokens, normalize=False)
        np.testing.assert_allclose(features[b].reshape(9, 5), twin, rtol=1e-4, atol=1e-5 * np.abs(twin).max())


# Parameters


@pytest.mark.parametrize("num_experts, slots", [(1, 121), (2, 61), (4, 31), (8, 16)])
def test_slots_are_as_many_as_tokens_rounded_up(num_experts, slots):
    """84x84 images have 121 tokens. Experts are 32-512-32."""
    torso = SoftMoE(num_experts=num_experts)
    observation = jax.ShapeDtypeStruct((1, 4, 84, 84), jnp.uint8)
    features, variables = jax.eval_shape(torso.init_with_output, jax.random.key(0), observation)
    params = variables["params"]
    assert params["phi"].shape == (32, num_experts, slots)
    assert params["hidden_kernel"].shape == (num_experts, 32, 512)
    assert params["output_kernel"].shape == (num_experts, 512, 32)
    assert features.shape == (1, 121 * 32)


def test_each_expert_is_initialised_as_a_layer_of_its_own():
    """Glorot's limit sqrt(6 / (c + d)) for [c, d]; for [3, c, d] it would be 1.7 times less. Biases are zero."""
    torso = SoftMoE(Positions(), num_experts=3, hidden=64)
    params = init(torso, positions(channels=32), "hidden_kernel", "hidden_bias", "output_kernel", "output_bias")
    limit = math.sqrt(6 / (32 + 64))
    for name, shape in (("hidden", (3, 32, 64)), ("output", (3, 64, 32))):
        kernel = params[f"{name}_kernel"]
        assert kernel.shape == shape and not params[f"{name}_bias"].any()
        for n in range(3):
            assert 0.98 * limit < np.abs(kernel[n]).max() <= limit
            assert kernel[n].std() == pytest.approx(limit / math.sqrt(3), rel=0.05)  # 2,048 weights: 5 standard errors
            assert abs(np.corrcoef(kernel[n].ravel(), kernel[n - 1].ravel())[0, 1]) < 0.1
    assert abs(np.corrcoef(params["hidden_kernel"][0].ravel(), params["output_kernel"][0].ravel())[0, 1]) < 0.1


def test_kernel_init_sees_the_shape_of_one_expert():
    seen = []

    def kernel_init(key, shape, dtype):
        seen.append(shape)
        return jnp.full(shape, 0.5, dtype)

    params = init(make(3, kernel_init=kernel_init), positions(), "hidden_kernel", "output_kernel")
    assert seen == [(5, HIDDEN), (HIDDEN, 5)]
    assert (params["hidden_kernel"] == 0.5).all() and (params["output_kernel"] == 0.5).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_diagnostics_stay_out_of_the_parameters(normalize):
    """They are there for who asks, and never in a checkpoint."""
    x, network = positions(), QNetwork(3, 1, make(2, normalize=normalize))
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    assert set(variables) == {"params"}
    names = {"phi", "hidden_kernel", "hidden_bias", "output_kernel", "output_bias"}
    assert set(variables["params"]["torso"]) == (names | {"scale"} if normalize else names)

    _, sown = jax.eval_shape(partial(network.apply, mutable=["diagnostics"]), variables, x)
    shapes = {"expert_load": (2,), "dispatch_entropy": ()}
    assert jax.tree.map(jnp.shape, sown) == {"diagnostics": {"torso": shapes}}
    _, again = jax.eval_shape(partial(network.apply, mutable=["diagnostics"]), {**variables, **sown}, x)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, sown)  # replaced, not added to


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_reach_every_parameter_and_every_expert(normalize):
    """From the features to the encoder's convolutions. Those of black frames are finite: their tokens are zero, where a
    vector's norm has no gradient, and the encoder's last ReLU stops it.
    """
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 9, 9), np.uint8)
    torso = SoftMoE(ImpalaEncoder(channels=(4,)), num_experts=3, hidden=HIDDEN, normalize=normalize)
    params = draw(torso, frames)
    params["params"]["encoder"] = jax.tree.map(lambda leaf: 0.3 * leaf, params["params"]["encoder"])
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 100)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda params, frames: jnp.vdot(torso.apply(params, frames), weights)))
    gradients = jax.tree.map(np.asarray, gradient(params, frames)["params"])
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-4
    for name in ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias"):
        assert (np.abs(gradients[name]).reshape(3, -1).max(axis=1) > 1e-4).all()
    assert (np.abs(gradients["phi"]).max(axis=(0, 2)) > 1e-4).all()

    params["params"]["encoder"] = jax.tree.map(lambda leaf: leaf * (leaf.ndim > 1), params["params"]["encoder"])
    gradients = jax.tree.map(np.asarray, gradient(params, 0 * frames)["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)) and gradients["output_bias"].any()


@pytest.mark.parametrize("normalize", [False, True])
def test_bfloat16_is_the_encoders_and_routing_is_not(normalize):
    """Experts compute in the encoder's type; softmaxes and diagnostics are float32's for the tokens as they are."""
    x = jnp.asarray(positions(), jnp.bfloat16)
    torso = make(2, normalize=normalize)
    params = draw(torso, x)
    shapes = jax.eval_shape(torso.init, jax.random.key(0), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
    features, dispatch, combine, diagnostics = run(torso, params, x)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves((dispatch, combine, diagnostics))} == {"float32"}
    for b in range(2):
        twin = naive(params, np.asarray(x[b], np.float64).reshape(12, 5), normalize)
        np.testing.assert_allclose(dispatch[b], twin[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(combine[b], twin[2], rtol=1e-4, atol=1e-5)
        ours = np.asarray(features[b], np.float64).reshape(12, 5)
        np.testing.assert_allclose(ours, twin[0], atol=0.03 * np.abs(twin[0]).max())


# Dopamine


class DopaminesExpert(nn.Module):
    """As ExpertModel in Dopamine's labs/moes/architectures/networks.py, which does not import without TensorFlow."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(x.shape[0])(hidden), hidden


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("num_experts, capacity", [(1, 1.0), (5, 1.0), (8, 0.5)])
def test_equals_dopamines_module(num_experts, capacity, normalize):
    """With our parameters; outputs, and what it calls the router's probabilities: combine weights, mean over slots."""
    x, torso = positions(), make(num_experts, capacity, normalize)
    params = draw(torso, x)
    p = params["params"]
    theirs = DopaminesSoftMoE(DopaminesExpert(), num_experts, capacity, normalization=normalize)
    mapped = {
        "phi_weights": p["phi"],
        "scalar": p["scale"][None] if normalize else jnp.ones(1),
        "module": {
            "Dense_0": {"kernel": p["hidden_kernel"], "bias": p["hidden_bias"]},
            "Dense_1": {"kernel": p["output_kernel"], "bias": p["output_bias"]},
        },
    }
    apply = lambda tokens: theirs.apply({"params": mapped}, tokens, key=jax.random.key(0))
    result = jax.tree.map(np.asarray, jax.jit(jax.vmap(apply))(x.reshape(2, 12, 5)))
    features, _, _, diagnostics = run(torso, params, x)
    features = np.asarray(features).reshape(2, 12, 5)
    np.testing.assert_allclose(features, result.values, rtol=1e-5, atol=1e-5 * np.abs(features).max())
    assert np.abs(features).max() > 0.1

    load = p["phi"].shape[2] * result.router_out.probabilities.mean(axis=(0, 1))
    np.testing.assert_allclose(diagnostics["expert_load"], load, rtol=1e-5)


def test_routing_is_initialised_as_dopamines():
    """LeCun's for [c, n, p], whose fan-in flax takes to be c n: 1 / sqrt(c n), not 1 / sqrt(c)."""
    x = positions(height=11, width=11, channels=32)
    ours = init(make(4, normalize=True), x, "phi", "scale")
    theirs = init(DopaminesSoftMoE(DopaminesExpert(), 4), x[0].reshape(121, 32), "phi_weights", "scalar", key=None)
    assert ours["phi"].shape == theirs["phi_weights"].shape == (32, 4, 31) and ours["scale"] == theirs["scalar"] == 1
    for phi in (ours["phi"], theirs["phi_weights"]):  # 3,968 weights, so that 5 % are four standard errors
        assert phi.std() == pytest.approx((32 * 4) ** -0.5, rel=0.05)


def test_an_encoder_without_positions_is_refused():
    """It would be one token, and one expert's work done by all."""
    with pytest.raises(ValueError, match=r"must give positions \[B, h, w, c\].*MLP gives an array of shape \(1, 8\)"):
        SoftMoE(encoder=MLP(features=(8,))).init(jax.random.key(0), jnp.zeros((1, 1, 4)))
