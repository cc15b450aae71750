"""What goes wrong is told in one line, stops the run at once, and loses nothing that a checkpoint holds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from killed import find
from test_resume import INSTANTS, assert_same_run, command
from test_training import catch

from agents import launch
from agents.checkpointing.checkpoint import newest
from agents.environments import _StepOnRecv
from agents.errors import ConfigError
from agents.games import GameError
from agents.reporting import logger
from scripts import train

NAMES = ("steady", "jumping")
CHECKPOINTS = "--gin_bindings=Experiment.checkpoint_every_steps = 200"


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_batch(tmp_path):
    """From a learning rate that overflows at once; no checkpoint holds what came of it."""
    knobs = ["adam.learning_rate = 1e38", "Experiment.warmup_steps = 250", "Experiment.log_every_steps = 150"]
    flags = [flag for flag in catch(tmp_path, "mse", 1000) if "learning_rate" not in flag and "warmup" not in flag]
    with pytest.raises(FloatingPointError, match=r"not finite in update [23].*not_finite\.npz"):
        train.main([*flags, CHECKPOINTS, *(f"--gin_bindings={knob}" for knob in knobs)])
    batch = np.load(tmp_path / "not_finite.npz")
    assert batch["s_tm1"].shape == (32, 1, 6, 5) and batch["s_tm1"].any() and batch["update"] in (2, 3)
    assert np.isin(batch["a_tm1"], (0, 1, 2)).all() and np.isin(batch["r_t"], (-1, 0, 1)).all()
    assert len(set(batch["index"])) > 5 and (batch["weight"] == 1).all()
    assert newest(tmp_path).agent_steps == 200
    assert "train/loss" not in str(logger.read(tmp_path)[-1])


def test_a_full_disk_while_logging(tmp_path, monkeypatch):
    assert train.main(catch(tmp_path, "mse", 400, CHECKPOINTS)) == 0
    real = Path.open
    full = lambda path, mode="r", **options: path.name == "metrics.jsonl" and mode == "a"
    opened = lambda path, *mode, **options: real(Path("/dev/full") if full(path, *mode) else path, *mode, **options)
    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match="No space left on device"):
        train.main(catch(tmp_path, "mse", 800, CHECKPOINTS))
    newest(tmp_path).verify()
    assert newest(tmp_path).agent_steps == 400


def test_logs_that_have_lost_their_end_are_told(tmp_path, capsys):
    assert train.main(catch(tmp_path, "mse", 400)) == 0
    os.truncate(tmp_path / "metrics.jsonl", 300)
    assert train.main(catch(tmp_path, "mse", 600)) == 0
    assert "metrics.jsonl has lost what was logged at its end" in capsys.readouterr().out
    assert logger.read(tmp_path)[-1]["agent_steps"] == 600


def test_a_game_that_fails(tmp_path, monkeypatch):
    """The error says so; the next start goes on."""
    recv, calls = _StepOnRecv.recv, []

    def broken(self):
        calls.append(None)
        if len(calls) == 80:
            raise RuntimeError("joystick lost")
        return recv(self)

    monkeypatch.setattr(_StepOnRecv, "recv", broken)
    with pytest.raises(GameError, match=r"failed after 79 steps .*\(RuntimeError: joystick lost\)"):
        launch.run(lambda: train.main(catch(tmp_path, "mse", 400, CHECKPOINTS)))
    assert newest(tmp_path).agent_steps == 200
    assert train.main(catch(tmp_path, "mse", 400, CHECKPOINTS)) == 0


def test_no_room_on_the_device_after_all(tmp_path, monkeypatch):
    def full(tree):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(jax, "block_until_ready", full)
    with pytest.raises(MemoryError, match="no room for a replay of .* --replay_capacity than 5000"):
        train.main(catch(tmp_path, "mse", 400))


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    assert train.main(catch(tmp_path, "mse", 400)) == 0
    path = tmp_path / "checkpoints/400/manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(ConfigError, match="has the format 7, and this version reads 1"):
        train.main(catch(tmp_path, "mse", 800))
    (tmp_path / "checkpoints/400/_CHECKPOINT_METADATA").touch()
    with pytest.raises(ConfigError, match="has the format 0"):
        train.main(catch(tmp_path, "mse", 800))


PHASES = {
    "acting": "agents.actor:Actor.send",
    "learning": "agents.loop:learn",
    "storing": "agents.run:Run.recv",
    "logging": "agents.reporting.report:Report.log_point",
    "diagnosing": "agents.reporting.report:Report.diagnosis",
    "evaluating": "agents.evaluation:evaluate",
    "saving": "agents.checkpointing.checkpointer:Checkpointer.save",
    "writing": "replay.log:SegmentWriter.commit",
    "restoring": "agents.trainer:Trainer.restore",
    "playing again": "agents.games:Games.restore",
}


SOME = ("evaluating", "writing")


def test_every_place_to_die_in_is_there():
    """Slow tests name them; what was renamed shows here."""
    assert all(callable(getattr(*find(target))) for target in {*PHASES.values(), *INSTANTS})


@pytest.mark.parametrize("phases", [SOME, pytest.param(tuple(PHASES), marks=pytest.mark.slow)], ids=["some", "every"])
def test_sigterm_in_any_phase_changes_no_bit(phases, tmp_path, monkeypatch):
    """Each start is interrupted in another phase; the signal is obeyed and all is saved."""
    names = ("never interrupted", "interrupted")
    expected, interrupted = (command(tmp_path / name, "dqn", 2, "--steps=700") for name in names)
    assert train.main(expected) == 0
    for target in map(PHASES.get, phases):
        with monkeypatch.context() as patch:
            owner, name = find(target)
            function, sent = getattr(owner, name), []

            def signalling(*args, function=function, sent=sent, **kwargs):
                if not sent:
                    sent.append(os.kill(os.getpid(), signal.SIGTERM))
                return function(*args, **kwargs)

            patch.setattr(owner, name, signalling)
            assert train.main(interrupted) == 128 + signal.SIGTERM, target
            assert sent
    assert train.main(interrupted) == 0
    assert_same_run(tmp_path / "never interrupted", tmp_path / "interrupted")


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Neither while a run goes on, nor between its starts."""
    steady, jumping = ([command(tmp_path / name, "dqn", 4, f"--steps={n}") for n in (200, 400)] for name in NAMES)
    assert [train.main(flags) for flags in steady] == [0, 0]
    jumps = np.random.default_rng(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 2e9))
    assert [train.main(flags) for flags in jumping] == [0, 0]
    monkeypatch.undo()
    assert_same_run(*(tmp_path / name for name in NAMES))


@pytest.mark.parametrize("error", [ConfigError("typo"), OSError("disk"), MemoryError("big")])
def test_errors_are_one_line_and_exit_code_2(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit:
        launch.run(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message", [("size=400k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_small_or_read_only_disk(tmp_path, options, message):
    """A file system of its own: the run stops with one line, and what is on it is whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    train_py = Path(train.__file__)
    flags = " ".join(f"'{flag}'" for flag in catch(disk / "run", "mse", 4000))
    script = (
        f"mount -t tmpfs -o {options} tmpfs {disk} && PYTHONPATH={train_py.parents[1]}:{Path(__file__).parent} "
        f"{sys.executable} {train_py} {flags} '{CHECKPOINTS}'; code=$?; ls -R {disk}; exit $code"
    )
    done = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file systems of one's own here: {done.stderr}")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
