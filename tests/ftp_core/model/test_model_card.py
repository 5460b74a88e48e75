"""A saved model says what it is, and how it is loaded, to people and to a transformers that does not know it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.model.model_card import CARD, add_figures, write_card
from tests.ftp_core.model.test_causal_lm import MIXED
from tests.ftp_core.tiny_models import fresh_tiny

# A program that imports transformers alone. Python finds no ftp_core where it was told so.
PLAIN = """
import importlib.abc, sys
folder, ways, absent = sys.argv[1], eval(sys.argv[2]), sys.argv[3:]
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM
assert not any(name.startswith("ftp_core") for name in sys.modules)
for options in ways:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        with torch.no_grad():
            print(type(model).__name__, model(torch.arange(3, 23)[None]).logits.double().sum().item())
        model.save_pretrained(folder + "-again")
"""


@pytest.fixture
def pruned(tmp_path: Path) -> FTPForCausalLM:
    """A pruned model that is saved as `pruned`."""
    fresh_tiny().save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    model = FTPForCausalLM.from_dense(dense, MIXED)
    model.save_pretrained(tmp_path / "pruned")
    return model.eval()


def test_the_card_says_which_tokens_are_protected(pruned: FTPForCausalLM, tmp_path: Path) -> None:
    said = "The first 12 tokens of every prompt are kept before others."
    assert said not in (tmp_path / "pruned" / CARD).read_text()
    FTPForCausalLM.from_pretrained(tmp_path / "pruned", keep_first=12).save_pretrained(tmp_path / "again")
    assert said in (tmp_path / "again" / CARD).read_text()


def _plain(folder: Path, ways: str, *absent: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, folder, ways, *absent],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_transformers_alone_says_what_it_needs_and_then_loads_the_model(pruned: FTPForCausalLM, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    with torch.no_grad():
        expected = pruned(torch.arange(3, 23)[None]).logits.double().sum().item()
    said = _plain(folder, "[{}, {'trust_remote_code': True}]")
    assert "Please pass the argument `trust_remote_code=True`" in said
    name, found = said.split()[-2:]
    assert (name, float(found)) == ("FTPForCausalLM", pytest.approx(expected, rel=1e-5))
    # What was loaded so is saved with the same files, and none of our modules among them.
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "pruned-again").iterdir()} == names
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_ftp.py"}


@pytest.mark.slow
def test_where_the_package_is_missing_the_error_names_it(pruned: FTPForCausalLM, tmp_path: Path) -> None:
    said = _plain(tmp_path / "pruned", "[{'trust_remote_code': True}]", "ftp_core")
    assert said.startswith("ImportError This is a pruned model") and "ftp-search" in said
    # There is no such package.
    assert "pip install ftp_core" not in said


def test_the_card_says_what_the_model_is_and_nothing_that_is_not_known(pruned: FTPForCausalLM, tmp_path: Path) -> None:
    text = (tmp_path / "pruned" / CARD).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ftp-search", "token-skipping", "pruned"],
    }
    assert f"{MIXED.overall:.1%}" in body and "`static` router" in body and "Nothing was measured" in body
    assert [line for line in body.splitlines() if line.startswith("| 1 ")] == [f"| 1 | {MIXED[1]:.0%} |"]
    pruned.config.base_model = "someone/a-model"
    write_card(pruned.config, tmp_path, tmp_path)
    add_figures(tmp_path, tmp_path, ["Accuracy 50 %."])
    other = (tmp_path / CARD).read_text()
    assert yaml.safe_load(other.split("---\n")[1])["base_model"] == "someone/a-model"
    assert "## Figures\n\nAccuracy 50 %.\n" in other and "Nothing was measured" not in other
    assert "base_model=..." in other


def test_a_card_that_people_wrote_stays(pruned: FTPForCausalLM, tmp_path: Path) -> None:
    card = tmp_path / "pruned" / CARD
    pruned.schedule = [0.0] * len(MIXED)
    pruned.save_pretrained(tmp_path / "pruned")
    assert "skip transformer blocks: 0.0% of them" in card.read_text()
    card.write_text("# Mine\n")
    pruned.save_pretrained(tmp_path / "pruned")
    assert card.read_text() == "# Mine\n"
    (tmp_path / CARD).write_text("ours")
    add_figures(tmp_path, tmp_path / "pruned", ["Accuracy 50 %."])
    assert not (tmp_path / CARD).exists()
