"""What methods share while they are fitted: texts to run, the count of what that takes, and the choice of a step.

Dimensions: B rows, L tokens of a row, D hidden width, T predicted tokens of all rows.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from ftp_core.baselines.protocol import Budget, Preparation
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.process_memory import peak_bytes, reset_peak
from ftp_core.errors import DataError, ModelError
from ftp_core.quality.divergence import log_probabilities
from ftp_core.routers import Router
from ftp_core.schedule import FEWEST_KEPT, MAX_SPARSITY, BlockSparsity, SparsitySchedule
from ftp_core.skipping.interception import BlockCall, BlockHandler
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import (
    EncodedExample,
    PromptBatch,
    check_readable,
    length_sorted_batches,
    pad_right,
    prompt_batch,
)

T = TypeVar("T")
BATCH_SIZE = 8
_BISECTIONS = 14


class Effort:
    """Counts what the preparation of a model takes, from when it is made.

    Args:
        model: The dense model.

    Attributes:
        tokens: Tokens that ran through a model so far.
        trained_parameters: Number of parameters that were trained.
    """

    def __init__(self, model: SkippingModel) -> None:
        self._device = model.device
        reset_peak(self._device)
        self._started = time.monotonic()
        self.tokens = 0
        self.trained_parameters = 0

    def preparation(self) -> Preparation:
        """All of it until now."""
        # On the CPU only the peak of the whole process is known.
        peak = peak_bytes(self._device) if self._device.type == "cuda" else None
        return Preparation(time.monotonic() - self._started, self.tokens, self.trained_parameters, peak)


def text_batches(model: SkippingModel, calibration: Sequence[EncodedExample]) -> list[PromptBatch]:
    """Prompts with their right continuations as whole texts, in batches of similar lengths.

    Raises:
        DataError: There is none, or the model cannot read one.
    """
    check_usable(model, calibration)
    batches = []
    for examples in length_sorted_batches(calibration, BATCH_SIZE):
        texts = [(*example.prompt, *example.continuations[example.answer]) for example in examples]
        lengths = torch.tensor(list(map(len, texts)))
        batches.append(PromptBatch(pad_right(texts, 0), lengths, lengths).to(model.device))
    return batches


def first_texts(calibration: Sequence[EncodedExample], n_tokens: int) -> list[EncodedExample]:
    """The first examples whose whole texts have so many tokens together; all of them if they have fewer."""
    ends = list(accumulate(len(one.prompt) + len(one.continuations[one.answer]) for one in calibration))
    return list(calibration[: bisect_left(ends, n_tokens) + 1])


def prompt_batches(model: SkippingModel, calibration: Sequence[EncodedExample]) -> list[PromptBatch]:
    """Prompts, to be followed by their right continuations, in batches of similar lengths.

    Raises:
        DataError: There is none, or the model cannot read one.
    """
    check_usable(model, calibration)
    return [prompt_batch(examples) for examples in length_sorted_batches(calibration, BATCH_SIZE)]


def check_usable(model: SkippingModel, calibration: Sequence[EncodedExample]) -> None:
    """Raises `DataError` unless there are examples, and the model can read them."""
    if not calibration:
        raise DataError("There is no example to calibrate with: give at least one.")
    check_readable(calibration, model.context, model.model.config.vocab_size)


def check_halves(model: SkippingModel, method: str) -> None:
    """Raises `ModelError` unless blocks are attention and MLP and nothing else."""
    if model.family.halves is None:
        raise ModelError(
            f"{method} cannot be applied to {model.model.config.model_type} models: their blocks have parts beside "
            "attention and MLP."
        )


def flops_of_blocks(model: SkippingModel, budget: Budget) -> list[float]:
    """Operations of each block in the dense prefill that a budget is of."""
    counter, dense = FlopsCounter(model), BlockSparsity(0.0, 0.0)
    return [counter.of_block(i, dense, budget.batch, budget.length).total for i in range(model.n_blocks)]


def closest(options: Sequence[T], flops_of: Callable[[T], float], target: float) -> T:
    """The option whose operations come closest to a target; of equally close ones the first.

    Args:
        options: Options, the first of which changes nothing; the operations of the others do not ascend.
        flops_of: Operations of one.
        target: Operations wanted.
    """
    place = bisect_left(options, -target, key=lambda option: -flops_of(option))
    near = [options[0], *options[max(0, place - 1) : place + 1]]
    return min(near, key=lambda option: abs(flops_of(option) - target))


def bisected(
    outcome_of: Callable[[float], T],
    flops_of: Callable[[T], float],
    target: float,
    bounds: tuple[float, float],
    dense: T,
    on_step: Callable[[float], None],
) -> T:
    """The outcome whose operations come closest to a target, of the dense one and those that bisection tries.

    Args:
        outcome_of: Gives the outcome of a number; its operations grow with that.
        flops_of: Operations of an outcome.
        target: Operations wanted.
        bounds: Lowest and highest number.
        dense: The outcome that saves nothing.
        on_step: Called after each try with the share of them that is done.
    """
    nearest, (low, high) = dense, bounds
    for number in range(_BISECTIONS if flops_of(dense) != target else 0):
        middle = (low + high) / 2
        found = outcome_of(middle)
        nearest = min(nearest, found, key=lambda one: abs(flops_of(one) - target))
        low, high = (middle, high) if flops_of(found) < target else (low, middle)
        on_step((number + 1) / _BISECTIONS)
    return nearest


def flops_of_entries(
    model: SkippingModel, entries: Sequence[BlockSparsity], budget: Budget, router: Router | None = None
) -> float:
    """Operations of the prefill that a budget is of, with blocks of any sparsities, those of a schedule or others.

    Args:
        model: The model.
        entries: Sparsity of each block.
        budget: The budget.
        router: See `FlopsCounter.count`.
    """
    counter, dense = FlopsCounter(model), SparsitySchedule.uniform(0.0, model.n_blocks)
    batch, length = budget.batch, budget.length
    blocks = (counter.of_block(i, entry, batch, length, router=router).total for i, entry in enumerate(entries))
    return counter.count(dense, batch, length).head + sum(blocks)


def share_kept(n_kept: int, length: int) -> float:
    """A sparsity that keeps so many tokens of a prompt of this length."""
    # In the middle of those that do, so that rounding never keeps one more.
    return 0.0 if n_kept == length else 1.0 - (n_kept - 0.5) / length


def kept_counts(length: int) -> range:
    """Numbers of tokens of a prompt that a sparsity may keep, all of them first."""
    fewest = min(length, max(FEWEST_KEPT, math.ceil((1.0 - MAX_SPARSITY) * length + 0.5)))
    return range(length, fewest - 1, -1)


def threshold_of(exponent: float) -> float:
    """A cosine similarity to decide by, 1 - 2 / 4^x: they crowd below 1, where bisection must tell them apart."""
    return float(1.0 - 2.0 * 4.0**-exponent)


def negative_log_likelihood(model: SkippingModel, texts: PromptBatch, handler: BlockHandler) -> Tensor:
    """Negative log-likelihood of all tokens of texts but each one's first, summed in float64.

    Args:
        model: The model.
        texts: Texts `[B, L]`; padding stands last, where causality hides it from every token.
        handler: Handler that runs a block.
    """
    hidden_BLD = model.run(handler, texts.ids, use_cache=False).to(model.device)
    predicts_BL = predicts(texts, model.device)
    hidden_TD, targets_T = hidden_BLD[:, :-1][predicts_BL], texts.ids[:, 1:][predicts_BL]
    return -log_probabilities(model.head, hidden_TD, targets_T[:, None]).double().sum()


def predicts(texts: PromptBatch, device: torch.device) -> Tensor:
    """Tells the tokens of texts that predict another one of them: all but each one's last `[B, L - 1]`."""
    return torch.arange(texts.ids.shape[1] - 1, device=device) < texts.lengths[:, None] - 1


def as_it_is(index: int, call: BlockCall) -> Tensor:
    """Runs a block as the model calls it."""
    return call.run(call.hidden)
