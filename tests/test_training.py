"""The real entry point with every knob shrunk: it trains, resumes, refuses, evaluates, and learns with every head."""

import dataclasses
import json
import os
import re
import shutil
import signal

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_replay import NaiveReplay, random_history

from agents import environments, memory, policy
from agents.actor import Actor
from agents.checkpointing import run_directory
from agents.checkpointing.checkpoint import newest
from agents.checkpointing.checkpointer import Checkpointer
from agents.configuration import config
from agents.environments import Gymnasium
from agents.errors import ConfigError
from agents.evaluation import evaluate as play
from agents.loop import Interrupt, Tracer
from agents.reporting import logger
from agents.run import Run
from agents.trainer import Trainer, learn
from networks import value_heads
from replay import sum_tree
from replay.ring import Replay, TimeStep
from replay.samplers import Prioritized, Uniform
from scripts import evaluate, plot, train
from training.command_line import load, parse_args

HEADS = config.names("heads")


def pong(run_dir, steps, *more):
    """Small screens, 200 frames per episode, 4 games, 33 updates in 200 agent steps."""
    knobs = {
        "Learner.batch_size": 4,
        "Experiment.log_every_steps": 40,
        "Experiment.diagnose_every_steps": 200,
        "Atari.max_episode_frames": 200,
        "Atari.screen": 42,
    }
    flags = ["--game=Pong", f"--run_dir={run_dir}", f"--steps={steps}", "--num_envs=4", "--warmup_steps=64"]
    flags += ["--replay_capacity=200", "--eval_episodes=1"]
    return [*flags, *(f"--gin_bindings={name} = {value}" for name, value in knobs.items()), *more]


SMALL = {
    "mlp": {"MLP.features": (64,)},
    "impala_cnn": {"ImpalaCNN.hidden": 16, "ImpalaEncoder.channels": (8,)},
    "soft_moe": {"SoftMoE.num_experts": 2, "SoftMoE.hidden": 16, "ImpalaEncoder.channels": (8,)},
    "resnet": {"ResNet.depth": 18, "ResNet.channels": 4, "ResNet.groups": 2, "ResNet.num_embeddings": 2},
}


def catch(run_dir, head, steps, *more, agent="dqn", torso="mlp"):
    rainbow = "rainbow" in agent
    knobs = {
        "DQN.epsilon_decay_steps": 1000,
        "DQN.discount": 0.9,
        "Learner.target_period_steps": 100,
        "rainbow/adam.learning_rate" if rainbow else "adam.learning_rate": 1e-3,
        "Experiment.replay_ratio": 0.5,
    }
    knobs |= SMALL["soft_moe" if agent == "soft_moe" else torso]
    flags = ["--env=catch:Catch-v0", f"--agent={agent}", f"--head={head}", f"--run_dir={run_dir}", "--num_envs=4"]
    flags += [f"--steps={steps}", "--eval_episodes=50"] + ([f"--torso={torso}"] if torso != "mlp" else [])
    flags += ["--warmup_steps=200", "--replay_capacity=5000"]
    return [*flags, *(f"--gin_bindings={name} = {value}" for name, value in knobs.items()), *more]


@pytest.fixture(scope="module")
def run_dir(once):
    """A finished run of 200 agent steps on Pong."""

    def make(directory):
        assert train.main(pong(directory, 200)) == 0

    return once("pong", make)


def test_counts(run_dir):
    rows = logger.read(run_dir)
    last = [row for row in rows if "train/loss" in row][-1]
    assert (last["agent_steps"], last["frames"]) == (200, 800)
    assert last["train/replay_ratio"] == pytest.approx(0.25)
    assert [row["episode/length"] for row in rows if "episode/length" in row] == [50] * 4
    updates = policy_updates(run_dir)
    assert updates == (196 - 64) // 4  # with overlap, the updates due after the last step of all games are not made


def policy_updates(run_dir):
    return int(newest(run_dir).arrays("learner/updates")[""])


def test_run_directory(run_dir):
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["protocol"]["sticky"] == 0.25 and manifest["settings"]["HLGauss.sigma_ratio"] == "0.75"
    assert manifest["parameters"] == 1_415_122  # NatureCNN with SAME padding, 6 actions x 51 bins
    rows = logger.read(run_dir)
    keys = {key for row in rows for key in row}
    expected = {f"train/{name}" for name in ("epsilon", "loss", "q_mean", "q_max", "grad_norm", "td_error")}
    expected |= {"speed/steps_per_second", "speed/updates_per_second", "eval/return", "episode/return"}
    expected |= {"features/dormant_units", "features/effective_rank"}
    expected |= {"head/entropy", "head/edge_mass", "head/targets_outside_support"}
    assert expected <= keys

    events = EventAccumulator(str(run_dir)).Reload()
    assert set(events.Tags()["tensors"]) >= keys - {"agent_steps", "frames", "seconds"}
    in_events = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("train/loss")]
    assert in_events == [(row["frames"], np.float32(row["train/loss"])) for row in rows if "train/loss" in row]
    assert b"HLGauss.sigma_ratio" in events.Tensors("operative_config")[0].tensor_proto.string_val[0]


def test_finished_extended_and_refused(run_dir, tmp_path, capsys):
    run_dir = shutil.copytree(run_dir, tmp_path / "copy")
    assert train.main(pong(run_dir, 200)) == 0
    assert "is finished" in capsys.readouterr().out
    before = (run_dir / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"DQN.n_step = 2, but the run there has 1"):
        train.main(pong(run_dir, 400, "--gin_bindings=DQN.n_step = 2"))
    assert (run_dir / "metrics.jsonl").read_text() == before

    assert train.main(pong(run_dir, 300)) == 0
    assert "goes on at 200" in capsys.readouterr().out
    steps = [row["agent_steps"] for row in logger.read(run_dir)]
    assert steps == sorted(steps) and steps[-1] == 300
    assert policy_updates(run_dir) == (296 - 64) // 4
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert [start["agent_steps"] for start in manifest["resumed"]] == [200]
    assert manifest["settings"]["Experiment.total_steps"] == "300"

    (run_dir / "checkpoints/300/state.safetensors").write_bytes(b"")
    assert train.main(pong(run_dir, 304)) == 0
    assert "goes on at 200" in capsys.readouterr().out
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert [start["agent_steps"] for start in manifest["resumed"]] == [200, 200]


def test_evaluates_and_exports(run_dir, tmp_path, capsys):
    exported = tmp_path / "params.safetensors"
    assert evaluate.main([str(run_dir), "--episodes=3", f"--export={exported}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["returns"]) == 3 and result["epsilon"] == 0.001 and result["human_normalised"] is not None
    exported.unlink()
    assert evaluate.main([str(run_dir), "--episodes=0", f"--export={exported}"]) == 0
    assert "mean" not in json.loads(capsys.readouterr().out)
    params = load_file(exported)
    assert sum(value.size for value in params.values()) == 1_415_122
    assert params["head/kernel"].shape == (512, 6 * 51)


def readme(language, containing):
    """The code block of the README that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (config.ROOT / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if containing in block)


def test_load_a_run_and_act_as_the_readme_says(run_dir, tmp_path):
    code = readme("python", "policy.load")
    code = re.sub(r'load\(".*?"\)', f'load("{run_dir}")', code).replace("range(1000)", "range(10)")
    names = {}
    exec(code, names)
    assert names["observation"].shape == (2, 4, 42, 42)
    names["agent"].export(tmp_path / "params.safetensors")
    exec(readme("python", "load_file").replace("params.safetensors", f"{tmp_path}/params.safetensors"), names)
    assert names["values"].shape == (2, 6) and np.isfinite(names["values"]).all()


def test_keeps_every_transition_on_demand(tmp_path, capsys):
    """The replay holds 200 transitions, the log all 800; read as the README says."""
    flags = catch(tmp_path, "mse", 800, "--log_replay", "--gin_bindings=Experiment.checkpoint_every_steps = 200")
    assert train.main([flag.replace("capacity=5000", "capacity=200") for flag in flags]) == 0
    capsys.readouterr()
    exec(re.sub(r'newest\(".*?"\)', f'newest("{tmp_path}")', readme("python", "import newest")), {})
    assert capsys.readouterr().out.startswith("0 (")
    log = newest(tmp_path).log
    pieces = [piece for _, piece in log.pieces(0, log.end)]
    first, rewards, terminated = (np.concatenate([piece[i] for piece in pieces]) for i in (3, 1, 2))
    assert log.first_row == 0 and np.sum(~first) == newest(tmp_path).agent_steps
    returns = [row["episode/return"] for row in logger.read(tmp_path) if "episode/return" in row]
    assert rewards[terminated].tolist() == returns and len(returns) > 100


def test_the_head_of_the_readme_trains(tmp_path, monkeypatch):
    names = vars(value_heads) | {}
    exec(readme("python", "class LogCosh"), names)
    monkeypatch.setattr(value_heads, "LogCosh", names["LogCosh"], raising=False)
    (tmp_path / "log_cosh.gin").write_text(readme("python", "@value_heads.LogCosh"))
    assert train.main(catch(tmp_path / "run", "mse", 400, f"--gin_files={tmp_path / 'log_cosh.gin'}")) == 0
    assert "LogCosh" in (tmp_path / "run/config.gin").read_text()


def test_the_torso_of_the_readme_trains(tmp_path, monkeypatch):
    (tmp_path / "my_torsos.py").write_text(readme("python", "class Wide"))
    (tmp_path / "my.gin").write_text(readme("python", "@my_torsos.Wide"))
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--env=catch:Catch-v0", "--head=mse", f"--gin_files={tmp_path / 'my.gin'}", "--allow_import=my_torsos"]
    flags += [f"--run_dir={tmp_path / 'run'}", "--num_envs=4", "--steps=200", "--warmup_steps=100"]
    assert train.main([*flags, "--replay_capacity=200", "--eval_episodes=1"]) == 0
    assert "my_torsos.Wide" in (tmp_path / "run/config.gin").read_text()


@pytest.mark.parametrize(
    ("module", "mistake"), [("narrow", "7"), ("unpacking", "[a for a, b in [x.shape]][0]")], ids=str
)
def test_a_mistake_in_ones_own_torso_is_shown_where_it_is(tmp_path, monkeypatch, module, mistake):
    """Its traceback, not a line about settings."""
    (tmp_path / f"{module}.py").write_text(readme("python", "class Wide").replace("len(x)", mistake))
    (tmp_path / "my.gin").write_text(readme("python", "@my_torsos.Wide").replace("my_torsos", module))
    monkeypatch.syspath_prepend(tmp_path)
    flags = [f"--gin_files={tmp_path / 'my.gin'}", f"--allow_import={module}", f"--run_dir={tmp_path / 'run'}"]
    with pytest.raises(Exception) as raised:
        train.main(["--env=catch:Catch-v0", "--allow_import=catch", "--head=mse", "--preset=quick", *flags])
    assert not isinstance(raised.value, ConfigError)
    assert f"{module}.py" in "".join(str(entry.path) for entry in raised.traceback)


def test_restores_what_was_saved(tmp_path):
    """The ring, whether full or not, and the learner's state come back as they were."""
    for capacity, sampler in ((1000, Uniform()), (200, Prioritized())):
        experiment = load(parse_args(catch(tmp_path / "run", "hl_gauss", 400))).experiment
        experiment = dataclasses.replace(experiment, replay=Replay(capacity, sampler))
        saved, restored = Trainer(experiment), Trainer(experiment)
        checkpointer = Checkpointer(tmp_path / f"{capacity} {sampler}")
        for trainer in (saved, restored):
            trainer.allocate_replay()
        random = np.random.default_rng(0)
        for _ in range(73):
            step = TimeStep(
                random.integers(0, 3, 4, np.int32),
                random.random(4, np.float32),
                random.random(4) < 0.1,
                random.random(4) < 0.1,
                random.integers(0, 255, (4, 6, 5), np.uint8),
            )
            saved.add(step)
            checkpointer.append(step)
        learn([saved])
        checkpointer.save(saved.agent_steps, saved.save(), {"seconds": 1.5}, experiment.replay.num_rows(4))
        checkpointer.close()
        checkpoint = newest(tmp_path / f"{capacity} {sampler}")
        restored.restore(checkpoint)
        assert checkpoint.progress["seconds"] == 1.5
        assert restored.metrics() == saved.metrics()
        assert (restored.agent_steps, restored.updates) == (saved.agent_steps, saved.updates) and saved.updates > 0
        before, after = (
            (t.state._replace(key=jax.random.key_data(t.state.key)), t.replay_state) for t in (saved, restored)
        )
        jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("priority", ["sqrt_loss", "sqrt_kl", "abs_td"])
def test_what_rainbow_draws_and_its_new_priorities(tmp_path, priority):
    """The parts of a trainer fit: 3-step transitions of the twin are drawn, clipped, and ranked by their own losses."""
    x = load(parse_args(catch(tmp_path, "hl_gauss", 1000, agent="rainbow"))).experiment
    x = dataclasses.replace(x, agent=dataclasses.replace(x.agent, max_abs_reward=0.5))
    trainer = Trainer(dataclasses.replace(x, replay=Replay(200, Prioritized(priority)), replay_ratio=0.25))
    trainer.allocate_replay()
    random = np.random.default_rng(0)
    history = random_history(random, 73, 4)  # once around the ring and on
    for step in history:
        trainer.add(step._replace(observation=random.integers(0, 255, (4, 6, 5), np.uint8)))
    before = np.array(trainer.replay_state.priorities["tree"].leaves).reshape(-1)
    places = NaiveReplay(history, 50, trainer._stack, n_step=3).places().values()
    assert set(np.flatnonzero(before)) == {row % 50 * 4 + game for row, game in places}

    params, target_params = jax.tree.map(np.array, (trainer.state.params, trainer.state.target_params))
    trainer.updates = trainer.experiment.updates_due(trainer.agent_steps) - 1
    learn([trainer])
    after = np.array(trainer.replay_state.priorities["tree"].leaves).reshape(-1)
    (drawn,) = np.nonzero(after != before)
    assert 16 < len(drawn) <= 32
    place = (drawn // 4, drawn % 4, np.ones(len(drawn), np.float32))
    rewards = {"discount": x.agent.discount, "max_abs_reward": x.agent.max_abs_reward}
    batch = x.replay.gather(trainer.replay_state, *place, stack=trainer._stack, n_step=3, **rewards)
    loss, items = x.agent.loss(trainer.network, x.head, params, target_params, batch, jax.random.key(0))
    squared = {"sqrt_loss": loss, "sqrt_kl": items["excess_loss"], "abs_td": items["td_error"] ** 2}
    np.testing.assert_allclose(after[drawn], np.sqrt(np.maximum(squared[priority], 0) + 1e-10), rtol=1e-3)


def test_targets_are_copied_by_agent_steps(tmp_path):
    """Every 100 agent steps, at an update for two of them."""
    trainer = Trainer(load(parse_args(catch(tmp_path, "mse", 1000))).experiment)
    trainer.allocate_replay()
    random, copied = np.random.default_rng(0), []
    for step in random_history(random, 100, 4):
        trainer.add(step._replace(observation=random.integers(0, 255, (4, 6, 5), np.uint8)))
        learn([trainer])
        online, target = (jax.tree.leaves(params) for params in (trainer.state.params, trainer.state.target_params))
        if all(map(np.array_equal, online, target)) and trainer.updates and trainer.updates not in copied:
            copied.append(trainer.updates)
    assert copied == [50]


def test_games_are_played_by_the_newest_parameters(tmp_path, monkeypatch):
    """And by the exploration of the moment."""
    send, seen = Actor.send, []

    def noting(self, params, epsilon):
        if self is run._actor:  # not that of the evaluation
            seen.append((params is run.trainer.params, epsilon, run.trainer.epsilon))
        return send(self, params, epsilon)

    def starting(self, *args):
        nonlocal run
        run = self
        return start(self, *args)

    run, start = None, Run.start
    monkeypatch.setattr(Run, "start", starting)
    monkeypatch.setattr(Actor, "send", noting)
    assert train.main(catch(tmp_path, "mse", 400)) == 0
    newest_ones, used, expected = zip(*seen, strict=True)
    assert all(newest_ones) and used == expected and used[0] == 1 and used[-1] < 0.9


def test_a_trace_is_of_one_interval_with_updates(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    for enabled in (False, True):
        tracer = Tracer("run", enabled)
        for updates in (0, 5, 9, 12):
            tracer.toggle(updates)
        tracer.close()
    assert calls == ["run/profile", "stop"]


@pytest.mark.usefixtures("hangups")
def test_a_second_signal_is_obeyed():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGINT) not in (before, signal.default_int_handler)


def test_same_seed_same_parameters(tmp_path):
    """With the games stepped while the learner computes, too."""
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        command = catch(tmp_path / name, "hl_gauss", 600, f"--seed={seed}", "--gin_bindings=Experiment.overlap = True")
        assert train.main(command) == 0
        policy.load(tmp_path / name, ["catch"]).export(tmp_path / f"{name}.safetensors")
        files.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_evaluates_during_training(tmp_path):
    assert train.main(catch(tmp_path, "mse", 1000, "--eval_every=400")) == 0
    assert [row["agent_steps"] // 10 for row in logger.read(tmp_path) if "eval/return" in row] == [40, 80, 100]


def test_every_evaluation_plays_games_of_its_own(tmp_path, monkeypatch):
    """Neither training's nor another evaluation's, and explores by other random numbers."""
    drawn, seeds = [], environments.seeds
    monkeypatch.setattr(environments, "seeds", lambda *args: drawn.append(seeds(*args)) or drawn[-1])
    assert train.main(catch(tmp_path, "mse", 1000, "--eval_every=400")) == 0
    assert len(drawn) == 8  # of training and three evaluations, for the games and for exploring
    assert len(set(np.concatenate(drawn).tolist())) == sum(map(len, drawn))


def test_evaluations_are_of_the_parameters_that_are_trained(tmp_path):
    """Not of their copies for the targets, and by the exploration rate of evaluations."""
    told = []

    def act(params, observation, key, epsilon, noise):
        told.append((params, float(epsilon), noise))
        return np.zeros(len(observation), np.int32)

    x = load(parse_args(catch(tmp_path, "mse", 400, "--gin_bindings=DQN.epsilon_eval = 0.125"))).experiment
    trainer = Trainer(x)
    trainer.act = act
    trainer.evaluate(lambda: False)
    assert told and all(params is trainer.state.params for params, *_ in told)
    assert {(epsilon, noise) for _, epsilon, noise in told} == {(0.125, False)}


def test_features_are_measured_on_states_drawn_alike(tmp_path):
    """Even if one transition has all the priority."""
    x = load(parse_args(catch(tmp_path, "mse", 1000, agent="rainbow"))).experiment
    trainer, random = Trainer(dataclasses.replace(x, replay=Replay(200, Prioritized()))), np.random.default_rng(0)
    trainer.allocate_replay()
    for one in random_history(random, 50, 4):
        trainer.add(one._replace(observation=random.integers(0, 255, (4, 6, 5), np.uint8)))
    tree = sum_tree.update(sum_tree.init(200), np.array([40]), np.float32([1]))
    trainer.replay_state = trainer.replay_state._replace(priorities={"tree": tree, "largest": jnp.float32(1)})
    _, targets = trainer.diagnose()
    assert len(np.unique(targets)) > 50


def test_bad_input_to_evaluate_is_named(run_dir, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        evaluate.main([str(tmp_path)])
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        evaluate.main([str(run_dir), f"--video={tmp_path / 'out.avi'}"])
    with pytest.raises(OSError, match="nowhere"):
        evaluate.main([str(run_dir), f"--export={tmp_path / 'nowhere/params.safetensors'}"])
    for flag, message in (("--episodes=0", "--episodes lies between 1"), ("--export=a.npz", "ends in .safetensors")):
        with pytest.raises(SystemExit):
            evaluate.main([str(run_dir), flag])
        assert message in capsys.readouterr().err


def test_one_process_per_run_directory(run_dir, tmp_path):
    run_dir = shutil.copytree(run_dir, tmp_path / "copy")
    before = (run_dir / "manifest.json").read_text()
    with run_directory.lock(run_dir), pytest.raises(ConfigError, match="Another process"):
        train.main(pong(run_dir, 300))
    assert (run_dir / "manifest.json").read_text() == before


def test_a_damaged_manifest_is_named(run_dir, tmp_path):
    manifest = json.loads((run_dir / "manifest.json").read_text())
    for text in ('{"settings": ', *(json.dumps(manifest | {"torso": torso}) for torso in (3, {"checkpoint": "a"}))):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match=r"manifest\.json is damaged"):
            train.main(pong(tmp_path, 200))


@pytest.mark.parametrize("same_games", [True, False])
def test_an_interrupted_final_evaluation_does_not_count(tmp_path, same_games, monkeypatch, capsys):
    """The training is saved; the message says what is missing, and it is made once, also where games begin anew."""

    def interrupted(self, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        return np.empty(0)

    monkeypatch.setattr(Trainer, "evaluate", interrupted)
    assert train.main(catch(tmp_path, "mse", 400)) == 128 + signal.SIGTERM
    assert "makes the final evaluation, which alone is missing" in capsys.readouterr().out
    assert newest(tmp_path).agent_steps >= 400
    monkeypatch.undo()
    restore = Actor.restore
    monkeypatch.setattr(Actor, "restore", lambda self, saved: restore(self, saved) and same_games)
    for printed in ("Evaluation at 400", "is finished"):
        assert train.main(catch(tmp_path, "mse", 400)) == 0
        assert printed in capsys.readouterr().out
    assert [row["agent_steps"] for row in logger.read(tmp_path) if "eval/return" in row] == [400]


@pytest.mark.usefixtures("hangups")
def test_nohup_is_respected():
    with Interrupt():
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupt():
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.usefixtures("hangups")
def test_an_interrupted_run_that_becomes_shorter_is_evaluated(tmp_path, monkeypatch, capsys):
    """It was meant to go on, and is at its end now; a closed terminal interrupts as other signals do."""
    record = Run.record

    def hang_up(self):
        if self.trainer.agent_steps >= 450:
            os.kill(os.getpid(), signal.SIGHUP)
        return record(self)  # it ends with this step

    monkeypatch.setattr(Run, "record", hang_up)
    assert train.main(catch(tmp_path, "mse", 5000)) == 128 + signal.SIGHUP
    monkeypatch.undo()
    stopped = newest(tmp_path).agent_steps
    assert 450 <= stopped < 460
    for printed in (f"Evaluation at {stopped}", "is finished"):
        assert train.main(catch(tmp_path, "mse", 400)) == 0
        assert printed in capsys.readouterr().out
    assert [row["agent_steps"] for row in logger.read(tmp_path) if "eval/return" in row] == [stopped]


def test_plots_runs(run_dir, tmp_path):
    """Labels are the ends of paths, which tell runs apart whatever their settings are called."""
    other = shutil.copytree(run_dir, tmp_path / "pong-eps=1" / "seed7")
    for name in ("curves.png", "curves.svg"):
        twice = os.path.relpath(run_dir)
        assert plot.main([str(run_dir), str(other), twice, f"--output={tmp_path / name}"]) == 0
        assert (tmp_path / name).stat().st_size > 5000
    labels = {f"{path.parent.name}/{path.name}" for path in (run_dir, other)}
    assert labels <= set(re.findall(r">([^<>]+)</text>", (tmp_path / "curves.svg").read_text()))


@pytest.mark.parametrize("overlap, number, agent", [(True, signal.SIGTERM, "rainbow"), (False, signal.SIGINT, "dqn")])
def test_interrupted_run_goes_on(tmp_path, overlap, number, agent, monkeypatch):
    """A signal saves at the next step; the next start cuts the logs back to that and goes on."""
    more = [
        f"--agent={agent}",
        "--torso=mlp",
        "--gin_bindings=MLP.features = (16,)",
        f"--gin_bindings=Experiment.overlap = {overlap}",
    ]
    command = pong(tmp_path / "run", 200, *more)
    write = logger.Logger.write

    def write_then_kill(self, agent_steps, *args):
        write(self, agent_steps, *args)
        if agent_steps == 120:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(logger.Logger, "write", write_then_kill)
    assert train.main(command) == 128 + number
    monkeypatch.undo()
    assert newest(tmp_path / "run").agent_steps == 120
    with (tmp_path / "run/metrics.jsonl").open("a") as file:  # logged after the checkpoint, then killed
        file.write('{"agent_steps": 999}\n{"agent_st')
    assert train.main(command) == 0
    steps = [row["agent_steps"] for row in logger.read(tmp_path / "run")]
    assert steps == sorted(steps) and steps[-1] == 200
    assert policy_updates(tmp_path / "run") == ((196 if overlap else 200) - 64) // 4


def last_metrics(run_dir):
    """The last value of each metric."""
    return {name: value for row in logger.read(run_dir) for name, value in row.items()}


# DQN with each head learns in `test_learns`.
COMBINATIONS = [("rainbow", "mlp", head) for head in HEADS] + [("dqn", "impala_cnn", "hl_gauss")]
COMBINATIONS += [("soft_moe", "mlp", "hl_gauss")]
MORE = [("dqn", "impala_cnn", head) for head in HEADS if head != "hl_gauss"]
MORE += [("soft_moe", "mlp", head) for head in HEADS if head != "hl_gauss"]
MORE += [("rainbow", "soft_moe", "two_hot"), ("dqn", "resnet", "hl_gauss"), ("full_rainbow", "impala_cnn", "c51")]
COMBINATIONS += [pytest.param(*combination, marks=pytest.mark.slow) for combination in MORE]


@pytest.mark.parametrize("agent, torso, head", COMBINATIONS)
def test_every_agent_trains_with_every_head(tmp_path, agent, torso, head):
    """200 updates; what is particular to an agent shows in what it logs."""
    knobs = {}
    if agent == "rainbow":  # each kind of priority with two heads
        knobs["Prioritized.priority"] = repr(["sqrt_loss", "sqrt_kl", "abs_td"][HEADS.index(head) % 3])
    more = ["--eval_episodes=1", *(f"--gin_bindings={name} = {value}" for name, value in knobs.items())]
    assert train.main(catch(tmp_path, head, 600, *more, agent=agent, torso=torso)) == 0
    assert policy_updates(tmp_path) == 198  # those due one step of all games before the end
    metrics = last_metrics(tmp_path)
    assert all(np.isfinite(value) for value in metrics.values())
    assert (metrics["train/weight"] < 1) == ("rainbow" in agent)
    assert metrics["train/epsilon"] == 0 if agent == "full_rainbow" else 0.01 < metrics["train/epsilon"] < 1
    if head in ("two_hot", "hl_gauss", "c51"):
        assert 0 < metrics["train/excess_loss"] < metrics["train/loss"]
    else:
        assert metrics["train/excess_loss"] == pytest.approx(metrics["train/loss"])


def test_soft_moe_logs_the_load_of_its_experts(tmp_path):
    knobs = ["--eval_episodes=1", "--gin_bindings=Experiment.diagnose_every_steps = 200"]
    assert train.main(catch(tmp_path, "hl_gauss", 400, *knobs, agent="soft_moe")) == 0
    metrics = last_metrics(tmp_path)
    load = [value for name, value in metrics.items() if name.startswith("features/expert_load_")]
    assert len(load) == 2 and min(load) > 0 and sum(load) == pytest.approx(1, abs=1e-4)
    assert 0 < metrics["features/dispatch_entropy"] <= np.log(9)  # 3x3 positions


LEARNERS = [("dqn", "mse", 4000), ("dqn", "hl_gauss", 6000), ("rainbow", "c51", 4000)]
SLOW_LEARNERS = [("dqn", head) for head in HEADS if head not in ("mse", "hl_gauss")]
SLOW_LEARNERS += [("full_rainbow", "c51"), ("rainbow", "hl_gauss"), ("soft_moe", "hl_gauss")]
LEARNERS += [pytest.param(*pair, 6000, marks=pytest.mark.slow) for pair in SLOW_LEARNERS]


@pytest.mark.parametrize("agent, head, steps", LEARNERS)
def test_learns(tmp_path, agent, head, steps):
    """Random play on Catch scores -0.6; a perfect one scores 1."""
    assert train.main(catch(tmp_path, head, steps, agent=agent)) == 0
    assert policy_updates(tmp_path) == (steps - 204) // 2
    returns = [row["eval/return"] for row in logger.read(tmp_path) if "eval/return" in row]
    assert returns[-1] > 0.5


class Countdown(gymnasium.Env):
    """Episodes of 1 step that return 0, or of 9 steps that return 1, with equal probability."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.long = bool(self.np_random.integers(2))
        self.left = 9 if self.long else 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), float(self.long and not self.left), not self.left, False, {}


gymnasium.register("Countdown-v0", Countdown)


def test_evaluation_does_not_favour_short_episodes():
    """Counting whichever of 16 games' episodes ends first would give a mean near 0.2 instead of 0.5."""

    def act(params, observation, key, epsilon, noise):
        assert not noise
        return np.zeros(len(observation), np.int32)

    returns = play(Gymnasium("Countdown-v0"), act, None, 80, 0.0, entropy=(1,))
    assert returns.shape == (80,) and 0.35 < returns.mean() < 0.65


def test_too_large_a_replay_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MemoryError, match="--replay_capacity"):
        train.main(["--game=Pong", f"--run_dir={tmp_path / 'run'}", "--replay_capacity=2000000000"])
    assert not (tmp_path / "run").exists()


def test_too_large_a_network_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """Its parameters, their target, Adam's two moments and the gradients."""
    monkeypatch.setattr(memory, "on_device", lambda: 1e10)
    wide = [f"--gin_bindings={name}" for name in ("MLP.features = (1_000_000_000,)", "Gymnasium.stack = 1")]
    flags = [
        "--env=catch:Catch-v0",
        "--head=mse",
        "--replay_capacity=5000",
        "--warmup_steps=200",
        "--num_envs=4",
        *wide,
    ]
    with pytest.raises(MemoryError, match=r"34,000,000,003 parameters take 680\.00 GB .* Choose a smaller network"):
        train.main([*flags, f"--run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_another_directory_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds no run"):
        train.main(pong(tmp_path, 200))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_warns_of_a_support_that_is_too_narrow(tmp_path, capsys):
    """Returns of +-1 on a support of +-0.3: the first diagnosis says so, and what to try."""
    knobs = ["HLGauss.v_min = -0.3", "HLGauss.v_max = 0.3", "Experiment.diagnose_every_steps = 300"]
    assert train.main(catch(tmp_path, "hl_gauss", 400, *(f"--gin_bindings={knob}" for knob in knobs))) == 0
    out = capsys.readouterr().out
    assert "of the TD targets lie outside the head's support [-0.3, 0.3]" in out
    assert "--gin_bindings='HLGauss.v_max = " in out and out.count("WARNING") == 1
