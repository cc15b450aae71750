"""Runs of a sweep as processes of this machine, which share its cores and accelerators."""

from __future__ import annotations

import collections
import contextlib
import datetime
import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from agents import memory
from agents.errors import ConfigError
from agents.loop import Interrupt
from sweeping.plan import Run
from sweeping.progress import SweepDisplay

POLL = 0.5  # seconds
# What the children are sent. Another one, since somebody may have sent them the same as this process, and of a second
# one they die before they have saved.
FORWARDED = {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
STOPPED = [code for number in FORWARDED for code in (-number, 128 + number)]  # exit codes before and while they train
MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # the second is deprecated; JAX refuses both
BESIDE = 0.5e9  # bytes of a run beside its replay
LOG_LINES = 8  # of a failed run, in the summary


class Slot(NamedTuple):
    """What one of the runs at a time has of the machine."""

    cores: frozenset[int]
    env: dict[str, str]


class Outcome(NamedTuple):
    """How a run ended."""

    run: Run
    how: str  # 'finished', 'failed' or 'stopped', which is by a signal to the sweep
    code: int
    log: Path


def cores() -> list[int]:
    """The cores that this process may use; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def gpus(env) -> list[str]:
    """The NVIDIA GPUs that children may use: those of CUDA_VISIBLE_DEVICES, or else all; none without JAX for CUDA.

    Args:
      env: environment variables.
    """
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if env.get("JAX_PLATFORMS", "").startswith("cpu") or not any("cuda" in plugin.name for plugin in plugins):
        return []
    if not shutil.which("nvidia-smi", path=env.get("PATH")):
        return []
    if "CUDA_VISIBLE_DEVICES" in env:
        return [device for device in env["CUDA_VISIBLE_DEVICES"].split(",") if device.strip()]
    found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, env=dict(env))
    return [str(i) for i, line in enumerate(found.stdout.splitlines()) if line.startswith("GPU ")]


def slots(jobs: int, cores: list[int], gpus: list[str], env) -> list[Slot]:
    """Divides a machine among `jobs` runs: neighbouring cores and GPUs to each, or a share of one's memory.

    Variables that are set already are left alone, but for CUDA_VISIBLE_DEVICES, whose GPUs are the ones divided.

    Args:
      jobs: runs at a time.
      cores: numbers of the cores; with fewer than `jobs`, runs share them, as they do GPUs.
      gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES has them.
      env: environment variables.
    """
    result = []
    for i in range(jobs):
        own = cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs] or cores[i * len(cores) // jobs :][:1]
        more = {}
        if gpus:
            number = min(jobs, len(gpus))
            k = i % number
            more["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[k * len(gpus) // number : (k + 1) * len(gpus) // number])
            on_one = len(range(k, jobs, number))
            if on_one > 1 and not env.keys() & MEMORY:
                more[MEMORY[0]] = f"{0.9 / on_one:.3f}"  # the rest is for CUDA itself
        result.append(Slot(frozenset(own), dict(env) | more))
    return result


def refuse_too_much_memory(runs: list[Run], jobs: int) -> None:
    """Raises ConfigError if the runs at a time would not fit: each run sees only itself."""
    largest = sorted((run.replay_bytes + BESIDE for run in runs), reverse=True)[:jobs]
    available = memory.available()
    if sum(largest) > 0.9 * available:  # a tenth is for what updates hold in between
        raise ConfigError(
            f"{len(largest)} runs at a time need {sum(largest) / 1e9:.1f} GB, mostly for replays, and a tenth more to "
            f"compute with; {available / 1e9:.1f} GB are available. Use fewer --jobs, or put a smaller Replay.capacity "
            "into the sweep's Grid.bindings."
        )


@contextlib.contextmanager
def affinity(cores: frozenset[int]):
    """Restricts this thread to some cores; processes started meanwhile inherit that, and XLA and ALE see no others."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Child:
    """A training process, in a session of its own: a Ctrl-C in the terminal does not reach it by itself.

    Args:
      run: what it trains.
      slot: its share of the machine.
      log: file that its output is appended to.
    """

    def __init__(self, run: Run, slot: Slot, log: Path):
        self.run, self.slot, self.log = run, slot, log
        self._started = time.monotonic()
        with log.open("a") as output, affinity(slot.cores):
            now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
            print(f"{now} $ {shlex.join(run.command)}", file=output, flush=True)
            self.process = subprocess.Popen(
                run.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=slot.env,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started


class Launcher:
    """Trains runs, some at a time; one that fails stops no other.

    Args:
      folder: where the log files go.
      slots: shares of the machine, one for each run at a time.
      display: what a person sees.
    """

    def __init__(self, folder: Path, slots: list[Slot], display: SweepDisplay):
        self._folder, self._free, self._display = folder, collections.deque(slots), display
        self._running: list[Child] = []
        self._stopping = False
        folder.mkdir(parents=True, exist_ok=True)

    def launch(self, todo: list[Run]) -> tuple[list[Outcome], int | None]:
        """Trains until all have ended, or SIGINT or SIGTERM comes, which goes on to the children: they save and end.

        Returns:
          how those that were started ended, and the number of the signal.
        """
        waiting, outcomes = collections.deque(todo), []
        with Interrupt() as interrupt:
            try:
                while self._running or (waiting and interrupt.signal is None):
                    while waiting and self._free and interrupt.signal is None:
                        self._start(waiting.popleft())
                    if interrupt.signal is not None and not self._stopping:
                        self._stopping = True
                        self._send(FORWARDED[interrupt.signal])
                        self._display.print(f"interrupted: {len(self._running)} runs save and end")
                    time.sleep(POLL)
                    outcomes += self._collect()
                    self._display.update([child.run for child in self._running])
            finally:
                if self._running:  # after a second signal, or an error of ours
                    self._send(signal.SIGTERM)
        return outcomes, interrupt.signal

    def _start(self, run: Run) -> None:
        log = self._folder / ("_".join(run.run_dir.parts[-3:]) + ".log")
        self._running.append(Child(run, self._free.popleft(), log))
        self._display.started(run, log)

    def _collect(self) -> list[Outcome]:
        outcomes = []
        for child in [child for child in self._running if child.process.poll() is not None]:
            code = child.process.returncode
            how = "stopped" if self._stopping and code in STOPPED else "failed" if code else "finished"
            outcomes.append(Outcome(child.run, how, code, child.log))
            self._running.remove(child)
            self._free.append(child.slot)
            self._display.ended(child.run, how, child.seconds)
        return outcomes

    def _send(self, number: int) -> None:
        for child in self._running:
            child.process.send_signal(number)


def summary(runs: list[Run], outcomes: list[Outcome]) -> list[str]:
    """What became of a sweep, with the last lines of each run that failed.

    Args:
      runs: all runs.
      outcomes: of those that were started.
    """
    finished = sum(run.finished for run in runs) + sum(outcome.how == "finished" for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.how == "failed"]
    lines = [""]
    for outcome in failed:
        text = outcome.log.read_text(errors="replace").rpartition(f"$ {shlex.join(outcome.run.command)}\n")[2]
        last = [line for line in text.splitlines() if line.strip()][-LOG_LINES:]
        how = f"ended with exit code {outcome.code}" if outcome.code > 0 else f"was killed by signal {-outcome.code}"
        lines += [f"{outcome.run.name} {how}; {outcome.log} ends in:"]
        lines += [f"    {line}" for line in last]
    lines.append(f"{finished} of {len(runs)} runs are finished, {len(failed)} failed.")
    if finished < len(runs):
        lines.append("The same command goes on with the others, from their checkpoints if they have any.")
    return lines
