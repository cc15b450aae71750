"""Every shipped gin file builds and carries the paper's values; whatever would have no effect is an error."""

import ast
import dataclasses
import os
import shutil
import textwrap
from types import SimpleNamespace

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.checkpointing import run_directory
from agents.configuration import config
from agents.dqn import DQN
from agents.environments import Atari, Gymnasium
from agents.errors import ConfigError
from agents.learner import Learner
from networks import torsos
from networks.resnet import ResNet
from networks.soft_moe import SoftMoE
from networks.value_heads import C51, HLGauss, Scalar, ScalarSoftmax, TwoHot
from replay.ring import Replay
from replay.samplers import Prioritized, Uniform
from scripts import train
from training import command_line
from training.command_line import OFFLINE, OWN_TORSO, gin_files, parse_args
from training.jobs import jobs

HEADER = "from __gin__ import dynamic_registration\n"


HEADS, MINATAR = config.names("heads"), "--env=MinAtar/Breakout-v1"
AGENTS = [name for name in config.names(".") if name not in OFFLINE]
CQL = ["--agent=cql", "--dataset", "logs"]
# The part that each head's file names, with its values; the optimizer's lr and eps (Tables B.1-B.3).
PAPER = {
    "mse": (Scalar("mse"), 6.25e-5, 1.5e-4),
    "huber": (Scalar("huber"), 6.25e-5, 1.5e-4),
    "mse_softmax": (ScalarSoftmax(-10.0, 10.0, 51), 2.5e-4, 3.125e-4),
    "two_hot": (TwoHot(-10.0, 10.0, 51), 2.5e-4, 3.125e-4),
    "hl_gauss": (HLGauss(-10.0, 10.0, 51, sigma_ratio=0.75), 2.5e-4, 3.125e-4),
    "c51": (C51(-10.0, 10.0, 51), 2.5e-4, 3.125e-4),
}


TORSOS = {
    "nature_cnn": torsos.NatureCNN,
    "minatar_cnn": torsos.MinAtarCNN,
    "mlp": torsos.MLP,
    "impala_cnn": torsos.ImpalaCNN,
    "resnet": ResNet,
    "soft_moe": SoftMoE,
}


def load(*argv):
    """The experiment and the overrides of a command line."""
    return command_line.load(parse_args(argv))[:2]


def bind(*lines):
    return [f"--gin_bindings={line}" for line in lines]


def values():
    """The settings, as Python values where they are."""

    def value(text):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return {name: value(text) for name, text in config.settings().items()}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a gin file of a user's, outside configs/ and away from the project's directory; gives its flag."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="own.gin"):
        (tmp_path / name).write_text(HEADER + textwrap.dedent(text))
        return f"--gin_files={name}"

    return write


# Every shipped file


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("task", [MINATAR, *(f"--preset={name}" for name in config.names("presets"))])
def test_every_composition_builds_and_comes_back_from_its_config_file(agent, head, task, tmp_path):
    """No shipped file may be broken, and `evaluate` rebuilds a run from config.gin alone."""
    experiment, _ = load(f"--agent={agent}", f"--head={head}", task, "--seed=3")
    assert experiment.seed == 3
    if head in PAPER:
        assert experiment.head == PAPER[head][0]
    comes_back(experiment, tmp_path)


@pytest.mark.parametrize("task", ["--game=Pong", "--env=CartPole-v1", MINATAR])
@pytest.mark.parametrize("head", HEADS)
def test_cql_goes_with_every_head_and_task(task, head, tmp_path):
    """The released config: jax_classy_cql.gin in Dopamine's labs/offline_rl; one optimizer for all heads."""
    experiment, overrides = load(*CQL, task, f"--head={head}", "--seed=3")
    assert_adam(experiment, 6.25e-5, 3.125e-4)
    agent, learner = experiment.agent, experiment.learner
    assert (agent.double, agent.cql_alpha, agent.target, agent.n_step, agent.discount) == (True, 0.1, "max", 1, 0.99)
    assert (learner.batch_size, learner.target_period_steps, experiment.total_steps) == (32, 2000, 6_250_000)
    assert agent.max_abs_reward == (1.0 if task == "--game=Pong" else None)
    assert experiment.dataset.paths == ["logs"] and experiment.updates_due(123) == 123
    comes_back(experiment, tmp_path)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([*CQL, "--steps=100"], "makes no steps in games: use --updates"),
        ([*CQL, "--frames=100"], "makes no steps in games: use --updates"),
        (["--updates=100000"], "--updates is the length of an offline run"),
        (["--updates=1000"], "--updates is the length of an offline run"),
        (
            [*CQL, "--preset=paper"],
            "The agent cql plays no games, so it takes no preset: leave it out",
        ),
        ([*CQL, "--num_envs=2"], "Experiment.num_envs would have no effect.*--num_envs"),
        ([*CQL, *bind("DQN.epsilon_train = 0.1")], "DQN.epsilon_train would have no effect"),
        ([*CQL, "--log_replay"], "Experiment.log_replay would have no effect"),
        ([*CQL, *bind("Dataset.fraction = 0.0")], r"Dataset.fraction lies in \(0, 1\]"),
        ([*CQL, *bind("Dataset.choose = 'last'")], "Dataset.choose is 'last'; allowed: 'random', 'first'"),
        ([*CQL, *bind("Dataset.reward_noise = -0.1")], "Dataset.reward_noise must be a number from 0 on"),
        ([*CQL, *bind("DQN.target = 'mean'")], "DQN.target is 'mean'; allowed: 'max', 'sarsa', 'monte_carlo'"),
        ([*CQL, *bind("DQN.target = 'sarsa'")], "DQN.double picks the best action"),
        ([*CQL, *bind("DQN.cql_alpha = -1.0")], "DQN.cql_alpha must be a number from 0 on"),
        (["--agent=cql"], "needs one: --dataset DIR"),
        ([*CQL, "--updates=105"], "10 updates at a time: --updates is a multiple of that; got 105"),
        ([*CQL, *bind("Experiment.reseed_every_steps = 5")], "Experiment.reseed_every_steps would have no effect"),
        (bind("DQN.target = 'monte_carlo'"), "it is for data sets, --agent cql"),
        (["--dataset", "logs"], "--dataset is what an offline agent learns from: pass --agent cql, too"),
        (["--dataset=logs", "--gin_files=configs/dqn.gin"], "Dataset.paths = .*is not used by this run"),
    ],
)
def test_offline_settings_that_would_have_no_effect_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        load(*flags)


@pytest.mark.parametrize("task", ["--game=MsPacman", "--env=CartPole-v1", MINATAR])
@pytest.mark.parametrize("torso", config.names("torsos"))
@pytest.mark.parametrize("agent", AGENTS)
def test_every_torso_goes_with_every_agent_and_task(task, torso, agent, tmp_path):
    """Files later in the order replace parts that earlier files have bound."""
    for preset in ("quick", "minatar"):
        flags = [task, f"--agent={agent}", f"--torso={torso}", f"--preset={preset}"]
        if agent in OWN_TORSO:
            with pytest.raises(ConfigError, match=f"torso of its own. Pass --agent dqn .*{torso}"):
                load(*flags)
            return
        experiment, _ = load(*flags)
        network = experiment.network(num_actions=2, num_logits=1)
        if torso in TORSOS:
            assert isinstance(network.torso, TORSOS[torso])
        # Full Rainbow explores by noise alone, whatever the presets say of epsilon's decay.
        noise = 0.1 if agent == "full_rainbow" else 0.0
        assert network.noise == noise and getattr(network.torso, "noise", noise) == noise
        assert ([experiment.agent.epsilon(t, 100) for t in (0, 99, 100, 101, 10**6)] == [0.0] * 5) == bool(noise)
    assert isinstance(experiment.environment, Atari if "game" in task else Gymnasium)
    comes_back(experiment, tmp_path)


def comes_back(experiment, tmp_path, allow_import=()):
    before = config.settings()
    (tmp_path / "config.gin").write_text(gin.config_str())
    again, overrides, *_ = config.load([tmp_path / "config.gin"], allow_import=allow_import)
    assert config.settings() == before and not overrides
    for part in ("environment", "agent", "head", "replay"):
        assert getattr(again, part) == getattr(experiment, part)


def assert_uniform(module, limit):
    """That a 400 x 100 kernel begins uniform within +-limit."""
    largest = np.abs(module.kernel_init(jax.random.key(0), (400, 100), jnp.float32)).max()
    assert 0.99 * limit < largest <= limit


XAVIER = np.sqrt(6 / (400 + 100))


def assert_adam(experiment, learning_rate, eps):
    """Adam's first step is lr * g / (|g| + eps), which tells both."""
    optimizer, gradient = experiment.learner.optimizer, jnp.float32([1.0, 1e-4])
    step, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(step, [-learning_rate / (1 + eps), -learning_rate * 1e-4 / (1e-4 + eps)], rtol=1e-4)


@pytest.mark.parametrize("head", PAPER)
def test_paper(head):
    """Tables B.1-B.3 and Appendix B.1, in the objects built and not only in the files."""
    experiment, _ = load(f"--head={head}", "--preset=paper", "--game=Asterix")
    assert experiment.environment == Atari(
        "Asterix",
        sticky=0.25,
        frame_skip=4,
        stack=4,
        screen=84,
        max_episode_frames=108_000,
        noop_max=0,
        full_action_space=False,
    )
    agent = {"discount": 0.99, "n_step": 1, "double": False, "max_abs_reward": 1.0, "target": "max", "cql_alpha": 0.0}
    agent |= {"epsilon_initial": 1.0, "epsilon_train": 0.01, "epsilon_eval": 0.001, "epsilon_decay_steps": 250_000}
    assert dataclasses.asdict(experiment.agent) == agent
    schedule = {
        "num_envs": 1,
        "overlap": False,
        "warmup_steps": 20_000,
        "replay_ratio": 0.25,
        "total_steps": 50_000_000,
    }
    assert {name: getattr(experiment, name) for name in schedule} == schedule
    learner = {"batch_size": 32, "target_period_steps": 8_000, "max_grad_norm": None}
    assert {name: getattr(experiment.learner, name) for name in learner} == learner
    assert experiment.replay.capacity == 1_000_000

    assert experiment.replay.sampler == Uniform()

    head_of_paper, learning_rate, eps = PAPER[head]
    assert experiment.head == head_of_paper
    assert_adam(experiment, learning_rate, eps)

    network = experiment.network(num_actions=18, num_logits=head_of_paper.num_logits)
    assert network.torso.padding == "SAME" and not network.torso.layer_norm
    for module in (network, network.torso):
        assert_uniform(module, XAVIER if head in ("mse", "huber") else np.sqrt(3 / np.sqrt(3) / 400))

    settings = values()
    assert settings["adam.learning_rate"] == learning_rate and settings["adam.eps"] == eps
    assert (settings["adam.b1"], settings["adam.b2"]) == (0.9, 0.999)
    assert settings["DQN.n_step"] == 1 and settings["Experiment.num_envs"] == 1 and settings["Atari.sticky"] == 0.25


@pytest.mark.parametrize("agent", ["rainbow", "full_rainbow"])
@pytest.mark.parametrize("head", HEADS)
def test_rainbow_is_dopamines(agent, head):
    """Dopamine's rainbow.gin and full_rainbow.gin: the same optimizer values for every head, unlike DQN's."""
    experiment, _ = load(f"--agent={agent}", f"--head={head}", "--preset=paper")
    full = agent == "full_rainbow"
    assert experiment.agent == DQN(
        discount=0.99,
        n_step=3,
        double=full,
        max_abs_reward=1.0,
        epsilon_initial=0.0 if full else 1.0,
        epsilon_train=0.0 if full else 0.01,
        epsilon_eval=0.001,
        epsilon_decay_steps=250_000,
    )
    assert experiment.replay == Replay(1_000_000, Prioritized("sqrt_loss", beta=0.5))
    assert (experiment.warmup_steps, experiment.replay_ratio, experiment.learner.batch_size) == (20_000, 0.25, 32)
    assert experiment.learner.target_period_steps == 8_000
    assert_adam(experiment, 6.25e-5, 1.5e-4)
    network = experiment.network(num_actions=18, num_logits=experiment.head.num_logits)
    assert (network.dueling, network.noise, network.torso.noise) == ((True, 0.1, 0.1) if full else (False, 0.0, 0.0))
    if full:  # for all heads; Rainbow-lite has RainbowNetwork's, as DQN
        assert_uniform(network.torso, XAVIER)


@pytest.mark.parametrize("head", PAPER)
def test_soft_moe_is_dqn_but_for_the_torso(head):
    """Tables B.1-B.3 again, for the networks of Section 4.2.1."""
    dqn, _ = load(f"--head={head}", "--preset=paper")
    experiment, _ = load("--agent=soft_moe", f"--head={head}", "--preset=paper")
    assert (experiment.agent, experiment.head, experiment.replay) == (dqn.agent, dqn.head, dqn.replay)
    assert_adam(experiment, *PAPER[head][1:])
    network = experiment.network(num_actions=18, num_logits=1)
    torso = network.torso
    for module in (network, torso, torso.encoder):  # for all heads
        assert_uniform(module, XAVIER)
    assert isinstance(torso, SoftMoE) and isinstance(torso.encoder, torsos.ImpalaEncoder)
    assert (torso.num_experts, torso.hidden, torso.capacity, torso.normalize) == (8, 512, 1.0, False)
    assert (torso.encoder.channels, torso.encoder.width) == ((16, 32, 32), 1)
    settings = {name: value for name, value in values().items() if name.split(".")[0] in ("SoftMoE", "ImpalaEncoder")}
    other, _ = load("--torso=soft_moe", f"--head={head}", "--preset=paper")  # the same torso for any agent
    assert settings and settings.items() <= values().items()
    assert_uniform(other.network(num_actions=18, num_logits=1), XAVIER)


@pytest.mark.parametrize(
    "flags, head",
    [
        (["--agent=rainbow"], C51),
        (["--agent=full_rainbow"], C51),
        (["--gin_files=configs/rainbow.gin"], C51),
        (["--agent=soft_moe"], HLGauss),
        (["--agent=rainbow", "--head=mse"], Scalar),
        ([], HLGauss),
    ],
)
def test_default_heads(flags, head):
    """Rainbow is C51 unless told otherwise."""
    assert isinstance(load(*flags)[0].head, head)


@pytest.mark.parametrize("agent", AGENTS)
def test_minatars_optimizer_is_the_same_for_every_agent(agent):
    """Also for those with optimizer values of their own; and its torso does not replace SoftMoE's."""
    experiment, _ = load(f"--agent={agent}", "--head=c51", MINATAR)
    assert_adam(experiment, 2.5e-4, 3.125e-4)
    torso = experiment.network(num_actions=6, num_logits=1).torso
    assert isinstance(torso, SoftMoE if agent == "soft_moe" else torsos.MinAtarCNN)


def test_rainbows_optimizer_is_bound_in_its_scope():
    """The plain name would have no effect, which is an error that names the right one."""
    with pytest.raises(ConfigError, match=r"adam.learning_rate has no effect: rainbow/adam.learning_rate"):
        load("--agent=rainbow", *bind("adam.learning_rate = 1e-3"))
    experiment, _ = load("--agent=rainbow", *bind("rainbow/adam.learning_rate = 1e-3"))
    assert_adam(experiment, 1e-3, 1.5e-4)


def test_fast_preset_is_the_paper_but_for_the_games_at_once():
    """The default preset may change the order of acting and learning, no hyper-parameter."""
    load("--preset=paper")
    paper = values()
    load()
    fast = values()
    different = {name for name in paper.keys() | fast.keys() if paper.get(name) != fast.get(name)}
    assert different == {"Experiment.num_envs", "Experiment.overlap"}


# Mistakes

WRONG = {
    "parameter": (bind("Learner.batch_sise = 3"), r"batch_sise'.*Did you mean batch_size\?.*target_period_steps"),
    "class": (bind("Lerner.batch_size = 3"), r"'Lerner'.*Did you mean Learner\?"),
    "Dopamine's name": (bind("JaxDQNAgent.gamma = 0.9"), r"'JaxDQNAgent'.*Classes in use: .*Coming from Dopamine"),
    "reference": (bind("Learner.optimizer = @adamw()"), r"'@adamw\(\)'.*Did you mean adam\?.*imports them"),
    "macro": (bind("KERNEL_INITT = 3"), r"macro KERNEL_INITT = 3 is not used.*Did you mean KERNEL_INIT\?"),
    "undefined macro": (bind("Learner.batch_size = %NOPE"), r"(?s)^(?!Values are missing).*NOPE"),
    "scope nobody enters": (bind("foo/Learner.batch_size = 3"), r"foo/Learner.batch_size = 3 is not used"),
    "other environment": (
        ["--env=CartPole-v1", *bind("Atari.sticky = 0.1")],
        r"command line: .*Atari.sticky .*not used",
    ),
    "other torso": (["--torso=mlp", *bind("NatureCNN.padding = 'VALID'")], r"NatureCNN.padding = 'VALID' is not used"),
    "other torso, the value it had": (
        ["--torso=mlp", *bind("NatureCNN.padding = 'SAME'")],
        r"NatureCNN.padding = 'SAME' is not used",
    ),
    "twice": (bind("DQN.n_step = 3", "DQN.n_step = 4"), r"DQN.n_step is bound twice, to 3 and to 4"),
    "no statement": (bind("DQN.n_step"), r"expected ':' or '='. \(line \d\) DQN.n_step"),
    "twice, two spellings": (bind("DQN.n_step = 3", "dqn.DQN.n_step = 4"), r"DQN.n_step is bound twice"),
    "twice, flag and binding": (["--seed=1", *bind("Experiment.seed = 1")], r"Experiment.seed is bound twice"),
    "no experts": (["--agent=soft_moe", *bind("SoftMoE.num_experts = 0")], r"num_experts must be positive; got 0"),
    "no channels": (["--torso=impala_cnn", *bind("ImpalaEncoder.width = 0")], r"ImpalaEncoder.width must be positive"),
    "depth": (["--torso=resnet", *bind("ResNet.depth = 20")], r"ResNet.depth is 20; allowed: 18, 34, 50, 101"),
    "no channels at all": (
        ["--torso=impala_cnn", *bind("ImpalaEncoder.channels = ()")],
        r"ImpalaEncoder.channels must be positive whole numbers, one at least; got \(\)",
    ),
    "sampler by name": (bind("Replay.sampler = 'prioritized'"), r"Replay.sampler = 'prioritized' is of the wrong type"),
    "data set by name": (
        [*CQL, *bind("Experiment.dataset = 'logs'")],
        r"Experiment.dataset = 'logs' is of the wrong type",
    ),
    "replay by number": (bind("Experiment.replay = 3"), r"Experiment.replay = 3 is of the wrong type"),
    "sampler without parentheses": (
        bind("Replay.sampler = @samplers.Prioritized"),
        r"is a class; it must be an object: @.*Prioritized\(\)",
    ),
    "epsilon": (bind("DQN.epsilon_initial = 1.5"), r"its three epsilons lie in \[0, 1\]"),
    "two torsos": (
        ["--torso=mlp", "--gin_files=configs/torsos/resnet.gin"],
        r"More than one of configs/torsos is named: .*mlp.gin, .*resnet.gin",
    ),
    "two environments": (
        [MINATAR, "--gin_files=configs/environments/gymnasium.gin"],
        r"More than one of configs/environments is named",
    ),
    "priority": (["--agent=rainbow", *bind("Prioritized.priority = 'td'")], r"'td'; allowed: 'sqrt_loss'"),
    "longer scope wins": (
        bind("variance_scaling.scale = 1.0", "KERNEL_INIT/variance_scaling.scale = 2.0"),
        r"variance_scaling.scale has no effect: KERNEL_INIT/variance_scaling.scale = 2.0 wins",
    ),
    "uphill": (bind("adam.learning_rate = -1e-3"), r"adam.learning_rate must be positive; got -0.001"),
    "no learning": (bind("adam.learning_rate = 0"), r"adam.learning_rate must be positive; got 0"),
    "no quotes": (bind("NatureCNN.padding = VALID"), r"A string needs quotes"),
    "game": (["--game=MsPacmann"], r"Unknown game 'MsPacmann'\. Did you mean MsPacman"),
    "head": (["--head=hlgauss"], r"Unknown head 'hlgauss'\. Did you mean hl_gauss\?"),
    "agent": (["--agent=dqm"], r"Unknown agent 'dqm'\. Did you mean dqn\? Allowed: (?!.*base)"),
    "no agent": (["--agent=base"], r"Unknown agent 'base'"),
    "preset": (["--preset=papr"], r"Unknown preset 'papr'\. Did you mean paper\?"),
    "torso": (["--torso=nature"], r"Unknown torso 'nature'\. Did you mean nature_cnn"),
    "gin file": (
        ["--gin_files=configs/heads/mes.gin"],
        r"no gin file 'configs/heads/mes.gin'.*mean configs/heads/mse.gin",
    ),
    "included file": (bind("include 'nope.gin'"), "include is not supported"),
    "games": (["--num_envs=6"], r"6 games at 0.25 updates.*Use --num_envs 4 or a multiple or a divisor"),
    "games, no divisor": (
        ["--num_envs=2", *bind("Experiment.replay_ratio = 0.75", "Learner.target_period_steps = 8000")],
        r"2 games at 0.75 updates.*Use --num_envs 4 or a multiple of it",
    ),
    "no update is due": (["--preset=paper", "--steps=20003"], r"20,003 agent steps.*nothing would be learned"),
    "no update comes to be made": (["--steps=20064", "--num_envs=64"], r"20,064 agent steps.*nothing would be learned"),
    "warm-up": (["--warmup_steps=3", "--num_envs=1"], r"warmup_steps is 3.*at least 7"),
    "capacity": (["--replay_capacity=1000"], r"smaller than Experiment.warmup_steps"),
    "steps": (["--steps=0"], r"total_steps must be positive; got 0"),
    "many steps": (["--steps=2147483648"], r"total_steps must be below 2\^31; got 2147483648"),
    "many transitions": (["--replay_capacity=2147483648"], r"capacity must be below 2\^31; got 2147483648"),
    "frames": (["--frames=0"], r"total_steps must be positive; got 0"),
    "part of a step": (["--frames=800003"], "--frames is a multiple of 4, the frames of an agent step; got 800003"),
    "part of a step, of few": (["--frames=41"], "--frames is a multiple of 4, the frames of an agent step; got 41"),
    "frames, very few": (["--frames=40"], "The run has 10 agent steps, .* Raise --steps .or --frames"),
    "frames, too few": (
        ["--frames=60000", "--num_envs=8"],
        "The run has 15,000 agent steps, of 8 games together, and a warm-up of 20,000",
    ),
    "episodes": (["--eval_episodes=0"], r"eval_episodes"),
    "seed": (["--seed=-1"], r"seed"),
    "n-step": (bind("DQN.n_step = 0"), r"n_step"),
    "batch": (bind("Learner.batch_size = 0"), r"batch_size"),
    "target period": (bind("Learner.target_period_steps = 0"), r"target_period_steps"),
    "ratio that rounds to zero": (bind("Experiment.replay_ratio = 0.0001"), r"replay_ratio"),
}


@pytest.mark.parametrize("argv, message", WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_errors_before_anything_is_written(argv, message, tmp_path, monkeypatch):
    """A knob that does nothing wastes weeks; the message says what is allowed."""
    monkeypatch.chdir(tmp_path)
    # If the mistake passes, stop before the replay is allocated and games are played.
    monkeypatch.setattr(train, "Trainer", lambda experiment: pytest.fail(f"{argv} was accepted"))
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        train.main(argv)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("argv", [["--steps=3", "--frames=4"], ["--game=Pong", "--env=CartPole-v1"], ["--step=3"]])
def test_contradicting_and_abbreviated_flags(argv, capsys):
    """Two flags for one thing are refused, not ranked."""
    with pytest.raises(SystemExit):
        parse_args(argv)
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("from agents import dqn\ndqn.DQN.n_stepp = 3", r"(?s)own\.gin: .*Did you mean n_step\?"),
        ("X = 3", r"own\.gin: the macro X = 3 is not used"),
        (
            "from networks import value_heads\nvalue_heads.Scalar.loss_type = 'mse'",
            r"Scalar.loss_type = 'mse' is not used",
        ),
        ("from agents import dqn\ndqn.DQN.n_step = 3\ndqn.DQN.n_step = 3", r"n_step is bound twice, in lines 3 and 4"),
        ("X = 3\nX = 4", r"own\.gin: X is bound twice"),
        ("from sweeping import grid", r"imports sweeping\.grid\. This is a sweep: python scripts/sweep\.py"),
        ("import dopamine.jax.agents.dqn.dqn_agent", r"imports dopamine.*\. Dopamine's gin files are not read"),
        ("import no_such_module", r"own\.gin, line 2 imports no_such_module.*--allow_import no_such_module"),
        (
            "from networks import q_network\nfrom networks import torsos\n"
            "q_network.QNetwork.torso = @torsos.MLP()\ntorsos.NatureCNN.padding = 'VALID'",
            r"NatureCNN.padding = 'VALID' is not used",
        ),
    ],
    ids=[
        *("parameter", "macro", "part not in use", "twice", "macro twice", "a sweep", "a file of Dopamine's", "module"),
        "part it has replaced itself",
    ],
)
def test_mistakes_in_a_file_of_ones_own(text, message, own):
    """The same strictness, with the file's name."""
    with pytest.raises(ConfigError, match=message):
        load(own(text))


def test_nothing_named():
    """Files alone, as `load` takes them, must name an agent and a head."""
    for file in (config.shipped(".", "dqn"), config.shipped("heads", "mse")):
        with pytest.raises(ConfigError, match="Values are missing.*Name an agent and a head"):
            config.load([config.BASE, file])


# Composition


def test_overrides_are_reported_with_both_sources(own):
    """Who changed what is printed at the start of a run."""
    _, overrides = load("--head=mse", "--num_envs=4", own("from agents import dqn\ndqn.DQN.n_step = 3"))
    assert overrides == [
        "DQN.n_step = 3 (own.gin) instead of 1 (configs/dqn.gin)",
        "Experiment.num_envs = 4 (command line) instead of 0 (configs/presets/fast.gin)",
    ]


def test_the_machine_overrides_nothing(tmp_path):
    (job,) = jobs(parse_args(["--game=Pong", "--head=mse", "--preset=fast", f"--base_dir={tmp_path}"]))
    assert job.cfg.experiment.num_envs > 0 and not job.cfg.overrides


def test_own_file_wins_over_shipped_ones_whatever_the_order(own):
    """The user's files compose last, in their order; flags beat files."""
    first = own("from agents import dqn\ndqn.DQN.n_step = 5\ndqn.DQN.discount = 0.5", "first.gin")
    second = own("from agents import dqn\ndqn.DQN.n_step = 7", "second.gin")
    shipped = ["--gin_files=configs/presets/quick.gin", "--gin_files=configs/heads/c51.gin"]
    experiment, _ = load(first, second, *shipped, *bind("DQN.epsilon_eval = 0.5"))
    assert (experiment.agent.n_step, experiment.agent.discount, experiment.agent.epsilon_eval) == (7, 0.5, 0.5)
    assert isinstance(experiment.head, C51) and experiment.total_steps < 1_000_000


def test_flags_know_the_classes_of_all_shipped_files():
    """Prioritised replay for DQN is one flag, without a file that names the class."""
    experiment, _ = load(*bind("Replay.sampler = @samplers.Prioritized()", "Prioritized.priority = 'abs_td'"))
    assert experiment.replay.sampler == Prioritized("abs_td")
    experiment, _ = load("--head=c51", *bind("QNetwork.torso = @torsos.MLP()", "MLP.features = (3,)"))
    assert experiment.network(num_actions=2, num_logits=1).torso.features == (3,)


def test_named_files_replace_the_defaults():
    """`--gin_files` of a shipped head or preset leaves no trace of hl_gauss and fast."""
    args = parse_args(["--gin_files=configs/presets/paper.gin", "--gin_files=configs/heads/mse.gin"])
    stems = ["base", "dqn", "heads/mse", "presets/paper"]
    named = [str(path.relative_to(config.CONFIGS)) for path in map(config.resolve, gin_files(args))]
    assert named == [f"{stem}.gin" for stem in stems]


def test_a_file_named_twice_is_one():
    """By its short form, and by its path."""
    experiment, _ = load("--agent=rainbow", "--gin_files=configs/rainbow.gin", "--gin_files=configs/torsos/mlp.gin")
    assert experiment.agent.n_step == 3


def test_a_new_folder_of_configs(tmp_path, monkeypatch):
    """An ablation of one's own may lie in a folder of configs/ that the entry point does not know."""
    shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs/ablations").mkdir()
    (tmp_path / "configs/ablations/double.gin").write_text(HEADER + "from agents import dqn\ndqn.DQN.double = True")
    experiment, _ = load("--gin_files=configs/ablations/double.gin")
    assert experiment.agent.double


def test_shipped_files_are_the_projects_own(tmp_path, monkeypatch):
    """Started from a directory that has a configs/ of its own, --agent dqn still means ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/dqn.gin").write_text("garbage = ")
    experiment, _ = load("--agent=dqn")
    assert experiment.agent.n_step == 1


def test_own_files_are_ones_own_whatever_their_names(own, tmp_path):
    """A file in a configs/ of the user's replaces no shipped preset; it is read, and sorted, as the user's."""
    (tmp_path / "configs/presets").mkdir(parents=True)
    flag = own("from agents import dqn\ndqn.DQN.double = True", "configs/presets/mine.gin")
    stems = [os.path.basename(file) for file in gin_files(parse_args([flag, "--torso=mlp"]))]
    assert stems == ["base.gin", "dqn.gin", "hl_gauss.gin", "fast.gin", "mlp.gin", "mine.gin"]


def test_own_torso(own, tmp_path, monkeypatch):
    """Another architecture needs a module on the path and two lines of gin, no change here."""
    (tmp_path / "torso_of_mine.py").write_text(
        "import flax.linen as nn\n\n\nclass Linear(nn.Module):\n    width: int = 3\n\n"
        "    @nn.compact\n    def __call__(self, x):\n        return nn.Dense(self.width)(x.reshape(x.shape[0], -1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = """
        import torso_of_mine
        from networks import q_network
        q_network.QNetwork.torso = @torso_of_mine.Linear()
        torso_of_mine.Linear.width = 5
    """
    allow = "--allow_import=torso_of_mine"
    experiment, _ = load(own(text), "--env=CartPole-v1", allow, *bind("QNetwork.name = 'mine'"))
    network = experiment.network(num_actions=2, num_logits=51)
    assert type(network.torso).__module__ == "torso_of_mine" and network.torso.width == 5
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 1, 4)))
    assert shapes["params"]["head"]["kernel"].shape == (5, 2 * 51)
    assert config.settings()["Linear.width"] == "5"
    comes_back(experiment, tmp_path, ["torso_of_mine"])


ENVIRONMENT = "from agents import environments\nfrom agents import experiment\nexperiment.Experiment.environment = "
STRANGERS = {
    "import": ("import evil", "imports evil"),
    "import below": ("import evil.deeper as optax", "imports evil"),
    "from import": ("from evil import thing", "imports evil.thing"),
    "import before a mistake": ("import evil\nx = = 1", "imports evil"),
    "through a module of ours": (
        f"{ENVIRONMENT}@environments.gymnasium.make()\nenvironments.gymnasium.make.id = 'evil:E'",
        "defined in gymnasium",
    ),
    "a method of ours": (
        f"{ENVIRONMENT}@environments.Gymnasium.make_single()\nenvironments.Gymnasium.make_single.self = 1",
        "names agents.environments.Gymnasium.make_single",
    ),
    "a function of ours": (
        "from agents import experiment\nfrom agents import environments\n"
        "experiment.Experiment.environment = @environments.seeds()\nenvironments.seeds.num_envs = 1",
        "names agents.environments.seeds",
    ),
    "tests of a library": ("import optax._src.sharding_test\n", "imports optax._src.sharding_test"),
    "a part of ours that writes": (
        "from agents.reporting import logger\nlogger.Logger.run_dir = '/'",
        "imports agents.reporting.logger",
    ),
    "its binding": ("from agents import environments\nenvironments.re.sub.count = 1", "defined in re\\."),
    "environment": ("from agents import environments\nenvironments.Gymnasium.id = 'evil:E-v0'", "imports evil"),
    "module of a package": ("from networks import torsos\nX = @torsos.nn.apply()\nY = %X", "defined in flax"),
    "key of a dict": (
        "from agents import environments\nfrom agents import experiment\n"
        "environments.Gymnasium.kwargs = {@experiment.launch.os.getpid(): 1}",
        "names agents.experiment.launch.os.getpid",
    ),
    "gin itself": (
        "from agents import environments\nfrom gin import config as cc\n"
        "environments.Gymnasium.kwargs = {'a': @cc.parse_config()}",
        "imports gin.config",
    ),
    "a function through a module": (
        "from agents import environments\nfrom agents import dataset\n"
        "environments.Gymnasium.kwargs = {'a': @dataset.find()}",
        "defined in agents.recording",
    ),
}


@pytest.mark.parametrize("text, message", STRANGERS.values(), ids=STRANGERS)
def test_a_config_names_nothing_but_parts_of_this_project(text, message, own, tmp_path, monkeypatch):
    """Whatever a config names is imported and called, so a stranger's may not name just anything."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    task = [f"--gin_files={config.shipped('environments', 'gymnasium')}"] if "Gymnasium" in text else []
    with pytest.raises(ConfigError, match=f"{message}.*A config may name"):
        load(own(text), *task)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("task, steps", [("--game=Pong", 250_000), ("--env=CartPole-v1", 10**6), (MINATAR, 10**6)])
def test_frames(task, steps):
    """Four frames are one agent step on Atari; elsewhere they are the same."""
    experiment, overrides = load(task, "--frames=1_000_000")
    assert experiment.total_steps == steps
    assert any(f"Experiment.total_steps = {steps} (command line)" in line for line in overrides)


def test_print_config(tmp_path, monkeypatch, capsys):
    """Asking what would run starts nothing."""
    monkeypatch.chdir(tmp_path)
    assert train.main(["--print_config", "--head=two_hot", "--num_envs=4"]) == 0
    printed = capsys.readouterr().out
    assert "TwoHot.num_bins = 51" in printed and "Experiment.num_envs = 4" in printed
    assert not os.listdir(tmp_path)


# Run directories


def name_of(*argv):
    args = parse_args(argv)
    return str(run_directory.name(command_line.load(args).experiment, gin_files(args)[1:], args.gin_bindings))


def test_names_of_runs(own):
    """A sweep writes each of its runs to a directory of its own, told apart by eye."""
    assert name_of("--game=Breakout", "--seed=2") == "Breakout/dqn-hl_gauss-fast/seed2"
    assert name_of("--env=CartPole-v1", "--head=mse") == "CartPole-v1/dqn-mse-fast/seed0"
    swept = {
        name_of(*bind(f"HLGauss.sigma_ratio = {ratio}", f"DQN.n_step = {n}")) for ratio in (0.5, 1.5) for n in (1, 3)
    }
    assert len(swept) == 4 and "Pong/dqn-hl_gauss-fast-sigma_ratio=0.5-n_step=3/seed0" in swept
    assert (
        name_of(own("from agents import dqn\ndqn.DQN.double = True", "ddqn.gin")) == "Pong/dqn-hl_gauss-fast-ddqn/seed0"
    )
    source = "runs/Pong/dqn-mse-fast-n_step=3/seed1"
    probe = "Pong/dqn-hl_gauss-fast-probe=dqn-mse-fast-n_step=3"
    assert name_of(f"--freeze_torso={source}") == f"{probe}/seed0"
    assert name_of(f"--freeze_torso={source}/checkpoints/500") == f"{probe}-500/seed0"
    assert name_of("--freeze_torso=own run/") == "Pong/dqn-hl_gauss-fast-probe=own_run/seed0"


LONG = [f"{name} = 1000" for name in sorted(run_directory.MAY_CHANGE)]


@pytest.mark.parametrize(
    "one, other",
    [
        (["LR = 0.5"], ["LR = 1.5"]),
        (["MLP.features = (1, 28)"], ["MLP.features = (12, 8)"]),
        (LONG + ["DQN.n_step = 1"], LONG + ["DQN.n_step = 3"]),
    ],
    ids=["macro", "tuple", "many"],
)
def test_different_bindings_make_different_names(one, other):
    """Else the second run of a sweep is refused in the first one's directory."""
    experiment, _ = load("--head=mse")
    assert run_directory.name(experiment, [], one) != run_directory.name(experiment, [], other)


@pytest.fixture
def run_dir(tmp_path):
    """A run directory as the first start makes it, without training; the settings of the run are in gin."""
    cfg = command_line.load(parse_args(["--head=mse"]))
    trainer = SimpleNamespace(experiment=cfg.experiment, num_parameters=1, replay_bytes=1, torso_origin=None)
    assert run_directory.read_manifest(tmp_path / "run") is None
    run_directory.create(tmp_path / "run", trainer, cfg, "dqn-mse-fast")
    return tmp_path / "run"


def test_manifest_and_config_describe_the_run(run_dir):
    """What is needed to repeat a run lies beside its results."""
    manifest = run_directory.read_manifest(run_dir)
    assert manifest["settings"] == config.settings() and manifest["num_envs"] >= 8
    assert manifest["protocol"]["sticky"] == 0.25 and manifest["versions"]["jax"] == jax.__version__
    experiment = config.load([run_dir / "config.gin"]).experiment
    assert isinstance(experiment.learner, Learner) and experiment.head == Scalar("mse")
    assert "Scalar.loss_type = 'mse'" in (run_dir / "operative_config.gin").read_text()


def test_other_settings_are_refused_and_named(run_dir):
    """A resumed run must be one run; only its length and what is reported may change."""
    manifest = run_directory.read_manifest(run_dir)

    def refuse(*argv):
        load(*argv)
        run_directory.refuse_other_settings(run_dir, manifest["settings"], config.settings())

    refuse("--head=mse")
    refuse(
        "--head=mse", "--steps=70_000", "--eval_every=5", "--eval_episodes=3", *bind("Experiment.log_every_steps = 9")
    )
    with pytest.raises(ConfigError, match=r"(?s)DQN.n_step = 3, but the run there has 1.*--run_dir"):
        refuse("--head=mse", *bind("DQN.n_step = 3"))
    with pytest.raises(ConfigError, match=r"HLGauss.num_bins = 51, but the run there has \(unset\)"):
        refuse("--head=hl_gauss")
    with pytest.raises(ConfigError, match=r"Experiment.seed = 1, but the run there has 0"):
        refuse("--head=mse", "--seed=1")


def test_what_may_change_exists():
    """A renamed setting must not silently become one that refuses."""
    load(*CQL)
    assert run_directory.MAY_CHANGE <= config.settings().keys()


def test_whole_numbers_are_floats_where_those_are_meant():
    """20 and 20.0 are one setting: of a run that goes on, and of a group of runs."""
    settings = [load(*bind(f"HLGauss.v_max = {v_max}")) and config.settings() for v_max in ("20", "20.0")]
    assert settings[0] == settings[1] and settings[0]["HLGauss.v_max"] == "20.0"


@pytest.mark.parametrize(
    "binding",
    [
        "Experiment.seed = 'x'",
        "Experiment.total_steps = 1e6",
        "Experiment.overlap = 1",
        "Experiment.head = 3",
        "Learner.batch_size = 1.5",
        "adam.learning_rate = 'x'",
        "DQN.double = 'yes'",
        "DQN.max_abs_reward = 'x'",
        "HLGauss.num_bins = 51.5",
        "HLGauss.v_max = True",
    ],
)
def test_wrong_types_are_named(binding):
    """The annotation of the parameter decides, before anything is built."""
    with pytest.raises(ConfigError, match=f"{binding.partition(' ')[0]} = .* is of the wrong type"):
        load(f"--gin_bindings={binding}")


@pytest.mark.parametrize("binding", ["DQN.discount = 1", "DQN.max_abs_reward = None", "Learner.max_grad_norm = 10"])
def test_whole_numbers_are_numbers(binding):
    """And None is what an optional parameter may be."""
    load(f"--gin_bindings={binding}")
