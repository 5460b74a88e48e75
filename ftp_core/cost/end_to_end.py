"""Times generation until given numbers of new tokens are known.

Shapes: B rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ftp_core.cost.measure import Variant, generation_ms
from ftp_core.cost.timing import Timer, take_turns, timer_of
from ftp_core.errors import DataError
from ftp_core.skipping.skipping_model import SkippingModel


@torch.inference_mode()
def time_generation(
    model: SkippingModel,
    ids_BL: Tensor,
    variants: Sequence[Variant],
    new_tokens: Sequence[int],
    *,
    repeats: int = 9,
    timer: Timer | None = None,
    on_run: Callable[[], None] = lambda: None,
    goes_on: Callable[[Sequence[Sequence[float]]], bool] = lambda _: False,
) -> list[Mapping[int, tuple[float, ...]]]:
    """Time greedy generation with a cache under each variant; variants take turns.

    The first new token comes with the prefill, and the last one is not run through the model any more, as in
    `generate`.

    Args:
        model: The model.
        ids_BL: Prompts of equal length.
        variants: Ways to run it.
        new_tokens: Numbers of new tokens, each at least 1; one run times them all.
        repeats: Turns, after one to warm up.
        timer: Clock; by default one that waits for the model's device.
        on_run: See `take_turns`.
        goes_on: See `take_turns`; it sees milliseconds until the last token of each run.

    Returns:
        For each variant, by number of new tokens: milliseconds, one a turn.

    Raises:
        DataError: There is nothing to time, or prompts and new tokens do not fit into the model's context.
        ModelError: A variant does not fit the model.
        ScheduleError: Likewise.
    """
    marks = sorted(set(new_tokens))
    if not marks or marks[0] < 1:
        raise DataError(
            f"new_tokens is {list(new_tokens)}, but must be numbers of at least 1, the prefill's own token."
        )
    if not ids_BL.shape[1] or marks[-1] > room_for_new_tokens(ids_BL.shape[1], model.context):
        raise DataError(
            f"Prompts of {ids_BL.shape[1]} tokens and {marks[-1]} new ones do not fit into the {model.context} that "
            "the model reads: expected at least one token of a prompt, and no more than that together."
        )
    prompts_BL, ticks = ids_BL.to(model.device), timer or timer_of(model.device)
    runs = [partial(generation_ms, way.step_of(model.model), prompts_BL, marks, ticks) for way in variants]
    turns = take_turns(runs, repeats, on_run, lambda so_far: goes_on([[ms[-1] for ms in own] for own in so_far]))
    return [dict(zip(marks, zip(*own, strict=True), strict=True)) for own in turns]


def room_for_new_tokens(length: int, context: int) -> int:
    """Most new tokens behind a prompt; the last one does not run through the model."""
    return context - length + 1
