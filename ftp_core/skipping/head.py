"""Logits in float32 of some of a model's words at a time, so that a large vocabulary needs no large tables.

Dimensions: T tokens, D hidden width, V words of the vocabulary, P of them in one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.checks import is_plain

# Numbers of one table: 32 MiB in float32.
_NUMBERS_AT_ONCE = 2**23


@dataclass(frozen=True)
class Head:
    """The head of a language model.

    Products are summed and kept in float32 at least, whatever the precision of weights and hidden states: logits
    rounded to bfloat16 would differ by more than the models that are compared. No table of a tile has more than
    `_NUMBERS_AT_ONCE` numbers, unless the head cannot be taken apart (a quantised or offloaded one, or one with
    adapters), and one token's logits of the whole vocabulary are more.

    Attributes:
        module: Module that computes raw logits of final hidden states.
        finish: Elementwise function that the model applies to raw logits.
        vocabulary: V.
    """

    module: Any
    finish: Callable[[Tensor], Tensor]
    vocabulary: int

    @property
    def is_linear(self) -> bool:
        """True if rows of the weight are words, and nothing but their products is computed."""
        module = self.module
        before = [hook for hook in module._forward_pre_hooks.values() if hook is not _in_one_piece]
        is_hooked = "forward" in vars(module) or bool(module._forward_hooks or before)
        return type(module) is nn.Linear and is_plain(module.weight) and not is_hooked

    def tiles(self, n_tokens: int, width: int) -> Iterator[tuple[slice, list[slice]]]:
        """Cuts tokens and words into parts: the words, in order, of each part of the tokens.

        Args:
            n_tokens: T.
            width: D.
        """
        at_once = _NUMBERS_AT_ONCE
        n_words = min(self.vocabulary, max(1, at_once // width)) if self.is_linear else self.vocabulary
        words = [slice(first, min(first + n_words, self.vocabulary)) for first in range(0, self.vocabulary, n_words)]
        n_at_once = max(1, at_once // max(n_words, width))
        for first in range(0, n_tokens, n_at_once):
            yield slice(first, min(first + n_at_once, n_tokens)), words

    def logits(self, hidden_TD: Tensor, words: slice) -> Tensor:
        """Logits of a part of the words in float32 at least `[T, P]`; the words are those of a tile."""
        if not self.is_linear:
            raw_TV: Tensor = self.module(hidden_TD)
            return self.finish(raw_TV.to(hidden_TD.device, _wide(raw_TV.dtype)))
        weight_PD, bias = self.module.weight[words], self.module.bias
        bias_P = None if bias is None else bias[words].to(_wide(bias.dtype))
        if hidden_TD.is_cuda and not torch.is_grad_enabled() and hidden_TD.dtype == weight_PD.dtype != torch.float32:
            # Its kernels sum in float32 and can return that, so that nothing is copied.
            raw_TP = torch.mm(hidden_TD, weight_PD.T, out_dtype=torch.float32)
            raw_TP = raw_TP if bias_P is None else raw_TP + bias_P
        else:
            wide = _wide(hidden_TD.dtype)
            raw_TP = nn.functional.linear(hidden_TD.to(wide), weight_PD.to(wide), bias_P)
        return self.finish(raw_TP)


def read_in_one_piece(head: nn.Module) -> None:
    """Lets a head copy the hidden states that it gets if they are a slice, as those of the last tokens are.

    Of a slice, torch computes one product a row, for which it copies the weights as often, unless they need gradients.
    With a large vocabulary that took a third of a prefill of a small model.

    Args:
        head: Module that computes raw logits.
    """
    if _in_one_piece not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_in_one_piece)


def _in_one_piece(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in arguments)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
