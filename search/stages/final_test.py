"""The stages that end a pipeline: measure candidates, select one, test it against others, export it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ftp_core.cost.process_memory import peak_bytes
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.skipping.substitutes import substitutes_of
from search.stages.candidates import candidates, compared, dense
from search.stages.examples import N_STEPS, collect_examples
from search.stages.export import write_export
from search.stages.knee import chosen_trial
from search.stages.measure import Variant, known_quality, measure, measure_elsewhere
from search.stages.open_study import OpenStudy
from search.stages.origin import chosen_number
from search.stages.select import select
from search.stages.study_costs import study_costs
from search.stages.time_generation import forget_speeds
from studies import Measurement, Trial
from studies.analysis.clock import check_clock
from studies.analysis.retention import chance_level
from studies.records.objectives import CostName
from studies.records.records import ReportExamples
from studies.records.study_facts import SelectionRecord, StudyFacts


def measure_candidates(study: OpenStudy) -> None:
    """Measures the candidates, on the validation examples and on the clock."""
    variants = [dense(study), *candidates(study, chosen_trial(study))]
    study.store.results.replace_measurements(study.name, measure(study, variants, "validation"))


def select_candidate(study: OpenStudy) -> None:
    """Selects one of the candidates, by validation examples and the clock.

    Where the clock cannot be relied on, latencies are those that a profile predicts, as they are where the study is
    deterministic: what the clock says is another thing each time. Where the profile cannot be relied on either, FLOPs
    stand in place of latency.
    """
    config, measured = study.config, study.measured("validation")
    clock = check_clock(measured, "validation")
    is_busy = config.predicts_latency and not config.deterministic and clock is not None and not clock.is_usable
    latency: Literal["measured", "predicted"] = "measured"
    cost, said = config.cost, ""
    if is_busy or (config.deterministic and config.predicts_latency):
        latency, measured = "predicted", _with_predicted_latencies(study, measured)
    if is_busy and clock is not None:
        by, profile = "predicted latency", study_costs(study).profile
        if profile is not None and profile.doubts():
            cost = "flops" if cost == "latency_ms" else cost
            by = "FLOPs, as" if cost != config.cost else f"{by}, though"
            by += " the machine was busy when latency was profiled, too"
        # Nothing is selected by figures where somebody asks for a trial.
        chose = f"; selected by {by}" if config.select_trial == "auto" else ""
        said = f"{clock.sentence.removesuffix('.')}{chose}. "
    selection = select(
        [one for one in measured if one.variant == "candidate"],
        next(one for one in measured if one.variant == "dense"),
        cost=cost,
        target=config.target,
        max_latency_ms=config.max_latency_ms,
        min_retention=config.min_retention,
        latency=latency,
        chance=chance_level(study.facts, "validation"),
        trial=None if config.select_trial == "auto" else config.select_trial,
    )
    number = selection.measurement.trial
    assert number is not None
    study.store.studies.choose_trial(study.name, number)
    note_selection(study, selection.rule, said + selection.reason, selection.retention, cost, latency)


def _with_predicted_latencies(study: OpenStudy, measured: Sequence[Measurement]) -> list[Measurement]:
    """Measurements with the latency that the study's profile predicts in place of what the clock said."""
    predict = {
        number: study_costs(study, study.router(number)).function("latency_ms")
        for number in {one.router for one in measured}
    }
    return [
        replace(
            one,
            latency_ms=predict[one.router](SparsitySchedule.of(one.schedule)),
            speedup=None,
            speedup_low=None,
            speedup_high=None,
        )
        for one in measured
    ]


def note_selection(
    study: OpenStudy,
    rule: str,
    reason: str,
    retention: float | None = None,
    cost: CostName | None = None,
    latency: Literal["measured", "predicted"] | None = None,
) -> None:
    """Keeps the rule and the reason by which the chosen trial was selected; see `SelectionRecord`."""
    trial = chosen_trial(study)
    selection = SelectionRecord(trial.number, trial.router, rule, reason, retention, cost, latency)
    study.note(StudyFacts(selection=selection))


def compare_selected(study: OpenStudy, router_run: int | None = None) -> None:
    """Compares the selected point with others on the test examples, by which nothing was chosen.

    The schedule of the first search is shown with a router, too: by default the one that was distilled on it.
    """
    facts = study.facts
    if router_run is None and (first := facts.round_of(facts.first_round)) is not None:
        router_run = first.router_run
    chosen, validation = chosen_trial(study), study.measured("validation")
    rows = compared(study, chosen, router_run, [one for one in validation if one.variant == "candidate"])
    shown = {(row.trial, row.router.number) for row in rows}
    candidate_trials = {one.trial for one in validation if one.variant == "candidate"}
    others = [one for one in candidates(study, chosen) if one.trial in candidate_trials]
    n_named = len(rows)
    rows += [one for one in others if (one.trial, one.router.number) not in shown]
    tested = measure(study, rows, "test")
    elsewhere = measure_elsewhere(study, rows[:n_named], tested[:n_named])
    study.store.results.replace_measurements(study.name, [*validation, *tested, *elsewhere])
    forget_speeds(study)
    study.store.results.keep_examples(study.name, _examples(study, rows[:n_named], chosen))
    peak = peak_bytes(study.workload.model.skipping.device)
    study.note(StudyFacts(peak_process_bytes=peak))
    study.view.measured(tested)


def export_selected(study: OpenStudy) -> None:
    """Writes the selected schedule with its router as a model that loads like any other."""
    folder, model = study.config.folder(study.name) / "model", study.workload.model.skipping
    keys = fitted_keys_of(model.model)
    chosen = study.store.trials.get(study.name, chosen_number(study.store.studies.get(study.name)))
    with study.view.stage("Writing the pruned model", 1) as stage:
        write_export(
            study.store,
            study.name,
            folder,
            study.config.reference,
            include_base=study.config.export == "full",
            substitutes=substitutes_of(model.model),
            keys=None if keys is None else keys.of(model, SparsitySchedule.of(chosen.schedule)),
        )
        stage.advance()
    study.note(StudyFacts(exported=str(folder.resolve())))


def _examples(study: OpenStudy, rows: Sequence[Variant], chosen: Trial) -> ReportExamples:
    """Collects single prompts and items for the report."""
    named = {row.name: row for row in rows}
    qualities = {name: known_quality(study, row, "test") for name, row in named.items()}
    selected = next(
        name for name, row in named.items() if (row.trial, row.router.number) == (chosen.number, chosen.router)
    )
    model = study.workload.model
    examples = study.workload.splits["test"]
    with study.view.stage("Looking at single items", N_STEPS) as stage:
        return collect_examples(
            model.skipping,
            model.tokenizer,
            examples,
            {name: (row.schedule, row.router.router) for name, row in named.items()},
            {name: quality.items for name, quality in qualities.items() if quality is not None},
            selected,
            stage.advance,
        )
