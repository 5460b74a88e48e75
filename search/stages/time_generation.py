"""The stage that times the selected point end to end: prefill and new tokens, beside dense and a shortened prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftp_core.cost import Skipping, Unchanged, Variant, paired_speedup, time_generation
from ftp_core.cost.measure import room_for_new_tokens
from ftp_core.cost.speedup import needs_more_turns
from ftp_core.schedule import SparsitySchedule
from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.inputs.data import Workload
from search.stages.knee import chosen_trial
from search.stages.measure import prompts_of, timed_length
from search.stages.open_study import OpenStudy
from studies import Measurement
from studies.records.generation_speed import GenerationSpeed
from studies.records.study_facts import StudyFacts, TimedInput

# New tokens where nothing else is asked for: a choice or a short answer, and a paragraph.
_NEW_TOKENS = (16, 64)
# Of each prompt length: fewer turns say nothing of an interval at 95 %, and further ones are worth so much time.
_LEAST_TURNS, _PATIENCE_MS = 6, 30_000.0


def check_lengths(config: RunConfig, workload: Workload, known: TimedInput | None = None) -> None:
    """Refuses prompts to time, with their new tokens, that do not fit into the model's context, with a ConfigError."""
    context = workload.model.skipping.context
    for length in lengths_to_time(config, workload, known):
        if length > context:
            raise ConfigError(
                f"--latency-length is {length}, but the model reads {context} tokens at most: give a shorter length."
            )
        most = max(config.new_tokens or (0,))
        if most > room_for_new_tokens(length, context):
            raise ConfigError(
                f"--new-tokens is {most} behind prompts of {length}, but the model reads {context} tokens at most: "
                f"give no more than {room_for_new_tokens(length, context)}, or a shorter --latency-length."
            )


def time_selected(study: OpenStudy) -> None:
    """Times what is missing of the selected point's speeds, each prompt length in one sitting that is kept at once.

    A stage that measures another point lets earlier ones be forgotten (`forget_speeds`).
    """
    measured = _compared(study)
    if not measured:
        return
    lengths = lengths_to_time(study.config, study.workload, study.facts.timed_input)
    for tokens in lengths:
        wanted = new_tokens_to_time(study.config, room_for_new_tokens(tokens, study.workload.model.skipping.context))
        speeds = list(study.facts.generation_speeds)
        shape = (study.config.latency_batch, tokens)
        if set(wanted) <= {one.new_tokens for one in speeds if one.shape == shape}:
            continue
        study.lease.check()
        speeds = [*(one for one in speeds if one.shape != shape), *_timed(study, measured, tokens, wanted)]
        # The length that costs are of is what people look at first.
        speeds.sort(key=lambda one: lengths.index(one.length) if one.length in lengths else len(lengths))
        study.note(StudyFacts(generation_speeds=tuple(speeds)))


def forget_speeds(study: OpenStudy) -> None:
    """Forgets what was timed: another point may be selected, or another machine measure."""
    study.note(StudyFacts(generation_speeds=()))


def _compared(study: OpenStudy) -> list[Measurement]:
    """The dense model, a shortened prompt and the selected point, as they were measured on test items."""
    tested, chosen = study.measured("test"), chosen_trial(study)
    selected = next((one for one in tested if (one.trial, one.router) == (chosen.number, chosen.router)), None)
    if selected is None:
        return []
    dense, uniform = (next((one for one in tested if one.variant == name), None) for name in ("dense", "uniform"))
    return [] if dense is None else [one for one in (dense, uniform, selected) if one is not None]


def _timed(
    study: OpenStudy, measured: Sequence[Measurement], length: int, new_tokens: Sequence[int]
) -> list[GenerationSpeed]:
    """The speeds of variants, the dense model first, with prompts of one length."""
    batch, turns = study.config.latency_batch, least_turns(study.config)
    title = f"Timing {batch} x {length} tokens and {max(new_tokens)} new"
    with study.view.stage(title, (turns + 1) * len(measured)) as stage:

        def goes_on(times_ms: Sequence[Sequence[float]]) -> bool:
            more = needs_more_turns(times_ms, turns, _PATIENCE_MS)
            if more:
                stage.extend(turns * len(measured))
            return more

        dense, *others = time_generation(
            study.workload.model.skipping,
            prompts_of(study, length).ids,
            [_way(study, one) for one in measured],
            new_tokens,
            repeats=turns,
            on_run=stage.advance,
            goes_on=goes_on,
        )
    speeds = []
    for count in new_tokens:
        for one, own in zip(measured, (dense, *others), strict=True):
            low, median, high = np.quantile(own[count], [0.25, 0.5, 0.75]).tolist()
            speedup = None if own is dense else paired_speedup(dense[count], own[count])
            speeds.append(
                GenerationSpeed(
                    variant=one.variant,
                    trial=one.trial,
                    router=one.router,
                    batch=batch,
                    length=length,
                    new_tokens=count,
                    latency_ms=median,
                    latency_low_ms=low,
                    latency_high_ms=high,
                    repeats=len(own[count]),
                    speedup=None if speedup is None else speedup.ratio,
                    speedup_low=None if speedup is None else speedup.low,
                    speedup_high=None if speedup is None else speedup.high,
                )
            )
    return speeds


def _way(study: OpenStudy, one: Measurement) -> Variant:
    if one.variant == "dense":
        return Unchanged()
    keep_first = study.workload.model.skipping.keep_first
    return Skipping(
        one.variant, SparsitySchedule.of(one.schedule), study.router(one.router).router, keep_first=keep_first
    )


def least_turns(config: RunConfig) -> int:
    """Turns of each prompt length, without the one that warms up; more follow where speeds are not precise."""
    return min(config.timed_runs, _LEAST_TURNS)


def lengths_to_time(config: RunConfig, workload: Workload, known: TimedInput | None = None) -> list[int]:
    """Prompt lengths to time: the one that costs are of (`timed_length`), and those that are asked for."""
    return list(dict.fromkeys((timed_length(config, workload, known), *config.latency_length)))


def new_tokens_to_time(config: RunConfig, room: int) -> list[int]:
    """Numbers of new tokens to time, in order: 1 is the prefill alone, defaults beyond the room are left out."""
    asked = [count for count in _NEW_TOKENS if count <= room] if config.new_tokens is None else config.new_tokens
    return sorted({1, *asked} - {0})
