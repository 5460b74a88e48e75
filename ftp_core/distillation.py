"""Distils a dynamic router: the dense model teaches, the static router lends a crutch, only the router learns."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.attention import AttentionGate, gated_attention
from ftp_core.encoding import (
    IGNORED,
    EncodedExample,
    answer_batch,
    length_sorted_batches,
    pad_right,
    prompt_batch,
)
from ftp_core.errors import CoreError
from ftp_core.quality import QualitySet
from ftp_core.routing import DEFAULT_WINDOW, DynamicRouter, RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import SkippingModel


@dataclass(frozen=True)
class DistillationConfig:
    """Hyperparameters of a distillation.

    Attributes:
        steps: Optimizer steps.
        batch_size: Prompts a step.
        lr: Peak learning rate of AdamW; warm-up over a tenth of the steps, then cosine.
        w_guide: Weight of the guide loss at the start; it decays linearly to 0 over `guide_share` of the steps.
        guide_share: Share of the steps in which the guide loss has weight.
        w_sparsity: Weight of the sparsity loss.
        w_distill: Weight of the distillation loss.
        temperature: T of the distillation loss.
        window: W of the attention features.
        evaluate_every: Steps between evaluations on the held-out set; the best router seen there is kept.
        seed: Of the initial weights and the order of examples.
    """

    steps: int = 80
    batch_size: int = 8
    lr: float = 0.005
    w_guide: float = 0.3
    guide_share: float = 0.3
    w_sparsity: float = 1.0
    w_distill: float = 1.0
    temperature: float = 1.0
    window: int = DEFAULT_WINDOW
    evaluate_every: int = 20
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass
class Distillation:
    """A distilled router and how it came about.

    Attributes:
        router: The one with the lowest held-out KL of the run: never worse there than the static router.
        curves: "step", "loss", "guide", "sparsity", "distill", one entry a step; "held_out_step" (steps done; 0 is the
            static router's) with "held_out_kl".
        seconds: Training time.
    """

    router: DynamicRouter
    curves: dict[str, list[float]]
    seconds: float


def guide_loss(scores: Tensor, static: Tensor, real: Tensor) -> Tensor:
    """Binary cross-entropy between sigmoid(z) and the static router's decision, mean over real tokens, then rows.

    Args:
        scores: Router scores z of one block `[B, L]`.
        static: The static router's decision, bool `[B, L]`.
        real: True for tokens, False for padding `[B, L]`.
    """
    loss = nn.functional.binary_cross_entropy_with_logits(scores, static.to(scores.dtype), reduction="none")
    return ((loss * real).sum(1) / real.sum(1)).mean()


def sparsity_loss(scores: Tensor, sparsity: float, real: Tensor) -> Tensor:
    """max(0, s - mean_j(1 - p_j))^2 with p = sigmoid(z), mean over rows: one-sided, skipping more is not punished.

    Args:
        scores: Router scores z of one block `[B, L]`.
        sparsity: s of that block.
        real: True for tokens, False for padding `[B, L]`.
    """
    skipped = ((1 - scores.sigmoid()) * real).sum(1) / real.sum(1)
    return (sparsity - skipped).clamp(min=0).square().mean()


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(dense || pruned) at temperature T, mean over tokens (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        logits: Of the pruned model `[n, V]`.
        teacher: Of the dense model `[n, V]`.
        temperature: T.
    """
    student = (logits / temperature).log_softmax(-1)
    target = (teacher / temperature).log_softmax(-1)
    return temperature**2 * nn.functional.kl_div(student, target, log_target=True, reduction="batchmean")


@dataclass
class _TrainingBatch:
    """Prompts with their completions in one right-padded sequence, for the masked computation of training."""

    ids: Tensor
    prompt_lengths: Tensor
    predicts: Tensor
    prompt_width: int

    @classmethod
    def of(cls, examples: Sequence[EncodedExample]) -> _TrainingBatch:
        rows = [(*example.prompt, *example.continuations[example.answer]) for example in examples]
        ids = pad_right(rows, 0)
        lengths = torch.tensor([len(example.prompt) for example in examples])
        totals = torch.tensor([len(row) for row in rows])
        position = torch.arange(ids.shape[1])
        # A completion token is predicted one position before it stands.
        predicts = (position >= lengths[:, None] - 1) & (position < totals[:, None] - 1)
        return cls(ids, lengths, predicts, int(lengths.max()))


class _GatedModel:
    """The model as training sees it: every token computed, gates with a straight-through gradient in between."""

    def __init__(self, model: SkippingModel, router: DynamicRouter) -> None:
        self._model = model
        self._router = router
        self._static = StaticRouter()

    def losses(
        self, batch: _TrainingBatch, teacher: Tensor, schedule: SparsitySchedule, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Guide, sparsity and distillation loss; the first two are means over blocks with s_i > 0."""
        decoder, width = self._model.decoder, batch.prompt_width
        state = RoutingState.start(batch.prompt_lengths, width)
        hidden = decoder.embed_tokens(batch.ids)
        n_rows, total = batch.ids.shape
        position_ids = torch.arange(total)[None]
        rotary = decoder.rotary_emb(hidden, position_ids=position_ids)
        guides, sparsities = [], []
        with gated_attention(self._model.model):
            for block, sparsity in zip(self._model.blocks, schedule, strict=True):
                gate = torch.ones(n_rows, total)
                keep = state.real
                if sparsity > 0:
                    scores = self._router.scores(sparsity, state)
                    keep = self._router.select(scores, sparsity, state)
                    soft = _soft_decision(scores, keep, state)
                    # Straight-through: the hard decision forwards, the soft one's gradient backwards. Padding stays
                    # closed, so that completions, which stand behind shorter prompts, are not touched by it.
                    hard = keep.to(soft.dtype) + soft - soft.detach()
                    within = nn.functional.pad(state.real, (0, total - width))
                    gate = torch.where(within, nn.functional.pad(hard, (0, total - width)), gate)
                    guides.append(guide_loss(scores, self._static.keep(sparsity, state), state.real))
                    sparsities.append(sparsity_loss(scores, sparsity, state.real))
                observed, weight = _last_kept(keep, self._router.window)
                attention = AttentionGate(gate, observed, weight)
                out = block(
                    hidden, attention_mask=None, position_ids=position_ids, position_embeddings=rotary, gate=attention
                )
                hidden = hidden + gate[..., None] * (out - hidden) if sparsity > 0 else out
                assert attention.received is not None
                state.observe(attention.received[:, :width], keep)
        logits = self._model.model.lm_head(decoder.norm(hidden[batch.predicts]))
        zero = logits.new_zeros(())
        return (
            torch.stack(guides).mean() if guides else zero,
            torch.stack(sparsities).mean() if sparsities else zero,
            distillation_loss(logits, teacher, temperature),
        )


def _soft_decision(scores: Tensor, keep: Tensor, state: RoutingState) -> Tensor:
    """How near each token is to the line between kept and skipped: sigmoid of its distance from there `[B, L]`.

    In budget mode a decision hangs on how scores compare within the row. The plain sigmoid(z) would saturate wherever
    scores drift up together, and its gradient die, though no decision changed.

    Args:
        scores: Router scores z `[B, L]`.
        keep: Who was kept `[B, L]`.
        state: Which tokens are real.
    """
    dropped = state.real & ~keep
    lowest_kept = scores.masked_fill(~keep, torch.inf).amin(1)
    highest_dropped = scores.masked_fill(~dropped, -torch.inf).amax(1)
    line = (lowest_kept + torch.where(dropped.any(1), highest_dropped, lowest_kept)) / 2
    return (scores - line[:, None]).sigmoid()


def _last_kept(keep: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Positions of each row's last `window` kept tokens `[B, W]`, and 0 for fillers where it keeps fewer."""
    order = keep.to(torch.uint8).argsort(dim=1, descending=False, stable=True)[:, -window:]
    return order, keep.gather(1, order).float()


@dataclass
class _Curves:
    values: dict[str, list[float]] = field(
        default_factory=lambda: {
            name: [] for name in ("step", "loss", "guide", "sparsity", "distill", "held_out_step", "held_out_kl")
        }
    )

    def add(self, **entries: float) -> None:
        for name, value in entries.items():
            self.values[name].append(value)


def _teacher_hidden(model: SkippingModel, examples: Sequence[EncodedExample]) -> Tensor:
    """The dense model's final hidden states at every completion token of a batch `[n, D]`, row by row."""
    answers = answer_batch(examples)
    dense = SparsitySchedule.uniform(0.0, model.n_blocks)
    hidden = model.continuation_hidden(model.prefill(prompt_batch(examples), dense, StaticRouter()), answers)
    # A copy, because autograd refuses tensors made in inference mode.
    return hidden[answers.ids != IGNORED].clone()


def distill(
    model: SkippingModel,
    examples: Sequence[EncodedExample],
    held_out: QualitySet,
    schedules: Sequence[SparsitySchedule],
    config: DistillationConfig | None = None,
    on_step: Callable[[int, float], None] = lambda step, kl: None,
    on_taught: Callable[[], None] = lambda: None,
) -> Distillation:
    """Train a dynamic router on one schedule, or on several in turn; the model's weights never change.

    Args:
        model: The model.
        examples: What to train on.
        held_out: What to choose the best router on; must not share examples with `examples`.
        schedules: Schedules the router shall serve; held-out KL is the mean over them.
        config: Hyperparameters.
        on_step: Called with the step and the best held-out KL so far.
        on_taught: Called after each batch of the dense model's pass over `examples`, which comes before the steps.

    Returns:
        The router with the lowest held-out KL; the static router's decisions, if none was lower.

    Raises:
        CoreError: No schedule skips anything, or the loss is not finite.
    """
    config = config or DistillationConfig()
    started = time.monotonic()
    for schedule in schedules:
        model.check(schedule)
    if not any(any(schedule) for schedule in schedules):
        raise CoreError("No schedule skips anything, so a router has nothing to decide: give one with sparsity.")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        router = DynamicRouter(config.window)
    gated = _GatedModel(model, router)
    optimizer = torch.optim.AdamW(router.parameters(), lr=config.lr, weight_decay=0.0)
    # Batches of similar lengths, in an order shuffled anew every epoch; the teacher speaks once for each.
    prepared = []
    for examples_of_batch in length_sorted_batches(examples, config.batch_size):
        prepared.append((_TrainingBatch.of(examples_of_batch), _teacher_hidden(model, examples_of_batch)))
        on_taught()
    rng, order = random.Random(config.seed), list[int]()
    curves, best_kl, best = _Curves(), math.inf, copy.deepcopy(router)

    def hold_out(steps: int, candidate: DynamicRouter) -> None:
        nonlocal best_kl, best
        kl = sum(held_out.evaluate(schedule, candidate).kl for schedule in schedules) / len(schedules)
        curves.add(held_out_step=steps, held_out_kl=kl)
        if kl < best_kl:
            best_kl, best = kl, copy.deepcopy(candidate)

    # The router that decides as the static one runs along, so that none is kept that does worse than it there.
    hold_out(0, DynamicRouter.static(config.window))
    for step in range(config.steps):
        if not order:
            order = list(range(len(prepared)))
            rng.shuffle(order)
        batch, hidden = prepared[order.pop()]
        teacher = model.logits(hidden)
        progress = step / config.steps
        warm_up = min(1.0, (step + 1) / max(1, config.steps // 10))
        optimizer.param_groups[0]["lr"] = config.lr * warm_up * 0.5 * (1 + math.cos(math.pi * progress))
        w_guide = config.w_guide * max(0.0, 1 - progress / config.guide_share) if config.guide_share > 0 else 0.0
        guide, sparsity, distill_ = gated.losses(batch, teacher, schedules[step % len(schedules)], config.temperature)
        loss = w_guide * guide + config.w_sparsity * sparsity + config.w_distill * distill_
        if not bool(torch.isfinite(loss)):
            raise CoreError(f"The router's loss is {float(loss.detach())} at step {step}: lower the learning rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        optimizer.step()
        parts = (loss.detach(), guide.detach(), sparsity.detach(), distill_.detach())
        curves.add(step=step, **dict(zip(("loss", "guide", "sparsity", "distill"), map(float, parts), strict=True)))
        if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
            hold_out(step + 1, router)
        on_step(step + 1, best_kl)
    best.eval().requires_grad_(False)
    return Distillation(best, curves.values, time.monotonic() - started)
