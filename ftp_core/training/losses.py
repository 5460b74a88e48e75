"""The losses that train a router: guide, sparsity, distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def guide_loss(scores: Tensor, static: Tensor, decided: Tensor) -> Tensor:
    """Binary cross-entropy between sigmoid(z) and the static router's decision, mean over tokens, then rows.

    Args:
        scores: Router scores z of one block `[B, L]`.
        static: The static router's decision, bool `[B, L]`.
        decided: True for tokens that the router decides on, False for padding and for protected ones `[B, L]`.
    """
    loss = nn.functional.binary_cross_entropy_with_logits(scores, static.to(scores.dtype), reduction="none")
    return ((loss * decided).sum(1) / decided.sum(1)).mean()


def sparsity_loss(scores: Tensor, sparsity: float, real: Tensor, symmetric: bool = False) -> Tensor:
    """max(0, s - mean_j(1 - p_j))^2 with p = sigmoid(z), mean over rows: one-sided, skipping more is not punished.

    Args:
        scores: Router scores z of one block `[B, L]`.
        sparsity: s of that block.
        real: True for tokens, False for padding `[B, L]`.
        symmetric: Whether to punish skipping more, too: (s - mean_j(1 - p_j))^2.
    """
    skipped = ((1 - scores.sigmoid()) * real).sum(1) / real.sum(1)
    missing = sparsity - skipped
    return (missing if symmetric else missing.clamp(min=0)).square().mean()


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(dense || pruned) at temperature T, mean over tokens (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        logits: Of the pruned model `[n, V]`.
        teacher: Of the dense model `[n, V]`.
        temperature: T.
    """
    student = (logits.float() / temperature).log_softmax(-1)
    target = (teacher.float() / temperature).log_softmax(-1)
    return temperature**2 * nn.functional.kl_div(student, target, log_target=True, reduction="batchmean")


def top_k_distillation_loss(logits: Tensor, log_probs: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """The distillation loss over the teacher's k likeliest tokens and one event "any other": a lower bound of it.

    Args:
        logits: Of the pruned model `[n, V]`.
        log_probs: The dense model's log-probabilities at temperature T of its k likeliest tokens `[n, k]`.
        tokens: Which tokens they are `[n, k]`.
        temperature: T.
    """
    student = (logits.float() / temperature).log_softmax(-1).gather(-1, tokens)
    student, target = _with_rest(student), _with_rest(log_probs.float())
    return temperature**2 * nn.functional.kl_div(student, target, log_target=True, reduction="batchmean")


def _with_rest(log_probs: Tensor) -> Tensor:
    """Log-probabilities `[n, k]` with that of everything else behind them `[n, k + 1]`."""
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=1e-7).log()
    return torch.cat([log_probs, rest], -1)
