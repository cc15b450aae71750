"""Metrics to TensorBoard and to `metrics.jsonl`, with the same tags; TensorBoard's own writer needs no TensorFlow."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.scalar import summary_v2 as scalar
from tensorboard.plugins.text import summary_v2 as text
from tensorboard.summary.writer.record_writer import RecordWriter

METRICS = "metrics.jsonl"
EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.[^/]*")


class Logger:
    """Owns the log files of a run.

    Each call of `write` is one log point: one TensorBoard point per tag, at the step `frames`, and one line of JSON
    with the tags and `agent_steps`, `frames`, `seconds`. Offline `updates` are in the place of both steps.

    Args:
      run_dir: where the files go.
      frames_per_step: emulator frames per agent step; None: updates are counted instead.
      offsets: size of each log file at the checkpoint that is resumed, from `offsets()`; what was written later is cut
        off, because it will be written again.
    """

    def __init__(self, run_dir: Path, frames_per_step: int | None, offsets: dict[str, int] | None = None):
        self._run_dir, self._frames_per_step = Path(run_dir), frames_per_step
        offsets = {name: size for name, size in (offsets or {}).items() if name == METRICS or EVENTS.fullmatch(name)}
        sizes = {path.name: path.stat().st_size for path in self._files()}
        for name in sizes.keys() | offsets.keys():
            if name not in offsets:
                self._run_dir.joinpath(name).unlink()
            elif sizes.get(name, 0) < offsets[name]:
                print(f"WARNING: {self._run_dir / name} has lost what was logged at its end. Training goes on without.")
            else:
                os.truncate(self._run_dir / name, offsets[name])
        self._jsonl = (self._run_dir / METRICS).open("a")
        # Written as they come: TensorBoard's own EventFileWriter has a thread for it, where errors are hard to catch.
        # It sorts them by name: a clock that was set back must not bring a later one before the others.
        begun = [int(match[1]) + 1 for match in map(EVENTS.fullmatch, sizes) if match]
        name = f"events.out.tfevents.{max(int(time.time()), *begun, 0):010d}.{socket.gethostname()}.{os.getpid()}"
        self._events = RecordWriter(self._run_dir.joinpath(name).open("ab"))
        self._events.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def _files(self):
        return [*self._run_dir.glob("events.out.tfevents.*"), *self._run_dir.glob(METRICS)]

    def write(self, agent_steps: int, seconds: float, metrics: dict[str, float]) -> None:
        """Writes one log point; NaN and infinity become null in JSON."""
        step = agent_steps * (self._frames_per_step or 1)
        clock = {"agent_steps": agent_steps, "frames": step} if self._frames_per_step else {"updates": step}
        metrics = {tag: float(value) for tag, value in metrics.items()}
        for tag, value in metrics.items():
            self._add(scalar.scalar_pb(tag, np.float32(value)), step)
        row = {**clock, "seconds": round(seconds, 3)}
        row |= {tag: value if np.isfinite(value) else None for tag, value in metrics.items()}
        self._jsonl.write(json.dumps(row) + "\n")

    def describe(self, config: str, settings: dict[str, str]) -> None:
        """Writes the configuration as text, and the settings as hyper-parameters."""
        self._add(text.text_pb("operative_config", f"```\n{config}\n```"), 0)
        values = {name: _number(value) for name, value in settings.items()}
        self._add(hparams.hparams_pb(values, trial_id=str(self._run_dir)), 0)

    def _add(self, summary, step: int) -> None:
        self._events.write(Event(summary=summary, step=step, wall_time=time.time()).SerializeToString())

    def flush(self) -> None:
        """Makes all that was written visible to readers."""
        self._jsonl.flush()
        self._events.flush()

    def offsets(self) -> dict[str, int]:
        """Sizes of the log files, to be stored with a checkpoint."""
        self.flush()
        for path in self._files():
            with path.open("rb") as file:  # a checkpoint must not outlast what it says is there
                os.fsync(file.fileno())
        return {path.name: path.stat().st_size for path in self._files()}

    def close(self) -> None:
        """Flushes and closes the files."""
        try:
            self._jsonl.close()
        finally:
            self._events.close()


def _number(value: str):
    """A number where the setting is one, so that TensorBoard can sort by it."""
    try:
        return float(value)
    except ValueError:
        return value


def read(run_dir, last_bytes: int | None = None) -> list[dict]:
    """Reads the log points of a run, oldest first; none if it has no log yet. Damaged lines are left out.

    Args:
      run_dir: its directory.
      last_bytes: reads only those that lie in the last so many bytes of the file; None: all.
    """
    try:
        with (Path(run_dir) / METRICS).open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - last_bytes) if last_bytes else 0
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines[1 if start else 0 : -1]:  # the last one is empty or still being written; the first may be cut
        try:
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
        except (ValueError, RecursionError):
            continue
    return rows
