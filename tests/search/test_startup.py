"""A command begins with what is quick: it can be stopped at any moment, and refuses a wrong model before it loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.search.command import COMMAND, heed_signals

# Each is imported a while after the one before, the last of them only once it is known what to run.
MOMENTS = ("typer", "sqlalchemy", "optuna", "numpy", "torch", "transformers")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_whoever_stops_a_command_while_it_loads_sees_no_traceback(
    tmp_path: Path, moment: str, signal_sent: signal.Signals
) -> None:
    # Python says on standard error what it has imported.
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "run", "--name", "mine"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals) as process:
        assert process.stderr is not None
        seen = next(line for line in process.stderr if line.rpartition("|")[2].strip().startswith(moment))
        process.send_signal(signal_sent)
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == 130, seen
    assert said == ["Stopped.\n"]
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_to_is_named_at_once(tmp_path: Path) -> None:
    # A file is no folder for anybody, root included.
    (tmp_path / "home").touch()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    done = subprocess.run(
        [*COMMAND, "run"],
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"cannot keep its token in {tmp_path / 'home/.ray'}" in done.stderr and "set HOME" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "bert"],
        ["search", "--model", "bert"],
        ["run", "--repeats", "2", "--model", "bert"],
        ["profile", "--model", "bert"],
        ["sweep", "sweep.yaml"],
        ["run", "--data", "nowhere.jsonl"],
    ],
    ids=" ".join,
)
def test_a_wrong_model_is_refused_before_torch_is_loaded(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "bert" / name).touch()
    (tmp_path / "sweep.yaml").write_text("models: [./bert]\n")
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 1 and len(said) == 1
    assert "'bert' cannot skip tokens" in said[0] or "nowhere.jsonl: cannot be read" in said[0]
    assert "numpy" in imported and not {"torch", "transformers", "ray"} & imported
    assert sorted(tmp_path.iterdir()) == before
