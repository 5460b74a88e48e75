"""The configuration of a run, checked before any work starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from ftp_core.sources.source import parse_sources
from search.config.groups import (
    CONFIG_VERSION,
    DataSettings,
    EvaluationSettings,
    RouterSettings,
    RunSettings,
    SearchSettings,
)
from search.config.setting import Setting, option
from search.errors import ConfigError
from search.problem.fidelities import part_ends
from studies.records.target import TARGETS

DEFAULT_STORAGE = "sqlite:///ftp-studies.db"
# Names the database where no option does; a password is best given here, since no list of processes shows it.
STORAGE_VARIABLE = "FTP_SEARCH_STORAGE"
# Settings that nothing uses without rounds.
_OF_ROUNDS = ("refine_trials", "router", "router_steps", "router_schedules")
# What pydantic calls values of the wrong type, and what people call the right one.
_EXPECTED_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
}


# Fields come in the order of the groups from the last base to the first.
class RunConfig(RunSettings, EvaluationSettings, RouterSettings, SearchSettings, DataSettings):
    """Everything that a study needs to be run, stopped and resumed anywhere.

    Its fields are those of the groups that it is made of; `SETTINGS` describes them.
    """

    @model_validator(mode="after")
    def _goes_together(self) -> RunConfig:
        if self.deterministic and self.pruner != "halving":
            raise ConfigError(
                f"--pruner {self.pruner} decides by what has ended so far, which --deterministic rules out: use "
                "halving."
            )
        targets = [field for field in TARGETS if getattr(self, field) is not None]
        if len(targets) > 1:
            raise ConfigError(f"{' and '.join(map(option, targets))} are all given: expected one target at most.")
        part_ends(self.search_items, self.fidelities)
        if self.workers + self.gpu_workers == 0:
            raise ConfigError("--workers and --gpu-workers are both 0: expected at least one worker.")
        return self

    @classmethod
    def checked(cls, called: Callable[[str], str] = option, /, **values: Any) -> RunConfig:
        """Builds a configuration; anything outside its range is an error of one clear line.

        Args:
            called: Name of a field for whoever gave its value, with the place where it stands.
            values: The fields that are given.

        Raises:
            ConfigError: With the field, what it was, and what was expected.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            # A misspelled name first: it may be why another is missing.
            first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
            if not first["loc"]:
                # Options that do not go together: the message names them.
                raise ConfigError(first["msg"].removeprefix("Value error, ")) from error
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                raise ConfigError(f"{called(name)} is unknown: {suggestion(name, cls.model_fields)}") from error
            raise ConfigError(f"{called(name)} is {first['input']!r}: {_expected(first)}.") from error

    @classmethod
    def stored(cls, values: Mapping[str, Any], **changes: Any) -> RunConfig:
        """Builds a configuration from the stored one of a study, with changes to it.

        Raises:
            ConfigError: Another version of the program wrote it, or a change is out of range.
        """
        version = values.get("version", CONFIG_VERSION)
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"The study's configuration has version {version}, and this program reads {CONFIG_VERSION}: use the "
                "program that began it."
            )
        # Whoever only looks at a study need not know its proposers.
        named = {"sampler": values["sampler"]} if "sampler" in values and "sampler" not in changes else {}
        config = cls.checked(**{key: value for key, value in {**values, **changes}.items() if key not in named})
        return config.model_copy(update=named)

    @property
    def asked_trials(self) -> frozenset[int]:
        """Trials that are measured because somebody asked for them."""
        selected = () if self.select_trial == "auto" else (self.select_trial,)
        return frozenset((*self.also_measure, *selected))

    @property
    def without_effect(self) -> list[str]:
        """A sentence for each setting that was given, other than its default, and that another one makes useless."""
        tunes = ("router_trials",) if self.router_trials else ()
        data = [self.data, self.test_data] if self.test_data else [self.data]
        kinds = {source.kind for sources in map(parse_sources, data) for source in sources}
        useless = {
            "no task of lm-evaluation-harness is among the data": () if "task" in kinds else ("fewshot",),
            "no file and no table is among the data": () if kinds & {"path", "hf"} else ("columns",),
            "no router is distilled with --rounds 0": () if self.rounds else _OF_ROUNDS + tunes,
            "they are hyperparameters of the dynamic router": () if self.distils_dynamic else tunes,
            "no schedule is stopped early without --fidelities": ("pruner",) if len(self.fidelities) == 1 else (),
            "no worker is on a GPU": ("gpu_share",) if self.device == "cpu" and not self.gpu_workers else (),
            "blocks that skip as a whole and drop keys have no substitutes": (
                ("substitute",) if (self.granularity, self.kv) == ("block", "drop") and self.substitute else ()
            ),
            "there are none where skipped tokens drop theirs": (
                ("keys",) if self.kv == "drop" and self.keys == "fitted" else ()
            ),
            "the search predicts no latency": () if self.predicts_latency else ("profile_seconds",),
        }
        said = {
            field: reason
            for reason, fields in useless.items()
            for field in fields
            if field in self.model_fields_set and getattr(self, field) != type(self).model_fields[field].default
        }
        return [f"{option(field)} has no effect: {reason}." for field, reason in said.items()]


GROUPS = (DataSettings, SearchSettings, RouterSettings, EvaluationSettings, RunSettings)
# What the settings below each heading are about, in a sentence.
HEADINGS: Mapping[str, str] = {group.heading: " ".join((inspect.getdoc(group) or "").split()) for group in GROUPS}
# Every field that can be given; the version is the program's.
SETTINGS: Mapping[str, Setting] = {
    field: Setting(field, group.heading, RunConfig.model_fields[field])
    for group in GROUPS
    for field in inspect.get_annotations(group)
}
# Fields that a new study may have.
OF_NEW_STUDIES = tuple(field for field, setting in SETTINGS.items() if not setting.about.of_trials)
# Fields that may change of a study that has begun.
RESUMABLE = tuple(field for field, setting in SETTINGS.items() if setting.about.can_change)
# Fields that a request to a service may give: the Ray cluster is the service's own setting.
SUBMITTABLE = tuple(field for field in OF_NEW_STUDIES if SETTINGS[field].about.in_requests)


def suggestion(name: str, known: Collection[str]) -> str:
    """Advice for an unknown name: the nearest known one, or a list of all."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}."


def _expected(error: ErrorDetails) -> str:
    """The expected value, in words that need no knowledge of pydantic."""
    kind = error["type"].partition("_")[0]
    if error["type"].endswith(("_type", "_parsing", "_from_float")) and kind in _EXPECTED_TYPES:
        return f"expected {_EXPECTED_TYPES[kind]}"
    of = "one of" if error["type"] == "literal_error" else "a number"
    return error["msg"].replace("Input should be", f"expected {of}").removeprefix("Value error, ").removesuffix(".")
