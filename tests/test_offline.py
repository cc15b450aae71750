"""Offline runs: the loss, what is learned from data, and that they resume, share memory and refuse as others do."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from test_replay import DISCOUNT, NaiveReplay
from test_resume import series
from test_training import SMALL, catch

from agents import policy, trainer
from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import Checkpoint, checkpoints, newest
from agents.configuration import config
from agents.dqn import DQN
from agents.errors import ConfigError
from agents.evaluation import behaviour_normalised, human_normalised
from agents.offline import OfflineTrainer
from agents.recording import Recording
from agents.reporting import logger
from networks.value_heads import C51, HLGauss, Scalar
from replay.files import DamagedError
from replay.log import result
from replay.ring import TimeStep, Transition
from scripts import compare, evaluate, sweep, train
from training.command_line import load, parse_args

# The loss


class Table:
    """A network whose logits are given, by the number of the state."""

    def apply(self, params, observation, rngs):
        return params[observation], None


def losses(agent, head, logits, r_t=0.5, discount_t=0.9, a_tm1=1, a_t=0):
    """Those of a transition from state 0 to state 1 [1], and their diagnostics; logits are [states, A, m]."""
    one = lambda value, dtype: jnp.array([value], dtype)
    batch = Transition(
        one(0, int), one(a_tm1, int), one(r_t, float), one(discount_t, float), one(1, int), one(a_t, int), one(1, float)
    )
    return agent.loss(Table(), head, logits, logits, batch, jax.random.key(0))


def one_loss(*args, **kwargs):
    """The loss and the diagnostics, as numbers."""
    (loss,), diagnostics = losses(*args, **kwargs)
    return float(loss), {name: float(values[0]) for name, values in diagnostics.items()}


VALUES = jnp.array([[1.0, 2.0, 4.0], [3.0, -1.0, 0.5]])[..., None]  # Q(0, .) and Q(1, .)
CONSERVATIVE = np.log(np.exp([1.0, 2.0, 4.0]).sum()) - 2.0


@pytest.mark.parametrize("alpha", [0.0, 0.1, 2.0])
@pytest.mark.parametrize(
    "target, a_t, y",
    [("max", 1, 0.5 + 0.9 * 3.0), ("sarsa", 1, 0.5 - 0.9), ("sarsa", 2, 0.95), ("monte_carlo", 0, 0.5)],
)
def test_loss_golden(target, a_t, y, alpha):
    loss, diagnostics = one_loss(DQN(target=target, cql_alpha=alpha), Scalar(), VALUES, a_t=a_t)
    assert diagnostics["target"] == pytest.approx(y)
    assert loss == pytest.approx((y - 2.0) ** 2 + alpha * CONSERVATIVE, rel=1e-6)
    assert diagnostics.get("conservative_loss") == (pytest.approx(CONSERVATIVE) if alpha else None)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_gradient_golden(alpha):
    """Of both terms, by Q(0, .); the target is a constant."""
    grad = jax.grad(lambda q: losses(DQN(cql_alpha=alpha), Scalar(), q)[0][0])(VALUES)
    taken = np.array([0.0, 1.0, 0.0])
    softmax = np.exp([1.0, 2.0, 4.0]) / np.exp([1.0, 2.0, 4.0]).sum()
    expected = 2 * (2.0 - (0.5 + 0.9 * 3.0)) * taken + alpha * (softmax - taken)
    np.testing.assert_allclose(grad[..., 0], [expected, np.zeros(3)], rtol=1e-5)


def test_the_conservative_term_takes_the_mean_of_a_distribution():
    head, random = HLGauss(), np.random.default_rng(0)
    logits = jnp.array(random.normal(size=(2, 3, 51)), jnp.float32)
    q = np.asarray(head.decode(logits))[0]
    plain, _ = one_loss(DQN(), head, logits)
    loss, _ = one_loss(DQN(cql_alpha=0.5), head, logits)
    assert loss - plain == pytest.approx(0.5 * (np.log(np.exp(q).sum()) - q[1]), rel=1e-4)


@pytest.mark.parametrize("target, y", [("sarsa", None), ("monte_carlo", 0.5)])
def test_c51_goes_with_every_target(target, y):
    """SARSA moves the distribution of the action taken; a return is projected as a point."""
    head, random = C51(), np.random.default_rng(1)
    logits = jnp.array(random.normal(size=(2, 3, 51)), jnp.float32)
    loss, _ = one_loss(DQN(target=target), head, logits, a_t=2)
    p_t = np.asarray(jax.nn.softmax(logits[1, 2]))
    moved = 0.5 + 0.9 * head.support if y is None else np.array([y])
    weight = np.maximum(1 - np.abs(np.clip(moved, -10, 10)[:, None] - head.support) / head.width, 0)  # [n, m]
    target = (p_t if y is None else np.ones(1)) @ weight
    assert loss == pytest.approx(-target @ np.asarray(jax.nn.log_softmax(logits[0, 1])), rel=1e-4)


# Runs

RANDOM = [f"--gin_bindings=DQN.epsilon_{when} = 1.0" for when in ("initial", "train")]
KNOBS = [f"--gin_bindings={name} = {value}" for name, value in SMALL["mlp"].items()]
KNOBS += [f"--gin_bindings={line}" for line in ("DQN.discount = 0.9", "Learner.target_period_steps = 100")]


@pytest.fixture(scope="module")
def data(once):
    """The log of 3,000 steps of random play on Catch."""

    def make(folder):
        two = "--gin_bindings=Experiment.checkpoint_every_steps = 2_000"
        assert train.main([*catch(folder / "Catch-v0/dqn/seed0", "mse", 3000), *RANDOM, "--log_replay", two]) == 0

    return once("random_play", make) / "Catch-v0/dqn/seed0"


def cql(run_dir, data, head="hl_gauss", updates=400, *more):
    where = [f"--run_dir={run_dir}", "--dataset", str(data), "--env=catch:Catch-v0", "--agent=cql", "--torso=mlp"]
    shrunk = [f"--head={head}", f"--updates={updates}", "--eval_every=200", "--eval_episodes=4"]
    shrunk += [
        f"--gin_bindings=Experiment.{name}_every_steps = {every}" for name, every in (("log", 50), ("diagnose", 200))
    ]
    return [*where, *shrunk, *KNOBS, "--gin_bindings=cql/adam.learning_rate = 1e-3", *more]


CASES = [("hl_gauss", "max", 0.1), ("c51", "monte_carlo", 0.1)]
MORE = [
    pytest.param(head, target, alpha, marks=pytest.mark.slow)
    for head in config.names("heads")
    for target, alpha in (("max", 0.1), ("max", 0.0), ("sarsa", 0.1), ("monte_carlo", 0.1))
    if (head, target, alpha) not in CASES
]


@pytest.mark.parametrize("head, target, alpha", [*CASES, *MORE])
def test_every_head_learns_from_random_play(head, target, alpha, data, tmp_path):
    """With every target; SARSA and Monte Carlo improve on random play by one step, which is enough here."""
    lines = ["cql/adam.learning_rate = 3e-3", f"DQN.target = '{target}'", f"DQN.cql_alpha = {alpha}"]
    lines += ["DQN.double = False"] * (target != "max")
    more = [f"--gin_bindings={line}" for line in lines]
    flags = [flag for flag in cql(tmp_path, data, head, 2000) if "learning_rate" not in flag]
    assert train.main([*flags, *more, "--eval_every=2000", "--eval_episodes=50"]) == 0
    last = logger.read(tmp_path)[-1]
    assert last["updates"] == 2000 and last["eval/return"] >= (0.8 if target == "max" else 0.4)


def test_what_is_logged(data, tmp_path):
    assert train.main(cql(tmp_path, data)) == 0
    rows = logger.read(tmp_path)
    assert not any("frames" in row or "agent_steps" in row or "train/epsilon" in row for row in rows)
    assert [row["updates"] for row in rows if "train/conservative_loss" in row] == list(range(50, 401, 50))
    evaluations = [row for row in rows if "eval/return" in row]
    assert [row["updates"] for row in evaluations] == [200, 400]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert -1 < manifest["dataset"]["behaviour_return"] < 0
    assert "eval/behaviour_normalised" not in evaluations[0]  # nobody knows Catch's random score
    events = series(tmp_path)[1]["eval/return"]
    assert [step for step, _ in events] == [200, 400]
    loaded = policy.load(tmp_path, ["catch"])
    assert loaded.agent_steps == 400


@pytest.mark.parametrize("capacity", [5000, 700], ids=["resident", "streamed"])
def test_interrupted_runs_end_with_the_same_bits(capacity, data, tmp_path, monkeypatch, capsys):
    flags = [f"--replay_capacity={capacity}", "--gin_bindings=Experiment.checkpoint_every_steps = 100"]
    assert train.main(cql(tmp_path / "whole", data, "hl_gauss", 400, *flags)) == 0
    assert ("streamed through a replay" if capacity == 700 else "in memory") in capsys.readouterr().out
    feed, calls = OfflineTrainer.feed, []

    def interrupted(self):
        calls.append(None)
        if len(calls) in (7, 29):
            os.kill(os.getpid(), signal.SIGTERM)
        return feed(self)

    monkeypatch.setattr(OfflineTrainer, "feed", interrupted)
    for _ in range(2):
        assert train.main(cql(tmp_path / "parts", data, "hl_gauss", 400, *flags)) == 128 + signal.SIGTERM
    assert train.main(cql(tmp_path / "parts", data, "hl_gauss", 400, *flags)) == 0
    whole, parts = (newest(tmp_path / name) for name in ("whole", "parts"))
    assert whole.agent_steps == parts.agent_steps == 400 and len(calls) == 40
    arrays, others = whole.arrays(""), parts.arrays("")
    assert arrays.keys() == others.keys() and any("opt_state" in name for name in arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    assert series(tmp_path / "whole") == series(tmp_path / "parts")


@pytest.mark.parametrize("stack, n_step", [(1, 1), (3, 3)])
def test_a_stream_is_drawn_from_like_the_naive_one(stack, n_step, data):
    """Pass after pass, each of all episodes, end to end in a new order; what is drawn are the newest transitions."""
    more = [f"--gin_bindings={line}" for line in (f"Gymnasium.stack = {stack}", f"DQN.n_step = {n_step}")]
    one = OfflineTrainer(load(parse_args(cql("unused", data, "mse", 400, "--replay_capacity=700", *more))).experiment)
    one.allocate_replay()
    for _ in range(120):  # 3,840 rows, more than there are
        one.feed()
    ring = one.replay_state.steps
    rows, end = len(ring.first), one._streamed
    assert rows < one.data.rows < 3_840 < end

    log, episodes = Recording(data), []
    for game, start, stop in log.episodes():
        frames = np.concatenate([result(future) for future in log.observations(game, start, stop)])
        steps = TimeStep(*(array[start:stop, game, None] for array in log.rows[:4]), observation=frames[:, None])
        after = log.rows.action_tm1[stop, game, None] if stop < len(log.rows.first) else np.int32([0])
        episodes.append(([TimeStep(*row) for row in zip(*steps, strict=True)], after))
    stream, number, chosen = [], 0, np.int32([0])
    while len(stream) < end:
        for episode in np.random.default_rng((0, 2, number)).permutation(len(episodes)):
            (first, *others), after = episodes[episode]
            stream += [first._replace(action_tm1=chosen), *others]  # what was chosen at the end of the one before
            chosen = after
        number += 1
    naive = NaiveReplay(stream[:end], rows, stack, n_step)
    batch, index = one.experiment.replay.sample(one.replay_state, jax.random.key(0), 20_000, stack, n_step, DISCOUNT)
    oldest, newest = end - rows + stack - 1, end - n_step - 1
    expected = {row % rows: row for row in range(oldest, newest) if not stream[row + 1].first[0]}
    assert set(index.tolist()) == expected.keys()
    for i, place in enumerate(index[:500].tolist()):
        drawn = [np.asarray(leaf[i]) for leaf in batch[:6]]
        for ours, theirs in zip(drawn, naive.transition(expected[place], 0), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_rewards_are_clipped_where_they_are_read_and_not_again(data):
    """Noise and Monte Carlo returns go beyond the bound of a reward."""
    lines = ("Dataset.reward_noise = 3.0", "DQN.target = 'monte_carlo'", "DQN.double = False")
    flags = cql("unused", data, "mse", 400, *(f"--gin_bindings={line}" for line in lines))
    one = OfflineTrainer(load(parse_args(flags)).experiment)
    one.allocate_replay()
    _, targets = one.diagnose()
    assert targets.max() > 3


def test_what_lies_in_memory_is_drawn_from_its_first_row_on(data):
    """Also where a state is a stack of frames."""
    more = [f"--gin_bindings={line}" for line in ("Gymnasium.stack = 3", "Dataset.fraction = 0.05")]
    one = OfflineTrainer(load(parse_args(cql("unused", data, "mse", 400, *more))).experiment)
    one.allocate_replay()
    _, index = one.experiment.replay.sample(one.replay_state, jax.random.key(0), 20_000, stack=3)
    expected = np.flatnonzero(~np.asarray(one.replay_state.steps.first[1 : one.data.rows, 0]))
    assert sorted(set(index.tolist())) == expected.tolist()


def test_seeds_share_the_data(data, tmp_path):
    flags = [flag for flag in cql("unused", data) if not flag.startswith("--run_dir")]
    assert train.main([*flags, f"--base_dir={tmp_path}", "--seeds=2"]) == 0
    x = load(parse_args(cql("unused", data))).experiment
    first, second = OfflineTrainer(x).with_seeds([0, 1])
    first.allocate_replay(), second.allocate_replay()
    pointer = lambda one: one.replay_state.steps.observation.unsafe_buffer_pointer()
    assert pointer(first) == pointer(second)
    [run_dir] = tmp_path.glob("*/*/seed1")
    assert train.main([*flags, f"--run_dir={tmp_path / 'alone'}", "--seed=1"]) == 0
    ours, alone = newest(run_dir).arrays("learner/params"), newest(tmp_path / "alone").arrays("learner/params")
    for name, array in ours.items():
        np.testing.assert_allclose(array, alone[name], atol=1e-4, err_msg=name)
    with pytest.raises(ConfigError, match="share a data set that lies in memory: pass --replay_capacity"):
        train.main([*flags, f"--base_dir={tmp_path / 'b'}", "--seeds=2", "--replay_capacity=700"])
    assert not (tmp_path / "b").exists()


def test_other_data_is_refused_and_the_same_may_move(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    assert train.main(cql(tmp_path / "run", data)) == 0
    assert train.main(cql(tmp_path / "run", copy, "hl_gauss", 600)) == 0
    assert train.main([*catch(copy, "mse", 3400), *RANDOM, "--log_replay"]) == 0  # the log goes on
    with pytest.raises(ConfigError, match="was begun with another data set"):
        train.main(cql(tmp_path / "run", copy, "hl_gauss", 800))
    with pytest.raises(ConfigError, match="was begun with another data set"):  # though it is finished
        train.main(cql(tmp_path / "run", copy, "hl_gauss", 600))
    manifest = tmp_path / "run/manifest.json"  # the checkpoints tell, too: these may have come from another run
    changed = json.loads(manifest.read_text())
    changed["dataset"]["digest"] = opened(copy).digest
    manifest.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="other settings: Dataset.digest = "):
        train.main(cql(tmp_path / "run", copy, "hl_gauss", 800))


def opened(run_dir):
    experiment = load(parse_args(cql("unused", run_dir))).experiment
    return OfflineTrainer(experiment).data


def test_bad_data_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        train.main(cql(tmp_path / "run", tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_replay_that_does_not_fit_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 300_000})())
    with pytest.raises(MemoryError, match="Pass --replay_capacity"):
        train.main(cql(tmp_path / "run", data))
    assert not (tmp_path / "run").exists()


def test_sweep_and_compare(data, tmp_path, capsys):
    """By updates, normalised by what was recorded."""
    (tmp_path / "offline.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom sweeping import grid\n"
        "grid.Sweep.grids = [@grid.Grid()]\ngrid.Grid.envs = ['catch:Catch-v0']\ngrid.Grid.agents = ['cql']\n"
        "grid.Grid.heads = ['mse', 'hl_gauss']\ngrid.Grid.seeds = 2\ngrid.Grid.torso = 'mlp'\n"
        f"grid.Grid.updates = 200\ngrid.Grid.dataset = ['{data.parents[1]}']\n"
        "grid.Grid.bindings = ['Experiment.eval_every_steps = 100', 'Experiment.log_every_steps = 50']\n"
    )
    flags = [str(tmp_path / "offline.gin"), "--allow_import=catch", f"--base_dir={tmp_path / 'runs'}"]
    assert sweep.main([*flags, "--dry_run"]) == 0
    assert "4 runs, 0 finished; 800 steps left in 4" in capsys.readouterr().out
    other = (tmp_path / "offline.gin").read_text().replace("catch:Catch-v0", "CartPole-v1")
    (tmp_path / "other.gin").write_text(other)
    with pytest.raises(ConfigError, match="cannot start: --dataset: no log is of CartPole-v1; there are Catch-v0"):
        sweep.main([str(tmp_path / "other.gin"), *flags[1:], "--dry_run"])
    for seed in (0, 1):
        for head in ("mse", "hl_gauss"):
            run = [flag for flag in cql("", data, head, 200) if not flag.startswith("--run_dir")]
            assert train.main([*run, "--eval_every=100", f"--seed={seed}", f"--base_dir={tmp_path / 'runs'}"]) == 0
    assert compare.main([str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "cql-mse" in said and "windows are left out" not in said
    table = (tmp_path / "runs/_compare/aggregates.csv").read_text().splitlines()
    assert table[0] == "group,aggregate,updates,value,lower,upper"
    assert {row.split(",")[2] for row in table[1:]} == {"100", "200"}
    report = (tmp_path / "runs/_compare/report.html").read_text()
    assert "random play is unknown" in report and "returns are raw" in report
    assert "200 updates" in report and "frames" not in report
    both = [str(tmp_path / "runs"), str(data), f"--output={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match="count updates, and others frames: choose with --groups"):
        compare.main(both)
    assert compare.main([*both, "--groups", "cql"]) == 0


def test_behaviour_normalised_scores():
    """Against the random score and the data's mean; none where the data is no better than random play."""
    assert behaviour_normalised("Pong", 0.0, 5.0) == pytest.approx(20.7 / 25.7)
    assert behaviour_normalised("Pong", 0.0, -20.8) is None and behaviour_normalised("Pong", 0.0, None) is None
    assert behaviour_normalised("Catch-v0", 0.0, 5.0) is None


def test_human_normalised_scores():
    assert [human_normalised("Pong", score) for score in (-20.7, 14.6, -3.05)] == pytest.approx([0, 1, 0.5])
    assert human_normalised("Catch-v0", 0.0) is None


def test_evaluate_says_updates(data, tmp_path, capsys):
    assert train.main(cql(tmp_path, data)) == 0
    capsys.readouterr()
    assert evaluate.main([str(tmp_path), "--episodes=2", "--allow_import=catch"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["updates"] == 400 and "frames" not in result


def test_evaluate_takes_an_older_checkpoint(data, tmp_path, capsys):
    newer, older = checkpoints(data)
    results = []
    for path in (data, newer, older):
        assert evaluate.main([str(path), "--episodes=2", "--allow_import=catch"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [result["agent_steps"] for result in results] == [int(path.name) for path in (newer, newer, older)]
    assert results[0]["returns"] == results[1]["returns"]
    kernel = lambda path: policy.load(path, ["catch"]).params["params"]["torso"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        kernel(older), Checkpoint(older).arrays("learner/params/params/torso/")["Dense_0/kernel"]
    )
    with pytest.raises(DamagedError, match=f"/7 is not there; checkpoints that are: {newer.name}, {older.name}"):
        evaluate.main([str(older.with_name("7")), "--allow_import=catch"])


# Linear probes


def test_a_frozen_torso_stays_as_it_is_and_the_head_learns(data, tmp_path):
    """Of another head, with weight decay, which would move what gets no gradient."""
    decay = "learner.Learner.optimizer = @optax.adamw()"
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom agents import learner\nimport optax\n"
        f"{decay}\noptax.adamw.learning_rate = 1e-3\noptax.adamw.weight_decay = 0.1\n"
    )
    flags = [flag for flag in catch(tmp_path / "probe", "hl_gauss", 1200) if "learning_rate" not in flag]
    assert train.main([*flags, f"--freeze_torso={data}", f"--gin_files={tmp_path / 'own.gin'}"]) == 0
    torso, ours = newest(data).arrays("learner/params/params/torso/"), newest(tmp_path / "probe").arrays("learner/")
    for name, array in torso.items():
        for which in ("params", "target_params"):
            np.testing.assert_array_equal(array, ours[f"{which}/params/torso/{name}"])
    origin = run_directory.read_manifest(tmp_path / "probe")["torso"]
    assert origin == {"checkpoint": str(newest(data).path), "state_sha256": newest(data).state_sha256}
    fresh = built(tmp_path / "probe").state.params["params"]["head"]["kernel"]
    assert not np.allclose(ours["params/params/head/kernel"], fresh)
    assert train.main([*flags, f"--freeze_torso={data}", f"--gin_files={tmp_path / 'own.gin'}", "--steps=1400"]) == 0


def test_a_probe_of_an_older_checkpoint(data, tmp_path):
    newer, older = checkpoints(data)
    flags = catch(tmp_path / "probe", "mse", 600)
    assert train.main([*flags, f"--freeze_torso={older}"]) == 0
    assert run_directory.read_manifest(tmp_path / "probe")["torso"]["checkpoint"] == str(older)
    torso = lambda checkpoint: checkpoint.arrays("learner/params/params/torso/")["Dense_0/kernel"]
    np.testing.assert_array_equal(torso(newest(tmp_path / "probe")), torso(Checkpoint(older)))
    assert not np.array_equal(torso(Checkpoint(older)), torso(Checkpoint(newer)))
    with pytest.raises(ConfigError, match="--freeze_torso: .*/7 is not there"):
        train.main([*catch(tmp_path / "another", "mse", 600), f"--freeze_torso={older.with_name('7')}"])
    assert not (tmp_path / "another").exists()


def built(run_dir):
    return trainer.Trainer(config.load([run_dir / "config.gin"], allow_import=["catch"]).experiment)


def test_probes_of_something_else_are_refused(data, tmp_path, monkeypatch):
    flags = catch(tmp_path / "probe", "mse", 1200)
    with pytest.raises(ConfigError, match="holds no run with an intact checkpoint"):
        train.main([*flags, f"--freeze_torso={tmp_path / 'nothing'}"])
    other = [flag for flag in flags if "MLP" not in flag]
    with pytest.raises(ConfigError, match=r"is another one: MLP.features = \(256, 256\), there \(64,\)"):
        train.main([*other, f"--freeze_torso={data}"])
    (tmp_path / "headless.py").write_text(
        "import flax.linen as nn\n\n\nclass Headless(nn.Module):\n    num_actions: int\n    num_logits: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom agents import experiment\nimport headless\n"
        "experiment.Experiment.network = @headless.Headless\n"
    )
    own = [f"--gin_files={tmp_path / 'own.gin'}", "--allow_import=headless"]
    with pytest.raises(ConfigError, match="--freeze_torso needs a QNetwork; Experiment.network is Headless"):
        train.main([*other, f"--freeze_torso={data}", *own])
    assert not (tmp_path / "probe").exists()


def test_a_probe_goes_on_without_its_source(data, tmp_path):
    """But one that starts over has the torso that it was begun with, or does not start."""
    source = shutil.copytree(data, tmp_path / "source")
    command = lambda steps: [*catch(tmp_path / "probe", "mse", steps), f"--freeze_torso={source}"]
    assert train.main(command(600)) == 0
    shutil.move(source, tmp_path / "elsewhere")
    assert train.main(command(700)) == 0
    shutil.move(tmp_path / "elsewhere", source)
    shutil.rmtree(tmp_path / "probe/checkpoints")
    manifest = (tmp_path / "probe/manifest.json").read_text()
    newer, _ = checkpoints(source)
    shutil.move(newer, tmp_path / "newer")
    with pytest.raises(ConfigError, match=f"was begun with the torso of {newer}"):
        train.main(command(700))
    assert (tmp_path / "probe/manifest.json").read_text() == manifest
    shutil.move(tmp_path / "newer", newer)
    assert train.main(command(700)) == 0
