"""Torsos: sizes counted by hand, the layout of pixels, and which package may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networks.q_network import QNetwork
from networks.torsos import MLP, MinAtarCNN, NatureCNN, to_image

ROOT = Path(__file__).resolve().parent.parent
ATARI = (1, 4, 84, 84)


def shapes(network, observation_shape=ATARI, dtype=jnp.uint8):
    """Shapes and types of the parameters, 'torso/Conv_0/kernel' -> ..., without computing them."""
    params = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(observation_shape, dtype))
    return flax.traverse_util.flatten_dict(params["params"], sep="/")


def size(params):
    return sum(leaf.size for leaf in params.values())


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


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    """Logits come out in float32, near those of float32."""
    observation = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 12), np.uint8)
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        network = QNetwork(3, 2, NatureCNN(dtype=dtype))
        (logits, features), params = jax.jit(network.init_with_output)(jax.random.key(0), observation)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
        assert features.dtype.name == dtype and logits.dtype == jnp.float32 and logits.shape == (2, 3, 2)
        outputs[dtype] = np.asarray(logits)
    assert 0 < np.abs(outputs["float32"] - outputs["bfloat16"]).max() < 0.05 * np.abs(outputs["float32"]).max()


def test_minatar_cnn_is_young_and_tians():
    """One 3x3 convolution of 16 channels on 10x10 images, 8*8*16 = 1,024 features, 128 units."""
    params = shapes(QNetwork(6, 1, MinAtarCNN()), (1, 1, 10, 10, 4), bool)
    assert params["torso/Conv_0/kernel"].shape == (3, 3, 4, 16)
    assert params["torso/Dense_0/kernel"].shape == (1_024, 128)


def test_mlp_flattens():
    """Vectors of any stack, and images."""
    for shape in ((1, 1, 12), (1, 3, 4), (1, 1, 2, 6)):
        params = shapes(MLP(features=(5, 7)), shape, jnp.float32)
        assert (params["Dense_0/kernel"].shape, params["Dense_1/kernel"].shape) == ((12, 5), (5, 7))


# Pixels


@pytest.mark.parametrize(
    "torso", [NatureCNN(), MinAtarCNN(), MLP(features=(8,))], ids=lambda torso: type(torso).__name__
)
def test_uint8_is_scaled_and_nothing_else(torso):
    """255 is 1; bool and float are what they are."""
    ones = np.random.default_rng(0).integers(0, 2, (2, 1, 5, 5))
    features = {}
    for dtype, scale in (("uint8", 255), ("bool", 1), ("float32", 1)):
        features[dtype], _ = torso.init_with_output(jax.random.key(0), (ones * scale).astype(dtype))
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


@pytest.mark.parametrize("torso", [NatureCNN(), MinAtarCNN()], ids=lambda torso: type(torso).__name__)
def test_vectors_are_no_images(torso):
    """The message names the flag that helps."""
    with pytest.raises(ValueError, match=r"observation has shape \(4,\).*--torso mlp"):
        torso.init(jax.random.key(0), jnp.zeros((1, 1, 4)))


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
    assert found & OURS <= ALLOWED[file.parts[0]]
    assert not found & BANNED


def test_training_does_not_load_tensorflow():
    """Not through a dependency either (tensorboard tries): seconds at start, and a second owner of the GPU's memory."""
    code = f"import sys, scripts.train, scripts.evaluate; print(sorted({BANNED} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
