"""Whole training processes: their speed, memory and start, and the speed that their parts allow at best."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from agents.errors import ConfigError
from agents.reporting.logger import METRICS
from benchmarks import parts, updates
from benchmarks.timing import seconds_of, summary

TRAIN = Path(__file__).parents[1] / "train.py"
WARMUP = 1_000  # agent steps, or as many as a stack and a transition of each game need


class Worker:
    """A training process that is stopped by a signal, once it has begun, while it is not its turn.

    Its methods raise ConfigError, with what it said, if it ends by itself.

    Args:
      name: for messages.
      command: the command line.
      progress: file to which the process appends an object of JSON with "speed/steps_per_second" every few seconds.
      env: its environment.
    """

    def __init__(self, name: str, command: list[str], progress: Path, env: dict[str, str] | None = None):
        self.name, self._progress, self.rates, self.peak_bytes, self.peak_device_gb = name, progress, [], 0, None
        self._output = tempfile.TemporaryFile("w+")
        options = {"stdout": self._output, "stderr": subprocess.STDOUT, "env": env or dict(os.environ)}
        self._process = subprocess.Popen(command, start_new_session=True, **options)

    def rows(self) -> list[dict]:
        """The log points so far that have a speed."""
        if self._process.poll() is not None:
            self._output.seek(0)
            raise ConfigError(f"{self.name} has ended: {self._output.read()[-2000:]}")
        lines = self._progress.read_text().splitlines(keepends=True) if self._progress.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if "speed/steps_per_second" in row]

    def wait_for(self, condition) -> list[dict]:
        """Lets the process run until `condition(rows)` holds; returns the rows."""
        while not condition(rows := self.rows()):
            time.sleep(0.1)
        return rows

    def begin(self) -> None:
        """Lets the process run until it has learned for a whole log point, and stops it."""
        self.wait_for(lambda rows: sum("train/loss" in row for row in rows) > 1)
        os.killpg(self._process.pid, signal.SIGSTOP)

    def turn(self, points: int) -> None:
        """Lets the process run for some log points and notes their speed; the one cut by the pause is left out."""
        os.killpg(self._process.pid, signal.SIGCONT)
        before = len(self.rows())
        rows = self.wait_for(lambda rows: len(rows) > before + points)
        os.killpg(self._process.pid, signal.SIGSTOP)
        self.rates += [row["speed/steps_per_second"] for row in rows[before + 1 :]]
        self.peak_device_gb = rows[-1].get("speed/peak_device_gb")
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        self.peak_bytes = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


def ours(run_dir: Path, head: str, padding: str, num_envs: int, interval: int, warmup: int = WARMUP) -> Worker:
    """Trains DQN on Pong: games that run while the learner computes, a replay of 100,000, a log point per interval."""
    flags = ["--game=Pong", f"--head={head}", "--preset=fast", f"--num_envs={num_envs}", f"--run_dir={run_dir}"]
    flags += ["--replay_capacity=100000", "--steps=1000000000", f"--warmup_steps={max(warmup, 7 * num_envs)}"]
    bindings = {"NatureCNN.padding": repr(padding), "Experiment.log_every_steps": interval}
    flags += [f"--gin_bindings={name} = {value}" for name, value in bindings.items()]
    return Worker(f"training with {head}, {padding}", [sys.executable, str(TRAIN), *flags], run_dir / METRICS)


def race(workers: list[Worker], turns: int, points: int) -> None:
    """Gives each worker its turns, one after the other, since a machine's speed drifts."""
    for worker in workers:
        worker.begin()
    for _ in range(turns):
        for worker in workers:
            worker.turn(points)


def results(workers: list[Worker]) -> dict[str, dict]:
    """Agent steps/s of each worker."""
    return {worker.name: {"steps/s": summary(worker.rates)} for worker in workers}


def limit(updates: float, ale: float, acting: float, shared: bool) -> float:
    """Agent steps/s that the parts allow, at an update every four steps.

    Args:
      updates: updates/s alone.
      ale, acting: agent steps/s of the games and of choosing actions, each alone.
      shared: whether games and learner share the cores and their times add up, as on a CPU with few of them; else the
        slower one decides. Acting comes before both.
    """
    playing, learning = 1 / ale, 1 / (4 * updates)
    return 1 / (1 / acting + (playing + learning if shared else max(playing, learning)))


def rows(args) -> Iterator[dict]:
    """Times whole runs, and compares with what their parts allow; by turns, since the machine's speed drifts."""
    for padding in ("SAME", "VALID"):
        network, rates = f"NatureCNN, {padding}", {"updates/s": [], "ALE": [], "acting": []}
        update = updates.compiled(updates.build("dqn", "hl_gauss", network, full_action_space=False)).call
        with tempfile.TemporaryDirectory() as directory:
            run_dir = Path(directory, "run")
            with contextlib.closing(ours(run_dir, "hl_gauss", padding, args.num_envs, args.interval)) as worker:
                worker.begin()
                for _ in range(args.turns):
                    times = seconds_of(update, args.repeats, args.seconds)
                    rates["updates/s"].append(1 / float(statistics.median(times)))
                    rates["ALE"].append(parts.games("Pong", args.num_envs, args.repeats, args.seconds)["median"])
                    rates["acting"].append(parts.acting(network, args.num_envs, args.repeats, args.seconds)["median"])
                    worker.turn(args.points)
                whole = {"steps/s": summary(worker.rates), "peak GB": worker.peak_bytes / 1e9}
                if worker.peak_device_gb:
                    whole["peak GB of the device"] = worker.peak_device_gb
        rates = {name: summary(values) for name, values in rates.items()}
        best = limit(*(rate["median"] for rate in rates.values()), shared=jax.default_backend() == "cpu")
        achieved = {"fraction_of_limit": whole["steps/s"]["median"] / best}
        yield {"padding": padding} | rates | {"limit": best} | whole | achieved


def start_rows(args) -> Iterator[dict]:
    """Times the imports, and a training command until its first update is logged, after a warm-up of 56 steps."""
    imports, starts = [], []
    for _ in range(min(args.repeats, 5)):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import agents.loop, agents.experiment, agents.environments"], check=True)
        imports.append(time.perf_counter() - begun)
        with tempfile.TemporaryDirectory() as directory:
            begun = time.perf_counter()
            with contextlib.closing(
                ours(Path(directory, "run"), "hl_gauss", "SAME", 8, interval=8, warmup=56)
            ) as worker:
                worker.wait_for(lambda rows: any("train/loss" in row for row in rows))
                starts.append(time.perf_counter() - begun)
    yield {"imports s": summary(imports), "command to first update s": summary(starts)}
