"""What other methods come to on a study's model and test items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# Method of the study's own rows.
OURS = "ours"
Match = Literal["latency", "flops"]
"""What methods have in common: measured time of a prefill, or its operations."""


@dataclass(frozen=True)
class ShapeSpeed:
    """Speed of a model at a prefill of another shape than the one that it was made for.

    Attributes:
        batch: Rows of the input.
        length: Tokens of each.
        latency_ms: Median time until the first token.
        speedup: Median over turns of the dense model's time by this one's in the same turn.
        speedup_low: Lower end of its 95 % interval; None where there were too few turns.
        speedup_high: Upper end of it.
        repeats: Turns.
    """

    batch: int
    length: int
    latency_ms: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    repeats: int


@dataclass(frozen=True)
class ComparedModel:
    """A model that a method made, measured on test items and on the clock.

    Attributes:
        asked: Share of the dense prefill's operations that the method was asked to save.
        flops_saved: Share that it saves.
        flops: Operations of the timed prefill.
        kv_bytes: Bytes of the keys and values that it leaves behind.
        n_parameters: Parameters of all that runs.
        sparsity: How much the method removes, in the terms of its paper.
        kl: Mean KL(dense || pruned) per completion token, nats.
        kl_low: Lower end of its 95 % bootstrap interval.
        kl_high: Upper end of it.
        perplexity: Perplexity of the completions.
        accuracy: Share of multiple-choice items answered right; None without choices.
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end of it.
        latency_ms: Median time until the first token of the timed prefill.
        speedup: Median over turns of the dense model's time by this one's in the same turn.
        speedup_low: Lower end of its 95 % interval; None where there were too few turns.
        speedup_high: Upper end of it.
        tokens_per_second: New tokens of all rows by the time between the first and the last; None if none were timed.
        repeats: Turns.
        batch: Rows of the timed input.
        length: Tokens of each.
        seconds: Time that the preparation of the model took.
        tokens: Tokens that ran through a model for it.
        trained_parameters: Parameters that were trained for it.
        preparation_bytes: Peak memory of a GPU meanwhile; None where it is not known.
        item_kl: KL on each test item.
        item_tokens: Completion tokens of each.
        item_right: 1 where the right choice was taken, 0 where another one was, None where there is no choice.
        shapes: Its speed at prefills of other shapes.
    """

    asked: float
    flops_saved: float
    flops: float
    kv_bytes: int
    n_parameters: int
    sparsity: str
    kl: float
    kl_low: float
    kl_high: float
    perplexity: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    latency_ms: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    tokens_per_second: float | None
    repeats: int
    batch: int
    length: int
    seconds: float
    tokens: int
    trained_parameters: int
    preparation_bytes: int | None
    item_kl: tuple[float, ...]
    item_tokens: tuple[int, ...]
    item_right: tuple[int | None, ...]
    shapes: tuple[ShapeSpeed, ...] = ()


@dataclass(frozen=True)
class Compared:
    """A method at one target with one seed: the model that it made, or why there is none.

    Attributes:
        method: Name of the method.
        paper: Citation; empty for what no paper proposes.
        match: What is alike among the methods that it is compared with.
        target: Share of the dense model's time, or operations, to be saved.
        seed: Seed of the method.
        context: Hash of model, test items and timed input, without which figures do not compare.
        model: What it made; None if the method cannot be applied.
        refused: Why it cannot be; empty otherwise.
    """

    method: str
    paper: str
    match: Match
    target: float
    seed: int
    context: str
    model: ComparedModel | None
    refused: str = ""


def latest(rows: Iterable[Compared]) -> list[Compared]:
    """The last of rows that differ in their context alone: it is of the items and trials that there are now."""
    return list({(one.method, one.match, one.target, one.seed): one for one in rows}.values())
