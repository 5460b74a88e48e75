"""The selected point is timed end to end at every prompt length that is asked for, and what was timed is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import search.stages.time_generation
from ftp_core.cost.measure import time_generation
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload, load_workload
from search.pipeline.pipeline import Pipeline
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.measure import timed_length, timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.time_generation import check_lengths, forget_speeds, new_tokens_to_time, time_selected
from studies import Measurement, StudyStore
from studies.records.generation_speed import GenerationSpeed
from studies.records.study_facts import StudyFacts, TimedInput
from tests.studies.records import trial

CONTEXT, N_BLOCKS = 512, 12
SMALL: dict[str, Any] = {
    **{"calibration_items": 4, "validation_items": 4, "test_items": 4, "search_items": 4, "workers": 1},
    **{"latency_batch": 1, "timed_runs": 2},
}
SKIPS = (0.0, *(0.5,) * (N_BLOCKS - 1))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig(**SMALL).sizes)


def measured(variant: str, number: int | None, schedule: tuple[float, ...]) -> Measurement:
    return Measurement(
        variant=variant,
        trial=number,
        schedule=schedule,
        **{"kl": 0.1, "perplexity": 1.2, "accuracy": None, "accuracy_low": None, "accuracy_high": None},
        **{"n_items": 4, "latency_ms": 5.0, "latency_low_ms": 4.0, "latency_high_ms": 6.0, "repeats": 2},
        **{"batch": 1, "length": 64, "flops": 1e9},
    )


TESTED = [
    measured("dense", None, (0.0,) * N_BLOCKS),
    measured("uniform", None, (0.45,) * N_BLOCKS),
    measured("static", 0, SKIPS),
    measured("candidate", 1, (0.9,) * N_BLOCKS),
]


def opened(tmp_path: Path, workload: Workload, **changes: Any) -> Iterator[OpenStudy]:
    """A study whose trial 0 was selected and measured on test items."""
    config = RunConfig(**SMALL, **changes)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        store.trials.append("one", trial(0, (0.1, 5.0), schedule=SKIPS))
        store.studies.choose_trial("one", 0)
        store.results.replace_measurements("one", TESTED)
        with store.runs.lease("one") as lease:
            yield OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True)))


@pytest.fixture
def study(tmp_path: Path, workload: Workload) -> Iterator[OpenStudy]:
    yield from opened(tmp_path, workload, latency_length=(64, 32), new_tokens=(0, 3, 2))


def kept(study: OpenStudy) -> list[GenerationSpeed]:
    return list(study.store.studies.get("one").facts.generation_speeds)


@pytest.fixture
def timed_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the prompts that are timed, which really are."""
    lengths: list[int] = []

    def timed(model: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        lengths.append(ids.shape[1])
        return time_generation(model, ids, *rest, **options)

    monkeypatch.setattr(search.stages.time_generation, "time_generation", timed)
    return lengths


def test_dense_a_shortened_prompt_and_the_selected_point_are_timed_at_every_length(study: OpenStudy) -> None:
    time_selected(study)
    found = kept(study)
    names = [("dense", None), ("uniform", None), ("static", 0)]
    assert [(one.length, one.new_tokens, one.variant, one.trial) for one in found] == [
        (length, new_tokens, *name) for length in (64, 32) for new_tokens in (1, 2, 3) for name in names
    ]
    for one in found:
        assert (one.batch, one.repeats % 2, one.router) == (1, 0, None)
        assert 0 < one.latency_low_ms <= one.latency_ms <= one.latency_high_ms
        assert (one.speedup is None) == (one.variant == "dense")
        # As few turns as these have no interval.
        assert one.repeats >= 6 or one.speedup_low is one.speedup_high is None
    for early, late in ((one, two) for one in found for two in found if one.shape == two.shape):
        if early.variant == late.variant and early.new_tokens < late.new_tokens:
            assert early.latency_high_ms < late.latency_high_ms
    assert all(one.interval.startswith(("[", "(interval unknown")) for one in found)


def test_what_was_timed_before_a_process_died_is_not_timed_again(
    study: OpenStudy, timed_lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = search.stages.time_generation.time_generation

    def dies(model: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        if ids.shape[1] == 32:
            raise KeyboardInterrupt
        return counted(model, ids, *rest, **options)

    with monkeypatch.context() as dying:
        dying.setattr(search.stages.time_generation, "time_generation", dies)
        with pytest.raises(KeyboardInterrupt):
            time_selected(study)
    first = kept(study)
    assert {one.length for one in first} == {64}
    time_selected(study)
    assert timed_lengths == [64, 32] and kept(study)[: len(first)] == first
    time_selected(study)
    assert timed_lengths == [64, 32]
    forget_speeds(study)
    assert kept(study) == []


def test_more_new_tokens_and_lengths_are_added_and_the_length_of_costs_stays_first(
    study: OpenStudy, timed_lengths: list[int]
) -> None:
    study.store.studies.update_facts("one", StudyFacts(timed_input=TimedInput(1, 64)))
    time_selected(study)
    before = kept(study)
    further = replace(study, config=study.config.model_copy(update={"latency_length": (32, 48)}))
    time_selected(further)
    assert timed_lengths == [64, 32, 48]
    assert [one.length for one in kept(study)] == [64] * 9 + [32] * 9 + [48] * 9
    assert kept(study)[:18] == before
    more = replace(study, config=study.config.model_copy(update={"latency_length": (), "new_tokens": (5,)}))
    time_selected(more)
    assert timed_lengths == [64, 32, 48, 64]
    assert [one.new_tokens for one in kept(study) if one.length == 64] == [1, 1, 1, 5, 5, 5]
    assert kept(study)[0].length == 64


def test_without_settings_the_default_length_has_as_many_new_tokens_as_fit(tmp_path: Path, workload: Workload) -> None:
    [study] = opened(tmp_path, workload)
    length = timed_length(study.config, workload)
    assert length % 32 == 0
    assert new_tokens_to_time(study.config, CONTEXT - length + 1) == [1, 16, 64]
    assert new_tokens_to_time(study.config, 20) == [1, 16] and new_tokens_to_time(study.config, 1) == [1]
    assert new_tokens_to_time(study.config.model_copy(update={"new_tokens": (0,)}), 100) == [1]


def test_the_first_length_is_that_of_costs_until_the_study_has_one(study: OpenStudy, workload: Workload) -> None:
    assert timed_prompts(study).ids.shape == (1, 64)
    assert timed_length(study.config, workload, TimedInput(1, 96)) == 96


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latency_length": (64, 4096)}, "--latency-length is 4096, but the model reads 512 tokens at most"),
        ({"latency_length": (500,), "new_tokens": (14,)}, "--new-tokens is 14 behind prompts of 500, .* more than 13"),
        ({"latency_length": (64, 512), "new_tokens": (2,)}, "--new-tokens is 2 behind prompts of 512"),
        ({"new_tokens": (16, 512)}, "--new-tokens is 512 behind prompts of .* or a shorter --latency-length"),
    ],
)
def test_what_does_not_fit_into_the_context_is_refused(
    workload: Workload, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_lengths(RunConfig(**SMALL, **settings), workload)


@pytest.mark.parametrize(
    "settings",
    [{}, {"latency_length": (512,)}, {"latency_length": (500,), "new_tokens": (13,)}, {"new_tokens": (0,)}],
)
def test_what_just_fits_is_not(workload: Workload, settings: dict[str, Any]) -> None:
    check_lengths(RunConfig(**SMALL, **settings), workload)


def test_a_study_that_goes_on_is_checked_before_its_work_does(study: OpenStudy, workload: Workload) -> None:
    config = study.config.model_copy(update={"new_tokens": (480,)})
    with pytest.raises(ConfigError, match="--new-tokens is 480 behind prompts of 64"):
        Pipeline(study.store, "one", study.lease, study.view, config, workload)


@pytest.mark.parametrize("field", ["latency_length", "new_tokens"])
def test_numbers_below_their_range_are_refused(field: str) -> None:
    option = f"--{field.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"{option} is -1: expected a number greater than or equal to"):
        RunConfig.checked(**{field: (16, -1)})
