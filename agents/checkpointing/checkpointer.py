"""The writer of checkpoints, beside training; `checkpoint.py` says what they hold, and reads them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from agents.checkpointing.checkpoint import FORMAT, MANIFEST, STATE, Checkpoint, checkpoints, digest, newest_intact
from replay import log
from replay.files import DamagedError, sync_directory, write_durably
from replay.ring import TimeStep

KEPT = 2  # checkpoints of a run


def _write_manifest(directory: Path, manifest: dict) -> None:
    text = json.dumps(manifest | {"sha256": digest(manifest)}, indent=1)
    write_durably(directory / MANIFEST, text.encode())


class Checkpointer:
    """Writes the checkpoints of a run, of which it keeps the last two, and the log of its replay.

    Args:
      run_dir: the run directory.
      keep_replay: keeps every row; otherwise segments go when no checkpoint needs them.
    """

    def __init__(self, run_dir, keep_replay: bool = False):
        self._run_dir, self._keep_replay = Path(run_dir), keep_replay
        self._directory, self._replay = self._run_dir / "checkpoints", self._run_dir / log.DIRECTORY
        self._directory.mkdir(parents=True, exist_ok=True)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._committing: concurrent.futures.Future | None = None
        self._segments: dict[str, str] = {}  # committed
        self._begin_segment(0)

    def resume(self, report=print) -> Checkpoint | None:
        """Returns the newest intact checkpoint, and removes what was written later; None if there is none.

        Args:
          report: told of what is damaged.

        Raises:
          replay.files.DamagedError: if there are checkpoints but none is intact.
        """
        checkpoint, damaged = newest_intact(self._run_dir, report)
        for path in damaged:  # set aside, for whoever wants to know what happened
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        self._segments = dict(checkpoint.segments) if checkpoint else {}
        self._begin_segment(checkpoint.rows if checkpoint else 0)
        for path in self._directory.glob("*.partial"):
            shutil.rmtree(path)
        self._prune(self._keep_last())
        return checkpoint

    def _begin_segment(self, row: int) -> None:
        self._first, self._segment = row, log.SegmentWriter(self._replay / f"{row:012d}")

    @property
    def rows(self) -> int:
        """Rows that entered the replay so far."""
        return self._first + self._segment.rows

    def append(self, step: TimeStep) -> None:
        """Logs a row of the replay, for the next checkpoint.

        Raises:
          OSError: if a checkpoint or an earlier row could not be written.
        """
        self._segment.append(step)
        if self._committing is not None and self._committing.done():
            self.wait()

    def save(self, agent_steps: int, arrays: dict[str, np.ndarray], progress: dict[str, Any], rows: int) -> None:
        """Begins to write a checkpoint; it exists once it is complete.

        Args:
          agent_steps: those made so far.
          arrays: state on the host, from `flatten`.
          progress: numbers and words to keep with it.
          rows: how many of the latest rows of the replay it needs.

        Raises:
          OSError: if an earlier one could not be written.
        """
        self.wait()
        self._segment.finish()
        segment = self._segment if self._segment.rows else None
        needed = 0 if self._keep_replay else self.rows - rows
        manifest = {"format": FORMAT, "progress": progress, "rows": self.rows}
        if segment:
            self._begin_segment(self.rows)
        self._committing = self._thread.submit(self._commit, agent_steps, arrays, manifest, segment, needed)

    def _commit(self, agent_steps, arrays, manifest, segment, needed) -> None:
        if segment:
            self._segments[segment.path.name] = segment.commit()
        names = sorted(self._segments)
        ends = dict(zip(names, [*map(int, names[1:]), manifest["rows"]], strict=False))  # offline there are none
        manifest["segments"] = self._segments = {name: self._segments[name] for name in names if ends[name] > needed}
        directory = self._directory / str(agent_steps)
        if directory.exists():
            there = Checkpoint(directory)  # of the same steps: only resets of games can have come after it
            same = {"rows": there.rows, "segments": there.segments, "state_sha256": there.state_sha256}
            _write_manifest(directory, manifest | same)  # what is said about it has changed
            return
        partial = directory.with_name(f"{agent_steps}.partial")
        partial.mkdir()
        state = save(arrays)
        write_durably(partial / STATE, state)
        _write_manifest(partial, manifest | {"state_sha256": hashlib.sha256(state).hexdigest()})
        partial.rename(directory)
        sync_directory(self._directory)

        self._prune({*self._keep_last(), self._segment.path.name})  # this one is being written

    def _keep_last(self) -> set[str]:
        """Removes all checkpoints but the last; returns the names of the segments that these need."""
        there, names = checkpoints(self._run_dir), set()
        for path in there[KEPT:]:
            shutil.rmtree(path)
        for path in there[:KEPT]:
            with contextlib.suppress(DamagedError):  # of one that is damaged they are of no use
                names |= Checkpoint(path).segments.keys()
        return names

    def _prune(self, keep) -> None:
        for path in self._replay.glob("[0-9]*"):
            if re.fullmatch(r"\d{12}(\.json)?", path.name) and path.stem not in keep:
                log.remove_segment(path)
            elif path.name.endswith(".json.partial"):
                path.unlink()

    def wait(self) -> None:
        """Waits until the checkpoint that was begun last is complete.

        Raises:
          OSError: if it cannot be written.
        """
        if self._committing is not None:
            committing, self._committing = self._committing, None
            committing.result()

    def close(self) -> None:
        """Waits as `wait` does, and ends the thread that writes."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
