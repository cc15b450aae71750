"""The study of growing targets, shrunk: its images, its targets, and that what is fitted is what it says."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from agents.configuration import config
from agents.environments import ROMS
from agents.errors import ConfigError
from networks.torsos import NatureCNN
from networks.value_heads import Scalar
from scripts import synthetic
from scripts import synthetic_images as images


def test_frames_are_diverse_and_the_same_every_time():
    games = list(ROMS)
    assert len(games) >= 60
    found = images.frames(games[:4], 10)
    assert found.shape == (10, 32, 32, 3) and found.dtype == np.uint8
    assert len({frame.tobytes() for frame in found}) > 5 and found.std() > 10
    np.testing.assert_array_equal(found, images.frames(games[:4], 10))


def test_cifar_is_read_from_its_binary_files(tmp_path):
    random = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"data_batch_1.bin is no file of the binary version"):
        images.cifar(tmp_path, 5)
    rows = random.integers(256, size=(5, 2, 3073), dtype=np.uint8)
    for i, batch in enumerate(rows, 1):
        batch.tofile(tmp_path / f"data_batch_{i}.bin")
    found = images.cifar(tmp_path, 7)
    assert found.shape == (7, 32, 32, 3)
    assert found[3, 4, 5].tolist() == [rows[1, 1, 1 + 1024 * channel + 32 * 4 + 5] for channel in range(3)]
    (tmp_path / "data_batch_5.bin").write_bytes(b"0" * 3072)
    with pytest.raises(ConfigError, match=r"data_batch_5.bin is no file"):
        images.cifar(tmp_path, 5)


def naive_value(params, kernel, picture):
    """NatureCNN on one image [32, 32, 3] by loops, in float64."""
    x = picture.astype(np.float64) / 255
    for name, size, stride in (("Conv_0", 8, 4), ("Conv_1", 4, 2), ("Conv_2", 3, 1)):
        weights, bias = (np.asarray(params["params"][name][key], np.float64) for key in ("kernel", "bias"))
        side = -(-len(x) // stride)
        pad = max((side - 1) * stride + size - len(x), 0)
        x = np.pad(x, ((pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2), (0, 0)))
        corners = [(i * stride, j * stride) for i in range(side) for j in range(side)]
        windows = np.stack([x[i : i + size, j : j + size] for i, j in corners])
        x = np.maximum(np.tensordot(windows, weights, 3) + bias, 0).reshape(side, side, -1)
    dense = params["params"]["Dense_0"]
    x = np.maximum(x.reshape(-1) @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64), 0)
    return x @ np.asarray(kernel, np.float64)


def test_targets_are_computed_in_float64():
    """Golden by a slow twin: at a frequency of 10^5, errors of float32 would make other targets."""
    pictures = images.frames(["Pong", "Breakout"], 3)
    y = synthetic.targets(pictures, 2)
    assert y.shape == (2, 5, 3) and y.dtype == np.float64 and np.abs(y).max() <= 1
    assert len(set(np.round(y.ravel(), 6))) > 25  # each seed and phase has a function of its own
    import jax

    with jax.enable_x64(True):
        torso_key, head_key = jax.random.split(jax.random.fold_in(jax.random.key(1), 1 + 2))
        params = jax.device_get(NatureCNN(dtype="float64").init(torso_key, pictures[:1, None]))
        kernel = np.asarray(synthetic.xavier_uniform(head_key, (512, 1), "float64"))
    expected = [np.sin(1e5 * naive_value(params, kernel, picture)[0]) for picture in pictures]
    np.testing.assert_allclose(y[1, 2], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [["HL-Gauss"], ["MSE", "Two-Hot"]])
def test_the_study_shrunk(losses, tmp_path, capsys, monkeypatch):
    """Every loss fits a few images in the first phase, and what is written is what was measured."""
    monkeypatch.setattr(synthetic, "HEADS", {loss: synthetic.HEADS[loss] for loss in losses})
    flags = ["--images=12", "--steps=60", "--batch_size=12", "--seeds=1"]
    assert synthetic.main([f"--output={tmp_path}", *flags]) == 0
    rows = list(csv.DictReader((tmp_path / "mse.csv").read_text().splitlines()))
    assert len(rows) == len(losses) * 5 * 20
    for loss in synthetic.HEADS:
        of_loss = [row for row in rows if row["loss"] == loss]
        assert {row["b"] for row in of_loss} == {"0", "8", "16", "24", "32"}
        ends = {row["b"]: float(row["mse"]) for row in of_loss if row["step"] == "60"}
        begins = {row["b"]: float(row["mse"]) for row in of_loss if row["step"] == "3"}
        assert ends["0"] < 0.6 and begins["8"] > 10 > ends["8"]  # the offset has moved, and is found
    assert (tmp_path / "mse.png").stat().st_size > 10_000
    assert f"| {losses[-1]} |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_seeds_at_once_are_seeds_alone(backend, monkeypatch):
    """Also as on a GPU, whose convolutions are products."""
    pictures, head = images.frames(["Pong", "Breakout"], 6), synthetic.HEADS["HL-Gauss"]
    args = synthetic.parse_args(["--output=unused", "--batch_size=2", "--steps=2"])
    y = synthetic.targets(pictures, 2)
    errors = lambda y, seeds: [e for *_, e in synthetic.fit(head, pictures, y, seeds, args, lambda phase: None)]
    second = errors(y[1:], [1])
    monkeypatch.setattr(synthetic.jax, "default_backend", lambda: backend)
    both = errors(y, [0, 1])
    np.testing.assert_allclose([e[1] for e in both], [e[0] for e in second], rtol=1e-3)


@pytest.mark.parametrize("name", ["growing_targets", "growing_targets_small_rate"])
def test_the_published_figures_are_drawn_again(name, tmp_path, capsys):
    published = config.ROOT / f".github/results/{name}.csv"
    assert synthetic.main([f"--output={tmp_path / 'again'}", f"--csv={published}"]) == 0
    assert (tmp_path / "again/mse.csv").read_text() == published.read_text()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 5 and all(line in (config.ROOT / "README.md").read_text() for line in table[1:])
    lines = published.read_text().splitlines(keepends=True)
    for cut in (
        lines[:200],
        [line for line in lines if not line.startswith("HL-Gauss,32,2000,")],
        [line for line in lines if not (line.startswith("HL-Gauss,32,") and line.split(",")[3] == "1")],
    ):
        (tmp_path / "cut.csv").write_text("".join(cut))
        with pytest.raises(ConfigError, match=r"cut.csv is no mse.csv of this study"):
            synthetic.main([f"--output={tmp_path / 'other'}", f"--csv={tmp_path / 'cut.csv'}"])
    assert not (tmp_path / "other").exists()


def test_each_phase_has_its_own_targets():
    args = SimpleNamespace(batch_size=2, steps=1, learning_rate=1e-6)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    y = np.full((1, 5, 2), [[0.0], [100.0], [200.0], [300.0], [400.0]])
    rows = list(synthetic.fit(Scalar(), pictures, y, [0], args, lambda phase: None))
    assert [(phase, step) for phase, step, _ in rows] == [(phase, 1) for phase in range(5)]
    offsets = [np.sqrt(mse[0]) for *_, mse in rows[1:]]
    np.testing.assert_allclose(offsets, [100 + 8, 200 + 16, 300 + 24, 400 + 32], atol=3)


@pytest.mark.parametrize(
    "flag",
    [
        "--steps=0",
        "--seeds=99999999",
        "--images=60000",
        "--batch_size=x",
        "--learning_rate=0",
        "--learning_rate=nan",
        "--output=",
        "--csv=a --full",
        "--csv=a --learning_rate=0.1",
    ],
)
def test_bad_flags(flag, tmp_path):
    with pytest.raises(SystemExit) as exit:
        synthetic.main([f"--output={tmp_path}", *flag.split()])
    assert exit.value.code == 2
