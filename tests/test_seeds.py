"""Several seeds in one process: each is the run that it would be alone."""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from test_training import catch, policy_updates

from agents import experiment, trainer
from agents.checkpointing.checkpoint import newest
from agents.configuration import config
from agents.errors import ConfigError
from agents.reporting import logger
from agents.run import Run
from agents.trainer import Trainer
from scripts import train
from training.command_line import load, parse_args
from training.jobs import jobs

STEPS = 400


def command(base_dir, *more, agent="dqn", steps=STEPS):
    flags = catch("unused", "hl_gauss", steps, agent=agent)
    return [flag for flag in flags if not flag.startswith("--run_dir")] + [f"--base_dir={base_dir}", *more]


def run_dirs(base_dir):
    return {int(path.name.removeprefix("seed")): path for path in base_dir.glob("*/*/seed*")}


def contents(run_dir, steps=STEPS):
    """The parameters, and all that the replay holds."""
    restored = Trainer(config.load([run_dir / "config.gin"], allow_import=["catch"]).experiment)
    restored.restore(newest(run_dir))
    assert restored.agent_steps >= steps
    return jax.device_get((restored.state.params, restored.replay_state))


def series(run_dir):
    """All that is logged, but for times."""
    measured = ("seconds", "speed/steps_per_second", "speed/updates_per_second")
    return [{tag: value for tag, value in row.items() if tag not in measured} for row in logger.read(run_dir)]


def is_as_alone(together, alone):
    (params, replay), (params_alone, replay_alone) = contents(together), contents(alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, params_alone)
    jax.tree.map(np.testing.assert_array_equal, replay.steps, replay_alone.steps)
    for one, other in zip(series(together), series(alone), strict=True):
        assert one.keys() == other.keys() and one == pytest.approx(other, rel=1e-3, abs=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Rainbow with seeds 3 and 4, which plays at random throughout."""
    base_dir = tmp_path_factory.mktemp("alone")
    for seed in (3, 4):
        assert (
            train.main(command(base_dir, "--gin_bindings=DQN.epsilon_train = 1.0", f"--seed={seed}", agent="rainbow"))
            == 0
        )
    return run_dirs(base_dir)


def test_each_seed_is_the_run_it_would_be_alone(alone, tmp_path, monkeypatch, capsys):
    """The same steps in its replay, updates at the same agent steps, the same parameters; episodes end at random, so
    that seeds get out of step with one another. They share calls unless one of them has no updates due."""
    sizes, make_step = [], trainer.make_step

    def counting(*args):
        step = make_step(*args)

        def counted(states, *rest):
            sizes.append(len(states))
            return step(states, *rest)

        return counted

    monkeypatch.setattr(trainer, "make_step", counting)
    more = ["--gin_bindings=DQN.epsilon_train = 1.0", "--seed=3", "--seeds=2"]
    assert train.main(command(tmp_path, *more, agent="rainbow")) == 0
    assert "seed 4: " in capsys.readouterr().out
    together = run_dirs(tmp_path)
    assert together.keys() == alone.keys() == {3, 4} and sizes.count(2) > sizes.count(1)
    for seed in alone:
        is_as_alone(together[seed], alone[seed])
        assert f"Experiment.seed = {seed}\n" in (together[seed] / "config.gin").read_text()


def test_interrupted_seeds_go_on(tmp_path, monkeypatch, capsys):
    """Together or alone, from where each of them was; a finished one stays as it is."""
    write, signals = logger.Logger.write, [signal.SIGTERM]

    def write_then_kill(self, agent_steps, *args):
        write(self, agent_steps, *args)
        if agent_steps >= 300 and signals:
            os.kill(os.getpid(), signals.pop())

    monkeypatch.setattr(logger.Logger, "write", write_then_kill)
    more = ["--gin_bindings=Experiment.overlap = True"]
    assert train.main(command(tmp_path, "--seeds=2", *more)) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert capsys.readouterr().out.count("Interrupted at 3") == 2
    assert train.main(command(tmp_path, "--seed=1", *more)) == 0
    finished = shutil.copytree(run_dirs(tmp_path)[1], tmp_path / "copy")
    capsys.readouterr()
    assert train.main(command(tmp_path, "--seeds=2", *more)) == 0
    printed = capsys.readouterr().out
    assert printed.count("is finished") == 1 and printed.count("goes on at 3") == 1
    for seed, run_dir in run_dirs(tmp_path).items():
        steps = [row["agent_steps"] for row in logger.read(run_dir)]
        assert steps == sorted(steps) and steps[-1] >= STEPS
        assert abs(policy_updates(run_dir) - (STEPS - 200) // 2) <= 4, seed
    assert (finished / "metrics.jsonl").read_text() == (run_dirs(tmp_path)[1] / "metrics.jsonl").read_text()
    assert train.main(command(tmp_path, "--seeds=2", *more)) == 0
    assert capsys.readouterr().out.count("is finished") == 2


def test_a_seed_whose_loss_is_not_finite_stops_no_other(tmp_path, monkeypatch, capsys):
    """Nothing of it is saved after that; the other is finished, evaluated, and saved as it is."""
    recv = Run.recv

    def spoil(run):
        recv(run)
        if run.trainer.experiment.seed == 1 and run.trainer.agent_steps >= 300:
            run.trainer.state = run.trainer.state._replace(params=jax.tree.map(jnp.log, run.trainer.state.params))

    monkeypatch.setattr(Run, "recv", spoil)
    more = ["--gin_bindings=Experiment.checkpoint_every_steps = 200", "--gin_bindings=Experiment.log_every_steps = 50"]
    with pytest.raises(FloatingPointError, match=r"not finite in update \d+; its batch is in .*seed1/not_finite\.npz"):
        train.main(command(tmp_path, "--seeds=2", *more))
    printed = capsys.readouterr().out
    assert printed.count("seed 1: Stopped: the loss is not finite.") == printed.count("Finished: ") == 1
    sound, spoilt = run_dirs(tmp_path)[0], run_dirs(tmp_path)[1]
    assert 200 <= newest(spoilt).agent_steps < 300 and newest(sound).agent_steps >= STEPS
    assert "eval/return" in logger.read(sound)[-1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(contents(sound)[0]))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seeds=0"], "--seeds is a number of seeds; got 0"),
        (["--seeds=2", "--run_dir=somewhere"], "--run_dir is one directory, and --seeds needs one for each"),
        (["--seeds=2", "--mesh=data=2"], "pass --seeds or --mesh, not both"),
    ],
)
def test_bad_input(flags, message, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=message):
        train.main(command(tmp_path, *flags))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--gin_bindings=Experiment.num_envs = 4"], ["--num_envs=0"], ["--num_envs=4"]])
def test_seeds_play_as_many_games(flags, tmp_path, monkeypatch):
    """However their number is said, and however many the machine would choose by the time that the second is added."""
    choices = iter([4, 8, 16])
    monkeypatch.setattr(experiment, "default_num_envs", lambda: next(choices))
    others = [flag for flag in command(tmp_path, "--seeds=3") if not flag.startswith("--num_envs")]
    added = jobs(parse_args([*others, *flags]))
    assert [(job.seed, job.cfg.experiment.num_envs) for job in added] == [(0, 4), (1, 4), (2, 4)]


def test_replays_that_do_not_fit_together_are_refused(tmp_path, monkeypatch):
    """One would; what is said is what to type. Beside each: parameters, target and two moments twice, and gradients."""
    flags = command(tmp_path, "--replay_capacity=100000")
    alone = Trainer(load(parse_args(flags)).experiment)
    size = alone.replay_bytes + 9 * 4 * alone.num_parameters
    free = psutil.virtual_memory()._replace(available=int(2.5 * size / 0.9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(MemoryError, match=r"5 replays of 100,000 transitions take .* or --seeds 2\."):
        train.main([*flags, "--seeds=5"])
    assert not any(tmp_path.iterdir())
