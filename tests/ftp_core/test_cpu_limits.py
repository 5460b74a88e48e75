"""Affinity and quotas of control groups of both versions bound the cores, here over made-up files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftp_core.cpu_limits import n_cores
from search.config.run_config import RunConfig
from tests.ftp_core.control_groups import made_up_proc, mounted


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Groups of a process that may use any of 16 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return made_up_proc(tmp_path, monkeypatch)


def second(group: Path, quota: str) -> None:
    """Writes a group of version 2."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "cpu.max").write_text(f"{quota}\n")


def first(group: Path, quota: int, period: int) -> None:
    """Writes a group of version 1."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize(
    ("quota", "n"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 16)],
)
def test_a_quota_counts_as_the_cores_that_can_spend_it(proc: Path, tmp_path: Path, quota: str, n: int) -> None:
    mounted(proc, "0::/\n", ("/", tmp_path / "cgroup", "cgroup2 rw"))
    second(tmp_path / "cgroup", quota)
    assert n_cores() == n
    assert RunConfig(device="cpu").workers == n


def test_the_strictest_of_nested_quotas_counts(proc: Path, tmp_path: Path) -> None:
    mount = tmp_path / "sys fs"
    mounted(proc, "0::/kubepods/pod/box\n", ("/", mount, "cgroup2 rw"))
    second(mount / "kubepods", "300000 50000")
    second(mount / "kubepods/pod", "200000 100000")
    second(mount / "kubepods/pod/box", "max 100000")
    assert n_cores() == 2


@pytest.mark.parametrize("root", ["/docker/box", "/"])
@pytest.mark.parametrize(("quota", "n"), [(-1, 16), (250_000, 3)])
def test_a_quota_of_the_first_version_counts(proc: Path, tmp_path: Path, root: str, quota: int, n: int) -> None:
    mount = tmp_path / "cpu,cpuacct"
    cgroup = "5:cpu,cpuacct:/docker/box\n4:memory:/docker/box\n0::/\n"
    mounted(proc, cgroup, (root, mount, "cgroup rw,cpu,cpuacct"), ("/", tmp_path / "memory", "cgroup rw,memory"))
    first(mount, quota, 100_000)
    assert n_cores() == n


def test_a_process_bound_to_some_cores_has_these(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
    assert n_cores() == 3


def test_where_the_system_does_not_say_it_has_all_cores(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert n_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert n_cores() == 1
