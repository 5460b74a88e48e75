"""A pruned model without its dense weights finds those that are on the Hub, by id and commit, on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftp_core.demo import assets
from ftp_core.loading.hub_cache import cached_commit, origin_of
from ftp_core.model.configuration import FTPConfig
from tests.conftest import ROOT
from tests.ftp_core.sources.small_hub import small_hub

MAIN, OTHER = "a" * 40, "b" * 40

# The client reads the hub's address as it is imported.
SAVE = """
import sys
from ftp_core import FTPForCausalLM
from ftp_core.loading.models import load_published
from ftp_core.loading.reference import ModelReference
folder, other = sys.argv[1:]
for name, model in (("main", ModelReference("hf:org/tiny")), ("other", ModelReference("hf:org/tiny", other))):
    dense, _ = load_published(model)
    pruned = FTPForCausalLM.from_dense(dense, [0.25] * dense.config.num_hidden_layers)
    pruned.save_pretrained(f"{folder}/{name}", include_base=False)
    pruned.save_pretrained(f"{folder}/{name}-whole")
"""
LOAD = """
import json, sys
from ftp_core import FTPForCausalLM
from ftp_core.errors import ModelError
found = []
for folder, *settings in (one.split(",") for one in sys.argv[1:]):
    try:
        model = FTPForCausalLM.from_pretrained(folder, **dict(one.split("=") for one in settings))
        found.append(model.base.config.rms_norm_eps)
    except ModelError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def run(code: str, hub: str, home: Path, *arguments: str, **settings: str) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", **settings}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def revisions() -> dict[str, dict[str, bytes]]:
    """Two commits of a model, whose configurations differ."""
    files = {path.name: path.read_bytes() for path in assets().iterdir() if path.suffix in (".json", ".safetensors")}
    config = json.loads(files["config.json"])
    return {
        commit: files | {"config.json": json.dumps(config | {"rms_norm_eps": eps}).encode()}
        for commit, eps in ((MAIN, 1e-5), (OTHER, 2e-5))
    }


@pytest.mark.slow
def test_another_machine_loads_the_commit_that_was_pruned(tmp_path: Path) -> None:
    main, other = str(tmp_path / "main"), str(tmp_path / "other")
    with small_hub({"org/tiny": revisions()}) as hub:
        run(SAVE, hub, tmp_path / "here", str(tmp_path), OTHER)
        saved = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("main", "other")]
        assert [(one["base_model"], one["base_revision"]) for one in saved] == [
            ("org/tiny", MAIN),
            ("org/tiny", OTHER),
        ]
        there = tmp_path / "there"
        named = f"{other},base_model=org/tiny,base_revision={OTHER}"
        # The main branch is another model, and there is no such commit.
        wrong = (f"{other},base_model=org/tiny", f"{other},base_revision={'c' * 40}")
        *found, moved, unknown = json.loads(run(LOAD, hub, there, main, other, named, *wrong))
        assert found == [1e-5, 2e-5, 2e-5]
    assert "is not the one that was pruned" in moved
    assert f"The dense model 'org/tiny (revision {'c' * 40})', to which {other} refers, cannot be loaded" in unknown
    assert json.loads(run(LOAD, "http://127.0.0.1:9", there, other, HF_HUB_OFFLINE="1")) == [2e-5]
    for name in ("other", "other-whole"):
        assert f"`org/tiny` (revision `{OTHER}`)" in (tmp_path / name / "README.md").read_text()
    whole = json.loads((tmp_path / "other-whole" / "config.json").read_text())
    assert whole["base_model"] is None and whole["base_revision"] is None
    assert str(tmp_path / "here") not in (tmp_path / "other" / "README.md").read_text()


def test_only_the_client_s_own_cache_is_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / MAIN
    snapshot.mkdir(parents=True)
    assert origin_of(str(snapshot)).name == str(snapshot) and origin_of(str(snapshot)).revision is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert (origin_of(str(snapshot)).name, origin_of(str(snapshot)).revision) == ("org/tiny", MAIN)
    inside = snapshot / "subfolder"
    inside.mkdir()
    assert origin_of(str(inside)).name == str(inside)
    assert [origin_of(name).name for name in ("", "org/tiny", "/nowhere/at/all")] == ["", "org/tiny", "/nowhere/at/all"]
    assert cached_commit("/nowhere/at/all") is None and cached_commit("org/never-cached") is None


@pytest.mark.parametrize(
    ("given", "revision"), [({}, MAIN), ({"base_model": "new"}, None), ({"base_model": "n", "base_revision": "v"}, "v")]
)
def test_a_dense_model_that_is_named_anew_has_no_earlier_revision(given: dict[str, Any], revision: str | None) -> None:
    saved = FTPConfig(base_model="org/tiny", base_revision=MAIN, schedule=[0.0]).to_dict()
    assert FTPConfig.from_dict(saved, **given).base_revision == revision
