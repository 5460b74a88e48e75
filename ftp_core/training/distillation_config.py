"""Hyperparameters of a distillation, checked when they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from ftp_core.errors import CoreError
from ftp_core.routers import DEFAULT_WINDOW

_COUNTS = ("steps", "batch_size", "accumulate", "window", "evaluate_every")
_COUNTS_OR_NONE = ("teacher_top_k", "patience")
_NOT_NEGATIVE = ("lr", "w_guide", "w_sparsity", "w_distill")
_POSITIVE = ("temperature", "max_grad_norm")


@dataclass(frozen=True)
class DistillationConfig:
    """Hyperparameters of a distillation.

    Attributes:
        steps: Optimizer steps at most.
        batch_size: Prompts in a batch.
        accumulate: Batches a step; their gradients are averaged.
        start: Decisions of a fresh router before it learns: "static", those of the static router, or "random".
        lr: Peak learning rate of AdamW; warm-up over a tenth of the steps, then cosine.
        w_guide: Weight of the guide loss at the start; it decays linearly to 0 over `guide_share` of the steps. It is 0
            because a router that starts as the static one learns less with a guide (`benchmarks/router_tuning.py`,
            docs/tuning.md).
        guide_share: Share of the steps in which the guide loss has weight.
        w_sparsity: Weight of the sparsity loss.
        symmetric_sparsity: Punish skipping more than asked, too.
        w_distill: Weight of the distillation loss.
        temperature: T of the distillation loss.
        teacher_top_k: Cache only the k likeliest tokens of the teacher's predictions; None for all of them (kept as
            final hidden states, D numbers a token).
        max_grad_norm: Gradients are scaled down to this norm.
        window: W of a fresh router's attention features.
        evaluate_every: Steps between evaluations on the held-out set; the best router seen there is kept.
        patience: Stop after so many evaluations without a better router; None to go on.
        consider_static: Let the static router's decisions take part in the choice on the held-out set, so that no
            router is kept that is worse there.
        gradient_checkpointing: Compute blocks twice instead of keeping their activations; None to do so where a step
            would hold much memory otherwise (`ftp_core.training.memory.StepMemory`).
        autocast: Compute the model in bfloat16 on a GPU; the router and the losses stay in float32.
        seed: Seed of the initial weights and of the order of examples.

    Raises:
        CoreError: A value is outside its range; names the field, the value and what is allowed.
    """

    steps: int = 80
    batch_size: int = 8
    accumulate: int = 1
    start: str = "static"
    lr: float = 0.01
    w_guide: float = 0.0
    guide_share: float = 0.3
    w_sparsity: float = 1.0
    symmetric_sparsity: bool = False
    w_distill: float = 1.0
    temperature: float = 1.0
    teacher_top_k: int | None = None
    max_grad_norm: float = 1.0
    window: int = DEFAULT_WINDOW
    evaluate_every: int = 10
    patience: int | None = None
    consider_static: bool = True
    gradient_checkpointing: bool | None = None
    autocast: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would train nothing, or fail in the middle."""
        for name in _COUNTS:
            self._check(name, "an integer of at least 1", _is_count)
        for name in _COUNTS_OR_NONE:
            self._check(name, "an integer of at least 1, or None", lambda value: value is None or _is_count(value))
        for name in _NOT_NEGATIVE:
            self._check(name, "a finite number of at least 0", lambda value: _is_finite(value) and value >= 0)
        for name in _POSITIVE:
            self._check(name, "a finite number above 0", lambda value: _is_finite(value) and value > 0)
        self._check("guide_share", "a number in [0, 1]", lambda value: _is_finite(value) and 0 <= value <= 1)
        self._check("start", "'static' or 'random'", lambda value: value in ("static", "random"))
        self._check("seed", "an integer", lambda value: isinstance(value, Integral))

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: warm-up over a tenth of the steps, then cosine."""
        warm_up = min(1.0, (step + 1) / max(1, self.steps // 10))
        return self.lr * warm_up * 0.5 * (1 + math.cos(math.pi * (step / self.steps)))

    def _check(self, name: str, allowed: str, is_allowed: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if not is_allowed(value):
            raise CoreError(f"{name} of a distillation is {value!r}, but must be {allowed}.")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def _is_count(value: object) -> bool:
    # True is an integer to Python.
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
