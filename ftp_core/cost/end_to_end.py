"""Times generation: until a prompt has run, and until so many new tokens are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ftp_core.cost.measure import Step, Variant
from ftp_core.cost.timing import Timer, timer_of
from ftp_core.errors import DataError
from ftp_core.skipping_model import SkippingModel

# Fewer rounds say nothing of an interval at 95 %: the least of n = 6 exceeds a median once in 64.
LEAST_ROUNDS = 6


@torch.inference_mode()
def time_generation(
    model: SkippingModel,
    ids: Tensor,
    variants: Sequence[Variant],
    new_tokens: Sequence[int],
    *,
    rounds: int = 9,
    seconds: float = 30.0,
    timer: Timer | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> list[dict[int, list[float]]]:
    """Time greedy generation with a cache under each variant; variants take turns.

    One run gives the times of every number of new tokens: the clock is read as each of them is reached. The first new
    token comes with the prefill, and the last one is not run through the model any more, as in `generate`.

    Args:
        model: The model.
        ids: Prompts of equal length `[B, L]`.
        variants: Ways to run it.
        new_tokens: Numbers of new tokens, each at least 1.
        rounds: Most rounds, after a short one to warm up.
        seconds: Time after which no further round begins, once there are `LEAST_ROUNDS` (or `rounds`, if that is less).
        timer: By default one that waits for the model's device.
        on_run: Called after each run, those that warm up included: at most `len(variants) * (rounds + 1)` times.

    Returns:
        For each variant, by number of new tokens: milliseconds of every round.

    Raises:
        DataError: There is nothing to time, or prompts and new tokens do not fit into the model's context.
        ModelError: A variant does not fit the model.
        ScheduleError: Likewise.
    """
    marks = sorted(set(new_tokens))
    check_room(ids.shape[1], marks, model.context)
    if rounds < 1:
        raise DataError(f"rounds is {rounds}, but nothing can be said without at least one.")
    ids, ticks = ids.to(model.device), timer or timer_of(model.device)
    runs = [partial(_generate, way.step_of(model.model), ids, timer=ticks) for way in variants]
    times: list[dict[int, list[float]]] = [{mark: [] for mark in marks} for _ in runs]
    for run in runs:
        # A prefill and a decoded token reach everything that is made at first use.
        run(marks=marks[-1:] if marks[-1] == 1 else [2])
        on_run()
    began = ticks()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and ticks() - began > seconds:
            break
        indices = range(len(runs))
        # Every other round goes backwards: a machine that slows down steadily slows all alike.
        for index in reversed(indices) if number % 2 else indices:
            for mark, elapsed in zip(marks, runs[index](marks=marks), strict=True):
                times[index][mark].append(1000 * elapsed)
            on_run()
    return times


def check_room(length: int, new_tokens: Sequence[int], context: int) -> None:
    """Raise `DataError` unless there is something to generate, and it fits behind a prompt."""
    if not new_tokens or min(new_tokens) < 1:
        raise DataError(
            f"new_tokens is {list(new_tokens)}, but must be numbers of at least 1, the prefill's own token."
        )
    if length < 1 or length + max(new_tokens) - 1 > context:
        raise DataError(
            f"A prompt of {length} tokens and {max(new_tokens)} new ones do not fit into the {context} that the model "
            "reads: shorten one of them."
        )


def _generate(step: Step, ids: Tensor, *, marks: Sequence[int], timer: Timer) -> list[float]:
    """Seconds until each of these numbers of new tokens is known; they ascend."""
    seconds, started = [], timer()
    logits, cache = step(ids, None)
    for known in range(1, marks[-1] + 1):
        token = logits.argmax(-1, keepdim=True)
        if known in marks:
            seconds.append(timer() - started)
        if known < marks[-1]:
            logits, cache = step(token, cache)
    return seconds
