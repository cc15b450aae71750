"""Memory: how much is free, and what does not fit."""

from __future__ import annotations

import math
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


def on_device() -> float:
    """Bytes that are free on the learner's device; infinite where it does not tell, and refuses by itself."""
    if jax.default_backend() == "cpu":
        return available()
    stats = jax.devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else math.inf


def usable() -> float:
    """Bytes for the state of the learner and the replay; a tenth is left for what an update holds in between."""
    return 0.9 * on_device()


def check(replay_bytes: int, capacity: int, seeds: int = 1, network_bytes: int = 0) -> None:
    """Raises MemoryError if the replays do not fit on the learner's device beside the networks, with what to change.

    Args:
      replay_bytes, capacity: of one replay.
      seeds: replays, each with a network.
      network_bytes: of one network, with its target, the optimizer's state and the gradients.
    """
    most, each, device = usable(), replay_bytes + network_bytes, jax.default_backend().upper()
    if seeds * each > most:
        fits = max(0, int(capacity * (most / seeds - network_bytes) / replay_bytes))
        fits -= fits % 1000 if fits > 1000 else 0
        one, many = f"The replay of {capacity:,} transitions takes", f"{seeds} replays of {capacity:,} transitions take"
        beside = f", the network {seeds * network_bytes / 1e9:.2f} GB" if network_bytes else ""
        advice = [f"--replay_capacity {fits} or less"] * bool(fits)
        advice += [f"--seeds {int(most // each)}"] * (seeds > 1 and most >= each)
        way_out = f"Pass {', or '.join(advice)}" if advice else "Take a smaller network"
        raise MemoryError(
            f"{one if seeds == 1 else many} {seeds * replay_bytes / 1e9:.2f} GB{beside}; {device} has "
            f"{on_device() / 1e9:.2f} GB free. {way_out}."
        )
