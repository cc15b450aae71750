"""Checkpoints: complete or not there, every file hashed, without pickle. `checkpointer.py` writes them.

checkpoints/<agent_steps>/state.safetensors   learner, priorities, games: all arrays but the replay's rows
                          manifest.json       counters, sizes of the log files, the replay's segments, and hashes
replay/<first row>/                           the rows that came since the checkpoint before (replay/log.py)
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from agents.errors import ConfigError
from replay import log
from replay.files import DamagedError, read_json, verify

FORMAT = 1
ORBAX = "_CHECKPOINT_METADATA"  # in checkpoints of before there was a format
STATE, MANIFEST = "state.safetensors", "manifest.json"


class Checkpoint:
    """A complete checkpoint on disk.

    Args:
      path: its directory.

    Raises:
      replay.files.DamagedError: if it has no readable manifest.
      ConfigError: if another version wrote it.
    """

    def __init__(self, path: Path):
        self.path, self._replay = path, path.parents[1] / log.DIRECTORY
        try:
            manifest = {"format": 0} if (path / ORBAX).exists() else read_json(path / MANIFEST)
            expected = manifest.pop("sha256", None)
            if manifest["format"] != FORMAT:
                raise ConfigError(
                    f"{path} has the format {manifest['format']}, and this version reads {FORMAT}. Go on with the "
                    "version that wrote it (git_commit in the run's manifest.json), or train in another --run_dir."
                )
            if expected != digest(manifest):
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

    def verify(self, state: bool = True, replay: bool = True) -> None:
        """Raises DamagedError, naming the file, unless all files are as they were written."""
        if state:
            verify(self.path / STATE, self.state_sha256)
        for name, digest in self.segments.items() if replay else ():
            log.verify_segment(self._replay / name, digest)

    def owes_evaluation(self, total_steps: int) -> bool:
        """Whether an evaluation is still to be made here, in a run that is to have `total_steps`."""
        ends = self.agent_steps >= total_steps  # it may have been meant to be longer
        return bool(self.progress.get("owes_evaluation")) or (ends and not self.progress.get("evaluated", True))

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


def digest(manifest: dict) -> str:
    """The SHA-256 of a manifest, hexadecimal, which is kept in it."""
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
      replay.files.DamagedError: if the one that is named is not there, or its state is not as it was written.
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
      replay.files.DamagedError: if there are checkpoints but none is intact.
    """
    damaged: dict[Path, DamagedError] = {}
    for path in checkpoints(run_dir):
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify()
            return checkpoint, [*damaged]
        except DamagedError as error:
            damaged[path] = error
            report(f"WARNING: the checkpoint {path} is damaged: {error}.")
    if damaged:  # often by the same file, of a segment that several need
        raise DamagedError(
            f"No checkpoint of {run_dir} is intact: {', '.join(dict.fromkeys(map(str, damaged.values())))}. To start "
            "this run again from nothing, remove its directory; nothing in it has been changed."
        )
    return None, []
