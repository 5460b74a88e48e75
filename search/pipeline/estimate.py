"""Estimates the time and memory of a run, and what its budget leaves out, before it begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.measure import room_for_new_tokens
from ftp_core.cost.memory import peak_activation_bytes
from ftp_core.schedule import SparsitySchedule
from ftp_core.training.distillation_config import DistillationConfig
from search.config.run_config import RunConfig
from search.engine.ablations import plan_ablations
from search.inputs.data import Workload, search_set
from search.inputs.latency_profiles import known_profile
from search.pipeline.pace import Pace, measure_pace, tokens
from search.problem.space import ScheduleSpace
from search.progress.progress_view import ProgressView
from search.progress.stage_list import duration
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
_EVALUATED_AT_ONCE = 16
_GIB = 2.0**30


def estimate_lines(estimate: Estimate) -> list[str]:
    """An estimate as a few lines of text."""
    stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in _merged(estimate.seconds).items())
    memory = estimate.memory
    available = "" if memory.available_bytes is None else f", of {_gib(memory.available_bytes)} that are free"
    short = "" if estimate.fits else "; that is too little: give fewer --workers, or less --prefix-mb"
    return [
        f"About {duration(estimate.total_s)} in all, by {estimate.examples} evaluated examples; a schedule takes about "
        f"{estimate.evaluation_s:.2g} s on each of {estimate.workers} workers.",
        f"  time: {stages}",
        f"  memory: at most about {_gib(estimate.total_bytes)} ({_gib(memory.process_bytes)} here and "
        f"{estimate.workers} x {_gib(memory.worker_bytes)} for workers){available}{short}",
        *(f"  left out: {one}" for one in estimate.left_out),
    ]


def estimate_run(
    config: RunConfig, workload: Workload, store: StudyStore, stages: Sequence[str], view: ProgressView
) -> Estimate:
    """Estimates time and memory of a run through some stages from a few evaluated examples.

    Stages are counted as if none ended early. What schedules share is not counted, and other work on the machine is
    only as far as it was there when examples were evaluated. The database knows latency profiles.

    Raises:
        EvaluationError: The dense model does not run on an example.
    """
    with view.stage("Estimating time and memory", 4) as stage:
        pace = measure_pace(config, workload, stage.advance)
        memory = memory_of(config, workload)
        stage.advance()
    return expected(config, workload, store, stages, pace, memory)


def note_estimate(study: OpenStudy, stages: Sequence[str]) -> None:
    """Says and notes, once, what a study takes that has no trials yet; see `estimate_run`."""
    if study.facts.estimate is not None or study.store.trials.n_begun(study.name):
        return
    found = estimate_run(study.config, study.workload, study.store, stages, study.view)
    # What is left out is said here, and not again as the search begins.
    study.note(StudyFacts(estimate=found, ablations=_planned_ablations(study.config, study.workload)))
    study.view.tell(estimate_lines(found))


def expected(
    config: RunConfig, workload: Workload, store: StudyStore, stages: Sequence[str], pace: Pace, memory: Memory
) -> Estimate:
    """The estimate of a run whose pace and memory are known; see `estimate_run`."""
    seconds = dict(_seconds(config, workload, store, stages, pace))
    return Estimate(
        seconds=seconds,
        evaluation_s=pace.evaluation_s,
        workers=config.workers + config.gpu_workers,
        memory=memory,
        left_out=tuple(_left_out(config, workload, seconds, pace)),
        examples=pace.examples,
    )


def _seconds(
    config: RunConfig, workload: Workload, store: StudyStore, stages: Sequence[str], pace: Pace
) -> Iterator[tuple[str, float]]:
    """Each stage with what it takes."""
    length = timed_length(config, workload)
    prefill_s = config.latency_batch * length * pace.token_s
    if config.predicts_latency and "search" in stages:
        conditions = profile_conditions(workload.model.skipping)
        known = known_profile(store, conditions, (config.latency_batch, length))
        if known is None or known.doubts():
            yield (
                "profile",
                max(_FEWEST_PASSES_A_PROFILE * prefill_s, min(config.profile_seconds, _PASSES_A_PROFILE * prefill_s)),
            )
    own = _Parts(config, workload, pace, prefill_s)
    for stage in stages:
        yield stage, own.seconds(stage)


class _Parts:
    """Durations of single stages, with `prefill_s` for a dense prefill of the timed input."""

    def __init__(self, config: RunConfig, workload: Workload, pace: Pace, prefill_s: float) -> None:
        self._config = config
        self._pace = pace
        self._prefill_s = prefill_s
        self._context = workload.model.skipping.context
        self._lengths = lengths_to_time(config, workload)
        self._tokens = {split: tokens(examples) for split, examples in workload.splits.items()}
        self._choice_tokens = {split: tokens(examples, choices=True) for split, examples in workload.splits.items()}
        mean = self._tokens["calibration"] / len(workload.splits["calibration"])
        self._step_tokens = DistillationConfig().batch_size * mean
        self._one_core = pace.dense_s / max(1, tokens(search_set(config, workload)))

    def seconds(self, stage: str) -> float:
        """A stage by its name."""
        config, kind = self._config, stage.partition("-")[0]
        rows = config.measured_points + 1
        if kind == "search":
            return self.searching_s(config.trials)
        if kind == "refine":
            return self.searching_s(config.refine_trials)
        if kind == "tune":
            n_at_once = max(1, min(config.router_trials, self._n_workers))
            step_s = _PASSES_A_STEP * self._step_tokens * self._one_core
            answers_s = (self._tokens["calibration"] + self._tokens["validation"]) * self._one_core
            return _START_S + config.router_trials * (config.router_steps * step_s + answers_s) / n_at_once
        if kind == "distill":
            step_s = _PASSES_A_STEP * self._step_tokens * self._pace.token_s
            n_held_out = 1 + config.router_steps / DistillationConfig().evaluate_every
            evaluated_s = self._tokens["validation"] * self._pace.evaluated_token_s
            held_out_s = n_held_out * config.router_schedules * evaluated_s
            answers_s = self._tokens["calibration"] * self._pace.token_s
            kinds = 2 if config.router == "best" else 1
            return kinds * (answers_s + config.router_steps * step_s + held_out_s) + self._answers_s("validation")
        if kind == "measure":
            return self._answers_s("validation") + rows * self._scored_s("validation") + self._timed_s(rows)
        if kind == "test":
            rows += _NAMED_ROWS
            examples_s = _NAMED_ROWS * self._scored_s("test")
            return self._answers_s("test") + rows * self._scored_s("test") + examples_s + self._timed_s(rows)
        if kind == "time":
            return sum(map(self._generated_s, self._lengths))
        return 0.0

    def searching_s(self, trials: int) -> float:
        """A search of so many trials, until its seconds are up."""
        whole = trials * self._pace.evaluation_s / self._n_workers
        if self._config.seconds is not None:
            whole = min(whole, self._config.seconds)
        return _START_S + self._pace.dense_s + whole

    @property
    def _n_workers(self) -> int:
        """Workers that have a core each."""
        return max(1, min(self._config.workers + self._config.gpu_workers, os.cpu_count() or 1))

    def _answers_s(self, split: str) -> float:
        return self._tokens[split] * self._pace.token_s

    def _scored_s(self, split: str) -> float:
        return self._choice_tokens[split] * self._pace.evaluated_token_s

    def _generated_s(self, length: int) -> float:
        """Prompts of a length with the most new tokens, in as many turns as are taken at least."""
        config = self._config
        most = new_tokens_to_time(config, room_for_new_tokens(length, self._context))[-1]
        run_s = config.latency_batch * length * self._pace.token_s + (most - 1) * self._pace.decoded_s
        return _GENERATED_ROWS * (least_turns(config) + 1) * run_s

    def _timed_s(self, rows: int) -> float:
        return (self._config.timed_runs + 1) * rows * self._prefill_s


def memory_of(config: RunConfig, workload: Workload) -> Memory:
    """Most memory that a run holds, as far as it can be counted: weights, activations, and what schedules share."""
    model = workload.model.skipping
    longest = max(len(one.prompt) + max(map(len, one.continuations)) for one in search_set(config, workload))
    shapes = [
        (_EVALUATED_AT_ONCE, min(longest, model.context)),
        (config.latency_batch, timed_length(config, workload)),
    ]
    # What runs is in proportion to the tokens, or more.
    batch, length = max(shapes, key=lambda shape: shape[0] * shape[1])
    activations = peak_activation_bytes(model, SparsitySchedule.uniform(0.0, model.n_blocks), batch, length)
    weights, resident, available = sum(one.nbytes for one in model.model.parameters()), _resident_bytes(), _free_bytes()
    return Memory(
        # Workers load the same libraries as this process did.
        worker_bytes=max(0, resident - weights) + activations + config.prefix_bytes,
        process_bytes=resident + weights + activations,
        # This process holds its part already.
        available_bytes=None if available is None else available + resident,
    )


def _resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free_bytes() -> int | None:
    """Memory that programs can still have; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _left_out(config: RunConfig, workload: Workload, seconds: Mapping[str, float], pace: Pace) -> Iterator[str]:
    """Sentences on what the budget is too small for."""
    if ablations := _planned_ablations(config, workload).left_out:
        yield ablations
    if config.seconds is not None:
        n = int(config.seconds * max(1, config.workers + config.gpu_workers) / pace.evaluation_s)
        if n < config.trials:
            yield f"about {config.trials - n} of {config.trials} trials, as --seconds is {config.seconds:g}."
    if "distill-1" not in seconds:
        yield "learned routers and refinements, as --rounds is 0." if config.rounds == 0 else "all but the search."
    elif not config.tunes_router and config.router != "hidden":
        yield "the search of hyperparameters of router training, as --router-trials is 0."


def _planned_ablations(config: RunConfig, workload: Workload) -> Ablations:
    """The ablations that a study's first search will begin with."""
    n_blocks = workload.model.skipping.n_blocks
    space = ScheduleSpace(n_blocks, config.target_sparsity, dense_blocks=config.dense_blocks)
    return plan_ablations(space, config.trials, config.sampler)[1]


def _merged(seconds: Mapping[str, float]) -> dict[str, float]:
    """Rounds as one entry each, and nothing of what takes less than a second."""
    merged: dict[str, float] = {}
    rounds: dict[str, int] = {}
    for name, taken in seconds.items():
        kind = name.partition("-")[0]
        rounds[kind] = rounds.get(kind, 0) + 1
        merged[kind] = merged.get(kind, 0.0) + taken
    return {
        f"{kind} ({rounds[kind]} rounds)" if rounds[kind] > 1 else kind: taken
        for kind, taken in merged.items()
        if taken >= 1
    }


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.1f} GiB"
