"""Data sets of the Hub are read by name, configuration and split, and from the cache where no hub answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.ftp_core.sources.small_hub import small_hub

# The client reads the hub's address as it is imported.
READ = """
import json, sys
from ftp_core.errors import DataError
from ftp_core.sources.tables import load_hub
found = []
for name in sys.argv[1:]:
    try:
        examples, version = load_hub(name)
        found.append([bool(version), *(example.prompt for example in examples)])
    except DataError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def read(hub: str, home: Path, names: Sequence[str], **settings: str) -> list[str | list[object]]:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", **settings}
    done = subprocess.run(
        [sys.executable, "-c", READ, *names], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: list[str | list[object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_data_set_is_read_by_configuration_and_split_and_again_without_a_hub(tmp_path: Path) -> None:
    expected = {
        "org/set:one": [True, "a", "b"],
        "org/set:one:test": [True, "c"],
        "org/set:one:train[1:]": [True, "b"],
        "org/set:two": [True, "d"],
    }
    refused = {
        "org/set": "has several configurations; name one of one, two",
        "org/set:three:test": "has no configuration 'three'; expected one of one, two",
        "org/set:one:nothing": "Unknown split",
        "org/none": "has no data set 'org/none'",
        "org/gated": "is gated: accept its terms",
    }
    with small_hub() as hub:
        found = read(hub, tmp_path, [*expected, *refused])
    assert found[: len(expected)] == list(expected.values())
    for answer, reason in zip(found[len(expected) :], refused.values(), strict=True):
        assert isinstance(answer, str) and reason in answer and len(answer.splitlines()) == 1
    cached = list(expected)[:2]
    [*again, unknown] = read(hub, tmp_path, [*cached, "org/other"], HF_HUB_OFFLINE="1")
    assert again == [expected[name] for name in cached]
    assert "is not cached, and HF_HUB_OFFLINE forbids" in str(unknown)
    [unreachable] = read("http://127.0.0.1:9", tmp_path, ["org/other"])
    assert "the Hugging Face Hub cannot be reached" in str(unreachable)
