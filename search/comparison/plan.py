"""Checks what is to be compared, before anything is loaded, and fills in what is not said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from pydantic import TypeAdapter

from search.comparison.methods import method_names
from search.config.study_name import resume_command
from search.errors import ConfigError, UnfinishedError
from studies import StudyRecord, StudyStore
from studies.records.compared import Match

_HIGHEST = 0.9
# Less is no difference between methods.
_LEAST = 0.02
# Rows and tokens of a prefill; more digits are a slip.
_SHAPE = re.compile(r"([1-9][0-9]{0,4})[x×]([1-9][0-9]{0,6})")


@dataclass(frozen=True)
class ComparisonPlan:
    """What is to be compared.

    Attributes:
        methods: Names of methods; the study's own schedules come first, whether they are named or not.
        targets: Shares of the dense model's time, or operations, that each is to save.
        match: What is alike at a target.
        seeds: Seeds of each method with chance.
        shapes: Rows and tokens of further prefills to time.
    """

    methods: tuple[str, ...]
    targets: tuple[float, ...]
    match: Match = "latency"
    seeds: int = 3
    shapes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> ComparisonPlan:
        """The plan whose attributes were kept as plain values."""
        return TypeAdapter(cls).validate_python(content)


def comparison_plan(
    store: StudyStore,
    study: StudyRecord,
    methods: Sequence[str] | None,
    budgets: Sequence[float | str] | None,
    match: str,
    seeds: int,
    shapes: Sequence[str] = (),
    advice: str | None = None,
) -> ComparisonPlan:
    """What a study is to be compared with.

    Args:
        store: Database of the study.
        study: The study.
        methods: Names; None for all.
        budgets: Shares to save, as numbers or as somebody wrote them; None for what the selected schedule saves.
        match: What is alike, see `ComparisonPlan`.
        seeds: Seeds of each method with chance.
        shapes: Further prefills to time, as rows x tokens.
        advice: What to do about a study that has not finished; None for the command that resumes it.

    Raises:
        ConfigError: A name or a number is wrong, or the study has nothing to compare.
    """
    if match not in get_args(Match):
        raise ConfigError(f"--match is {match!r}: expected latency or flops.")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: expected at least 1.")
    names = tuple(dict.fromkeys(methods)) if methods is not None else method_names()
    unknown = [name for name in names if name not in method_names()]
    if unknown or not names:
        wrong = f"There is no method {unknown[0]!r}" if unknown else "--methods names nothing"
        raise ConfigError(f"{wrong}: expected some of {', '.join(method_names())}.")
    advice = f"finish it with `{resume_command(repr(store), study.name)}`" if advice is None else advice
    if study.chosen_trial is None:
        raise UnfinishedError(f"Study {study.name!r} has no chosen schedule to compare others with: {advice}.")
    kind, timed = cast(Match, match), dict.fromkeys(map(_shape, shapes))
    targets = (_selected(store, study, kind, advice),) if budgets is None else tuple(map(_share, budgets))
    if not targets:
        raise ConfigError("--budgets names nothing: expected shares to save, such as 0.15,0.25.")
    return ComparisonPlan(names, tuple(dict.fromkeys(targets)), kind, seeds, tuple(timed))


def listed(text: str) -> list[str]:
    """What a text names, with commas between."""
    return [part for one in text.split(",") if (part := one.strip())]


def _share(given: float | str) -> float:
    try:
        share = float(given)
    except (TypeError, ValueError):
        share = 0.0
    if not 0 < share <= _HIGHEST:
        raise ConfigError(f"--budgets has '{given}': expected shares to save, above 0 and at most {_HIGHEST:g}.")
    return share


def _shape(text: str) -> tuple[int, int]:
    found = _SHAPE.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(f"--shapes has '{text}': expected rows and tokens of prefills, such as 1x256,8x2048.")
    return int(found[1]), int(found[2])


def _selected(store: StudyStore, study: StudyRecord, match: Match, advice: str) -> float:
    """The share that the selected schedule saves, as it was measured on test items."""
    tested = [one for one in store.results.measurements(study.name) if one.split == "test"]
    dense = next((one for one in tested if one.variant == "dense"), None)
    chosen = next((one for one in tested if one.trial == study.chosen_trial), None)
    if dense is None or chosen is None:
        raise ConfigError(
            f"What the selected schedule of {study.name!r} saves was not measured yet: give --budgets, or {advice}."
        )
    if match == "flops":
        return round(1 - chosen.flops / dense.flops, 3)
    saved = 0.0 if chosen.speedup is None else round(1 - 1 / chosen.speedup, 2)
    if saved < _LEAST:
        raise ConfigError(
            f"The selected schedule of {study.name!r} was measured to save {saved:.0%} of the dense model's time, "
            "where nothing can be told apart: give --budgets, or compare with --match flops."
        )
    return saved
