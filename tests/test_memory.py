"""What is free in main memory, where containers and job schedulers limit it."""

import math
from types import SimpleNamespace

import jax
import psutil
import pytest

from agents import memory

FREE = 10_000


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=FREE))


def available(folder, membership, **files):
    """What is free for a process with this /proc/self/cgroup, beside these files of control groups."""
    (folder / "membership").write_text(membership)
    for group, (limit, usage, cache) in files.items():
        version_1 = group.startswith("memory")
        names = ("limit_in_bytes", "usage_in_bytes") if version_1 else ("max", "current")
        path = folder / "cgroup" / group.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, usage), strict=True):
            (path / f"memory.{name}").write_text(f"{value}\n")
        (path / "memory.stat").write_text(f"anon 5\n{'total_' if version_1 else ''}inactive_file {cache}\n")
    return memory.available(folder / "membership", folder / "cgroup")


def test_without_control_groups_it_is_the_machines(tmp_path):
    assert memory.available(tmp_path / "membership", tmp_path / "cgroup") == FREE
    assert available(tmp_path, "3:cpuset:/\n4:memory:/a\n0::/a\n") == FREE
    assert 0 <= memory.available() <= FREE


def test_version_2(tmp_path):
    """The least of what the groups above have left counts; what the page cache holds would be given back."""
    groups = {"job": (8_000, 3_000, 500), "job__step": ("max", 3_000, 0)}
    assert available(tmp_path, "0::/job/step\n", **groups) == 5_500
    assert available(tmp_path, "0::/job/step\n", job__step=(2_000, 3_000, 0)) == 0
    assert available(tmp_path, "0::/other\n") == FREE


def test_version_1(tmp_path):
    groups = {"memory__job": (8_000, 3_000, 500), "memory": (2**63 - 4096, 9_000, 0)}
    assert available(tmp_path, "4:memory:/job/step\n0::/\n", **groups) == 5_500
    assert available(tmp_path, "4:cpu,memory_pressure:/job\n", **groups) == FREE


def test_a_container_sees_its_group_as_the_root(tmp_path):
    assert available(tmp_path, "4:memory:/docker/abc\n", memory=(4_000, 1_000, 0)) == 3_000


def test_what_an_accelerator_tells_counts_there(monkeypatch):
    stats = {"bytes_limit": 5_000, "bytes_in_use": 2_000}
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
    assert memory.on_device() == memory.available()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert memory.on_device() == 3_000
    stats = None
    assert memory.on_device() == math.inf
    memory.check(10**20, 10**9)


def test_replays_and_networks_share_the_memory(monkeypatch):
    """Of 1 GB nine tenths. Each of these would fit alone."""
    monkeypatch.setattr(memory, "on_device", lambda: 1e9)
    memory.check(500_000_000, 100_000, network_bytes=400_000_000)
    with pytest.raises(MemoryError, match=r"takes 0\.50 GB, the network 0\.41 GB; .* 98000 or less\."):
        memory.check(500_000_000, 100_000, network_bytes=410_000_000)
    memory.check(250_000_000, 100_000, 3, 50_000_000)
    with pytest.raises(MemoryError, match=r"0\.75 GB, the network 0\.18 GB; .* 96000 or less, or --seeds 2\."):
        memory.check(250_000_000, 100_000, 3, 60_000_000)
    with pytest.raises(MemoryError, match=r"Pass --replay_capacity 400 or less\."):
        memory.check(10**9, 1_000, network_bytes=500_000_000)
    with pytest.raises(MemoryError, match=r"free\. Take a smaller network\."):
        memory.check(10**9, 1_000, network_bytes=900_000_000)
