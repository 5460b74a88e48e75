"""Help says what a command takes: settings in the groups of a configuration file, and the range of every number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from search.cli import app
from search.config.file import config_text
from search.config.run_config import GROUPS, OF_NEW_STUDIES, SETTINGS
from search.config.setting import option
from tests.search.command import Result, run_here

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


def commands(group: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command, groups included, with the words that call it."""
    group = typer.main.get_command(app) if group is None else group
    yield name, group
    for word, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{name} {word}".strip())


def _sections(text: str) -> dict[str, str]:
    """The parts of a help below their headings."""
    parts = re.split(r"^(\S.*):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("command", ["run", "search", "submit"])
def test_settings_stand_below_the_headings_of_the_configuration_file(run: Run, command: str) -> None:
    shown = _sections(run(command, "--help").out)
    assert list(shown) == ["Options", *(group.heading for group in GROUPS)]
    headings = {}
    for line in config_text().splitlines():
        if (heading := re.fullmatch(r"# ---- (.*) ----", line)) is not None:
            section = heading[1]
        elif (setting := re.match(r"(?:# )?(\w+): ", line)) is not None and setting[1] in SETTINGS:
            headings[setting[1]] = section
    assert set(headings) == set(OF_NEW_STUDIES)
    for field, heading in headings.items():
        there = [section for section, text in shown.items() if re.search(rf"^  {option(field)}\b(?!-)", text, re.M)]
        # Where the cluster is, the service decides.
        assert there == ([] if (command, field) == ("submit", "ray_address") else [heading])


def test_an_option_without_a_group_is_shown_all_the_same(run: Run) -> None:
    assert {"--storage", "--quiet", "--help"} <= set(
        re.findall(r"--[\w-]+", _sections(run("resume", "--help").out)["Options"])
    )


def test_every_number_has_its_range_in_the_help() -> None:
    numbers = 0
    for name, command in commands():
        context = command.make_context(name, [], resilient_parsing=True)
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            descriptor = getattr(parameter, "type_descriptor", None)
            if record is not None and getattr(descriptor, "annotation", None) in (int, float):
                numbers += 1
                assert re.search(r"x[<>]", record[1]), f"{name}: {record}"
    assert numbers > 50


@pytest.mark.parametrize(
    ("field", "expected"),
    [("trials", "x>=1"), ("seconds", "x>0"), ("target_sparsity", "0<=x<=0.95"), ("gpu_share", "x>0"), ("data", "")],
)
def test_the_range_of_a_setting(field: str, expected: str) -> None:
    assert SETTINGS[field].range == expected
    assert f"[{expected}]" in config_text() or not expected
