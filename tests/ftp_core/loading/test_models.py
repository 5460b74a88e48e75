"""A model that cannot be used says why in one line, before its weights are read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ftp_core.demo import assets
from ftp_core.errors import ModelError
from ftp_core.loading.models import load_model, resolve


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with the demo model, to be spoiled."""
    return Path(shutil.copytree(assets(), tmp_path / "model"))


def edit_config(folder: Path, **values: object) -> None:
    """Overwrite entries of a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remove(file: str) -> Callable[[Path], None]:
    """A spoiler that takes a file away."""
    return lambda folder: (folder / file).unlink()


def write(file: str, text: str) -> Callable[[Path], None]:
    """A spoiler that overwrites a file."""
    return lambda folder: (folder / file).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("config.json"), "No model at"),
        (remove("model.safetensors"), "has no model.safetensors"),
        (remove("tokenizer.json"), "has no tokenizer"),
        (write("config.json", "{"), "config.json of model"),
        (lambda folder: edit_config(folder, model_type="mpt"), "'mpt' cannot skip tokens: their blocks are not known"),
        (lambda folder: edit_config(folder, model_type="no such"), "'no such' cannot skip tokens"),
        (lambda folder: edit_config(folder, model_type=None), "config.json of model"),
        (
            lambda folder: edit_config(folder, model_type="ftp", base_model="d"),
            "pruned model already: give its dense model, 'd'",
        ),
        (lambda folder: edit_config(folder, architectures=["LlamaModel"]), "LlamaModel, not a causal language model"),
        (
            lambda folder: edit_config(folder, architectures=["LlamaForSequenceClassification"]),
            "LlamaForSequenceClassification, not a causal language model",
        ),
        (write("config.json", "[]"), "config.json of model"),
        (lambda folder: edit_config(folder, num_hidden_layers="many"), "config.json of model"),
        (
            write("model.safetensors.index.json", '{"weight_map": {"a": "part-1.safetensors"}}'),
            "has no part-1.safetensors",
        ),
        (write("model.safetensors.index.json", "[]"), "is not an index of safetensors shards"),
    ],
)
def test_a_directory_that_is_no_usable_model_is_refused(
    copy: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy)
    with pytest.raises(ModelError, match=message) as caught:
        resolve(str(copy))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_safetensors_are_refused_in_one_line(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="Cannot load the model") as caught:
        load_model(str(copy))
    assert "\n" not in str(caught.value)


def test_the_fingerprint_names_weights_and_configuration_not_place_or_version(copy: Path) -> None:
    demo = load_model("demo").fingerprint()
    edit_config(copy, transformers_version="5.0.0", _name_or_path="elsewhere")
    assert load_model(str(copy)).fingerprint() == demo
    edit_config(copy, rms_norm_eps=1e-3)
    assert load_model(str(copy)).fingerprint() != demo


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "MyOwn"])
def test_a_causal_language_model_is_accepted_whatever_its_class_is_called(copy: Path, name: str) -> None:
    edit_config(copy, architectures=[name])
    assert resolve(str(copy)) == str(copy)


def test_what_a_wrong_model_is_told_needs_neither_torch_nor_transformers(copy: Path) -> None:
    edit_config(copy, model_type="bert")
    program = (
        "import sys\n"
        "from ftp_core.errors import ModelError\n"
        "from ftp_core.loading.model_source import locate\n"
        "try:\n"
        "    locate(sys.argv[1])\n"
        "except ModelError as error:\n"
        "    print(error)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, copy], capture_output=True, text=True, check=True)
    assert "'bert' cannot skip tokens" in done.stdout and done.stdout.endswith("\n[]\n")


def test_readme_and_docs_list_the_families_that_there_are() -> None:
    root = Path(__file__).parents[3]
    # Not those that other tests register.
    program = "from ftp_core.skipping.families import supported_families; print(*supported_families())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    families = set(done.stdout.split())
    listed = re.search(r"can skip tokens: (.*?)Others are refused", (root / "README.md").read_text(), re.DOTALL)
    assert listed is not None and set(re.findall(r"`(\w+)`", listed[1])) - {"gemma3"} == families
    table = (root / "docs/pruned-models.md").read_text().split("## Families")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) - {"model_type"} == families
