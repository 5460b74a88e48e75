"""Peak memory is that of this process, what it shares told apart, or that of the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ftp_core.cost import process_memory
from ftp_core.cost.process_memory import free_bytes, own_bytes, own_peak_bytes, peak_bytes, reset_peak

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
MIB = 2**20
# Prints peaks, all and own, before and after it holds so many MiB of its own, and as many that are shared.
PROGRAM = """
import mmap, os, torch
from ftp_core.cost.process_memory import own_peak_bytes, peak_bytes
cpu = torch.device("cpu")
print(peak_bytes(cpu), own_peak_bytes(cpu))
own = torch.ones(64 * 2**20, dtype=torch.uint8)
del own
print(peak_bytes(cpu), own_peak_bytes(cpu))
file = os.memfd_create("shared")
os.ftruncate(file, 192 * 2**20)
shared = mmap.mmap(file, 192 * 2**20)
for start in range(0, len(shared), 4096):
    shared[start] = 1
print(peak_bytes(cpu), own_peak_bytes(cpu))
"""
has_status = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system tells no shared memory apart")


@has_status
def test_what_a_process_held_for_a_moment_counts_and_what_it_shares_counts_apart() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, held, shared = ([int(word) for word in line.split()] for line in run.stdout.splitlines())
    assert before[0] > before[1] > 0
    assert held[0] - before[0] > 60 * MIB and held[1] - before[1] > 60 * MIB
    # The peak is of the process as a whole: what it gave back made room for some of what came later.
    assert 120 * MIB < shared[0] - held[0] < 200 * MIB
    assert shared[1] <= held[1] + 8 * MIB


@has_status
def test_tensors_over_files_and_named_memory_are_not_of_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(MIB))
    over_file = torch.from_numpy(np.memmap(tmp_path / "file", np.uint8, "c"))
    own = [torch.ones(MIB // 4), torch.ones(3)]
    assert own_bytes([over_file]) == 0 and own_bytes([over_file[5000:], *own]) == MIB + 12


def test_on_a_gpu_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12345)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77, 100))
    reset_peak(CPU)
    assert reset == [] and 12345 not in (peak_bytes(CPU), own_peak_bytes(CPU))
    reset_peak(GPU)
    assert reset == [GPU] and peak_bytes(GPU) == own_peak_bytes(GPU) == 12345 and free_bytes(GPU) == 77


def test_where_the_system_tells_little_the_whole_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = peak_bytes(CPU)
    for text in (None, "", "VmPeak:\t 5 kB\nName:\tpython\n"):
        path = tmp_path / "status"
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(process_memory, "_STATUS", path)
        assert own_peak_bytes(CPU) == peak_bytes(CPU) == pytest.approx(known, rel=0.2)
