"""What is free in main memory, where containers and job schedulers limit it."""

from types import SimpleNamespace

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
