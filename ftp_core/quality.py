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
    answer_batch,
    choice_batch,
    length_sorted_batches,
    prompt_batch,
)
from ftp_core.routing import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import Prefill, SkippingModel


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
        n_choice_items: Multiple-choice items scored for `accuracy`.
    """

    kl: float
    perplexity: float
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    n_items: int
    n_tokens: int
    n_choice_items: int


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): right at 0 and 1, where the normal one has no width."""
    share, extra = right / n, z * z / n
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / n + extra / (4 * n)) / (1 + extra)
    # At the ends rounding would leave the share itself outside by an ulp.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


# Rounding makes the KL of equal distributions a hair negative, no further below zero than this.
_ROUNDING = 1e-6
# exp of more than this is no float.
_HIGHEST_EXPONENT = 700.0


@dataclass(frozen=True)
class _Batch:
    prompts: PromptBatch
    answers: ContinuationBatch
    choices: ContinuationBatch | None
    right_choice: Tensor
    dense_hidden: Tensor


def _divergence(log_probs: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || pruned) of each token `[n]`, from log-probabilities `[n, V]`."""
    # What the dense model rules out adds nothing, though the pruned one may rule it out too (0 x (inf - inf)).
    return torch.where(dense == -math.inf, 0.0, dense.exp() * (dense - log_probs)).sum(-1)


class QualitySet:
    """Examples with the dense model's answers to them, computed once and compared with many pruned variants.

    The answers are kept as final hidden states, D numbers a token, because V of them would fill the memory.

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
            prompts, answers = prompt_batch(group), answer_batch(group)
            hidden = model.continuation_hidden(model.prefill(prompts, dense, router), answers)
            self._batches.append(
                _Batch(
                    prompts,
                    answers,
                    choice_batch(group),
                    torch.tensor([example.answer for example in group if example.has_choices]),
                    hidden[answers.ids != IGNORED],
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
            hidden = self._model.continuation_hidden(prefill, batch.answers)
            real = batch.answers.ids != IGNORED
            log_probs = self._log_probs(hidden[real])
            kls.append(_divergence(log_probs, self._log_probs(batch.dense_hidden)))
            nlls.append(-log_probs.gather(-1, batch.answers.ids[real][:, None])[:, 0])
            if choices and batch.choices is not None:
                likelihoods = self._likelihoods(prefill, batch.choices)
                rights.append(_likeliest(likelihoods, batch.choices.rows) == batch.right_choice)
        kl, nll = torch.cat(kls), torch.cat(nlls)
        right = torch.cat(rights) if rights else None
        mean_kl = float(kl.mean())
        return Quality(
            kl=0.0 if -_ROUNDING < mean_kl < 0 else mean_kl,
            perplexity=math.exp(min(float(nll.mean()), _HIGHEST_EXPONENT)),
            accuracy=None if right is None else float(right.float().mean()),
            accuracy_interval=None if right is None else wilson_interval(int(right.sum()), len(right)),
            n_items=self.n_items,
            n_tokens=len(kl),
            n_choice_items=0 if right is None else len(right),
        )

    def _log_probs(self, final_hidden: Tensor) -> Tensor:
        return self._model.logits(final_hidden).float().log_softmax(-1)

    def _likelihoods(self, prefill: Prefill, choices: ContinuationBatch) -> Tensor:
        """Summed log-likelihood of each choice `[R]`."""
        hidden = self._model.continuation_hidden(prefill, choices)
        real = choices.ids != IGNORED
        picked = self._log_probs(hidden[real]).gather(-1, choices.ids[real][:, None])[:, 0]
        return hidden.new_zeros(real.shape, dtype=picked.dtype).masked_scatter(real, picked).sum(-1)


def _likeliest(likelihoods: Tensor, rows: Tensor) -> Tensor:
    """Index of the likeliest continuation of each prompt that has some; the first of equals.

    Args:
        likelihoods: `[R]`.
        rows: Which prompt each continues, ascending `[R]`.
    """
    _, group, counts = rows.unique_consecutive(return_inverse=True, return_counts=True)
    table = likelihoods.new_full((len(counts), int(counts.max())), -torch.inf)
    within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[group]
    table[group, within] = likelihoods
    return table.argmax(-1)
