"""Networks: sizes counted by hand, naive twins in numpy, the layout of pixels, and which package may import which.

SoftMoE's routing has a file of its own.
"""

import ast
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networks import resnet
from networks.layers import NoisyDense, convolve_by_product, dense, max_pool
from networks.q_network import QNetwork
from networks.resnet import ResNet
from networks.soft_moe import SoftMoE
from networks.torsos import MLP, ImpalaCNN, ImpalaEncoder, MinAtarCNN, NatureCNN, to_image

ROOT = Path(__file__).resolve().parent.parent
ATARI = (1, 4, 84, 84)


def shapes(network, observation_shape=ATARI, dtype=jnp.uint8):
    """Shapes and types of the parameters, 'torso/Conv_0/kernel' -> ..., without computing them."""
    params = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(observation_shape, dtype))
    return flax.traverse_util.flatten_dict(params["params"], sep="/")


def size(params):
    return sum(leaf.size for leaf in params.values())


def random_params(network, observation, seed=0):
    """Parameters drawn by numpy: quicker than compiling `init`, and no bias is zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if leaf.ndim < 2:
            return jnp.asarray((path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape), jnp.float32)
        return jnp.asarray(rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0), observation))


def small(name, dtype="float32"):
    """A small instance of a torso for images."""
    encoder = ImpalaEncoder(channels=(4, 8), dtype=dtype)
    return {
        "NatureCNN": lambda: NatureCNN(dtype=dtype),
        "MinAtarCNN": lambda: MinAtarCNN(dtype=dtype),
        "ImpalaCNN": lambda: ImpalaCNN(encoder, hidden=16),
        "SoftMoE": lambda: SoftMoE(encoder, num_experts=2, hidden=8),
        "ResNet": lambda: ResNet(depth=18, channels=4, groups=2, num_embeddings=3, hidden=16, dtype=dtype),
    }[name]()


IMAGE_TORSOS = ["NatureCNN", "MinAtarCNN", "ImpalaCNN", "SoftMoE", "ResNet"]


@pytest.fixture
def shallow(monkeypatch):
    """One block a stage: what compiles fast."""
    monkeypatch.setitem(resnet.LAYOUTS, 18, ((1, 1, 1, 1), False))


def conv_same(x, kernel, bias=0.0, stride=1):
    """A convolution of [H, W, c] with [k, k, c, d], zeros around, position by position in float64."""
    size, outputs = kernel.shape[0], [-(-n // stride) for n in x.shape[:2]]
    before = [max((out - 1) * stride + size - n, 0) // 2 for out, n in zip(outputs, x.shape[:2], strict=True)]
    padded = np.zeros((x.shape[0] + 2 * size, x.shape[1] + 2 * size, x.shape[2]))
    padded[before[0] : before[0] + x.shape[0], before[1] : before[1] + x.shape[1]] = x
    y = np.empty((*outputs, kernel.shape[3]))
    for i in range(outputs[0]):
        for j in range(outputs[1]):
            window = padded[i * stride : i * stride + size, j * stride : j * stride + size]
            y[i, j] = np.einsum("klc,klcd->d", window, kernel.astype(np.float64)) + bias
    return y


def relu(x):
    return np.maximum(x, 0)


# NatureCNN

# Convolutions 8*8*4*32+32 + 4*4*32*64+64 + 3*3*64*64+64 = 77,984; dense 7,744*512+512 = 3,965,440 or 3,136*512+512 =
# 1,606,144; head 512*18+18 = 9,234 or 512*18*51+18*51 = 470,934.
COUNTS = {
    ("SAME", 1): 77_984 + 3_965_440 + 9_234,  # 4.05 M
    ("SAME", 51): 77_984 + 3_965_440 + 470_934,  # 4.51 M
    ("VALID", 1): 77_984 + 1_606_144 + 9_234,
    ("VALID", 51): 77_984 + 1_606_144 + 470_934,
}


@pytest.mark.parametrize("padding, num_logits", COUNTS)
def test_nature_cnn_has_the_papers_size(padding, num_logits):
    """Dopamine pads SAME, so 7,744 features reach the dense layer instead of 3,136."""
    params = shapes(QNetwork(18, num_logits, NatureCNN(padding=padding)))
    assert params["torso/Dense_0/kernel"].shape == ({"SAME": 7_744, "VALID": 3_136}[padding], 512)
    assert params["head/kernel"].shape == (512, 18 * num_logits)
    assert size(params) == COUNTS[padding, num_logits]
    assert {name.partition("/")[0] for name in params} == {"torso", "head"}


def test_layer_norm_normalises_every_layer():
    """Scale and bias for 32, 64 and 64 channels and 512 units; the output changes."""
    plain, normalised = (shapes(QNetwork(18, 1, NatureCNN(layer_norm=on))) for on in (False, True))
    assert size(normalised) - size(plain) == 2 * (32 + 64 + 64 + 512)
    observation = jnp.full((2, 4), 100.0).at[0].mul(0.01)
    for torso in (MLP(features=(8,), layer_norm=True), MLP(features=(8,))):
        features, _ = torso.init_with_output(jax.random.key(0), observation[:, None])
        assert torso.layer_norm == (abs(features[0] - features[1]).max() < 1e-2)  # the input's scale is lost


@pytest.mark.parametrize("name", IMAGE_TORSOS)
def test_bfloat16_computes_in_it_and_keeps_float32_parameters(name, shallow):
    """Logits come out in float32, near those of float32."""
    observation = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 12), np.uint8)
    params = random_params(QNetwork(3, 2, small(name)), observation)
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        network = QNetwork(3, 2, small(name, dtype))
        assert {leaf.dtype.name for leaf in shapes(network, observation.shape).values()} == {"float32"}
        logits, features = jax.jit(network.apply)(params, observation)
        assert features.dtype.name == dtype and logits.dtype == jnp.float32 and logits.shape == (2, 3, 2)
        outputs[dtype] = np.asarray(logits)
    assert 0 < np.abs(outputs["float32"] - outputs["bfloat16"]).max() < 0.05 * np.abs(outputs["float32"]).max()


def test_minatar_cnn_is_young_and_tians():
    """One 3x3 convolution of 16 channels on 10x10 images, 8*8*16 = 1,024 features, 128 units."""
    params = shapes(QNetwork(6, 1, MinAtarCNN()), (1, 1, 10, 10, 4), bool)
    assert params["torso/Conv_0/kernel"].shape == (3, 3, 4, 16)
    assert params["torso/Dense_0/kernel"].shape == (1_024, 128)


def test_minatar_cnn_equals_a_naive_twin():
    observation = np.random.default_rng(0).random((2, 1, 10, 10, 4)) < 0.3
    params = random_params(MinAtarCNN(), observation)
    conv, dense = (jax.device_get(params["params"][name]) for name in ("Conv_0", "Dense_0"))
    for image, features in zip(observation[:, 0], MinAtarCNN().apply(params, observation), strict=True):
        windows = np.stack([image[i : i + 3, j : j + 3] for i in range(8) for j in range(8)]).astype(np.float64)
        x = relu(np.tensordot(windows, conv["kernel"], 3) + conv["bias"]).reshape(-1)
        np.testing.assert_allclose(features, relu(x @ dense["kernel"] + dense["bias"]), atol=1e-4)


def test_mlp_flattens():
    """Vectors of any stack, and images."""
    for shape in ((1, 1, 12), (1, 3, 4), (1, 1, 2, 6)):
        params = shapes(MLP(features=(5, 7)), shape, jnp.float32)
        assert (params["Dense_0/kernel"].shape, params["Dense_1/kernel"].shape) == ((12, 5), (5, 7))


# Impala, SoftMoE: sizes

# A stack from c to d channels has 9cd+d and four times 9dd+d parameters: 592 + 4*2,320 = 9,872 (4 to 16), 4,640 +
# 4*9,248 = 41,632 (16 to 32) and 9,248 + 4*9,248 = 46,240 (32 to 32).
IMPALA = 9_872 + 41_632 + 46_240  # 97,744
# Dense 11*11*32 = 3,872 features times 512k plus 512k; head 18*512k+18.
# SoftMoE-n: phi 32 * n * ceil(121/n) = 32 * 121, 122, 124, 128; an expert 32*512+512 + 512*32+32 = 33,312; head
# 18m * 3,872 + 18m = 69,714 m.
IMPALA_COUNTS = {
    (ImpalaCNN(), 1): IMPALA + 1_982_976 + 9_234,  # 2,089,954
    (ImpalaCNN(hidden=1_024), 1): IMPALA + 3_965_952 + 18_450,  # 4.08 M
    (ImpalaCNN(hidden=2_048), 1): IMPALA + 7_931_904 + 36_882,  # 8.07 M
    (ImpalaCNN(hidden=4_096), 1): IMPALA + 15_863_808 + 73_746,  # 16.0 M
    (SoftMoE(num_experts=1), 1): IMPALA + 3_872 + 33_312 + 69_714,  # 0.205 M
    (SoftMoE(num_experts=2), 1): IMPALA + 3_904 + 2 * 33_312 + 69_714,  # 0.238 M
    (SoftMoE(num_experts=4), 1): IMPALA + 3_968 + 4 * 33_312 + 69_714,  # 0.305 M
    (SoftMoE(num_experts=8), 1): IMPALA + 4_096 + 8 * 33_312 + 69_714,  # 0.438 M
    (SoftMoE(num_experts=1), 51): IMPALA + 3_872 + 33_312 + 3_555_414,  # 3.69 M
    (SoftMoE(num_experts=2), 51): IMPALA + 3_904 + 2 * 33_312 + 3_555_414,  # 3.72 M
    (SoftMoE(num_experts=4), 51): IMPALA + 3_968 + 4 * 33_312 + 3_555_414,  # 3.79 M
    (SoftMoE(num_experts=8), 51): IMPALA + 4_096 + 8 * 33_312 + 3_555_414,  # 3.92 M
}


@pytest.mark.parametrize("torso, num_logits", IMPALA_COUNTS)
def test_impala_and_soft_moe_have_the_papers_sizes(torso, num_logits):
    """As Dopamine's ImpalaDQNNetwork, its widened baselines, and SoftMoE with one expert to eight."""
    params = shapes(QNetwork(18, num_logits, torso))
    assert size(params) == IMPALA_COUNTS[torso, num_logits]
    assert size({name: leaf for name, leaf in params.items() if name.startswith("torso/encoder/")}) == IMPALA
    assert {name.partition("/")[0] for name in params} == {"torso", "head"}


# Impala


def outputs_of(network, kind, observation_shape=ATARI):
    """Shapes of what every module of one kind gives, in the order of calls, without computing them."""

    def run(key, observation):
        _, state = network.init_with_output(key, observation, capture_intermediates=lambda m, _: isinstance(m, kind))
        return state["intermediates"]

    observation = jax.ShapeDtypeStruct(observation_shape, jnp.uint8)
    found = flax.traverse_util.flatten_dict(jax.eval_shape(run, jax.random.key(0), observation))
    return [leaves[0].shape for _, leaves in sorted(found.items(), key=lambda x: int(x[0][-2].rpartition("_")[2]))]


@pytest.mark.parametrize("width", [1, 3])
def test_impala_halves_the_image_three_times(width):
    """84, 42, 21, 11 positions; `width` multiplies the channels."""
    encoder = ImpalaEncoder(width=width)
    a, b = 16 * width, 32 * width
    sizes = [(84, a)] + 4 * [(42, a)] + [(42, b)] + 4 * [(21, b)] + [(21, b)] + 4 * [(11, b)]
    assert outputs_of(encoder, nn.Conv) == [(1, n, n, c) for n, c in sizes]
    observation = jax.ShapeDtypeStruct((2, *ATARI[1:]), jnp.uint8)
    output, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), observation)
    assert output.shape == (2, 11, 11, b)


def naive_max_pool(x):
    """3x3 with stride 2 and SAME padding; what lies outside counts for nothing."""
    before = [(n - 1) % 2 == 0 for n in x.shape[:2]]  # an odd size is padded on both sides, an even one at the end
    y = np.empty((-(-x.shape[0] // 2), -(-x.shape[1] // 2), x.shape[2]))
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            top, left = 2 * i - before[0], 2 * j - before[1]
            y[i, j] = x[max(top, 0) : top + 3, max(left, 0) : left + 3].max(axis=(0, 1))
    return y


def naive_impala(params, x, num_stacks):
    layers = (params[f"Conv_{i}"] for i in range(5 * num_stacks))
    conv = lambda x: conv_same(x, **jax.tree.map(np.asarray, next(layers)))
    for _ in range(num_stacks):
        x = naive_max_pool(conv(x))
        for _ in range(2):
            x = x + conv(relu(conv(relu(x))))
    return relu(x)


@pytest.mark.parametrize(
    "by_product, settings",
    [
        (True, {"kernel_size": (4, 4), "strides": 3, "padding": "SAME"}),
        (True, {"kernel_size": (4, 3), "strides": (2, 1), "padding": "VALID"}),
        (True, {"kernel_size": (3, 3), "strides": 2, "padding": ((2, 0), (1, 3)), "use_bias": False}),
        (False, {"kernel_size": (2, 2), "kernel_dilation": 2}),
        (False, {"kernel_size": (2, 2), "feature_group_count": 3}),
        (False, {"kernel_size": (2,)}),
    ],
)
def test_a_convolution_by_product_is_the_convolution(by_product, settings):
    """Its value and gradients, for two seeds under vmap; what cannot be a product is left as it is."""
    random = np.random.default_rng(0)
    conv, x = nn.Conv(6, **settings), random.normal(size=(2, 4, 11, 10, 3)).astype(np.float32)
    params = jax.vmap(conv.init, in_axes=(0, None))(jax.random.split(jax.random.key(0), 2), x[0])

    def loss(params, x):
        return jnp.sum(jnp.sin(conv.apply(params, x)))

    make = lambda: jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1))))
    expected = make()(params, x)
    with nn.intercept_methods(convolve_by_product):
        products = make()
        jaxpr, result = str(jax.make_jaxpr(products)(params, x)), products(params, x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), result, expected)
    assert ("conv_general_dilated" in jaxpr) != by_product


@pytest.mark.parametrize("height, width", [(6, 7), (5, 4)])
def test_max_pool_and_its_gradient_equal_flax(height, width):
    """Where nothing is tied; the gradient of a tie is shared, none of it is lost."""
    random = np.random.default_rng(0)
    x = random.permutation(2 * height * width * 3).reshape(2, height, width, 3).astype(np.float32)
    windows = lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    y, flax_gradient = jax.vjp(windows, x)
    mine, gradient = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(mine, y)
    weights = random.normal(size=y.shape).astype(np.float32)
    np.testing.assert_allclose(gradient(weights)[0], flax_gradient(weights)[0], atol=1e-6)
    ties, gradient = jax.vjp(max_pool, np.zeros_like(x))
    assert (ties == 0).all()
    np.testing.assert_allclose(gradient(weights)[0].sum((1, 2)), weights.sum((1, 2)), atol=1e-5)


@pytest.mark.parametrize("height, width", [(6, 7), (5, 4)])
def test_impala_encoder_equals_a_naive_twin(height, width):
    """Pre-activation residual blocks behind a pooled convolution; nothing negative comes out, and not all is zero."""
    encoder = ImpalaEncoder(channels=(3, 4))
    observation = np.random.default_rng(1).normal(size=(2, 1, height, width, 2)).astype(np.float32)
    params = random_params(encoder, observation)
    output = np.asarray(jax.jit(encoder.apply)(params, observation))
    for b in range(2):
        twin = naive_impala(params["params"], observation[b, 0], 2)
        np.testing.assert_allclose(output[b], twin, rtol=1e-5, atol=1e-5)
    assert output.min() == 0 and output.max() > 0.1


def test_impala_cnn_adds_a_dense_layer_and_relu():
    """The flattened positions, row by row."""
    torso = small("ImpalaCNN")
    observation = np.random.default_rng(0).normal(size=(2, 4, 6, 7)).astype(np.float32)
    params = random_params(torso, observation)
    positions = torso.encoder.apply({"params": params["params"]["encoder"]}, observation)
    layer = params["params"]["Dense_0"]
    twin = relu(np.asarray(positions).reshape(2, -1) @ layer["kernel"] + layer["bias"][None])
    np.testing.assert_allclose(torso.apply(params, observation), twin, atol=1e-5)
    assert (twin == 0).any() and (twin > 0.1).any()


def test_impala_initialises_as_dopamine_does():
    """`kernel_init` is for the first convolution of each stack and the dense layer; residual ones stay LeCun's."""
    encoder = ImpalaEncoder(channels=(16, 16), kernel_init=nn.initializers.constant(0.25))
    torso = ImpalaCNN(encoder, hidden=4, kernel_init=nn.initializers.constant(0.5))
    params = torso.init(jax.random.key(0), jnp.zeros((1, 1, 2, 2)))["params"]
    assert (params["Dense_0"]["kernel"] == 0.5).all()
    for i in range(10):
        kernel, bias = params["encoder"][f"Conv_{i}"]["kernel"], params["encoder"][f"Conv_{i}"]["bias"]
        assert not bias.any()
        if i in (0, 5):
            assert (kernel == 0.25).all()
        else:  # variance 1 / fan_in; of 2,304 weights, so that 6 % are four standard errors
            assert kernel.std() == pytest.approx((3 * 3 * 16) ** -0.5, rel=0.06)


# ResNet

# Trunks as counted for torchvision's without their last layer, whose batch norm has a scale and a bias too; the first
# convolution sees 4 frames instead of 3 colours, 7*7*64 = 3,136 more. ResNet-18 by hand: first convolution and norm
# 7*7*4*64 + 128 = 12,672; a block from c to d channels 9cd + 9dd + 4d, and cd + 2d for a shortcut that is projected:
# 2 * 73,984 (64 channels), 230,144 + 295,424 (128), 919,040 + 1,180,672 (256), 3,673,088 + 4,720,640 (512).
TRUNKS = {18: 11_176_512 + 3_136, 34: 21_284_672 + 3_136, 50: 23_508_032 + 3_136, 101: 42_500_160 + 3_136}
assert TRUNKS[18] == 12_672 + 147_968 + 525_568 + 2_099_712 + 8_393_728
# With c = 512 channels at last, 4 times as many in bottlenecks: embeddings 6*6*c*32, dense layer 32c*512+512, head
# 512*918+918 = 470,934 for 18 actions and 51 bins.
RESNET_COUNTS = {
    18: TRUNKS[18] + 589_824 + 8_389_120 + 470_934,  # 20.6 M
    34: TRUNKS[34] + 589_824 + 8_389_120 + 470_934,  # 30.7 M; the paper's Figure 7 says 31 M
    50: TRUNKS[50] + 2_359_296 + 33_554_944 + 470_934,  # 59.9 M; 60 M
    101: TRUNKS[101] + 2_359_296 + 33_554_944 + 470_934,  # 78.9 M; 79 M
}


@pytest.mark.parametrize("depth", RESNET_COUNTS)
def test_resnet_has_the_papers_size(depth):
    params = shapes(QNetwork(18, 51, ResNet(depth=depth)))
    trunk = {name: leaf for name, leaf in params.items() if name.startswith(("torso/Conv_", "torso/GroupNorm_"))}
    assert size(trunk) == TRUNKS[depth]
    assert size(params) == RESNET_COUNTS[depth]
    assert params["torso/embeddings"].shape == (6, 6, 512 if depth < 50 else 2_048, 32)


def test_resnet_halves_the_image_four_times():
    """84 to 42 in the first convolution, then 42, 21, 11 and 6; nothing is pooled. 3x3 convolutions have the stride."""
    shortcut = lambda n, c: [(n, c), (n, c), (n, c)]
    plain = lambda n, c: [(n, c), (n, c)]
    sizes = [(42, 64)] + 2 * plain(42, 64)
    for n, c in ((21, 128), (11, 256), (6, 512)):
        sizes += shortcut(n, c) + plain(n, c)
    assert outputs_of(ResNet(depth=18), nn.Conv) == [(1, n, n, c) for n, c in sizes]
    sizes = [(n, c) for _, n, _, c in outputs_of(ResNet(depth=50), nn.Conv)]
    assert sizes[:5] == [(42, 64), (42, 64), (42, 64), (42, 256), (42, 256)]
    assert sizes[11:15] == [(42, 128), (21, 128), (21, 512), (21, 512)]


def naive_group_norm(x, scale, bias, groups):
    y, width = np.empty_like(x), x.shape[2] // groups
    for g in range(groups):
        part = x[..., g * width : (g + 1) * width]
        y[..., g * width : (g + 1) * width] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return y * scale + bias


def naive_resnet(params, x, layout, bottleneck, channels, groups):
    """Features of one image in float64; parameters are taken in the order of the layers."""
    counts = {"Conv": 0, "GroupNorm": 0}

    def layer(kind):
        counts[kind] += 1
        return {name: np.asarray(leaf) for name, leaf in params[f"{kind}_{counts[kind] - 1}"].items()}

    def conv_norm(x, stride):
        x = conv_same(x, layer("Conv")["kernel"], stride=stride)
        return naive_group_norm(x, **layer("GroupNorm"), groups=groups)

    x = relu(conv_norm(x, 2))
    for stage, num_blocks in enumerate(layout):
        for i in range(num_blocks):
            shortcut, stride = x, 2 if stage > 0 and i == 0 else 1
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            for k, s in enumerate(strides):
                x = conv_norm(x, s)
                x = relu(x) if k < len(strides) - 1 else x
            if i == 0 and (bottleneck or stage > 0):
                shortcut = conv_norm(shortcut, stride)
            x = relu(x + shortcut)
    assert x.shape[2] == channels * 8 * (4 if bottleneck else 1)
    features = []
    for c in range(x.shape[2]):
        for e in range(params["embeddings"].shape[3]):
            positions = ((h, w) for h in range(x.shape[0]) for w in range(x.shape[1]))
            features.append(sum(x[h, w, c] * float(params["embeddings"][h, w, c, e]) for h, w in positions))
    return relu(np.asarray(features) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])


@pytest.mark.parametrize("depth, layout", [(18, (1, 2, 1, 1)), (50, (2, 1, 1, 1))], ids=["basic", "bottleneck"])
def test_resnet_equals_a_naive_twin(depth, layout, monkeypatch):
    """Group norm by group, spatial embeddings position by position."""
    monkeypatch.setitem(resnet.LAYOUTS, depth, (layout, resnet.LAYOUTS[depth][1]))
    torso = ResNet(depth=depth, channels=8, groups=4, num_embeddings=3, hidden=6)
    observation = np.random.default_rng(0).normal(size=(2, 2, 20, 19)).astype(np.float32)
    params = jax.tree.map(np.asarray, random_params(torso, observation))
    features = np.asarray(jax.jit(torso.apply)(params, observation))
    for b in range(2):
        image = np.moveaxis(observation[b], 0, -1)
        twin = naive_resnet(params["params"], image, layout, depth == 50, channels=8, groups=4)
        np.testing.assert_allclose(features[b], twin, rtol=1e-4, atol=1e-4)
    assert features.max() > 0.1


def test_group_norm_takes_the_images_scale_away(shallow):
    """No convolution has a bias, so what is bright is as what is dark."""
    torso = small("ResNet")
    observation = np.random.default_rng(0).normal(size=(2, 4, 12, 12)).astype(np.float32)
    observation[1] = 7 * observation[0]
    params = random_params(torso, observation)
    features = jax.jit(torso.apply)(params, observation)
    np.testing.assert_allclose(features[0], features[1], rtol=1e-3, atol=1e-4)
    assert features.max() > 0.1


def test_resnet_initialises_convolutions_as_he_did(shallow):
    """2 / fan_out; spatial embeddings 1 / (h w c), as in published code; `kernel_init` is of the dense layer alone."""
    torso = ResNet(depth=18, channels=32, num_embeddings=3, hidden=4, kernel_init=nn.initializers.constant(0.5))

    @jax.jit
    def init(key):
        params = torso.init(key, jnp.zeros((1, 4, 32, 32)))["params"]
        kernels = [params["Conv_0"]["kernel"], params["Conv_1"]["kernel"], params["embeddings"]]
        return kernels, params["Dense_0"]["kernel"], params["GroupNorm_0"]

    kernels, last, norm = jax.tree.map(np.asarray, init(jax.random.key(0)))
    assert [kernel.shape for kernel in kernels] == [(7, 7, 4, 32), (3, 3, 32, 32), (2, 2, 256, 3)]
    for kernel, variance in zip(kernels, (2 / (7 * 7 * 32), 2 / (3 * 3 * 32), 1 / (2 * 2 * 256)), strict=True):
        assert kernel.std() == pytest.approx(variance**0.5, rel=0.06)  # of 3,072 weights at least: 4 standard errors
    assert (last == 0.5).all() and (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


def test_resnet_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match=r"ResNet\.depth is 35; allowed: 18, 34, 50, 101\."):
        ResNet(depth=35)
    with pytest.raises(ValueError, match=r"ResNet\.channels \(48\) is no multiple of ResNet\.groups \(32\)"):
        ResNet(channels=48)


# Noisy layers


def noisy_layer(width=6, features=4, seed=0):
    """A noisy layer, its parameters (the scales of the noise drawn too) and inputs."""
    layer = NoisyDense(features)
    x = np.random.default_rng(seed).normal(size=(3, width)).astype(np.float32)
    params = random_params(layer, x)
    return layer, params, x


def test_without_a_stream_of_noise_the_means_are_used():
    layer, params, x = noisy_layer()
    means = {name: params["params"][name] for name in ("kernel", "bias")}
    np.testing.assert_allclose(layer.apply(params, x), nn.Dense(4).apply({"params": means}, x), atol=1e-6)
    assert not np.allclose(layer.apply(params, x), layer.apply(params, x, rngs={"noise": jax.random.key(0)}), atol=0.1)


@pytest.mark.parametrize("sigma", [0.5, 0.1])
def test_noise_begins_at_the_papers_scale(sigma):
    """sigma / sqrt(width) of the input, for weights and biases alike (Fortunato et al. 2018, Section 3.2)."""
    params = NoisyDense(4, sigma=sigma).init(jax.random.key(0), jnp.zeros((1, 25)))["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "kernel": (25, 4),
        "bias": (4,),
        "kernel_sigma": (25, 4),
        "bias_sigma": (4,),
    }
    np.testing.assert_allclose(params["kernel_sigma"], sigma / 5, rtol=1e-6)
    np.testing.assert_allclose(params["bias_sigma"], sigma / 5, rtol=1e-6)
    for mean in (params["kernel"], params["bias"]):
        assert 0.1 < np.abs(mean).max() <= 1 / 5 and mean.min() < 0 < mean.max()


def weights(layer, params, key, width):
    """The layer's moved weights and biases, read off its outputs."""
    bias, *rows = layer.apply(params, jnp.eye(width + 1, width, -1), rngs={} if key is None else {"noise": key})
    return jnp.stack(rows) - bias[None], bias


def test_noise_has_the_factorised_gaussians_moments():
    """No mean; of f(e) = sign(e) sqrt|e| the variance is E|e| = sqrt(2 / pi): squared for weights, once for biases."""
    layer, params, _ = noisy_layer()
    keys = jax.random.split(jax.random.key(0), 4_000)
    kernels, biases = jax.jit(jax.vmap(lambda key: weights(layer, params, key, 6)))(keys)
    means = params["params"]
    for drawn, name, variance in ((kernels, "kernel", 2 / np.pi), (biases, "bias", np.sqrt(2 / np.pi))):
        sigma = np.abs(means[f"{name}_sigma"]) * np.sqrt(variance)
        drawn = np.asarray(drawn, np.float64)
        # 5 standard errors of a mean, and, with the kurtosis pi^2/4 (weights) or pi/2 (biases), of a deviation.
        assert (np.abs(drawn.mean(axis=0) - means[name]) < 5 * sigma / len(keys) ** 0.5).all()
        np.testing.assert_allclose(drawn.std(axis=0), sigma, rtol=0.05)


def test_noise_of_the_weights_has_rank_one():
    """An outer product f(e_in) f(e_out), whose second factor is the noise of the biases, times the learned scales."""
    layer, params, _ = noisy_layer()
    kernel, bias = weights(layer, params, jax.random.key(0), 6)
    scales = params["params"]
    noise_kernel = (kernel - scales["kernel"]) / scales["kernel_sigma"]
    noise_out = (bias - scales["bias"]) / scales["bias_sigma"]
    singular = np.linalg.svd(noise_kernel, compute_uv=False)
    assert singular[0] > 0.1 and singular[1] < 1e-3 * singular[0]
    noise_in = noise_kernel[:, :1] / noise_out[:1][None]
    np.testing.assert_allclose(noise_kernel, noise_in * noise_out[None], rtol=1e-3, atol=1e-4)


def test_one_noise_for_the_batch_and_another_for_another_key():
    layer, params, x = noisy_layer()
    apply = lambda key, x: np.asarray(layer.apply(params, x, rngs={"noise": jax.random.key(key)}))
    rows = apply(0, np.repeat(x[:1], 3, axis=0))
    np.testing.assert_allclose(rows, np.repeat(rows[:1], 3, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(apply(0, x), apply(0, x))
    assert np.abs(apply(0, x) - apply(1, x)).max() > 0.1


def test_each_layer_has_noise_of_its_own():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [NoisyDense(4)(x) for _ in range(2)]

    x = jnp.ones((1, 3))
    params = Two().init(jax.random.key(0), x)
    params = jax.tree.map_with_path(lambda path, leaf: leaf if "sigma" in str(path) else 0 * leaf, params)
    a, b = Two().apply(params, x, rngs={"noise": jax.random.key(1)})
    assert np.abs(a - b).max() > 0.1 and np.abs(a).max() > 0.1


def test_dense_without_noise_is_flaxs():
    """So that an ordinary network keeps the names, values and speed of nn.Dense."""
    ones = nn.initializers.ones
    assert dense(4, 0.0, kernel_init=ones, dtype="bfloat16") == nn.Dense(4, kernel_init=ones, dtype="bfloat16")
    noisy = dense(4, 0.1, kernel_init=ones, dtype="bfloat16", name="head")
    assert noisy == NoisyDense(4, dtype="bfloat16", sigma=0.1, name="head")
    x = jnp.ones((1, 3), jnp.float32)
    params = noisy.init(jax.random.key(0), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert noisy.apply(params, x, rngs={"noise": jax.random.key(0)}).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "torso",
    [NatureCNN(noise=0.5), ImpalaCNN(ImpalaEncoder(channels=(4,)), hidden=8, noise=0.5)],
    ids=lambda torso: type(torso).__name__,
)
def test_noise_is_of_the_dense_layers_alone(torso):
    """It moves the logits, all of its scales learn, and without it the network is the ordinary one."""
    observation = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), np.uint8)
    network = QNetwork(3, 2, torso, noise=0.1)
    params = random_params(network, observation)
    names = flax.traverse_util.flatten_dict(params["params"], sep="/")
    layers = {name.rpartition("/")[0] for name in names if name.endswith("kernel_sigma")}
    assert layers == {"head", "torso/NoisyDense_0"}

    @partial(jax.jit, static_argnums=0)
    @partial(jax.grad, argnums=1, has_aux=True)
    def gradient(network, params, rngs):
        logits, _ = network.apply(params, observation, rngs=rngs)
        return (logits**2).sum(), logits

    gradients, moved = gradient(network, params, {"noise": jax.random.key(0)})
    _, moved_again = gradient(network, params, {"noise": jax.random.key(1)})
    assert np.abs(moved - moved_again).max() > 0.1
    gradients = flax.traverse_util.flatten_dict(gradients["params"], sep="/")
    assert all(np.abs(leaf).max() > 1e-6 for leaf in gradients.values())

    means = {name.replace("Noisy", ""): leaf for name, leaf in names.items() if not name.endswith("_sigma")}
    ordinary = QNetwork(3, 2, torso.clone(noise=0.0))
    expected, _ = ordinary.apply({"params": flax.traverse_util.unflatten_dict(means, sep="/")}, observation)
    np.testing.assert_allclose(network.apply(params, observation)[0], expected, rtol=1e-5, atol=1e-5)


# Dueling


@pytest.fixture
def dueling():
    """A dueling network of 3 actions and 2 logits, its parameters and observations."""
    network = QNetwork(3, 2, MLP(features=(5,)), dueling=True)
    observation = np.random.default_rng(0).normal(size=(4, 1, 6)).astype(np.float32)
    return network, random_params(network, observation), observation


def test_dueling_equals_a_naive_twin(dueling):
    """Logit by logit: the value, and the advantage less its mean over actions."""
    network, params, observation = dueling
    logits, features = network.apply(params, observation)
    assert logits.shape == (4, 3, 2) and set(params["params"]) == {"torso", "head"}
    head = {name: np.asarray(leaf, np.float64) for name, leaf in params["params"]["head"].items()}
    for b in range(4):
        rows = np.asarray(features[b], np.float64) @ head["kernel"] + head["bias"]  # value, then three advantages
        for m in range(2):
            value, advantages = rows[m], [rows[2 * (1 + a) + m] for a in range(3)]
            for a in range(3):
                assert logits[b, a, m] == pytest.approx(value + advantages[a] - sum(advantages) / 3, abs=1e-5)
            assert logits[b, :, m].mean() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_dueling_knows_only_differences_of_advantages(dueling, noise):
    """With one constant per logit added to all of them nothing changes; with one added to a value, it alone does."""
    network, _, observation = dueling
    network = network.clone(noise=noise)
    params = random_params(network, observation)
    assert ("kernel_sigma" in params["params"]["head"]) == bool(noise)

    def apply(bias=(0, 0, 0, 0, 0, 0, 0, 0), key=0):
        torso, head = params["params"]["torso"], params["params"]["head"]
        moved = {"params": {"torso": torso, "head": {**head, "bias": head["bias"] + jnp.array(bias)}}}
        return np.asarray(network.apply(moved, observation, rngs={"noise": jax.random.key(key)})[0])

    plain = apply()
    np.testing.assert_allclose(apply([0, 0, 5, -3, 5, -3, 5, -3]), plain, atol=1e-5)
    np.testing.assert_allclose(apply([2, -1, 0, 0, 0, 0, 0, 0]), plain + np.array([[[2, -1]]]), atol=1e-5)
    assert (np.abs(apply(key=1) - plain).max() > 0.1) == bool(noise)


def test_without_dueling_each_action_has_its_logits():
    """Action a's logit m is output 2a + m of the last layer."""
    network = QNetwork(3, 2, MLP(features=(5,)))
    observation = np.random.default_rng(0).normal(size=(4, 1, 6)).astype(np.float32)
    params = random_params(network, observation)
    logits, features = network.apply(params, observation)
    head = params["params"]["head"]
    np.testing.assert_allclose(logits.reshape(4, 6), features @ head["kernel"] + head["bias"][None], atol=1e-5)


def test_a_frozen_torso_gets_no_gradient():
    network, observation = QNetwork(3, 2, MLP(features=(8,)), freeze_torso=True), np.ones((2, 1, 4), np.float32)
    params = random_params(network, observation)
    grads = jax.grad(lambda params: network.apply(params, observation)[0].sum())(params)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["torso"])) and np.any(grads["head"]["kernel"])


# Pixels


# Not of ResNet, whose group norm takes any scale away.
@pytest.mark.parametrize("name", ["NatureCNN", "MinAtarCNN", "ImpalaCNN", "SoftMoE", "MLP"])
def test_uint8_is_scaled_and_nothing_else(name):
    """255 is 1; bool and float are what they are."""
    torso = MLP(features=(8,)) if name == "MLP" else small(name)
    ones = np.random.default_rng(0).integers(0, 2, (2, 1, 5, 5))
    params = random_params(torso, jnp.asarray(ones, jnp.float32))
    features = {}
    for dtype, scale in (("uint8", 255), ("bool", 1), ("float32", 1)):
        features[dtype] = torso.apply(params, (ones * scale).astype(dtype))
    np.testing.assert_allclose(features["uint8"], features["float32"], atol=1e-6)
    np.testing.assert_allclose(features["bool"], features["float32"], atol=1e-6)
    assert np.abs(features["float32"]).max() > 1e-3


def test_frames_of_the_stack_become_channels():
    """Pixel by pixel: grey images, and images with channels of their own."""
    rng = np.random.default_rng(0)
    grey, colour = rng.normal(size=(2, 4, 5, 6)), rng.normal(size=(2, 4, 5, 6, 3))
    image = to_image(jnp.asarray(grey), jnp.float32)
    assert image.shape == (2, 5, 6, 4)
    for k in range(4):
        np.testing.assert_allclose(image[..., k], grey[:, k], rtol=1e-6)
    image = to_image(jnp.asarray(colour), jnp.float32)
    assert image.shape == (2, 5, 6, 3 * 4)
    for k in range(4):
        for c in range(3):
            np.testing.assert_allclose(image[..., 4 * c + k], colour[:, k, ..., c], rtol=1e-6)


@pytest.mark.parametrize("name", IMAGE_TORSOS)
def test_every_image_torso_takes_the_stack_as_channels(name, shallow):
    """Four grey frames are one frame of four channels."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 7), np.uint8)
    torso = small(name)
    params, apply = random_params(torso, frames), jax.jit(torso.apply)
    features = apply(params, frames)
    np.testing.assert_allclose(features, apply(params, np.moveaxis(frames, 1, -1)[:, None]), rtol=1e-6)
    assert np.abs(features - apply(params, frames[:, ::-1])).max() > 1e-3


@pytest.mark.parametrize("name", IMAGE_TORSOS)
def test_vectors_are_no_images(name):
    """The message names the flag that helps."""
    with pytest.raises(ValueError, match=r"observation has shape \(4,\).*--torso mlp"):
        jax.eval_shape(small(name).init, jax.random.key(0), jnp.zeros((1, 1, 4)))


@pytest.mark.parametrize(
    "torso, size", [(NatureCNN(padding="VALID"), 35), (MinAtarCNN(), 2)], ids=["nature", "minatar"]
)
def test_images_too_small_for_convolutions_are_refused(torso, size):
    """With one pixel more they fit."""
    init = lambda size: jax.eval_shape(torso.init, jax.random.key(0), jnp.zeros((1, 4, size, size)))
    init(size + 1)
    with pytest.raises(ValueError, match="images are too small.*--torso mlp"):
        init(size)


# Imports

OURS = {"scripts", "agents", "networks", "replay"}
ALLOWED = {
    "scripts": {"agents", "networks", "replay"},
    "agents": {"agents", "networks", "replay"},
    "networks": {"networks"},
    "replay": {"replay"},
}
BANNED = {"tensorflow", "tensorflow_probability", "distrax", "haiku", "chex", "dopamine", "torch"}
FILES = sorted(path.relative_to(ROOT) for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports(path):
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_one_way(file):
    """scripts -> agents -> {networks, replay}; none of the frameworks that this project does without."""
    found = set(imports(ROOT / file))
    if file.name == "dopamine_dqn.py":  # runs in an environment of its own
        found.remove("dopamine")
    assert found & OURS <= ALLOWED[file.parts[0]]
    assert not found & BANNED


def test_training_does_not_load_tensorflow():
    """Not through a dependency either (tensorboard tries): seconds at start, and a second owner of the GPU's memory."""
    code = "import sys; sys.path.insert(0, 'scripts'); import train, evaluate; "
    code += f"print(sorted({BANNED} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("noise", [-0.5, "a"])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(ValueError, match=f"must be a number, not negative; got {noise!r}"):
        QNetwork(3, 1, MLP(features=(4,)), noise=noise).init(jax.random.key(0), jnp.zeros((1, 1, 4)))
