"""Figures of a pruned model on a batch of examples, by its final hidden states and its head.

Shapes: B rows, C tokens of a continuation, D hidden width, I multiple-choice items, R choices, T completion tokens of
all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ftp_core.quality.divergence import compare, log_probabilities
from ftp_core.quality.evaluation_batch import EvaluationBatch
from ftp_core.skipping.head import Head
from ftp_core.text.encoding import IGNORED, ContinuationBatch


@dataclass(frozen=True)
class BatchFigures:
    """Figures of a pruned model on a batch: sums over each answer's tokens `[B]`, and decisions `[I]`."""

    kl: Tensor
    nll: Tensor
    n_tokens: Tensor
    choice: Tensor
    right: Tensor
    right_norm: Tensor


def batch_figures(
    batch: EvaluationBatch,
    dense_TD: Tensor,
    dense_head: Head,
    head: Head,
    answers_BCD: Tensor,
    choices_RCD: Tensor | None,
) -> BatchFigures:
    """Compares a pruned model with the dense one on a batch.

    Args:
        batch: The batch.
        dense_TD: Final hidden states of the dense model at the answers' tokens.
        dense_head: Its head.
        head: The pruned model's head.
        answers_BCD: Final hidden states of the pruned model from which the answers' tokens are predicted.
        choices_RCD: The same of every choice; None to score none.
    """
    real_BC = batch.answers.ids != IGNORED
    compared = compare(head, answers_BCD[real_BC], dense_TD, batch.answers.ids[real_BC], dense_head)
    kl_B, nll_B = (_row_sums(values_T, real_BC) for values_T in compared)
    choice_I = right_I = right_norm_I = torch.zeros(0, dtype=torch.long, device=real_BC.device)
    if choices_RCD is not None and batch.choices is not None:
        likelihoods_R = _likelihoods(head, choices_RCD, batch.choices, batch.unscored)
        items_R = batch.choice_items
        choice_I = _likeliest(likelihoods_R, items_R)
        right_I = choice_I == batch.right_choice
        right_norm_I = _likeliest(likelihoods_R / batch.choice_lengths, items_R) == batch.right_choice
    return BatchFigures(kl_B, nll_B, real_BC.sum(1), choice_I, right_I, right_norm_I)


def _likelihoods(head: Head, hidden_RCD: Tensor, choices: ContinuationBatch, unscored_R: Tensor) -> Tensor:
    """Summed log-likelihood of each choice `[R]`, without the tokens before those that are scored."""
    real_RC = choices.ids != IGNORED
    picked_T1 = log_probabilities(head, hidden_RCD[real_RC], choices.ids[real_RC][:, None])
    places_C = torch.arange(real_RC.shape[1], device=real_RC.device)
    is_scored_RC = places_C >= unscored_R[:, None]
    return _row_sums(torch.where(is_scored_RC[real_RC], picked_T1[:, 0], 0.0), real_RC)


def _row_sums(values_T: Tensor, real_BC: Tensor) -> Tensor:
    """Sums by row `[B]` of values of the real tokens."""
    table_BC = torch.zeros(real_BC.shape, dtype=values_T.dtype, device=values_T.device)
    return table_BC.masked_scatter_(real_BC, values_T).sum(-1)


def _likeliest(likelihoods_R: Tensor, items_R: Tensor) -> Tensor:
    """Index of the likeliest choice of each item `[I]`, the first of equals; items ascend."""
    _, group_R, counts_I = items_R.unique_consecutive(return_inverse=True, return_counts=True)
    table = likelihoods_R.new_full((len(counts_I), int(counts_I.max())), -torch.inf)
    within_R = torch.arange(len(items_R), device=items_R.device) - (counts_I.cumsum(0) - counts_I)[group_R]
    table[group_R, within_R] = likelihoods_R
    return table.argmax(-1)
