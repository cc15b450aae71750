"""What only a GPU shows: `python -m pytest -m gpu -n 0` where there is one."""

import os
import signal
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_replay import draw_beyond_32_bits
from test_resume import AS_USERS_RUN, KILLED, assert_same_run, command

from agents import launch
from agents.trainer import Trainer, learn
from replay.ring import TimeStep
from training.command_line import load, parse_args

pytestmark = pytest.mark.gpu
# Convolutions, whose gradients add up in varying order unless told otherwise.
NETWORK = ("--torso=nature_cnn", "--gin_bindings=Atari.screen = 84")
ENVIRONMENT = AS_USERS_RUN | {"XLA_FLAGS": launch.DETERMINISTIC, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@pytest.fixture(autouse=True)
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")


def flags(run_dir, agent):
    shrunk = [flag for flag in command(run_dir, agent, 8) if "torso" not in flag and "MLP" not in flag]
    return [*(flag for flag in shrunk if "screen" not in flag), *NETWORK, "--deterministic"]


def start(flags, target="-", count=0):
    """Runs training in a process of its own, which dies in the given call; returns how it ended."""
    command = [sys.executable, KILLED, target, str(count), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.parametrize("agent", ["dqn", "rainbow"])
def test_deterministic_runs_have_the_same_bits_killed_or_not(agent, tmp_path):
    expected, killed = (flags(tmp_path / name, agent) for name in ("never killed", "killed"))
    assert start(expected) == 0
    for target, count in (("agents.run:Run.recv", 40), ("os:fsync", 6)):
        assert start(killed, target, count) == -signal.SIGKILL
    assert start(killed) == 0
    assert_same_run(tmp_path / "never killed", tmp_path / "killed")


def filled(*more):
    """A trainer whose replay holds random frames, and the learner's state."""
    args = parse_args(["--game=Pong", "--num_envs=8", "--replay_capacity=800", "--warmup_steps=100", *more])
    trainer, random = Trainer(load(args).experiment), np.random.default_rng(0)
    trainer.allocate_replay()
    for row in range(100):
        rewards, ends = random.normal(size=8).astype(np.float32), random.random(8) < 0.05
        frames = random.integers(256, size=(8, 84, 84), dtype=np.uint8)
        actions = random.integers(6, size=8, dtype=np.int32)
        trainer.add(TimeStep(actions, rewards, ends, np.full(8, row == 0), frames))
    return trainer


def batch_of(trainer):
    """A batch of 32 transitions."""
    x = trainer.experiment
    window = {"stack": 4, "n_step": x.agent.n_step, "discount": x.agent.discount, "max_abs_reward": 1.0}
    draw = jax.jit(partial(x.replay.sample, batch_size=32, **window))
    return draw(trainer.replay_state, jax.random.key(1))[0]


@pytest.mark.parametrize("head", ["mse", "hl_gauss", "c51"])
def test_losses_and_gradients_are_those_of_the_cpu(head):
    trainer = filled(f"--head={head}")
    x, batch = trainer.experiment, batch_of(trainer)

    def mean_loss(params, target_params, batch):
        return jnp.mean(x.agent.loss(trainer.network, x.head, params, target_params, batch, jax.random.key(2))[0])

    inputs = (trainer.state.params, trainer.state.target_params, batch)
    with jax.default_matmul_precision("highest"):
        on_gpu, on_cpu = (
            jax.jit(jax.value_and_grad(mean_loss))(*jax.device_put(inputs, device))
            for device in (jax.devices("gpu")[0], jax.devices("cpu")[0])
        )
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], rtol=1e-4)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, *jax.device_get((on_gpu[1], on_cpu[1])))


@pytest.mark.parametrize("agent", ["dqn", "rainbow"])
def test_the_replay_lies_on_the_device_and_its_updates_are_one_call(agent):
    trainer = filled(f"--agent={agent}", "--head=hl_gauss", "--gin_bindings=Experiment.replay_ratio = 0.5")
    assert all(device.platform == "gpu" for leaf in jax.tree.leaves(trainer.replay_state) for device in leaf.devices())
    learn([trainer])
    with jax.transfer_guard("disallow"):  # nothing goes to the host or comes from there
        trainer.agent_steps += 8
        learn([trainer])
    assert trainer.updates == int(trainer.state.updates) > 4
    assert np.isfinite(trainer.metrics()["loss"])


def test_a_ring_beyond_32_bits():
    draw_beyond_32_bits()


def test_bfloat16_learns_as_float32_does():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trainer = filled("--head=hl_gauss", f"--gin_bindings=NatureCNN.dtype = '{dtype}'")
        trainer.agent_steps = 2_000
        learn([trainer])
        losses[dtype] = trainer.metrics()["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
