"""Estimates the time and memory of a run, and what its budget leaves out, before it begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.measure import room_for_new_tokens
from ftp_core.cpu_limits import n_cores
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.training.distillation_config import DistillationConfig
from search.config.run_config import RunConfig
from search.engine.ablations import plan_ablations
from search.inputs.data import Workload, search_set
from search.inputs.fitted_keys import calibration_prompts, fit_keys, fits_keys
from search.inputs.latency_profiles import known_profile
from search.pipeline.expected_memory import advice, check_memory, memory_of, memory_sentence
from search.pipeline.pace import Pace, measure_pace, tokens
from search.pipeline.preflight import foreseeable_space
from search.problem.fidelities import ablation_fidelity
from search.progress.progress_view import ProgressView
from search.progress.stage_list import duration
from search.stages.confirm import race_size
from search.stages.measure import timed_length
from search.stages.open_study import OpenStudy
from search.stages.time_generation import least_turns, lengths_to_time, new_tokens_to_time
from studies import StudyStore
from studies.records.study_facts import Ablations, Estimate, Memory, StudyFacts

# Ray and its workers, until they compute.
_START_S = 5.0
# A step of a router's training, in passes of the dense model over its batch: forward, backward, and the loss.
_PASSES_A_STEP = 3.0
# Passes that a profile takes on a quiet machine, and those that it takes however long they last.
_PASSES_A_PROFILE, _FEWEST_PASSES_A_PROFILE = 76, 12
# Rows of the comparison beside the candidates: dense, uniform, static, dynamic, refined.
_NAMED_ROWS = 5
# Rows that are timed end to end: dense, a shortened prompt, the selected point.
_GENERATED_ROWS = 3


def estimate_lines(estimate: Estimate, config: RunConfig | None = None) -> list[str]:
    """An estimate as a few lines of text; with a configuration, what to change of it if memory is short."""
    stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in _merged(estimate.seconds).items())
    short = "" if config is None or estimate.fits else f"; that is too little. {advice(estimate, config)}"
    return [
        f"About {duration(estimate.total_s)} in all, by {estimate.examples} evaluated examples; a schedule takes about "
        f"{estimate.evaluation_s:.2g} s on each of {estimate.workers} workers.",
        f"  time: {stages}",
        f"  memory: {memory_sentence(estimate)}{short}",
        *(f"  left out: {one}" for one in estimate.left_out),
    ]


def estimate_run(
    config: RunConfig, workload: Workload, store: StudyStore, stages: Sequence[str], view: ProgressView
) -> Estimate:
    """Estimates time and memory of a run through some stages from a few evaluated examples.

    Stages are counted as if none ended early. What schedules share is not counted, and other work on the machine is
    only as far as it was there when examples were evaluated. The database knows latency profiles.
    """
    model = workload.model.skipping
    if fits_keys(config) and fitted_keys_of(model.model) is None:
        # As a study does that begins; without one they are as many, and take as long.
        fit_keys(model, calibration_prompts(config, workload), view.stage)
    with view.stage("Estimating time and memory", 4) as stage:
        pace = measure_pace(config, workload, stage.advance)
        memory = memory_of(config, workload, stages)
        stage.advance()
    return expected(config, workload, store, stages, pace, memory)


def note_estimate(study: OpenStudy, stages: Sequence[str]) -> None:
    """Says and notes, once, what a study takes that has no trials yet; see `estimate_run`.

    Raises:
        ConfigError: It takes more memory than there is; nothing is noted, so that it can go on with other settings.
    """
    if study.facts.estimate is not None or study.store.trials.n_begun(study.name):
        return
    found = estimate_run(study.config, study.workload, study.store, stages, study.view)
    check_memory(found, study.config)
    # What is left out is said here, and not again as the search begins.
    study.note(StudyFacts(estimate=found, ablations=_planned_ablations(study.config, study.workload)))
    study.view.tell(estimate_lines(found))


def expected(
    config: RunConfig, workload: Workload, store: StudyStore, stages: Sequence[str], pace: Pace, memory: Memory
) -> Estimate:
    """The estimate of a run whose pace and memory are known; see `estimate_run`."""
    seconds, of_kind = {}, _seconds_by_kind(config, workload, pace)
    if config.predicts_latency and "search" in stages:
        shape = (config.latency_batch, timed_length(config, workload))
        known = known_profile(store, profile_conditions(workload.model.skipping), shape)
        if known is None or known.doubts():
            seconds["profile"] = of_kind["profile"]
    seconds |= {stage: of_kind.get(stage.partition("-")[0], 0.0) for stage in stages}
    if "tune" in stages and (first := next((one for one in stages if one.startswith("distill-")), None)):
        # Its dynamic router is the one that the tuning has trained best.
        seconds[first] -= of_kind["training"]
    return Estimate(
        seconds=seconds,
        evaluation_s=pace.evaluation_s + pace.fit_s,
        workers=config.workers + config.gpu_workers,
        memory=memory,
        left_out=tuple(_left_out(config, workload, seconds, pace)),
        examples=pace.examples,
    )


def _seconds_by_kind(config: RunConfig, workload: Workload, pace: Pace) -> dict[str, float]:
    """Expected time of a stage of each kind; others take hardly any."""
    prefill_s = config.latency_batch * timed_length(config, workload) * pace.token_s
    # Those that have a core each.
    n_workers = max(1, min(config.workers + config.gpu_workers, n_cores()))
    n_searched, n_calibration = len(search_set(config, workload)), len(workload.splits["calibration"])
    n_tokens = {split: tokens(examples) for split, examples in workload.splits.items()}
    answers_s = {split: n * pace.token_s for split, n in n_tokens.items()}
    scored_s = {
        split: tokens(examples, choices=True) * pace.evaluated_token_s for split, examples in workload.splits.items()
    }

    trial_s = pace.evaluation_s + pace.fit_s

    def searching_s(trials: int) -> float:
        whole = trials * trial_s / n_workers
        whole = whole if config.seconds is None else min(whole, config.seconds)
        return _START_S + pace.dense_s + whole + confirming_s(whole * n_workers / trial_s)

    def confirming_s(trials: float) -> float:
        """A race on fresh items, each of which every worker may have to answer with the dense model first."""
        _, evaluated = race_size(config, workload, trials)
        n_fresh = min(evaluated / 2, n_calibration - n_searched)
        return (evaluated * pace.evaluation_s / n_workers + n_fresh * pace.dense_s) / n_searched

    def generated_s(length: int) -> float:
        """Prompts of a length with the most new tokens, in as many turns as are taken at least."""
        most = new_tokens_to_time(config, room_for_new_tokens(length, workload.model.skipping.context))[-1]
        run_s = config.latency_batch * length * pace.token_s + (most - 1) * pace.decoded_s
        return _GENERATED_ROWS * (least_turns(config) + 1) * run_s

    training = DistillationConfig()
    step_tokens = training.batch_size * n_tokens["calibration"] / len(workload.splits["calibration"])
    steps_tokens = _PASSES_A_STEP * config.router_steps * step_tokens
    n_held_out = (1 + config.router_steps / training.evaluate_every) * config.router_schedules
    held_out_s = n_held_out * n_tokens["validation"] * pace.evaluated_token_s
    training_s = steps_tokens * pace.token_s + held_out_s
    kinds = 2 if config.router == "best" else 1
    one_core_s = pace.dense_s / max(1, tokens(search_set(config, workload)))
    tuning_tokens = steps_tokens + n_tokens["calibration"] + n_tokens["validation"]
    n_tunings_at_once = max(1, min(config.router_trials, n_workers))
    rows, turns = config.measured_points + 1, config.timed_runs + 1
    tested_rows = rows + _NAMED_ROWS
    return {
        "profile": max(
            _FEWEST_PASSES_A_PROFILE * prefill_s, min(config.profile_seconds, _PASSES_A_PROFILE * prefill_s)
        ),
        "search": searching_s(config.trials),
        "refine": searching_s(config.refine_trials),
        "tune": _START_S + config.router_trials * tuning_tokens * one_core_s / n_tunings_at_once,
        "distill": kinds * (answers_s["calibration"] + training_s) + answers_s["validation"],
        "training": training_s,
        "measure": answers_s["validation"] + rows * (scored_s["validation"] + pace.fit_s) + turns * rows * prefill_s,
        # Named rows are looked at item by item, too.
        "test": answers_s["test"] + (tested_rows + _NAMED_ROWS) * scored_s["test"] + turns * tested_rows * prefill_s,
        "time": sum(map(generated_s, lengths_to_time(config, workload))),
    }


def _left_out(config: RunConfig, workload: Workload, seconds: Mapping[str, float], pace: Pace) -> Iterator[str]:
    """Sentences on what the budget is too small for."""
    if ablations := _planned_ablations(config, workload).left_out:
        yield ablations
    if config.seconds is not None:
        n = int(config.seconds * max(1, config.workers + config.gpu_workers) / (pace.evaluation_s + pace.fit_s))
        if n < config.trials:
            yield f"about {config.trials - n} of {config.trials} trials, as --seconds is {config.seconds:g}."
    if "distill-1" not in seconds:
        yield "learned routers and refinements, as --rounds is 0." if config.rounds == 0 else "all but the search."
    elif not config.tunes_router and config.distils_dynamic:
        yield "the search of hyperparameters of router training, as --router-trials is 0."


def _planned_ablations(config: RunConfig, workload: Workload) -> Ablations:
    """The ablations that a study's first search will begin with."""
    fidelity = ablation_fidelity(len(search_set(config, workload)), config.fidelities)
    return plan_ablations(foreseeable_space(config, workload), config.trials, config.sampler, fidelity)[1]


def _merged(seconds: Mapping[str, float]) -> dict[str, float]:
    """Rounds as one entry each, and nothing of what takes less than a second."""
    merged: defaultdict[str, list[float]] = defaultdict(list)
    for name, taken in seconds.items():
        merged[name.partition("-")[0]].append(taken)
    return {
        f"{kind} ({len(times)} rounds)" if len(times) > 1 else kind: sum(times)
        for kind, times in merged.items()
        if sum(times) >= 1
    }
