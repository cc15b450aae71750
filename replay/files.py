"""Files that are whole or not there: written durably, hashed, and read without trust."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

LARGEST_JSON = 2**26  # bytes


class DamagedError(OSError):
    """A file on disk is missing or not what was written."""


def verify(path: Path, digest: str) -> None:
    """Raises DamagedError unless a file is there and has this SHA-256."""
    try:
        found = sha256(path) if path.is_file() else None  # a pipe or a device would never end
    except OSError:
        found = None
    if found is None:
        raise DamagedError(f"{path} is missing or unreadable")
    if found != digest:
        raise DamagedError(f"{path} is not what was written there")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    """Reads an object from a file of JSON.

    Raises:
      DamagedError: if there is none.
    """
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise ValueError("no file")
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON:,} bytes")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is missing or damaged ({str(error)[:100]})") from error


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file at once or not at all; it outlasts a power failure."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:  # a new one: no link to elsewhere is followed
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes names of files and directories in it outlast a power failure."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
