"""The benchmark runs, and writes what it prints; its figures are not tested."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import psutil
import pytest

from agents.errors import ConfigError
from benchmarks import parts, timing, training, updates
from scripts import benchmark

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/benchmark.py"
FAST = ["--repeats=2", "--seconds=0"]


def measured(value):
    return 0 < value["p10"] <= value["median"] <= value["p90"]


def test_an_accelerator_is_given_twenty_calls_at_a_time(monkeypatch):
    clock, made = [0.0], []

    def call(seconds):
        clock[0] += seconds
        made.append(seconds)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    for backend, at_a_time in (("cpu", 1), ("gpu", 20)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        times = timing.by_turns({"a": lambda: call(2.0), "b": lambda: call(3.0)}, 4, 1e6)
        assert times["a"].tolist() == [2.0] * 4 and times["b"].tolist() == [3.0] * 4
        assert len(made) == 2 + 2 * 4 * at_a_time
        made.clear()


def test_a_row_of_the_updates(tmp_path, capsys):
    output = tmp_path / "out.json"
    assert benchmark.main(["updates", "--only=dqn mse NatureCNN, VALID", *FAST, f"--json={output}"]) == 0
    (row,) = json.loads(output.read_text())["updates"]
    assert row["parameters"] == 1_693_362 and measured(row["updates/s"]) and row["compile s"] > 0
    # Parameters, target, two moments, and two stacks of frames for each transition; then gradients and activations.
    held = (4 * 4 * 1_693_362 + 2 * 32 * 4 * 84 * 84) / 1e6
    assert 4 * 1_693_362 / 1e6 < row["MB"] - held < held
    # Products of the layers' sizes: two forward passes, and a gradient that counts as two more.
    outputs = [
        (20 * 20, 8 * 8 * 4 * 32),
        (9 * 9, 4 * 4 * 32 * 64),
        (7 * 7, 3 * 3 * 64 * 64),
        (1, 3136 * 512),
        (1, 512 * 18),
    ]
    products = [2 * 32 * positions * weights / 1e9 for positions, weights in outputs]
    assert 0.9 < row["GFLOP"] / (4 * sum(products) - products[0]) < 1.2  # nobody needs the gradient of the frames
    assert "| dqn | mse | NatureCNN, VALID | 32 | 1,693,362 |" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_the_replay_is_measured(sampler):
    row = parts.replay(sampler, 1_000, 3, 0)
    assert measured(row["add ms"]) and measured(row["sample ms"])
    assert 84 * 84 < row["bytes/transition"] < 84 * 84 + 32


def test_games_and_acting_are_measured():
    assert measured(parts.games("Pong", 2, 3, 0)) and measured(parts.acting("NatureCNN, VALID", 2, 3, 0))


def test_the_limit():
    """1/(1/1000 + 1/1000 + 1/(4*125)) where they share the cores; else acting, then the games or the learner."""
    assert training.limit(125, 1000, 1000, shared=True) == 250
    assert training.limit(125, 400, 1000, shared=False) == pytest.approx(1 / (1 / 1000 + 1 / 400))
    assert training.limit(50, 400, 1000, shared=False) == pytest.approx(1 / (1 / 1000 + 1 / 200))


TICKER = """
import json, sys, time
last = time.perf_counter()
while True:
    time.sleep(0.02)
    now = time.perf_counter()
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"speed/steps_per_second": 1 / (now - last), "train/loss": 0.0}) + chr(10))
    last = now
"""


def test_a_worker_runs_by_turns_and_does_not_count_the_pause(tmp_path):
    progress = tmp_path / "progress"
    worker = training.Worker("ticker", [sys.executable, "-c", TICKER, str(progress)], progress)
    worker.begin()
    for _ in range(2):
        before = progress.read_text()
        time.sleep(0.5)
        assert progress.read_text() == before  # it is stopped
        worker.turn(3)
    rates = [json.loads(line)["speed/steps_per_second"] for line in progress.read_text().splitlines()]
    assert len(worker.rates) >= 6 and min(worker.rates) > min(rates) and min(rates) < 2.1  # those of the pauses
    assert worker.peak_bytes > 1e6
    worker.close()
    assert not psutil.pid_exists(worker._process.pid)


def test_a_worker_that_ends_is_named_with_what_it_said(tmp_path):
    with contextlib.closing(training.Worker("loser", ["sh", "-c", "echo no luck"], tmp_path / "progress")) as worker:
        with pytest.raises(ConfigError, match="loser has ended: no luck"):
            worker.begin()


def test_a_step_as_in_training_changes_parameters_and_priorities():
    call = updates.step("rainbow", "c51", "Experiment.warmup_steps = 20", seeds=2)
    before, after = (jax.device_get(call()) for _ in range(2))  # the first call's arrays are donated to the second
    for params, priorities in jax.tree.map(lambda a, b: (a != b).any(), before, after):
        assert all(jax.tree.leaves(params)) and priorities["tree"].sums


@pytest.mark.slow
def test_offline_updates(tmp_path, monkeypatch):
    output = tmp_path / "out.json"
    monkeypatch.setattr(benchmark.offline, "STEPS", 16_000)
    assert benchmark.main(["offline", *FAST, f"--json={output}"]) == 0
    rows = json.loads(output.read_text())["offline"]
    assert [row["CQL + HL-Gauss"] for row in rows] == ["bare update", "in memory", "streamed"]
    assert all(measured(row["updates/s"]) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("what", [["training", "start"], ["--against=serial"], ["--against=dopamine"]])
def test_whole_runs(what, tmp_path):
    """Several minutes; the last installs Dopamine."""
    command = [sys.executable, SCRIPT, *what, *FAST, "--turns=1", "--points=1", f"--json={tmp_path / 'out.json'}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=1800)
    result = json.loads((tmp_path / "out.json").read_text())
    for row in result[what[0].removeprefix("--against=")]:
        assert measured(row["steps/s"])
    assert all(measured(value) for row in result.get("start", []) for value in row.values())


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--only=nope"], "no row contains 'nope'"),
        (["--repeats=0"], "--repeats lies between 1 and 1,000,000; got 0"),
        (["--seconds=nan"], "--seconds must be a number from 0 on"),
        (["--num_envs=3"], "--num_envs is 1, 2 or a multiple of 4"),
        (["--json=no/x"], "is a directory, or in none"),
        (["--json=/tmp"], "is a directory, or in none"),
        (["--only="], "--only is empty"),
        (["seeds", "--only=mse"], "--only is for the sections updates and growth"),
        (["speed"], "unknown section 'speed'"),
        (["updates", "--against=serial"], "takes no sections"),
    ],
)
def test_bad_input(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(argv)
    assert exit_.value.code == 2 and message in capsys.readouterr().err
