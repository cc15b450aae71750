"""The replay log: every row that enters the replay, on disk, compressed, in immutable segments.

replay/000000000000/        the rows from 0 on: a Zarr 3 group with an array [rows, N, ...] per field of `TimeStep`
       000000000000.json    written last: how many rows, and the SHA-256 of all files
       000000031250/        the rows that follow
       ...

A segment is what was stored between two checkpoints; until a checkpoint names it, it does not count. Atari frames take
a fortieth of their size. Rows, as in the ring, hold what arrived together: the action that led here, the reward, and
the new observation; `first` marks the start of an episode, where reward and `terminated` mean nothing, and the action
is the one chosen in the last state of the episode before.

    zarr.open_group("replay/000000000000", mode="r")["observation"]     # or xarray.open_zarr(..., consolidated=False)
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore

from replay.files import DamagedError, read_json, sha256, verify, write_durably
from replay.ring import TimeStep

DIRECTORY = "replay"
CHUNK_BYTES = 8 * 2**20  # of observations, before compression: what is held in memory, and read at a time
MAX_CHUNK = 2**16  # rows
CACHE_BYTES = 2**28  # of chunks read in part
PENDING_CHUNKS = 2  # that may wait for the disk before the games do
COMPRESSION = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}  # 1.4 GB/s; level 3 gains 5 %


class SegmentWriter:
    """Writes one segment while training goes on: threads of TensorStore's compress and write.

    Args:
      path: directory of the segment, which must not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = 0  # appended
        self._buffer = None  # a TimeStep of arrays [chunk, N, ...], filled up to rows % chunk
        self._small: list[TimeStep] = []  # filled buffers without their observations, to be written in one piece
        self._pending = collections.deque()

    def append(self, step: TimeStep) -> None:
        """Appends a row; waits only if the disk is too slow.

        Raises:
          OSError: if an earlier one could not be written.
        """
        if self._buffer is None:
            self._begin(step)
        at = self.rows % self._chunk
        for array, value in zip(self._buffer, step, strict=True):
            array[at] = value
        self.rows += 1
        if self.rows % self._chunk == 0:
            self._flush(self._chunk)

    def _begin(self, step: TimeStep) -> None:
        rows = min(max(CHUNK_BYTES // step.observation.nbytes, 1), MAX_CHUNK)
        self._chunk = 1 << (rows.bit_length() - 1)  # a power of two
        self.path.mkdir(parents=True)
        self._like = TimeStep(*(np.asarray(value) for value in step))
        # Its length is set by `commit`.
        shape, chunk = (2**40, *self._like.observation.shape), (self._chunk, *self._like.observation.shape)
        self._observations = _create(self.path / "observation", shape, chunk, self._like.observation.dtype)
        self._new_buffer()

    def _new_buffer(self) -> None:
        self._buffer = TimeStep(*(np.empty((self._chunk, *value.shape), value.dtype) for value in self._like))

    def _flush(self, rows: int) -> None:
        """Hands the buffer's first rows to the writers."""
        start = (self.rows - 1) // self._chunk * self._chunk
        self._small.append(self._buffer._replace(observation=None))
        write = self._observations[start : start + rows].write(self._buffer.observation[:rows])
        self._pending.append(write)
        self._new_buffer()
        while len(self._pending) > PENDING_CHUNKS:
            _wait(self._pending.popleft(), self.path)

    def finish(self) -> None:
        """Hands over what is left. The segment may be committed then, on any thread; nothing more is appended."""
        if self.rows and self.rows % self._chunk:
            self._flush(self.rows % self._chunk)

    def commit(self) -> str:
        """Completes the segment; returns the SHA-256 of the file that lists its files.

        Raises:
          OSError: if it cannot be written.
        """
        while self._pending:
            _wait(self._pending.popleft(), self.path)
        shape = (self.rows, *self._like.observation.shape)
        _wait(self._observations.resize(exclusive_max=shape, resize_metadata_only=True), self.path)
        for name in ("action_tm1", "r_t", "terminated", "first"):
            values = np.concatenate([getattr(buffer, name) for buffer in self._small])[: self.rows]
            chunk = (min(self.rows, MAX_CHUNK), *values.shape[1:])
            _wait(_create(self.path / name, values.shape, chunk, values.dtype).write(values), self.path)
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"first_row": int(self.path.name)}}
        write_durably(self.path / "zarr.json", json.dumps(group).encode())
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        hashes = {path.relative_to(self.path).as_posix(): sha256(path) for path in files}
        about = {"rows": self.rows, "write_empty_chunks": True, "files": hashes}
        text = json.dumps(about, indent=1).encode()
        write_durably(listing(self.path), text)  # and with it the name of the directory beside
        return hashlib.sha256(text).hexdigest()


def _create(path: Path, shape, chunk, dtype):
    metadata = {
        "shape": shape,
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, COMPRESSION],
        "dimension_names": ["row", "game", *(f"axis_{i}" for i in range(len(shape) - 2))],
    }
    # One thread: the games and the learner need the others.
    context = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 2}}
    store = {"driver": "file", "path": str(path)}
    spec = {"driver": "zarr3", "kvstore": store, "metadata": metadata, "context": context, "create": True}
    return _wait(tensorstore.open({**spec, "store_data_equal_to_fill_value": True}), path)


def _wait(future, path: Path):
    try:
        return getattr(future, "commit", future).result()
    except Exception as error:  # TensorStore's errors are of several kinds
        raise OSError(f"Cannot write {path}: {str(error).partition(' [')[0]}") from error


def listing(path: Path) -> Path:
    """The file that lists a segment's files."""
    return path.with_suffix(".json")


def remove_segment(path: Path) -> None:
    """Removes a segment, whatever there is of it."""
    listing(path).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


class Log:
    """Reads rows of consecutive segments, piece by piece, or one of its arrays.

    Args:
      paths: directories of the segments, in order.
    """

    def __init__(self, paths):
        self._segments = [_Segment.read(path) for path in paths]
        self.first_row = self._segments[0].first_row if self._segments else 0
        self.end = self._segments[-1].first_row + self._segments[-1].rows if self._segments else 0  # exclusive
        self._opened: dict[tuple[Path, str], Any] = {}  # of `array`

    def pieces(self, start: int, stop: int):
        """Yields (row, `TimeStep` of arrays [rows, N, ...]) from `start` to before `stop`, each of a chunk or less.

        Raises:
          IndexError: if the log lacks some of these rows.
          replay.files.DamagedError: if a file is gone.
        """
        if not self.first_row <= start <= stop <= self.end:
            raise IndexError(f"The log holds the rows {self.first_row} to {self.end}, not {start} to {stop}.")
        for segment, low, high in self._overlaps(start, stop):
            arrays = TimeStep(*(segment.open(name) for name in TimeStep._fields))
            chunk = arrays.observation.chunk_layout.read_chunk.shape[0]
            while low < high:
                end = min(high, (low // chunk + 1) * chunk)
                yield segment.first_row + low, TimeStep(*(result(array[low:end].read()) for array in arrays))
                low = end

    def _overlaps(self, start: int, stop: int):
        """Yields (segment, first, end) of its rows between `start` and `stop`, counted from its own first."""
        for segment in self._segments:
            low, high = max(start - segment.first_row, 0), min(stop - segment.first_row, segment.rows)
            if low < high:
                yield segment, low, high

    def array(self, name: str, start: int, stop: int, game=slice(None)) -> list[tensorstore.TensorStore]:
        """Returns one field of `TimeStep` from `start` to before `stop`, as parts to be read one after the other.

        Parts of chunks that lie side by side are kept for the next read, since each chunk holds all games.

        Args:
          name: e.g. 'observation'.
          start, stop: rows that the log holds.
          game: which of the N.

        Raises:
          replay.files.DamagedError: if it cannot be opened.
        """
        parts = []
        for segment, low, high in self._overlaps(start, stop):
            if (segment.path, name) not in self._opened:
                self._opened[segment.path, name] = segment.open(name, _cache())
            parts.append(self._opened[segment.path, name][low:high, game])
        return parts


class _Segment(NamedTuple):
    path: Path
    first_row: int
    rows: int
    every_chunk: bool  # is a file; before there was this word in the list, those of zeros alone were not written

    @classmethod
    def read(cls, path: Path) -> _Segment:
        about = read_json(listing(path))
        try:
            return cls(path, int(path.name), int(about["rows"]), bool(about.get("write_empty_chunks")))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{listing(path)} does not tell how many rows there are") from error

    def open(self, name: str, context: tensorstore.Context | None = None) -> tensorstore.TensorStore:
        """Opens an array of which no chunk that has gone since is taken for zeros."""
        store = {"driver": "file", "path": str(self.path / name)}
        spec = {"driver": "zarr3", "kvstore": store, "fill_missing_data_reads": not self.every_chunk}
        return result(tensorstore.open(spec, context=context, open=True))


def result(future):
    """What was opened or read.

    Raises:
      replay.files.DamagedError: if it cannot be.
    """
    try:
        return future.result()
    except Exception as error:  # TensorStore's errors are of several kinds, and long
        raise DamagedError(f"A replay log cannot be read: {str(error).partition(' [')[0][:300]}") from error


@functools.cache
def _cache() -> tensorstore.Context:
    """Where all logs keep chunks that have been read in part."""
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


def verify_segment(path: Path, digest: str) -> None:
    """Raises DamagedError, naming the file, unless every file of a segment is as it was written."""
    verify(listing(path), digest)
    for name, file_digest in read_json(listing(path))["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedError(f"{listing(path)} names a file outside of its segment: {name!r}")
        verify(path / name, file_digest)
