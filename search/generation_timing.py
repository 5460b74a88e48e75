"""The stage that times the selected point end to end: prefill and new tokens, beside dense and a shortened prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftp_core.cost import Skipping, Unchanged, Variant
from ftp_core.cost.end_to_end import time_generation
from ftp_core.cost.timing import estimate_ratio
from ftp_core.schedule import SparsitySchedule
from search.choosing import chosen_trial
from search.config import RunConfig
from search.errors import ConfigError
from search.measuring import prompts_of, timed_length
from search.open_study import OpenStudy
from search.variants import router_of
from search.workload import Workload
from studies import GenerationSpeed, Measurement, generation_speeds
from studies.generation_speed import as_facts

# New tokens where nothing else is asked for: a choice or a short answer, and a paragraph.
_NEW_TOKENS = (16, 64)
# Of each prompt length; a round takes minutes with a large model, milliseconds with a small one.
_SECONDS = 30.0


def check_lengths(config: RunConfig, workload: Workload, facts: Mapping[str, Any]) -> None:
    """Check that the prompts to time fit into the model's context, with the new tokens that are asked for.

    Args:
        config: How a study is configured.
        workload: Its model and data.
        facts: What is known of it (`StudyRecord.facts`); empty before it begins.

    Raises:
        ConfigError: They do not.
    """
    context = workload.model.skipping.context
    for length in (*config.latency_length, timed_length(config, workload, facts)):
        if length > context:
            raise ConfigError(
                f"--latency-length is {length}, but the model reads {context} tokens at most: give a shorter length."
            )
        most = max(config.new_tokens or (0,))
        if most > _room(length, context):
            raise ConfigError(
                f"--new-tokens is {most} behind prompts of {length}, but the model reads {context} tokens at most: "
                f"give no more than {_room(length, context)}, or a shorter --latency-length."
            )


def time_selected(study: OpenStudy) -> None:
    """Time what is missing of the selected point's speeds, each prompt length in one sitting that is kept at once.

    Whoever measures another point lets those of before be forgotten (`forget_speeds`).
    """
    measured = _compared(study)
    if not measured:
        return
    length = timed_length(study.config, study.workload, study.store.study(study.name).facts)
    for tokens in dict.fromkeys((length, *study.config.latency_length)):
        wanted = _wanted(study.config, _room(tokens, study.workload.model.skipping.context))
        speeds = generation_speeds(study.store.study(study.name).facts)
        shape = (study.config.latency_batch, tokens)
        if set(wanted) <= {one.new_tokens for one in speeds if one.shape == shape}:
            continue
        study.lease.check()
        timed = _timed(study, measured, tokens, wanted)
        study.store.set_facts(study.name, as_facts([*(one for one in speeds if one.shape != shape), *timed]))


def forget_speeds(study: OpenStudy) -> None:
    """Forget what was timed: another point may be selected, or another machine measure."""
    study.store.set_facts(study.name, as_facts([]))


def _compared(study: OpenStudy) -> list[Measurement]:
    """The dense model, a shortened prompt and the selected point, as they were measured on test items."""
    tested = [one for one in study.store.measurements(study.name) if one.split == "test"]
    chosen = chosen_trial(study)
    selected = next((one for one in tested if (one.trial, one.router) == (chosen.number, chosen.router)), None)
    if selected is None:
        return []
    beside = [next((one for one in tested if one.variant == name), None) for name in ("dense", "uniform")]
    return [*(one for one in beside if one is not None), selected]


def _timed(
    study: OpenStudy, measured: Sequence[Measurement], length: int, new_tokens: Sequence[int]
) -> list[GenerationSpeed]:
    """The speeds of variants with prompts of one length."""
    model, batch, rounds = study.workload.model.skipping, study.config.latency_batch, study.config.timed_runs
    title = f"Timing {batch} x {length} tokens and {max(new_tokens)} new ones"
    with study.view.stage(title, (rounds + 1) * len(measured)) as stage:
        times = time_generation(
            model,
            prompts_of(study, length).ids,
            [_way(study, one) for one in measured],
            new_tokens,
            rounds=rounds,
            seconds=_SECONDS,
            on_run=stage.advance,
        )
    return [
        _speed(one, own, times[0] if measured[0].variant == "dense" else None, batch, length, count)
        for count in new_tokens
        for one, own in zip(measured, times, strict=True)
    ]


def _way(study: OpenStudy, one: Measurement) -> Variant:
    if one.variant == "dense":
        return Unchanged()
    return Skipping(one.variant, SparsitySchedule(one.schedule), router_of(study, one.router))


def _speed(
    one: Measurement,
    own: Mapping[int, Sequence[float]],
    dense: Mapping[int, Sequence[float]] | None,
    batch: int,
    length: int,
    new_tokens: int,
) -> GenerationSpeed:
    """A variant's speed with so many new tokens, from the milliseconds of all rounds."""
    low, median, high = np.quantile(own[new_tokens], [0.25, 0.5, 0.75]).tolist()
    ratio = None if dense is None or one.variant == "dense" else estimate_ratio(dense[new_tokens], own[new_tokens])
    return GenerationSpeed(
        variant=one.variant,
        trial=one.trial,
        router=one.router,
        batch=batch,
        length=length,
        new_tokens=new_tokens,
        latency_ms=median,
        latency_low_ms=low,
        latency_high_ms=high,
        repeats=len(own[new_tokens]),
        speedup=None if ratio is None else ratio.median,
        speedup_low=None if ratio is None else ratio.low,
        speedup_high=None if ratio is None else ratio.high,
    )


def _wanted(config: RunConfig, room: int) -> list[int]:
    """Numbers of new tokens to time, in order: 1 is the prefill alone, defaults that do not fit are left out."""
    asked = [count for count in _NEW_TOKENS if count <= room] if config.new_tokens is None else config.new_tokens
    return sorted({1, *asked} - {0})


def _room(length: int, context: int) -> int:
    """Most new tokens behind a prompt: the last one does not run through the model any more."""
    return context - length + 1
