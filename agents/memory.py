"""Memory: how much is free, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import jax
import psutil

GROUPS = Path("/sys/fs/cgroup")
# Files of a control group by its version: limit, usage, and in memory.stat the part of it that would be given back.
LIMITS = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available(membership: Path = Path("/proc/self/cgroup"), groups: Path = GROUPS) -> int:
    """Bytes of main memory that this process may still take: the machine's, and those of its container or SLURM job.

    Args:
      membership, groups: where Linux tells of control groups, of whose limits psutil knows nothing
        (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    free = [psutil.virtual_memory().available]
    lines = membership.read_text().splitlines() if membership.exists() else []
    for number, controllers, group in (line.split(":", 2) for line in lines):
        if number == "0" or controllers == "memory":
            version, root = (2, groups) if number == "0" else (1, groups / "memory")
            own = root / group.lstrip("/")  # not there in a container, which sees its group as the root
            free += [_left(folder, *LIMITS[version]) for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return max(0, min(bytes_left for bytes_left in free if bytes_left is not None))


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Bytes to the limit of a control group; None if it has none."""
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if most == "max" else int(most) - used + int(statistics[cache])
    except (OSError, ValueError, KeyError):
        return None


def on_device() -> int:
    """Bytes that are free on the learner's device."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return available()


def check(replay_bytes: int, capacity: int, seeds: int = 1) -> None:
    """Raises MemoryError if the replays of all seeds do not fit on the learner's device, with the flag to change."""
    free, device = on_device(), jax.default_backend().upper()
    usable = int(0.9 * free)  # the rest is for the network and its gradients
    needed = seeds * replay_bytes
    if needed > usable:
        fits = int(capacity * usable / needed) // 1000 * 1000
        one, many = f"The replay of {capacity:,} transitions takes", f"{seeds} replays of {capacity:,} transitions take"
        fewer = f", or --seeds {usable // replay_bytes}" if seeds > 1 and usable >= replay_bytes else ""
        raise MemoryError(
            f"{one if seeds == 1 else many} {needed / 1e9:.2f} GB; {device} has {free / 1e9:.2f} GB "
            f"free. Pass --replay_capacity {fits} or less{fewer}."
        )
