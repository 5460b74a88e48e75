"""A setting says of its field what the command line, files, requests and forms need to know."""

from __future__ import annotations

import pytest

from search.config.run_config import GROUPS, OF_NEW_STUDIES, RESUMABLE, SETTINGS, RunConfig
from search.errors import ConfigError


def test_every_setting_belongs_to_one_group() -> None:
    assert [group.heading for group in GROUPS] == list(dict.fromkeys(one.group for one in SETTINGS.values()))
    assert list(SETTINGS) == [field for group in GROUPS for field in group.model_fields if field != "version"]


@pytest.mark.parametrize(
    ("field", "metavar"),
    [
        *[("trials", "N"), ("min_accuracy", "X"), ("model", "TEXT"), ("seconds", "S"), ("deterministic", None)],
        *[("keep_first", "N|system"), ("export", "reference|full|none")],
        *[("fidelities", "X,X,..."), ("dense_blocks", "N,N,..."), ("new_tokens", "N,N,...")],
    ],
)
def test_the_placeholder_of_a_value_follows_from_its_type(field: str, metavar: str | None) -> None:
    assert SETTINGS[field].metavar == metavar


def test_lists_are_typed_with_commas() -> None:
    assert SETTINGS["dense_blocks"].parsed(" 0, -1,") == (0, -1)
    assert SETTINGS["fidelities"].parsed("0.25,1") == (0.25, 1.0)
    assert SETTINGS["model"].parsed("a,b") == "a,b" and SETTINGS["new_tokens"].parsed(None) is None
    with pytest.raises(ConfigError, match=r"^--new-tokens is '16;64': expected whole numbers with commas, such as 16"):
        SETTINGS["new_tokens"].parsed("16;64")


def test_the_example_of_a_list_is_a_value_of_it() -> None:
    lists = [setting for setting in SETTINGS.values() if setting.item is not None]
    assert len(lists) == 5
    for setting in lists:
        RunConfig.checked(**{setting.name: setting.parsed(setting.about.example)})


def test_what_a_study_is_made_of_does_not_change_once_it_has_begun() -> None:
    fixed = {"seed", "search_items", "cost", "target_sparsity", "sampler", "router"}
    of_trials = set(SETTINGS) - set(OF_NEW_STUDIES)
    assert of_trials == {"also_measure", "select_trial"} <= set(RESUMABLE)
    assert not fixed & set(RESUMABLE) and {"trials", "workers", "out", "model"} <= set(RESUMABLE)
