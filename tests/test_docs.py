"""Every code block of README and docs runs as it is written, or says in a comment before it why it does not."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import search
from ftp_core.demo.examples import demo_examples
from ftp_core.routers import DynamicRouter
from search.cli import app
from search.progress.observer import RunObserver
from tests.conftest import ROOT
from tests.ftp_core.small_tokenizers import tokenizer_of

FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
)
BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<why>[^\n]+) -->\n *)?```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.M | re.S
)
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?ftp-search (.*)$")
SMALL = {"cost": "flops", "workers": 1, "trials": 12, "rounds": 1, "refine_trials": 4, "router_trials": 0}
FEW = {"search_items": 4, "calibration_items": 8, "validation_items": 8, "test_items": 8, "measured_points": 2}


@dataclass(frozen=True)
class Block:
    """A code block, and where it begins."""

    place: str
    language: str
    code: str
    why_not: str | None


class Untold(RunObserver):
    """An observer that does nothing with what it is told."""


def blocks(file: str) -> list[Block]:
    text = (ROOT / file).read_text()
    return [
        Block(
            f"{file}:{text[: match.start('code')].count(chr(10)) + 1}",
            match["language"],
            re.sub(f"^{match['indent']}", "", match["code"], flags=re.M),
            match["why"],
        )
        for match in BLOCK.finditer(text)
    ]


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of this program that a block has, without comments."""
    for line in block.code.splitlines():
        if found := COMMAND.match(line):
            yield shlex.split(found[1], comments=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the blocks name: a model, data, and a study `demo` in the database."""
    made = tmp_path_factory.mktemp("docs")
    tokenizer = tokenizer_of("demo")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape)
    LlamaForCausalLM(config).save_pretrained(made / "my-llama")
    tokenizer.save_pretrained(made / "my-llama")
    lines = [
        json.dumps({"prompt": one.prompt, "completion": one.choices[one.answer]})
        for one in demo_examples("train", 48)
        if one.choices
    ]
    (made / "train.jsonl").write_text("\n".join(lines) + "\n")
    run = {"model": made / "my-llama", "data": made / "train.jsonl", "out": made / "ftp-out/demo", **SMALL, **FEW}
    more = {"timed_runs": 2, "new_tokens": (0,), "latency_length": (64,), "router_steps": 4, "router_schedules": 1}
    search.run("demo", storage=f"sqlite:///{made / 'ftp-studies.db'}", quiet=True, **run, **more)
    return made


def given(file: str, folder: Path) -> dict[str, Any]:
    """What the blocks of a file take for granted."""
    from transformers import AutoModelForCausalLM

    from ftp_core import FTPForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(folder / "my-llama")
    schedule = [0.0, 0.3, 0.5, 0.5]
    return {
        "README.md": {"dense": dense},
        "docs/cost.md": {"model": FTPForCausalLM.from_dense(dense, schedule, DynamicRouter()), "profile": None},
        "docs/pruned-models.md": {"schedule": schedule},
        "docs/tracking.md": {"mine": Untold()},
    }.get(file, {})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_blocks_run_as_they_are_written(file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] | None = None
    for block in blocks(file):
        if block.why_not is not None:
            continue
        if block.language == "python":
            names = given(file, folder) if names is None else names
            exec(compile(block.code, block.place, "exec"), names)
        elif block.language == "sh":
            for command in commands(block):
                done = subprocess.run([sys.executable, "-m", "search", *command], capture_output=True, text=True)
                assert done.returncode == 0, f"{block.place}: {done.stderr}"
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), dict), block.place


@pytest.mark.parametrize("file", FILES)
def test_blocks_say_what_they_are(file: str) -> None:
    text = (ROOT / file).read_text()
    found = blocks(file)
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.M))
    assert {block.language for block in found} <= {"python", "sh", "yaml", "text"}
    # Every line of a shell block that is run is a command of this program.
    for block in found:
        if block.language == "sh" and block.why_not is None:
            assert len(list(commands(block))) == len(block.code.splitlines()), block.place


@pytest.mark.parametrize("file", FILES)
def test_commands_have_the_options_that_they_are_shown_with(file: str) -> None:
    root = typer.main.get_command(app)
    for block in blocks(file):
        for arguments in commands(block):
            command, rest, context = root, arguments, click.Context(root, info_name="ftp-search")
            while isinstance(command, click.Group):
                name, command, rest = command.resolve_command(context, rest)
                assert command is not None, block.place
                context = click.Context(command, info_name=name, parent=context)
            try:
                command.make_context(None, list(rest), parent=context.parent)
            except click.UsageError as error:
                pytest.fail(f"{block.place}: ftp-search {' '.join(arguments)}: {error.format_message()}")


@pytest.mark.parametrize("file", FILES)
def test_links_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text()
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
        if target and "://" not in target:
            assert ((ROOT / file).parent / target).exists(), target
    # Paths in code spans are files or folders of the repository.
    for path in re.findall(r"`((?:search|studies|ftp_core|dashboards|benchmarks|tests|docs)/[\w/]*(?:/|\.\w+))`", text):
        assert (ROOT / path).exists(), path


def test_readme_and_architecture_name_folders_with_the_sentence_that_the_folder_has() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for package in ("ftp_core", "studies", "search", "dashboards"):
        for init in sorted((ROOT / package).rglob("__init__.py")):
            folder = init.parent.relative_to(ROOT)
            sentence = (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()[0]
            row = f"| `{folder}/` | {sentence} |"
            if folder.parent == Path("."):
                assert row in (ROOT / "README.md").read_text(), row
                row = f"### `{folder}/`\n\n{sentence}\n"
            assert row in text, row
