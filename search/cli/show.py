"""Studies as plain values, for tables and for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import TrialState as OptunaState

from ftp_core.schedule import SparsitySchedule
from search.proposers.proposer_stats import ProposerStatistics
from studies import Measurement, StudyRecord, StudyState, StudyStore, Trial, TrialState, front
from studies.analysis.clock import check_clock
from studies.analysis.confirmation import confirmation_sentences
from studies.analysis.origin import schedule_origin
from studies.analysis.predictions import latency_predictions
from studies.analysis.prefill_speed import prefill_speedup
from studies.analysis.retention import chance_level, retention_of
from studies.analysis.verdict import against_shortened_prompt, next_steps, selected_point, verdict_of
from studies.pareto import study_volume
from studies.records.records import ReportExamples
from studies.records.study_facts import SHOWN_FACTS, StudyFacts
from studies.store.optuna_studies import OptunaStudy

# State of a study that is Optuna's alone, in a list of studies.
OPTUNAS = "optuna"


def _timed_shape(facts: StudyFacts) -> dict[str, Any] | None:
    """The timed prefill and the uncertainty of its predicted latency; None before the study begins."""
    if facts.timed_input is None:
        return None
    profile = facts.latency_profile
    return asdict(facts.timed_input) | {"latency_uncertainty": None if profile is None else profile.uncertainty}


def _front(trials: Sequence[Trial], measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The front of a study as plain values, with latency measured with each trial's own router."""
    measured = {(m.trial, m.router): m.latency_ms for m in measurements if m.trial is not None}
    return [
        {
            "number": point.number,
            "round": point.round,
            "router": point.router,
            "proposer": point.proposer,
            "parents": list(point.parents),
            "worker": point.worker,
            "schedule": SparsitySchedule.of(point.schedule).to_json(),
            "overall_sparsity": point.overall_sparsity,
            "values": list(point.values or ()),
            "measured_latency_ms": measured.get((point.number, point.router)),
        }
        for point in front(trials)
    ]


def _measured(
    study: StudyRecord, trials: Sequence[Trial], measurements: Sequence[Measurement], examples: ReportExamples | None
) -> list[dict[str, Any]]:
    """Measurements as plain values, with retention and speed-up against the dense model on the same items."""
    dense = {m.split: m for m in measurements if m.variant == "dense"}
    selection = study.facts.selection
    wanted = None if selection is None else (selection.trial, selection.router)
    proposers = {trial.number: trial.proposer for trial in trials}
    described = []
    for m in measurements:
        selected = m.trial is not None and (m.trial, m.router) == wanted
        # Single items are kept of the selected point alone, on the test set.
        seen = examples if selected and m.split == "test" else None
        kept = retention_of(m, dense.get(m.split), seen, chance_level(study.facts, m.split))
        low, high = (None, None) if kept is None or kept.interval is None else kept.interval
        described.append(
            asdict(m)
            | {
                "schedule": SparsitySchedule.of(m.schedule).to_json(),
                "overall_sparsity": m.overall_sparsity,
                "retention": None if kept is None else kept.share,
                "retention_low": low,
                "retention_high": high,
                "speedup_interval_unknown": prefill_speedup(m).unknown or None,
                "origin": None if m.trial is None else schedule_origin(m.schedule, proposers.get(m.trial)),
                "selected": selected,
            }
        )
    return described


def describe_study(store: StudyStore, name: str) -> dict[str, Any]:
    """A study as plain values."""
    study, trials, measurements = store.studies.get(name), store.trials.of(name), store.results.measurements(name)
    examples, tested = store.results.examples(name), [m for m in measurements if m.split == "test"]
    selected = selected_point(tested, study.facts.selection)
    dense = next((m for m in tested if m.variant == "dense"), None)
    against = against_shortened_prompt(study, selected, tested, examples, trials)
    predictions = latency_predictions(study, trials, measurements, store.routers.of(name))
    volume = study_volume(study, trials)
    clocks = {split: check_clock(measurements, split) for split in ("validation", "test")}
    return {
        "name": study.name,
        "state": study.state.value,
        "trials": sum(trial.state is TrialState.FINISHED for trial in trials),
        "pruned_trials": sum(trial.state is TrialState.PRUNED for trial in trials),
        "failed_trials": sum(trial.state is TrialState.FAILED for trial in trials),
        "left_aside": asdict(store.trials.left_aside(name)),
        "created_at": study.created_at.isoformat(),
        **asdict(study.labels),
        "objectives": list(study.objectives),
        "config": dict(study.config),
        "chosen_trial": study.chosen_trial,
        "verdict": verdict_of(study.facts, selected, dense, against, examples),
        "next": [
            asdict(step)
            for step in next_steps(
                study, study.state is StudyState.FINISHED, selected, against, study.config.get("trials", len(trials))
            )
        ],
        "against_shortened_prompt": None if against is None else against.to_json(),
        **study.facts.with_defaults(SHOWN_FACTS),
        "confirmed": confirmation_sentences(study.facts),
        "evaluation_seconds": sum(trial.seconds for trial in trials),
        "predicted_for": _timed_shape(study.facts),
        "predictions": {
            "doubts": list(predictions.doubts),
            "compared": [asdict(one) | {"ratio": one.ratio, "sentence": str(one)} for one in predictions.compared],
            "sentence": predictions.sentence(name),
        },
        "front": _front(trials, measurements),
        "hypervolume": volume and {"value": volume.of(trials), "reference": list(volume.reference)},
        "blocks": {"run": study.facts.blocks_run, "reused": study.facts.blocks_reused},
        "stages": [
            {"name": stage.name, "state": stage.state.value, "seconds": stage.seconds}
            for stage in store.runs.stages(name)
        ],
        "proposers": [
            {"name": state.proposer, **asdict(ProposerStatistics.stored(state.state))}
            for state in store.runs.proposer_states(name)
        ],
        "clock": {split: clock and clock.to_json() for split, clock in clocks.items()},
        "measurements": _measured(study, trials, measurements, examples),
    }


def describe_optuna_study(store: StudyStore, study: OptunaStudy) -> dict[str, Any]:
    """A study that another program began, as plain values."""
    loaded = optuna.load_study(study_name=study.name, storage=store.storage)
    trials = loaded.get_trials(deepcopy=False)
    # Without constraints and with one objective, too, these are the best ones.
    best = loaded.best_trials if any(trial.state is OptunaState.COMPLETE for trial in trials) else []
    return {
        "name": study.name,
        "state": OPTUNAS,
        "trials": study.n_ended,
        "trials_by_state": dict(study.trials),
        "directions": list(study.directions),
        "parameters": sorted({name for trial in trials for name in trial.params}),
        "attributes": dict(study.attributes),
        "best": [{"number": one.number, "values": list(one.values), "params": dict(one.params)} for one in best],
    }
