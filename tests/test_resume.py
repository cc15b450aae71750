"""A run that is killed and started again ends with the same bits as one that never was."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.checkpointing import checkpoint
from agents.reporting import logger
from replay.ring import TimeStep
from scripts import train

WALL_CLOCK = ("seconds", "speed/")
KILLED = Path(__file__).with_name("killed.py")
AS_USERS_RUN = {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def is_wall_clock(name):
    return name.startswith(WALL_CLOCK)


def state(run_dir):
    """All arrays of the newest checkpoint, and what it says of the report."""
    newest = checkpoint.newest(run_dir)
    newest.verify()
    report = newest.progress["report"]
    arrays = newest.arrays("")
    for row, piece in newest.log.pieces(newest.log.first_row, newest.rows):
        arrays |= {f"{name}/{row + i}": array[i] for name, array in piece._asdict().items() for i in range(len(array))}
    return arrays, [newest.rows, newest.progress["owes_evaluation"], report["last"][1:], report["recent"]]


def series(run_dir):
    """What it logged, in both forms, without what depends on the clock."""
    rows = [{name: value for name, value in row.items() if not is_wall_clock(name)} for row in logger.read(run_dir)]
    events = EventAccumulator(str(run_dir), size_guidance={"tensors": 0}).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not is_wall_clock(tag) and not tag.startswith("_hparams_")]
    points = {tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)] for tag in tags}
    return rows, points


def assert_same_arrays(expected, run_dir):
    """Bit-identical: parameters, optimizer, keys, replay, priorities, games."""
    (arrays, counts), (expected_arrays, expected_counts) = state(run_dir), state(expected)
    assert counts == expected_counts
    common = arrays.keys() & expected_arrays.keys()  # more old rows are left where checkpoints lay elsewhere
    rows = {name for name in arrays.keys() ^ expected_arrays.keys() if name.split("/")[0] in TimeStep._fields}
    assert arrays.keys() ^ expected_arrays.keys() == rows
    for name in common:
        np.testing.assert_array_equal(arrays[name], expected_arrays[name], err_msg=name)


def assert_same_run(expected, run_dir):
    """The same, and what was logged."""
    assert_same_arrays(expected, run_dir)
    assert series(run_dir) == series(expected)


def command(run_dir, agent, num_envs, *more):
    """A hundred updates on Boxing; episodes of 60 steps, new seeds every 250."""
    knobs = {
        "Learner.batch_size": 4,
        "Learner.target_period_steps": 80,
        "Experiment.log_every_steps": 50,
        "Experiment.diagnose_every_steps": 300,
        "Experiment.checkpoint_every_steps": 170,
        "Experiment.reseed_every_steps": 250,
        "Atari.max_episode_frames": 240,
        "Atari.screen": 20,
        "MLP.features": (16,),
        "DQN.epsilon_decay_steps": 400,
    }
    flags = ["--game=Boxing", f"--agent={agent}", f"--num_envs={num_envs}", "--torso=mlp", f"--run_dir={run_dir}"]
    flags += ["--steps=500", "--warmup_steps=100", "--replay_capacity=400", "--eval_every=400", "--eval_episodes=2"]
    return [*flags, *(f"--gin_bindings={name} = {value}" for name, value in knobs.items()), *more]


def start(flags, target="-", count=0, **environment):
    """Runs training in a process of its own, which dies in the given call; returns how it ended."""
    command = [sys.executable, KILLED, target, str(count), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """Killed in the middle of writing its second checkpoint."""
    expected, killed = (command(tmp_path / name, "rainbow", 2) for name in ("never killed", "killed"))
    assert train.main(expected) == 0
    assert start(killed, "os:fsync", 22).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "killed/checkpoints") == ["170"]
    assert start(killed).returncode == 0
    assert_same_run(tmp_path / "never killed", tmp_path / "killed")


# Where a run may die, and at most how many calls of it belong to one start of the run below.
INSTANTS = {
    "agents.run:Run.recv": 200,
    "agents.loop:learn": 200,
    "agents.games:Games.restore": 1,
    "agents.reporting.logger:Logger.write": 20,
    "agents.reporting.logger:Logger.offsets": 3,
    "agents.reporting.report:Report.evaluation": 1,
    "agents.reporting.report:Report.diagnosis": 2,
    "agents.checkpointing.checkpointer:Checkpointer.resume": 1,
    "agents.checkpointing.checkpointer:Checkpointer.save": 3,
    "agents.checkpointing.checkpointer:Checkpointer._prune": 3,
    "replay.log:SegmentWriter.commit": 3,
    "replay.files:write_durably": 12,
    "os:fsync": 40,
    "pathlib:Path.rename": 3,
    "shutil:rmtree": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize("agent", ["dqn", "rainbow"])
def test_twenty_kills_change_no_bit(tmp_path, agent, num_envs):
    """At random instants, inside the writing of checkpoints among them, with XLA's usual settings and all cores."""
    expected, killed = (
        command(tmp_path / name, agent, num_envs, "--steps=3000") for name in ("never killed", "killed")
    )
    assert start(expected, **AS_USERS_RUN).returncode == 0
    random, kills = np.random.default_rng(num_envs), 0
    while kills < 20:
        target = random.choice(list(INSTANTS))
        done = start(killed, target, random.integers(INSTANTS[target]) + 1, **AS_USERS_RUN)
        kills += done.returncode == -signal.SIGKILL
        if "is finished" in done.stdout:
            assert_same_run(tmp_path / "never killed", tmp_path / "killed")
            shutil.rmtree(tmp_path / "killed")  # it got through; the kills go on with another
    start(killed, **AS_USERS_RUN)
    assert_same_run(tmp_path / "never killed", tmp_path / "killed")
