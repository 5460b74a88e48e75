"""Limits of control groups of both versions bound the memory that is free, here over made-up files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ftp_core.cost.process_memory import free_bytes
from ftp_core.memory_limits import bytes_within_limits, limit_bytes
from search.config.run_config import RunConfig
from tests.ftp_core.control_groups import made_up_proc, mounted

GIB = 2**30
NO_LIMIT = 9223372036854771712


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_up_proc(tmp_path, monkeypatch)


def second(group: Path, limit: int | str, used: int, **stat: int) -> None:
    """Writes a group of version 2."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text("".join(f"{name} {size}\n" for name, size in {"anon": 1, **stat}.items()))


def first(group: Path, limit: int, used: int, **stat: int) -> None:
    """Writes a group of version 1."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text(f"{used}\n")
    (group / "memory.stat").write_text("".join(f"{name} {size}\n" for name, size in {"rss": 1, **stat}.items()))


def test_the_strictest_of_nested_groups_counts(proc: Path, tmp_path: Path) -> None:
    mount = tmp_path / "sys fs"
    mounted(proc, "0::/kubepods/pod/box\n", ("/", mount, "cgroup2 rw"))
    second(mount / "kubepods", 8 * GIB, 7 * GIB)
    second(mount / "kubepods/pod", "max", 3 * GIB)
    second(mount / "kubepods/pod/box", 4 * GIB, 2 * GIB)
    assert (limit_bytes(), bytes_within_limits()) == (4 * GIB, GIB)


def test_pages_of_files_can_be_taken_back(proc: Path, tmp_path: Path) -> None:
    mounted(proc, "0::/\n", ("/", tmp_path / "cgroup", "cgroup2 rw"))
    second(tmp_path / "cgroup", 4 * GIB, 3 * GIB, inactive_file=GIB, active_file=GIB // 2, slab_reclaimable=GIB // 4)
    assert bytes_within_limits() == 4 * GIB - GIB - GIB // 4
    # A limit that was lowered below what is in use.
    second(tmp_path / "cgroup", GIB, 3 * GIB)
    assert bytes_within_limits() == 0


@pytest.mark.parametrize("root", ["/docker/box", "/"])
def test_a_container_of_the_first_version_sees_its_own_group_as_the_mount(
    proc: Path, tmp_path: Path, root: str
) -> None:
    mount = tmp_path / "memory"
    cgroup = "5:cpu,cpuacct:/docker/box\n4:memory,hugetlb:/docker/box\n1:name=systemd:/docker/box\n0::/\n"
    mounted(proc, cgroup, ("/", tmp_path / "cpu", "cgroup rw,cpu"), (root, mount, "cgroup rw,memory"))
    first(mount, 2 * GIB, GIB, total_inactive_file=GIB // 2, total_active_file=GIB // 4, inactive_file=1)
    assert (limit_bytes(), bytes_within_limits()) == (2 * GIB, GIB + 3 * GIB // 4)


def test_without_a_limit_there_is_none(proc: Path, tmp_path: Path) -> None:
    assert limit_bytes() is bytes_within_limits() is None
    mount, other = tmp_path / "memory", tmp_path / "unified"
    mounted(proc, "4:memory:/a\n0::/\n", ("/", mount, "cgroup rw,memory"), ("/", other, "cgroup2 rw"))
    assert limit_bytes() is bytes_within_limits() is None
    first(mount, NO_LIMIT, GIB)
    first(mount / "a", NO_LIMIT, GIB)
    second(other, "max", GIB)
    assert limit_bytes() is bytes_within_limits() is None
    assert free_bytes(torch.device("cpu")) != NO_LIMIT


def test_free_memory_and_the_share_for_prefixes_are_those_of_the_container(proc: Path, tmp_path: Path) -> None:
    whole, free = RunConfig(workers=1).prefix_bytes, free_bytes(torch.device("cpu"))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    mounted(proc, "0::/\n", ("/", tmp_path / "cgroup", "cgroup2 rw"))
    second(tmp_path / "cgroup", 64 * 2**20, 60 * 2**20)
    assert free_bytes(torch.device("cpu")) == 4 * 2**20
    assert RunConfig(workers=1).prefix_bytes == 64 * 2**20 // 80 < whole
    # A limit beyond what the machine has says nothing.
    second(tmp_path / "cgroup", 2 * machine, 0)
    assert RunConfig(workers=1).prefix_bytes == whole
    assert free is None or 0 < (free_bytes(torch.device("cpu")) or 0) <= machine
