"""Revisions of the Hub's models, adapters, and models whose weights were quantised by others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
from peft import LoraConfig, get_peft_model

from ftp_core.demo import assets
from ftp_core.errors import ModelError
from ftp_core.loading import model_source, reference
from ftp_core.loading.model_source import locate
from ftp_core.loading.models import load_model, load_published, resolve
from ftp_core.loading.reference import ModelReference
from tests.ftp_core.tiny_models import fresh_tiny

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache of the Hub's client with two revisions of a model, whose configurations differ."""
    folder = tmp_path / "hub" / "models--someone--tiny"
    (folder / "refs").mkdir(parents=True)
    for number, (name, commit) in enumerate(COMMITS.items()):
        (folder / "refs" / name).write_text(commit)
        snapshot = Path(shutil.copytree(assets(), folder / "snapshots" / commit))
        config = snapshot / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-5 * (number + 1)}))
    return tmp_path / "hub"


def loaded_offline(hub: Path, *names: str) -> list[str]:
    """What a process without a network says of models that it loads, `name@revision` each."""
    code = (
        "import sys\n"
        "from ftp_core.errors import ModelError\n"
        "from ftp_core.loading.models import load_model\n"
        "from ftp_core.loading.reference import ModelReference\n"
        "for name, _, revision in (one.partition('@') for one in sys.argv[1:]):\n"
        "    try:\n"
        "        model = load_model(ModelReference(name, revision or None))\n"
        "        print(model.skipping.n_blocks, model.skipping.model.config.rms_norm_eps)\n"
        "    except ModelError as error:\n"
        "        print(str(error).replace('\\n', ' '))\n"
    )
    where = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, env=where, check=True)
    return done.stdout.splitlines()


def test_a_cached_model_loads_without_a_network_in_the_revision_that_is_asked_for(hub: Path) -> None:
    names = ("someone/tiny", "hf:someone/tiny@v1", f"someone/tiny@{COMMITS['v1']}", "someone/tiny@v2")
    *loaded, missing = loaded_offline(hub, *names)
    assert loaded == ["12 1e-05", "12 2e-05", "12 2e-05"]
    assert "Cannot find the model 'someone/tiny'" in missing


class _Response:
    """The part of a response that the client's errors look at."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.request = None
        self.status_code = 401


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "'someone/other' is gated: accept its terms at https://huggingface.co/someone/other"),
        (RevisionNotFoundError, "'someone/other' has no revision 'v9': expected a branch, a tag or a commit"),
    ],
)
def test_the_hubs_answers_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error("no", response=_Response())

    model_source._config_on_hub.cache_clear()
    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match=message):
        locate(ModelReference("someone/other", "v9"))


def test_a_revision_of_what_is_not_on_the_hub_is_refused() -> None:
    with pytest.raises(ModelError, match="The revision 'v1' is of models on the Hugging Face Hub, but 'demo' lies"):
        locate(ModelReference("demo", "v1"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the demo model that changes what it computes."""
    torch.manual_seed(1)
    model, _ = load_published("demo")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_into_the_weights(adapter: Path) -> None:
    found, plain = load_model(ModelReference("demo", adapter=str(adapter))), load_model("demo")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    from safetensors.torch import load_file

    parts = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.3.mlp.down_proj"
    up, down = (parts[f"base_model.model.{name}.lora_{side}.weight"] for side in ("B", "A"))
    weight, before = (one.skipping.model.get_submodule(name).weight for one in (found, plain))
    expected = before + settings["lora_alpha"] / settings["r"] * (up @ down)
    torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name, _ in found.skipping.model.named_modules())
    assert found.fingerprint() != plain.fingerprint()
    assert found.fingerprint() == load_model(ModelReference("demo", adapter=str(adapter))).fingerprint()


def test_an_adapter_that_cannot_be_merged_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    fresh_tiny().save_pretrained(other)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets() / file, other)
    with pytest.raises(ModelError, match="The adapter at .* does not fit the model"):
        load_model(ModelReference(str(other), adapter=str(adapter)))
    with pytest.raises(ModelError, match="No adapter at '/nowhere': expected a directory with adapter_config.json"):
        locate(ModelReference("demo", adapter="/nowhere"))
    monkeypatch.setattr(reference, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="needs the package peft, which is not installed: pip install"):
        locate(ModelReference("demo", adapter=str(adapter)))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="is of type 'IA3': expected LORA"):
        locate(ModelReference("demo", adapter=str(adapter)))
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no adapter_model.safetensors"):
        locate(ModelReference("demo", adapter=str(adapter)))


@pytest.mark.parametrize(
    ("method", "package"),
    [
        ("gptq", "gptqmodel"),
        ("awq", "gptqmodel"),
        ("bitsandbytes", "bitsandbytes"),
        ("torchao", "torchao"),
        ("compressed-tensors", "compressed-tensors"),
    ],
)
def test_quantised_weights_name_the_package_that_would_run_them_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    copy = Path(shutil.copytree(assets(), tmp_path / "model"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    monkeypatch.setattr(model_source, "find_spec", lambda _: None)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=f"quantised by {method}, which the package {package} runs.*pip install"):
        resolve(str(copy))
