"""The losses that train a router: guide, sparsity, distillation.

Shapes: B rows, L tokens of a row, T completion tokens of all rows, J likeliest successors, D
hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftp_core.quality.divergence import divergence, log_probabilities
from ftp_core.skipping.head import Head


def guide_loss(scores_BL: Tensor, static_BL: Tensor, decided_BL: Tensor) -> Tensor:
    """Binary cross-entropy between sigmoid(z) and the static router's decision, mean over tokens, then rows.

    Args:
        scores_BL: Router scores z of one block.
        static_BL: The static router's decisions, bool.
        decided_BL: True for tokens that the router decides on, False for padding and for protected ones.
    """
    loss_BL = nn.functional.binary_cross_entropy_with_logits(scores_BL, static_BL.to(scores_BL.dtype), reduction="none")
    return ((loss_BL * decided_BL).sum(1) / decided_BL.sum(1)).mean()


def sparsity_loss(scores_BL: Tensor, sparsity: float, real_BL: Tensor, symmetric: bool = False) -> Tensor:
    """max(0, s - mean_j(1 - p_j))^2 with p = sigmoid(z), mean over rows: one-sided, skipping more is not punished.

    Args:
        scores_BL: Router scores z of one block.
        sparsity: s of that block.
        real_BL: True for tokens, False for padding.
        symmetric: Punish skipping more, too: (s - mean_j(1 - p_j))^2.
    """
    skipped_B = ((1 - scores_BL.sigmoid()) * real_BL).sum(1) / real_BL.sum(1)
    missing_B = sparsity - skipped_B
    return (missing_B if symmetric else missing_B.clamp(min=0)).square().mean()


def distillation_loss(head: Head, hidden_TD: Tensor, dense_TD: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(dense || pruned) at temperature T, mean over tokens (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        head: The model's head.
        hidden_TD: Final hidden states of the pruned model.
        dense_TD: The same of the dense one.
        temperature: Temperature of both distributions.
    """
    return temperature**2 * divergence(head, hidden_TD, dense_TD, temperature).mean()


def top_k_distillation_loss(
    head: Head, hidden_TD: Tensor, log_probs_TJ: Tensor, tokens_TJ: Tensor, temperature: float
) -> Tensor:
    """A lower bound of the distillation loss: over the teacher's likeliest tokens and one event "any other".

    Args:
        head: The model's head.
        hidden_TD: Final hidden states of the pruned model.
        log_probs_TJ: The dense model's log-probabilities of its likeliest tokens, at the temperature.
        tokens_TJ: Ids of these tokens.
        temperature: Temperature of both distributions.
    """
    student = _with_rest(log_probabilities(head, hidden_TD, tokens_TJ, temperature))
    return temperature**2 * nn.functional.kl_div(
        student, _with_rest(log_probs_TJ), log_target=True, reduction="batchmean"
    )


def _with_rest(log_probs_TJ: Tensor) -> Tensor:
    """Log-probabilities with that of all other tokens behind them `[T, J + 1]`."""
    rest_T1 = (1 - log_probs_TJ.exp().sum(-1, keepdim=True)).clamp(min=1e-7).log()
    return torch.cat([log_probs_TJ, rest_T1], -1)
