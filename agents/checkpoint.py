"""Checkpoints: written beside training, complete or not there, every file hashed, without pickle.

checkpoints/<agent_steps>/state.safetensors   learner, priorities, games: all arrays but the replay's rows
                          manifest.json       counters, sizes of the log files, the replay's segments, and hashes
replay/<first row>/                           the rows that came since the checkpoint before (replay/log.py)
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agents.config_checks import ConfigError
from replay import log
from replay.log import DamagedError, read_json, verify, write_durably
from replay.ring import TimeStep

FORMAT = 1
ORBAX = "_CHECKPOINT_METADATA"  # in checkpoints of before there was a format
STATE, MANIFEST, KEPT = "state.safetensors", "manifest.json", 2


class Checkpoint:
    """A complete checkpoint on disk.

    Args:
      path: its directory.

    Raises:
      replay.log.DamagedError: if it has no readable manifest.
      ConfigError: if another version wrote it.
    """

    def __init__(self, path: Path):
        self.path, self._replay = path, path.parents[1] / log.DIRECTORY
        try:
            manifest = {"format": 0} if (path / ORBAX).exists() else read_json(path / MANIFEST)
            digest = manifest.pop("sha256", None)
            if manifest["format"] != FORMAT:
                raise ConfigError(
                    f"{path} has the format {manifest['format']}, and this version reads {FORMAT}. Go on with the "
                    "version that wrote it (git_commit in the run's manifest.json), or train in another --run_dir."
                )
            if digest != _digest(manifest):
                raise ValueError
            self.progress: dict[str, Any] = dict(manifest["progress"])
            self.rows = int(manifest["rows"])  # that entered the replay so far
            self.segments: dict[str, str] = dict(manifest["segments"])  # names, in order, and their hashes
            self.state_sha256 = str(manifest["state_sha256"])
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{path / MANIFEST} is missing or damaged") from error
        if self.rows < 0 or (self.rows and not self.segments):
            raise DamagedError(f"{path / MANIFEST} names no segments for its {self.rows} rows")
        if strange := [name for name in self.segments if not re.fullmatch(r"\d{12}", name)]:
            raise DamagedError(f"{path / MANIFEST} names strange segments: {strange}")
        self.agent_steps = int(path.name)

    def verify(self, replay: bool = True) -> None:
        """Raises DamagedError, naming the file, unless all files are as they were written."""
        verify(self.path / STATE, self.state_sha256)
        for name, digest in self.segments.items() if replay else ():
            log.verify_segment(self._replay / name, digest)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Reads the saved arrays whose name starts with `prefix`, by the rest of their names."""
        try:
            with safe_open(self.path / STATE, "numpy") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"{self.path / STATE} is missing or damaged") from error

    def restore(self, name: str, like):
        """Reads a tree of jax arrays that was saved by the name `name`.

        Args:
          name: e.g. 'learner'.
          like: a tree of the same structure; its leaves need a shape and a type.

        Raises:
          ConfigError: if it does not fit what was saved.
        """
        saved = self.arrays(f"{name}/")

        def leaf(path, expected):
            array = saved.get(_name(path))
            shape, dtype = expected.shape, expected.dtype
            if array is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(jnp.asarray(array))
            if array is None or array.shape != shape or array.dtype != dtype:
                found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise ConfigError(f"{self.path} has {found} for {name}/{_name(path)}, not {dtype}{list(shape)}.")
            return jnp.array(array)

        return jax.tree_util.tree_map_with_path(leaf, like)

    @property
    def log(self) -> log.Log:
        """The rows that the replay needs; with `--log_replay` all that there ever were."""
        return log.Log([self._replay / name for name in self.segments])


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(name: str, tree) -> dict[str, np.ndarray]:
    """Copies a tree of arrays to the host, as `Checkpoint.restore` takes them by this name."""
    as_data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    # A copy, since the originals are donated while this is being written.
    return {f"{name}/{_name(path)}": np.array(as_data(leaf)) for path, leaf in leaves}


def checkpoints(run_dir) -> list[Path]:
    """Directories of the complete checkpoints of a run, the newest first."""
    directory = Path(run_dir) / "checkpoints"
    found = directory.iterdir() if directory.is_dir() else []
    return sorted((path for path in found if path.name.isdecimal()), key=lambda path: int(path.name), reverse=True)


def newest(run_dir, verified: bool = False) -> Checkpoint | None:
    """The newest checkpoint with a readable manifest, or with an intact state; None if there is none."""
    for path in checkpoints(run_dir):
        try:
            checkpoint = Checkpoint(path)
            if verified:
                checkpoint.verify(replay=False)
            return checkpoint
        except DamagedError as error:
            if verified:
                print(f"WARNING: {path} is damaged: {error}.", file=sys.stderr)
    return None


def named(path) -> tuple[Path, Checkpoint | None]:
    """What a path names: a run directory, of which the newest checkpoint is taken, or one checkpoint of it.

    Returns:
      The run directory, and the checkpoint, whose state is intact; None if there is none.

    Raises:
      replay.log.DamagedError: if the one that is named is not there, or its state is not as it was written.
    """
    path = Path(path)
    if path.parent.name != "checkpoints" or not path.name.isdecimal():
        return path, newest(path, verified=True)
    if not path.exists():
        there = ", ".join(other.name for other in checkpoints(path.parents[1])) or "none"
        raise DamagedError(f"{path} is not there; checkpoints that are: {there}")
    checkpoint = Checkpoint(path)
    checkpoint.verify(replay=False)
    return path.parents[1], checkpoint


def newest_intact(run_dir, report=print) -> tuple[Checkpoint | None, list[Path]]:
    """The newest checkpoint of which every file is as it was written, None if there is none; and later, damaged ones.

    Args:
      run_dir: the run directory.
      report: told of what is damaged.

    Raises:
      replay.log.DamagedError: if there are checkpoints but none is intact.
    """
    damaged = []
    for path in checkpoints(run_dir):
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify()
            return checkpoint, damaged
        except DamagedError as error:
            damaged.append(path)
            report(f"WARNING: the checkpoint {path} is damaged: {error}.")
    if damaged:
        raise DamagedError(
            f"No checkpoint of {run_dir} is intact. To start this run again from nothing, remove its directory; "
            "nothing in it has been changed."
        )
    return None, []


def _write_manifest(directory: Path, manifest: dict) -> None:
    text = json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1)
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
          replay.log.DamagedError: if there are checkpoints but none is intact.
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
        self._prune(self._needed(checkpoints(self._run_dir)))
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
            self._wait()

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
        self._wait()
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
            there = Checkpoint(directory)
            if there.rows == manifest["rows"]:  # the same state: only what is said about it has changed
                _write_manifest(directory, manifest | {"state_sha256": there.state_sha256})
            return  # else only resets of games came after it
        partial = directory.with_name(f"{agent_steps}.partial")
        partial.mkdir()
        state = save(arrays)
        write_durably(partial / STATE, state)
        _write_manifest(partial, manifest | {"state_sha256": hashlib.sha256(state).hexdigest()})
        partial.rename(directory)
        log.sync_directory(self._directory)

        kept = checkpoints(self._run_dir)
        for path in kept[KEPT:]:
            shutil.rmtree(path)
        self._prune({*self._needed(kept[:KEPT]), self._segment.path.name})  # the last is being written

    def _needed(self, paths) -> set[str]:
        """Names of the segments of some checkpoints; of one that is damaged they are of no use."""
        names = set()
        for path in paths:
            with contextlib.suppress(DamagedError):
                names |= Checkpoint(path).segments.keys()
        return names

    def _prune(self, keep) -> None:
        for path in self._replay.glob("[0-9]*"):
            if re.fullmatch(r"\d{12}(\.json)?", path.name) and path.stem not in keep:
                log.remove_segment(path)
            elif path.name.endswith(".json.partial"):
                path.unlink()

    def _wait(self) -> None:
        if self._committing is not None:
            committing, self._committing = self._committing, None
            committing.result()

    def close(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          OSError: if it cannot be written.
        """
        try:
            self._wait()
        finally:
            self._thread.shutdown()
