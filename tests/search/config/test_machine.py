"""GPUs and workers of this machine, counted without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftp_core.cpu_limits import n_cores
from search.config import machine
from search.config.run_config import RunConfig
from search.errors import ConfigError


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    monkeypatch.setattr(machine, "_DRIVER", tmp_path)
    monkeypatch.setattr(machine, "version", lambda name: "2.13.0+cu130")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("visible", "n"), [(None, 4), ("", 0), ("-1", 0), ("2", 1), ("0,3", 2), ("0,1,2,3,4,5", 4)])
def test_workers_default_to_the_gpus_that_are_visible(
    visible: str | None, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.n_gpus() == n
    assert RunConfig().workers == RunConfig(device="cuda").workers == (n or n_cores())
    assert RunConfig(device="cpu").workers == n_cores()
    assert RunConfig(device="cuda:1").workers == RunConfig(device="mps").workers == 1
    assert RunConfig(device="cuda", workers=7).workers == 7


@pytest.mark.usefixtures("four_gpus")
def test_a_torch_without_cuda_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda name: "2.13.0+cpu")
    assert machine.n_gpus() == 0 and RunConfig().workers == n_cores()


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "nothing")
    assert machine.n_gpus() == 0


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:1234", "cpu:0", ""])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="--device is .*: expected auto, cpu, cuda, cuda:N such as cuda:1, or mps"):
        RunConfig.checked(device=device)


@pytest.mark.parametrize(("share", "is_one"), [(0.25, True), (1.0, True), (2.0, True), (1.5, False), (0.0, False)])
def test_a_worker_takes_a_share_of_one_gpu_or_whole_ones(share: float, is_one: bool) -> None:
    if is_one:
        assert RunConfig.checked(gpu_share=share).gpu_share == share
    else:
        with pytest.raises(ConfigError, match="--gpu-share"):
            RunConfig.checked(gpu_share=share)
