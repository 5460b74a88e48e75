"""KL divergences and log-probabilities of predictions, streamed over tokens and vocabulary.

All tables together take less than 320 MiB (10 of `ftp_core.skipping.head`), however many tokens and words there are:
sums over the vocabulary are carried from part to part, as in online softmax (Milakov and Gimelshein 2018, arXiv
1805.02867). Logits are in float32 at least, and sums over the vocabulary in float64 where the device has it.

Dimensions: T tokens, D hidden width, J words asked for, P words of a part of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ftp_core.skipping.head import Head


class _LogSum:
    """Logarithm of a sum of exponentials over parts of the vocabulary.

    Attributes:
        highest: Highest logit so far `[T, 1]`; that of the lowest finite number before any.
        total: Sum of exponentials of the logits less `highest` `[T, 1]`.
    """

    def __init__(self, like_TD: Tensor) -> None:
        lowest = torch.finfo(torch.float32).min
        self.highest = torch.full((len(like_TD), 1), lowest, dtype=torch.float32, device=like_TD.device)
        self.total = torch.zeros(len(like_TD), 1, dtype=_sum_dtype(like_TD.device), device=like_TD.device)

    def add(self, logits_TP: Tensor) -> tuple[Tensor, Tensor]:
        """Adds some words; returns their exponentials less the new highest, and what earlier sums shrink by."""
        highest_T1 = torch.maximum(self.highest, logits_TP.amax(-1, keepdim=True))
        shrinks_T1 = (self.highest - highest_T1).to(self.total.dtype).exp_()
        exponentials_TP = (logits_TP - highest_T1).exp_()
        self.highest = highest_T1
        self.total = self.total * shrinks_T1 + exponentials_TP.sum(-1, keepdim=True)
        return exponentials_TP, shrinks_T1

    @property
    def value(self) -> Tensor:
        """The logarithm `[T, 1]`."""
        return self.highest.to(self.total.dtype) + self.total.log()


class _Divergence:
    """KL(dense || pruned), summed over parts of the vocabulary."""

    def __init__(self, like_TD: Tensor) -> None:
        self.dense, self.pruned = _LogSum(like_TD), _LogSum(like_TD)
        self._gap = torch.zeros_like(self.dense.total)

    def add(self, dense_TP: Tensor, pruned_TP: Tensor) -> None:
        """Adds the logits of some words."""
        weights_TP, shrinks_T1 = self.dense.add(dense_TP)
        # A word that the dense model rules out adds nothing, though the pruned one may rule it out, too: no 0 x inf.
        weights_TP.mul_((dense_TP - pruned_TP).masked_fill_(dense_TP == -math.inf, 0.0))
        self._gap = self._gap * shrinks_T1 + weights_TP.sum(-1, keepdim=True)
        del weights_TP
        self.pruned.add(pruned_TP)

    @property
    def value(self) -> Tensor:
        """KL of each token `[T]`."""
        kl_T1 = self._gap / self.dense.total - self.dense.value + self.pruned.value
        return kl_T1[:, 0].float()


def compare(
    head: Head, hidden_TD: Tensor, dense_TD: Tensor, targets_T: Tensor, dense_head: Head | None = None
) -> tuple[Tensor, Tensor]:
    """KL(dense || pruned) at each token, and the negative log-likelihood of its target in the pruned model `[T]`.

    Args:
        head: The pruned model's head.
        hidden_TD: Final hidden states of the pruned model.
        dense_TD: The same of the dense one, perhaps of another width.
        targets_T: Words.
        dense_head: The dense model's head, of the same vocabulary; None for the same one.
    """
    dense_head, kls, nlls = dense_head or head, [], []
    # A head that cannot be taken apart gives all words at once, and so must the other one.
    tiling = head if not head.is_linear else dense_head
    for tokens, parts in tiling.tiles(len(hidden_TD), max(hidden_TD.shape[1], dense_TD.shape[1])):
        hidden, dense, targets_T1 = hidden_TD[tokens], dense_TD[tokens], targets_T[tokens, None]
        divergence, target_T1 = _Divergence(hidden), hidden.new_zeros(len(hidden), 1, dtype=torch.float32)
        for words in parts:
            logits_TP = head.logits(hidden, words)
            target_T1 += _picked(logits_TP, targets_T1, words)
            divergence.add(dense_head.logits(dense, words), logits_TP)
        kls.append(divergence.value)
        nlls.append((divergence.pruned.value - target_T1)[:, 0].float())
    return torch.cat(kls), torch.cat(nlls)


def log_probabilities(head: Head, hidden_TD: Tensor, words_TJ: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of some words at each token `[T, J]`, with a gradient for hidden states.

    Args:
        head: The head.
        hidden_TD: Final hidden states.
        words_TJ: The words.
        temperature: Divisor of logits.
    """
    found: Tensor = _LogProbabilities.apply(hidden_TD, words_TJ, head, temperature)  # type: ignore[no-untyped-call]
    return found


def divergence(head: Head, hidden_TD: Tensor, dense_TD: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(dense || pruned) at each token `[T]`, with a gradient for the pruned model's hidden states.

    Args:
        head: The head of both.
        hidden_TD: Final hidden states of the pruned model.
        dense_TD: The same of the dense one.
        temperature: Divisor of logits.
    """
    found: Tensor = _KL.apply(hidden_TD, dense_TD, head, temperature)  # type: ignore[no-untyped-call]
    return found


def likeliest(head: Head, hidden_TD: Tensor, n_words: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the J likeliest words at each token, descending, and these words `[T, J]`."""
    log_probs, chosen = [], []
    for tokens, parts in head.tiles(*hidden_TD.shape):
        hidden = hidden_TD[tokens]
        total, best_TJ, words_TJ = _LogSum(hidden), hidden.new_zeros(len(hidden), 0, dtype=torch.float32), None
        for words in parts:
            logits_TP = head.logits(hidden, words) / temperature
            total.add(logits_TP)
            in_part = logits_TP.topk(min(n_words, logits_TP.shape[1]), dim=-1)
            both_TJ = torch.cat([best_TJ, in_part.values], -1)
            of_part_TJ = in_part.indices + words.start
            words_TJ = of_part_TJ if words_TJ is None else torch.cat([words_TJ, of_part_TJ], -1)
            best_TJ, places_TJ = both_TJ.topk(min(n_words, both_TJ.shape[1]), dim=-1)
            words_TJ = words_TJ.gather(-1, places_TJ)
        assert words_TJ is not None
        log_probs.append((best_TJ - total.value).float())
        chosen.append(words_TJ)
    return torch.cat(log_probs), torch.cat(chosen)


class _KL(torch.autograd.Function):
    """See `divergence`; logits are computed again for the gradient, so that no table is kept."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, dense_TD: Tensor, head: Head, temperature: float) -> Tensor:
        """See `divergence`."""
        kls, norms, dense_norms = [], [], []
        for tokens, parts in head.tiles(*hidden_TD.shape):
            found = _Divergence(hidden_TD[tokens])
            for words in parts:
                dense_TP, logits_TP = (head.logits(of[tokens], words) for of in (dense_TD, hidden_TD))
                found.add(dense_TP / temperature, logits_TP / temperature)
            kls.append(found.value)
            norms.append(found.pruned.value.float())
            dense_norms.append(found.dense.value.float())
        ctx.save_for_backward(hidden_TD, dense_TD, torch.cat(norms), torch.cat(dense_norms))
        ctx.head, ctx.temperature = head, temperature
        return torch.cat(kls)

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient for the pruned model's hidden states: logits get the difference of the probabilities."""
        hidden_TD, dense_TD, norm_T1, dense_norm_T1 = ctx.saved_tensors
        gradient = _HiddenGradient(ctx.head, hidden_TD)
        for tokens, words, logits_TP in gradient.tiles():
            with torch.no_grad():
                of_logits_TP = (logits_TP / ctx.temperature - norm_T1[tokens]).exp_()
                dense_TP = ctx.head.logits(dense_TD[tokens], words) / ctx.temperature
                of_logits_TP.sub_(dense_TP.sub_(dense_norm_T1[tokens]).exp_())
                of_logits_TP.mul_(grad_T[tokens, None] / ctx.temperature)
            gradient.add(logits_TP, of_logits_TP)
        return gradient.of_hidden, None, None, None


class _LogProbabilities(torch.autograd.Function):
    """See `log_probabilities`; logits are computed again for the gradient, so that no table is kept."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, words_TJ: Tensor, head: Head, temperature: float) -> Tensor:
        """See `log_probabilities`."""
        found, norms = [], []
        for tokens, parts in head.tiles(*hidden_TD.shape):
            total, of_words_TJ = _LogSum(hidden_TD[tokens]), torch.zeros_like(words_TJ[tokens], dtype=torch.float32)
            for words in parts:
                logits_TP = head.logits(hidden_TD[tokens], words) / temperature
                total.add(logits_TP)
                of_words_TJ += _picked(logits_TP, words_TJ[tokens], words)
            found.append((of_words_TJ - total.value).float())
            norms.append(total.value.float())
        ctx.save_for_backward(hidden_TD, words_TJ, torch.cat(norms))
        ctx.head, ctx.temperature = head, temperature
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad_TJ: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient for hidden states: logits get what their words get, less their share of what all words get."""
        hidden_TD, words_TJ, norm_T1 = ctx.saved_tensors
        grad_TJ = grad_TJ / ctx.temperature
        gradient = _HiddenGradient(ctx.head, hidden_TD)
        for tokens, words, logits_TP in gradient.tiles():
            with torch.no_grad():
                shares_TP = (logits_TP / ctx.temperature - norm_T1[tokens]).exp_()
                of_logits_TP = shares_TP.mul_(-grad_TJ[tokens].sum(-1, keepdim=True))
                inside_TJ, places_TJ = _places(words_TJ[tokens], words)
                of_logits_TP.scatter_add_(-1, places_TJ, grad_TJ[tokens] * inside_TJ)
            gradient.add(logits_TP, of_logits_TP)
        return gradient.of_hidden, None, None, None


class _HiddenGradient:
    """Sums the gradients that parts of the vocabulary have for hidden states.

    Attributes:
        of_hidden: The sum `[T, D]`.
    """

    def __init__(self, head: Head, hidden_TD: Tensor) -> None:
        self._head = head
        self._hidden_TD = hidden_TD
        self._part_TD = self._sum_TD = hidden_TD[:0]
        self.of_hidden = torch.zeros_like(hidden_TD)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Parts of tokens and words with their logits, each to be followed by `add`."""
        for tokens, parts in self._head.tiles(*self._hidden_TD.shape):
            self._part_TD = self._hidden_TD[tokens].detach().requires_grad_()
            self._sum_TD = torch.zeros_like(self._part_TD, dtype=torch.float32)
            for words in parts:
                with torch.enable_grad():
                    logits_TP = self._head.logits(self._part_TD, words)
                yield tokens, words, logits_TP
            self.of_hidden[tokens] = self._sum_TD.to(self.of_hidden.dtype)

    def add(self, logits_TP: Tensor, of_logits_TP: Tensor) -> None:
        """Adds a part, by the gradient of its logits."""
        self._sum_TD += torch.autograd.grad(logits_TP, self._part_TD, of_logits_TP)[0]


def _places(words_TJ: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Mask of the words in a part of the vocabulary, and their places there; some place if they are not `[T, J]`."""
    inside_TJ = (words_TJ >= part.start) & (words_TJ < part.stop)
    return inside_TJ, (words_TJ - part.start).clamp(0, part.stop - part.start - 1)


def _picked(logits_TP: Tensor, words_TJ: Tensor, part: slice) -> Tensor:
    """Logits of words, 0 for those that are not in this part of the vocabulary `[T, J]`."""
    inside_TJ, places_TJ = _places(words_TJ, part)
    return logits_TP.gather(-1, places_TJ).masked_fill(~inside_TJ, 0.0)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
