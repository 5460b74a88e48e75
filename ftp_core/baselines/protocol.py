"""The interface of a comparison method, and of the model that it makes.

Dimensions: B rows, L tokens of a prompt, R continuations, C tokens of a continuation, D hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Step
from ftp_core.errors import ScheduleError
from ftp_core.quality.quality import Comparable
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample


@dataclass(frozen=True)
class Budget:
    """How much of the dense model's prefill a method is to save.

    Every method can be matched at equal floating-point operations by its share, and at equal measured latency by
    varying that.

    Attributes:
        share: Share of the dense prefill's operations to save, logits of the last token included, in [0, 1).
        batch: Rows of the prefill that is counted.
        length: Prompt tokens of each.

    Raises:
        ScheduleError: The share is outside [0, 1), or there is no row or no token.
    """

    share: float
    batch: int = 1
    length: int = 512

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not (math.isfinite(self.share) and 0.0 <= self.share < 1.0):
            raise ScheduleError(
                f"The share of operations to save is {self.share}, but must be in [0, 1): 0.25 saves a quarter."
            )
        if self.batch < 1 or self.length < 1:
            raise ScheduleError(
                f"The prefill to be counted has {self.batch} rows of {self.length} tokens: give at least one of each."
            )

    def dense_flops(self, model: SkippingModel) -> float:
        """Operations of the dense prefill."""
        dense = SparsitySchedule.uniform(0.0, model.n_blocks)
        return FlopsCounter(model).count(dense, self.batch, self.length).total

    def target_flops(self, model: SkippingModel) -> float:
        """Operations that are left."""
        return (1.0 - self.share) * self.dense_flops(model)


@dataclass(frozen=True)
class Sparsity:
    """A method's own notion of how much it removes, as its paper reports it.

    Attributes:
        value: The number.
        unit: What it counts.
    """

    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:.3g} {self.unit}"


@dataclass(frozen=True)
class Preparation:
    """What a method needed before its model could run.

    Attributes:
        seconds: Wall-clock time.
        tokens: Tokens that ran through a model, repeated ones included.
        trained_parameters: Number of parameters that were trained.
        peak_bytes: Peak memory of a GPU, weights included; None where it is not known.
    """

    seconds: float
    tokens: int
    trained_parameters: int = 0
    peak_bytes: int | None = None


class PrunedModel(Comparable, Protocol):
    """A model that a method made: what evaluation, timing and counting need, whatever the method.

    As every `Comparable` it runs prompts and scores what follows them, and it is a variant to be measured
    (`ftp_core.cost.measure.Variant`). Prompts never depend on what follows them, nor rows on each other.
    """

    @property
    def name(self) -> str:
        """Name in results."""

    @property
    def sparsity(self) -> Sparsity:
        """Sparsity in the terms of the method's paper."""

    @property
    def preparation(self) -> Preparation:
        """What it needed."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters of all that runs."""

    def step_of(self, model: PreTrainedModel) -> Step:
        """See `ftp_core.cost.measure.Variant`; the model must be the dense one that it was made from."""

    def flops(self, batch: int, length: int, new_tokens: int = 0) -> float:
        """Floating-point operations, counted as `FlopsCounter.count` counts them."""

    def kv_bytes(self, batch: int, length: int, new_tokens: int = 0) -> int:
        """Bytes of keys and values, counted as `ftp_core.cost.memory.kv_bytes` counts them."""


class Baseline(Protocol):
    """A method to compare with."""

    @property
    def name(self) -> str:
        """Name in results, by which it is registered."""

    @property
    def paper(self) -> str:
        """Citation with the number at arXiv, or else at OpenReview; empty for what no paper proposes."""

    @property
    def has_chance(self) -> bool:
        """True if the seed matters, so that several are to be compared."""

    @property
    def trains(self) -> bool:
        """True if it trains parameters."""

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> PrunedModel:
        """Makes a pruned model; the given one stays as it is.

        Args:
            model: The dense model.
            calibration: Examples to decide by or to train on.
            budget: Operations to save; a method that can only do steps takes the nearest that it can.
            seed: Seed of all random choices.
            on_step: Called now and then with the share of the preparation that is done, 1 at the end.

        Raises:
            ModelError: The method cannot be applied to this family of models; says why.
            DataError: There is no example, or one cannot be read.
        """


def flops_saved(pruned: PrunedModel, batch: int, length: int) -> float:
    """Share of the dense prefill's operations that a pruned model saves."""
    return 1.0 - pruned.flops(batch, length) / Budget(0.0, batch, length).dense_flops(pruned.dense)
