"""How much worse a pruned model is than the dense one: KL, perplexity, and accuracy on multiple choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftp_core.encoding import (
    IGNORED,
    ContinuationBatch,
    EncodedExample,
    PromptBatch,
    continuation_batch,
    length_sorted_batches,
    prompt_batch,
)
from ftp_core.routing import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import SkippingModel


@dataclass(frozen=True)
class Quality:
    """Quality of a pruned model on a set of examples.

    Attributes:
        kl: Mean KL(dense || pruned) per completion token, nats.
        perplexity: exp of the mean negative log-likelihood per completion token.
        accuracy: Share of multiple-choice items whose right choice has the highest summed log-likelihood (lm-eval's
            `acc`); None without such items, or if choices were not scored.
        accuracy_interval: 95 % Wilson interval of `accuracy`.
        n_items: Examples evaluated.
        n_tokens: Completion tokens evaluated.
    """

    kl: float
    perplexity: float
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    n_items: int
    n_tokens: int


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): right at 0 and 1, where the normal one has no width."""
    share, extra = right / n, z * z / n
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / n + extra / (4 * n)) / (1 + extra)
    # At the ends rounding would leave the share itself outside by an ulp.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True)
class _Batch:
    prompts: PromptBatch
    answers: ContinuationBatch
    choices: ContinuationBatch | None
    right_choice: Tensor
    dense_log_probs: Tensor


def _kl_and_nll(log_probs: Tensor, dense: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """KL(dense || pruned) and negative log-likelihood of every completion token `[n]`."""
    real = ids != IGNORED
    kl = (dense.exp() * (dense - log_probs)).sum(-1)[real]
    nll = -log_probs.gather(-1, ids.clamp(min=0)[..., None]).squeeze(-1)[real]
    return kl, nll


class QualitySet:
    """Examples with the dense model's answers to them, computed once and compared with many pruned variants.

    Args:
        model: The model, which is its own dense reference.
        examples: What to evaluate on.
        batch_size: Prompts in a batch.
        on_batch: Called after each batch of the dense pass.
    """

    def __init__(
        self,
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        batch_size: int = 16,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self.n_items = len(examples)
        self._batches: list[_Batch] = []
        dense, router = SparsitySchedule.uniform(0.0, model.n_blocks), StaticRouter()
        for group in length_sorted_batches(examples, batch_size):
            prompts, answers = prompt_batch(group), continuation_batch(group, only_answers=True)
            scored = all(example.has_choices for example in group)
            logits = model.continuation_logits(model.prefill(prompts, dense, router), answers)
            self._batches.append(
                _Batch(
                    prompts,
                    answers,
                    continuation_batch(group, only_answers=False) if scored else None,
                    torch.tensor([example.answer for example in group]),
                    logits.float().log_softmax(-1),
                )
            )
            on_batch()

    @torch.inference_mode()
    def evaluate(self, schedule: SparsitySchedule, router: Router, choices: bool = False) -> Quality:
        """Compare the model under a schedule and router with the dense one.

        Args:
            schedule: One sparsity per block.
            router: Names the kept tokens.
            choices: Whether to score every choice too, for `accuracy`.
        """
        kls, nlls, rights = [], [], []
        for batch in self._batches:
            prefill = self._model.prefill(batch.prompts, schedule, router)
            logits = self._model.continuation_logits(prefill, batch.answers)
            kl, nll = _kl_and_nll(logits.float().log_softmax(-1), batch.dense_log_probs, batch.answers.ids)
            kls.append(kl)
            nlls.append(nll)
            if choices and batch.choices is not None:
                log_probs = self._model.continuation_logits(prefill, batch.choices).float().log_softmax(-1)
                rights.append(_choose(log_probs, batch.choices) == batch.right_choice)
        kl, nll = torch.cat(kls), torch.cat(nlls)
        right = torch.cat(rights) if rights else None
        return Quality(
            kl=max(0.0, float(kl.mean())),
            perplexity=math.exp(min(float(nll.mean()), 700.0)),
            accuracy=None if right is None else float(right.float().mean()),
            accuracy_interval=None if right is None else wilson_interval(int(right.sum()), len(right)),
            n_items=self.n_items,
            n_tokens=len(kl),
        )


def _choose(log_probs: Tensor, choices: ContinuationBatch) -> Tensor:
    """Index of the likeliest continuation of each prompt `[B]`; the first of equals."""
    real = choices.ids != IGNORED
    picked = log_probs.gather(-1, choices.ids.clamp(min=0)[..., None]).squeeze(-1)
    totals = (picked * real).sum(-1)
    n_prompts = int(choices.rows.max()) + 1
    table = torch.full((n_prompts, int(torch.bincount(choices.rows).max())), -torch.inf)
    starts = torch.searchsorted(choices.rows, torch.arange(n_prompts))
    table[choices.rows, torch.arange(len(totals)) - starts[choices.rows]] = totals
    return table.argmax(-1)
