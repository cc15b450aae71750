"""Videos: frames, size and content of the file; paths that cannot be written."""

from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import video
from agents.environments import Atari
from agents.errors import ConfigError
from agents.policy import Policy
from networks.q_network import QNetwork
from networks.torsos import MLP
from networks.value_heads import HLGauss, Scalar

STEPS = 20


def make_policy(head, environment=None, num_actions=6):
    def act(network, head, params, observation, key, epsilon, noise):
        q = head.decode(network.apply(params, observation)[0])
        return jnp.where(jax.random.uniform(key) < epsilon, 0, q.argmax(-1))

    network = QNetwork(num_actions=num_actions, num_logits=head.num_logits, torso=MLP(features=(8,)))
    environment = environment or Atari("Pong", screen=20)
    experiment = SimpleNamespace(environment=environment, head=head, agent=SimpleNamespace(act=act))
    params = network.init(jax.random.key(0), jnp.zeros((1, 4, 20, 20), jnp.uint8))
    return Policy(experiment, network, params, agent_steps=0)


def read(path):
    """Decodes a video: frames [T, height, width, 3], frames per second, codec, pixel format."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    fourcc = (int(capture.get(key)) for key in (cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_CODEC_PIXEL_FORMAT))
    return np.stack(frames), capture.get(cv2.CAP_PROP_FPS), *(code.to_bytes(4, "little") for code in fourcc)


class MeanAndSpread(Scalar):
    """A head of one's own, whose logits are no distribution over a support."""

    num_logits = 2


HEADS = [Scalar(), HLGauss(num_bins=11), HLGauss(num_bins=11, symlog=True), MeanAndSpread()]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_video_has_a_frame_per_state_and_shows_the_predictions(head, tmp_path):
    path = tmp_path / "pong.mp4"
    path.write_text("an older video")
    episode_return = video.record(make_policy(head), path, epsilon=0.5, max_steps=STEPS)
    assert isinstance(episode_return, float)
    assert list(tmp_path.iterdir()) == [path]  # no half-written file stays

    frames, fps, codec, pixel_format = read(path)
    assert frames.shape == (STEPS + 1, *reversed(video.SIZE), 3) and fps == 15
    assert codec == b"h264" and pixel_format == b"I420"  # what browsers play
    game, panel = frames[:, video.TOP :, :400], frames[:, video.TOP :, 640:]
    assert np.ptp(game, axis=0).max() > 50 and np.ptp(panel, axis=0).max() > 50


def test_the_return_is_raw_and_the_episode_whole(tmp_path):
    """In Assault whoever fires hits something, for 21 points, within 15 steps; the time limit is 20."""
    policy = make_policy(Scalar(), Atari("Assault", screen=20, sticky=0.0, max_episode_frames=80), num_actions=7)
    policy.act = lambda *args, **options: np.int32([2])
    path = tmp_path / "assault.mp4"
    assert video.record(policy, path, epsilon=0.0) == 21
    assert len(read(path)[0]) == 21


@pytest.mark.parametrize("name", ["video.gif", "video", "missing/video.mp4"])
def test_bad_paths_are_refused_before_playing(name, tmp_path):
    def make_single(render_mode):
        pytest.fail("The game was made.")

    policy = SimpleNamespace(experiment=SimpleNamespace(environment=SimpleNamespace(make_single=make_single)))
    with pytest.raises(ValueError, match="mp4"):
        video.record(policy, tmp_path / name, epsilon=0.0)


def test_a_failure_leaves_the_old_video(tmp_path):
    path = tmp_path / "pong.mp4"
    path.write_text("an older video")
    policy = make_policy(Scalar())
    policy.logits = lambda observation: 1 / 0
    with pytest.raises(ZeroDivisionError):
        video.record(policy, path, epsilon=0.0)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an older video"]


@pytest.mark.parametrize(
    "screen, message",
    [
        (None, "it renders no picture"),
        (np.zeros((6, 6)), r"it renders float64\[6, 6\] from 0 to 0"),
        (np.zeros((6, 6, 4), np.uint8), r"it renders uint8\[6, 6, 4\]"),
        (np.full((6, 6, 3), 128), r"it renders int64\[6, 6, 3\] from 128 to 128; a picture is"),
        (np.full((6, 6, 3), 128.0), r"of uint8 or of floats from 0 to 1"),
        (NotImplementedError(), "cannot be shown: NotImplementedError"),
    ],
)
def test_environments_that_cannot_be_shown_are_refused(screen, message):
    def render():
        if isinstance(screen, Exception):
            raise screen
        return screen

    env = SimpleNamespace(reset=lambda seed: None, render=render, close=lambda: None)
    environment = SimpleNamespace(name="Mine", make_single=lambda render_mode: env)
    with pytest.raises(ConfigError, match=message):
        video.check_environment(environment)
    env.render = lambda: np.ones((6, 6, 3))
    video.check_environment(environment)


def test_the_exploration_of_a_video_depends_on_its_seed(tmp_path):
    """Not only the game, which without sticky actions has no other chance in it."""
    policy, chosen = make_policy(Scalar(), Atari("Pong", screen=20, sticky=0.0)), []
    act = policy.act
    policy.act = lambda *args, **options: chosen.append(act(*args, **options)) or chosen[-1]
    for seed in (0, 1, 0):
        video.record(policy, tmp_path / "pong.mp4", epsilon=0.5, seed=seed, max_steps=10)
    first, second, again = np.array(chosen).reshape(3, 10)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


@pytest.mark.parametrize("is_symlog", [False, True])
@pytest.mark.parametrize("low, high", [(-10, 10), (0, 1e-5), (3.2, 7.1), (-9, 12), (0, 1000), (-0.2, 1.2)])
def test_an_axis_has_a_few_ticks_inside_it(low, high, is_symlog):
    ticks = video._ticks(low, high, is_symlog)
    assert 1 <= len(ticks) <= 11
    assert all(low <= tick <= high for tick in ticks)
    assert len(set(ticks.values())) == len(ticks)
