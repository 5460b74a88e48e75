"""Measures generation: time to the first token, tokens per second, and until given numbers of new tokens.

Shapes: B rows, L tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.cost.timing import Estimate, Timer, estimate_median, take_turns, timer_of
from ftp_core.errors import DataError
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.dispatch import device_of_inputs
from ftp_core.skipping.families import context_of, family_of
from ftp_core.skipping.pruned_forward import PrunedForward
from ftp_core.skipping.skipping_model import SkippingModel, check_schedule
from ftp_core.text.encoding import PromptBatch

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""Runs tokens `[B, L]` behind a cache, None at first: logits of the last one `[B, V]`, and the cache."""


class Variant(Protocol):
    """A way to run a dense model, to be measured against others."""

    @property
    def name(self) -> str:
        """Name in results."""

    def step_of(self, model: PreTrainedModel) -> Step:
        """A function that runs tokens through a model, which stays as it is."""


@dataclass(frozen=True)
class Unchanged:
    """The model as it is: a dense one, or an `FTPForCausalLM` as it was saved."""

    name: str = "dense"

    def step_of(self, model: PreTrainedModel) -> Step:
        """See `Variant`."""

        def step(ids_BL: Tensor, cache: Any) -> tuple[Tensor, Any]:
            outputs = model(input_ids=ids_BL, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return outputs.logits[:, -1], outputs.past_key_values

        return step


@dataclass(frozen=True)
class Skipping:
    """The model with tokens that skip blocks, run as `FTPForCausalLM` runs it.

    Attributes:
        name: Name in results.
        schedule: One sparsity per block, or a schedule with halves.
        router: Router of prompts and, if any, of decoded tokens.
        decode_sparsity: Largest share of the decoded tokens that a block may skip.
        keep_first: Protected tokens at the beginning of every prompt.
    """

    name: str
    schedule: Sequence[float]
    router: Router = field(default_factory=StaticRouter)
    decode_sparsity: float = 0.0
    keep_first: int = 0

    def step_of(self, model: PreTrainedModel) -> Step:
        """See `Variant`."""
        family = family_of(model.config)
        n_blocks = len(family.blocks_of(model))
        schedule = SparsitySchedule.of(self.schedule, n_blocks)
        check_schedule(schedule, n_blocks)
        forward = PrunedForward(model, family, schedule, self.router, self.decode_sparsity, self.keep_first)

        absent = dict.fromkeys(("inputs_embeds", "attention_mask", "position_ids", "labels"))

        def step(ids_BL: Tensor, cache: Any) -> tuple[Tensor, Any]:
            given = {"input_ids": ids_BL, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            outputs = forward({**absent, **given}, None)
            assert outputs.logits is not None
            return outputs.logits[:, -1], outputs.past_key_values

        return step


@dataclass(frozen=True)
class Timing:
    """Times of one variant, measured round by round while all variants took turns.

    Attributes:
        variant: Name of the variant.
        batch: Rows.
        prompt_tokens: Tokens of each prompt (input).
        new_tokens: Tokens decoded behind each prompt, all of which run through the model (output).
        device: Type of the device.
        dtype: Type of the model's weights.
        first_token_ms: Time until the prompt has run and the first new token is known.
        end_to_end_ms: Time until the last new token has run, too; without new tokens the same.
        tokens_per_second: New tokens of all rows by the time between the two; None without new tokens.
        first_token_samples_ms: `first_token_ms` of each round.
        end_to_end_samples_ms: `end_to_end_ms` of each round.
    """

    variant: str
    batch: int
    prompt_tokens: int
    new_tokens: int
    device: str
    dtype: str
    first_token_ms: Estimate
    end_to_end_ms: Estimate
    tokens_per_second: Estimate | None
    first_token_samples_ms: tuple[float, ...]
    end_to_end_samples_ms: tuple[float, ...]

    @property
    def length(self) -> int:
        """Input and output tokens of each row."""
        return self.prompt_tokens + self.new_tokens

    @property
    def repeats(self) -> int:
        """Rounds."""
        return len(self.end_to_end_samples_ms)

    def __str__(self) -> str:
        length = f"length {self.length} ({self.prompt_tokens} in, {self.new_tokens} out)"
        parts = [f"{self.variant}: batch {self.batch}, {length}", f"first token {_shown(self.first_token_ms)} ms"]
        if self.tokens_per_second is not None:
            parts.append(f"{_shown(self.tokens_per_second)} tokens/s")
            parts.append(f"end to end {_shown(self.end_to_end_ms)} ms")
        return ", ".join(parts)


def _shown(estimate: Estimate) -> str:
    return f"{estimate.median:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


@torch.inference_mode()
def measure(
    model: SkippingModel | PreTrainedModel,
    inputs: PromptBatch | Tensor,
    variants: Sequence[Variant] | None = None,
    *,
    new_tokens: int = 0,
    repeats: int = 15,
    confidence: float = 0.95,
    seed: int = 0,
    timer: Timer | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Time to first token, tokens per second and end to end, under each variant; variants take turns.

    Args:
        model: A dense model in eval mode; also one of `FTPForCausalLM`, if no variants are given.
        inputs: Prompts of equal length `[B, L]`; `timing_batch` makes some.
        variants: Ways to run it; None to run it as it is.
        new_tokens: Tokens to decode behind each prompt, greedily; the end-of-text token does not end it.
        repeats: Rounds, after one to warm up.
        confidence: Confidence of the intervals, in (0, 1).
        seed: Seed of the resampling behind the intervals.
        timer: Clock; by default one that waits for the model's device.
        on_run: Called after each run, those that warm up included: `len(variants) * (repeats + 1)` times.

    Returns:
        A timing of each variant, in their order.

    Raises:
        DataError: Prompts are padded or empty, do not fit into the model's context with the new tokens, or there is
            nothing to count.
        ModelError: A variant does not fit the model.
        ScheduleError: Likewise.
    """
    base = model.model if isinstance(model, SkippingModel) else model
    device = device_of_inputs(base)
    ids_BL = _rectangular(inputs).to(device)
    batch, length = ids_BL.shape
    if new_tokens < 0:
        raise DataError(f"new_tokens is {new_tokens}, but must be 0, for the first token alone, or more.")
    # A pruned model's own configuration keeps the dense model's beside its own.
    context = context_of(getattr(base.config, "base_config", None) or base.config)
    if length + new_tokens > context:
        raise DataError(
            f"Prompts of {length} tokens and {new_tokens} new ones are longer than the {context} that the model reads: "
            "shorten one of them."
        )
    ways: Sequence[Variant] = [Unchanged(type(base).__name__)] if variants is None else variants
    ticks = timer or timer_of(device)
    marks = sorted({1, new_tokens + 1})
    runs = [partial(generation_ms, way.step_of(base), ids_BL, marks, ticks) for way in ways]
    measured = []
    for way, rounds in zip(ways, take_turns(runs, repeats, on_run), strict=True):
        first, end = (tuple(ms[mark] for ms in rounds) for mark in (0, -1))
        rates = [
            1000 * batch * new_tokens / (last - start) for start, last in zip(first, end, strict=True) if new_tokens
        ]
        measured.append(
            Timing(
                variant=way.name,
                batch=batch,
                prompt_tokens=length,
                new_tokens=new_tokens,
                device=device.type,
                dtype=str(base.dtype).removeprefix("torch."),
                first_token_ms=estimate_median(first, confidence, seed),
                end_to_end_ms=estimate_median(end, confidence, seed),
                tokens_per_second=estimate_median(rates, confidence, seed) if rates else None,
                first_token_samples_ms=first,
                end_to_end_samples_ms=end,
            )
        )
    return measured


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


def generation_ms(step: Step, ids_BL: Tensor, marks: Sequence[int], timer: Timer) -> list[float]:
    """Milliseconds of greedy generation until each of these numbers of new tokens, which ascend, is known."""
    ms, started = [], timer()
    logits_BV, cache = step(ids_BL, None)
    for known in range(1, marks[-1] + 1):
        token_B1 = logits_BV.argmax(-1, keepdim=True)
        if known in marks:
            ms.append(1000 * (timer() - started))
        if known < marks[-1]:
            logits_BV, cache = step(token_B1, cache)
    return ms


def _rectangular(inputs: PromptBatch | Tensor) -> Tensor:
    ids_BL = inputs.ids if isinstance(inputs, PromptBatch) else inputs
    if ids_BL.ndim != 2 or 0 in ids_BL.shape:
        raise DataError(f"The prompts have the shape {tuple(ids_BL.shape)}, but must be rows of at least one token.")
    if isinstance(inputs, PromptBatch) and bool((inputs.lengths != ids_BL.shape[1]).any()):
        raise DataError(
            f"The prompts have from {int(inputs.lengths.min())} to {int(inputs.lengths.max())} tokens, padded to "
            f"{ids_BL.shape[1]}: time prompts of equal length, so that it says what was timed; timing_batch makes some."
        )
    return ids_BL
