"""A process keeps few compiled kernels, unless its user says how many."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ftp_core.loading.compiled_kernels import MOST_KEPT, keep_few_kernels

# Products of many shapes, and what they left of the process's memory, in MiB.
_PRODUCTS = """
import sys
import psutil, torch
from ftp_core.loading.compiled_kernels import keep_few_kernels
if sys.argv[1] == "few":
    keep_few_kernels()
torch.set_num_threads(1)
weight = torch.ones(64, 64, dtype=torch.bfloat16)
def multiply(counts):
    for n in counts:
        torch.nn.functional.linear(torch.ones(n, 64, dtype=torch.bfloat16), weight)
multiply(range(8, 16))
before = psutil.Process().memory_info().rss
multiply(range(16, 1016))
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def grown_mib(kind: str, **variables: str) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE_CAPACITY")}
    command = [sys.executable, "-c", _PRODUCTS, kind]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_kernels_of_many_shapes_do_not_pile_up() -> None:
    kept = grown_mib("all")
    if kept < 100:
        pytest.skip("this CPU does not compile a kernel for each shape")
    assert grown_mib("few") < kept / 2


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    # Set first, so that what the test leaves is taken back.
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    keep_few_kernels()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(MOST_KEPT)
