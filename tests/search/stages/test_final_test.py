"""The point that a study ends with is selected by what is worth believing: the clock, or else the profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.config.run_config import RunConfig
from search.inputs.data import Workload, load_workload
from search.problem.objectives import OBJECTIVES
from search.progress.progress_view import ProgressView
from search.stages.final_test import select_candidate
from search.stages.measure import timed_prompts
from search.stages.open_study import OpenStudy
from studies import Measurement, StudyStore
from studies.records.study_facts import ProfileRecord, SelectionRecord, StudyFacts
from tests.ftp_core.cost.made_up_profiles import profile_of, shape_of
from tests.studies.records import trial

SMALL = {"calibration_items": 4, "validation_items": 4, "test_items": 4, "search_items": 4}
# Sparsity, KL, accuracy and speed-up on a quiet machine of points of a front; the knee is one of the last but one.
POINTS = {
    0: (0.0, 0.0, 0.98, 1.0),
    1: (0.038, 0.004, 0.98, 1.03),
    2: (0.31, 0.02, 0.95, 1.45),
    3: (0.43, 0.05, 0.94, 1.88),
    4: (0.62, 0.9, 0.70, 2.2),
}


@pytest.fixture(scope="module")
def workload() -> Workload:
    config = RunConfig(workers=1, **SMALL)
    return load_workload(config.model, config.data, config.seed, config.sizes)


@pytest.fixture
def study_of(tmp_path: Path, workload: Workload) -> Iterator[Any]:
    """Makes a study of the points, whose profile predicts what each saves of its blocks."""
    store = StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}")

    def make(name: str, waited: float | None = None, **settings: Any) -> OpenStudy:
        config = RunConfig(workers=1, **SMALL, **settings)
        store.studies.create(name, config.model_dump(), OBJECTIVES)
        study = OpenStudy(
            store, name, store.runs.lease(name).__enter__(), config, workload, ProgressView(Console(quiet=True))
        )
        n_blocks = workload.model.skipping.n_blocks
        for number, (sparsity, kl, _, ratio) in POINTS.items():
            store.trials.append(name, trial(number, (kl, 240 / ratio), (sparsity,) * n_blocks))
        batch, length = timed_prompts(study).ids.shape
        kept = tuple(range(1, length + 1))
        shape = shape_of(batch, length, kept, (tuple(map(float, kept)),), fixed_ms=10.0, waited=waited)
        profile = ProfileRecord.model_validate(profile_of(n_blocks, shape).to_json())
        store.studies.update_facts(name, StudyFacts(latency_profile=profile))
        return study

    yield make
    store.close()


def measured(study: OpenStudy, of_itself: tuple[float, float, float], **ratios: tuple[float, float, float]) -> None:
    """Keep validation measurements with speed-ups of (low, median, high): those of a quiet machine unless given."""
    n_blocks = study.workload.model.skipping.n_blocks
    rows = []
    for number, (sparsity, kl, accuracy, quiet) in {None: POINTS[0], **POINTS}.items():
        given = of_itself if number is None else ratios.get(f"trial_{number}", (0.99 * quiet, quiet, 1.01 * quiet))
        low, ratio, high = given
        rows.append(
            Measurement(
                **{"variant": "dense" if number is None else "candidate", "trial": number},
                **{"schedule": (sparsity,) * n_blocks, "kl": kl, "perplexity": 2.0, "accuracy": accuracy},
                **{"accuracy_low": 0.9 * accuracy, "accuracy_high": 1.0, "n_items": 128, "n_choice_items": 128},
                **{"latency_ms": 238.0 / ratio, "latency_low_ms": 200 / ratio, "latency_high_ms": 300 / ratio},
                **{"repeats": 36, "batch": 8, "length": 256, "split": "validation"},
                **{"flops": 4e9 * (1 - 0.9 * sparsity), "kv_bytes": int(1e6 * (1 - sparsity))},
                **{"speedup": ratio, "speedup_low": low, "speedup_high": high},
            )
        )
    study.store.results.replace_measurements(study.name, rows)


def selected(study: OpenStudy) -> SelectionRecord:
    select_candidate(study)
    record = study.store.studies.get(study.name)
    found = record.facts.selection
    assert found is not None and record.chosen_trial == found.trial
    return found


def test_on_a_quiet_machine_the_clock_selects(study_of: Any) -> None:
    study = study_of("quiet")
    measured(study, (0.99, 1.0, 1.01))
    found = selected(study)
    assert (found.trial, found.rule, found.cost, found.latency) == (3, "knee", "latency_ms", "measured")
    assert "1.88 times [1.86, 1.90] the dense model's prefill speed" in found.reason
    assert "Times were not usable" not in found.reason


def test_where_the_clock_is_noise_the_profile_selects_and_the_reason_says_why(study_of: Any) -> None:
    study = study_of("busy")
    # The dense model took 238 ms and as a trial 158; a schedule of 43 % took 679. By these the knee is nearly dense.
    noise = {"trial_0": (1.1, 238 / 158, 2.3), "trial_1": (1.5, 2.0, 2.9), "trial_3": (0.2, 238 / 679, 0.9)}
    measured(study, (0.7, 238 / 158, 2.2), **noise)
    found = selected(study)
    assert (found.trial, found.rule, found.latency) == (3, "knee", "predicted")
    assert found.reason.startswith("Times were not usable, the machine was busy: the dense model, as trial 0, was 1.51")
    assert "; selected by predicted latency. Trial 3 is the knee" in found.reason
    assert "is predicted to take" in found.reason and "prefill speed" not in found.reason


def test_a_limit_of_latency_is_held_by_prediction_too(study_of: Any) -> None:
    study = study_of("limited", cost="flops", max_latency_ms=1e6)
    measured(study, (1.3, 1.5, 1.7))
    found = selected(study)
    assert found.latency == "predicted" and "Times were not usable" in found.reason


def test_what_does_not_ask_for_latency_does_not_ask_the_clock(study_of: Any) -> None:
    study = study_of("counted", cost="flops")
    measured(study, (1.3, 1.5, 1.7))
    found = selected(study)
    assert found.latency == "measured" and "Times were not usable" not in found.reason


def test_where_neither_clock_nor_profile_can_be_relied_on_flops_select(study_of: Any) -> None:
    study = study_of("both", waited=0.9)
    measured(study, (1.3, 1.5, 1.7))
    found = selected(study)
    assert (found.trial, found.cost, found.latency) == (3, "flops", "predicted")
    assert "; selected by FLOPs, as the machine was busy when latency was profiled, too. Trial 3" in found.reason
    assert "where KL against arithmetic bends most" in found.reason
    limited = study_of("limited", waited=0.9, cost="kv_bytes", max_latency_ms=1e6)
    measured(limited, (1.3, 1.5, 1.7))
    found = selected(limited)
    assert found.cost == "kv_bytes" and "selected by predicted latency, though the machine" in found.reason


def test_a_deterministic_study_is_selected_by_prediction_whatever_the_clock_says(study_of: Any) -> None:
    reasons = []
    for name, of_itself in (("quiet", (0.99, 1.0, 1.01)), ("busy", (1.3, 1.5, 1.7))):
        study = study_of(name, deterministic=True)
        measured(study, of_itself)
        reasons.append(selected(study))
    assert reasons[0] == reasons[1] and reasons[0].latency == "predicted"


def test_the_ratio_within_turns_selects_where_medians_mislead(study_of: Any) -> None:
    study = study_of("drifting")
    measured(study, (0.99, 1.0, 1.01))
    # Some were only timed while the machine was slow, as their medians are; their turns say what they are worth.
    slow = [
        replace(m, latency_ms=3 * m.latency_ms) if m.trial in (2, 3) else m
        for m in study.store.results.measurements("drifting")
    ]
    study.store.results.replace_measurements("drifting", slow)
    assert selected(study).trial == 3
