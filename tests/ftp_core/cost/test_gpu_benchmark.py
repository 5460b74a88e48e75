"""The script for GPUs runs on a CPU with tiny models, keeps what it finds as it goes, and keeps to its time."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"


Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script, and gives its exit status and what it printed and said on standard error."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def test_every_variant_is_checked_and_timed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    size = ("--batches", "1,4", "--lengths", "32,512", "--sparsities", "0.3,0.5", "--repeats", "1")
    status, out, err = run("--tiny", *size, "--models", "llama2-7b,qwen1.5-7b", "--json", str(path))
    assert status == 0, err
    found = json.loads(path.read_text())
    assert found["device"] and found["date"] and found["dtype"] == "bfloat16"
    checks = {(check["model"], check["check"]): check["error"] <= check["tolerance"] for check in found["checks"]}
    assert len(checks) == 8 and all(checks.values())
    cells = {(row["model"], row["batch"], row["length"]) for row in found["rows"]}
    assert cells == {(model, batch, 32) for model in ("llama2-7b", "qwen1.5-7b") for batch in (1, 4)}
    kinds = {(row["variant"], row["sparsity"]) for row in found["rows"]}
    assert kinds == {("dense", 0.0)} | {
        (name, share) for name in ("static", "dynamic", "block removal") for share in (0.3, 0.5)
    }
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0 and row["ideal"] >= 1
        assert row["share_of_ideal"] == pytest.approx(row["speedup"] / row["ideal"])
        if row["variant"] in ("static", "dynamic"):
            assert row["skipped"] == pytest.approx(row["sparsity"], abs=0.1)
    assert {(left["length"], left["why"]) for left in found["not_measured"]} == {(512, "the model reads 256 tokens")}
    assert "llama2-7b 4 x 32, static 30%: " in out


def test_what_there_is_no_time_for_is_listed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    status, _, _ = run("--tiny", "--seconds", "0.01", "--batches", "1", "--lengths", "32", "--json", str(path))
    found = json.loads(path.read_text())
    assert status == 0 and found["rows"] == []
    assert [left["why"] for left in found["not_measured"]] == ["no time left"] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(run: Run) -> None:
    status, _, err = run()
    assert status == 1 and "not measured: torch finds no GPU here" in err
