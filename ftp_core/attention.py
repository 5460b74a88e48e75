"""Attention functions that observe or gate attention, beside the model's own fast kernel.

transformers looks its attention up by name at every call and hands on keyword arguments from the block, so a wrapper
registered under a name of its own reaches every family without touching a module. See "AttentionInterface" in the
transformers documentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftp_core.errors import ModelError

_OBSERVED = "ftp_observed"
_GATED = "ftp_gated"


@dataclass
class AttentionObserver:
    """Collects how much attention each token of a short sequence receives from its row's last queries.

    Attributes:
        counts: Real tokens of each row `[B]`; they stand first in the row.
        window: How many of a row's last queries to listen to (W).
        kernel: Name of the attention function that computes the block's output.
        received: Attention received `[B, k]`, mean over heads and queries; set by the block's forward.
    """

    counts: Tensor
    window: int
    kernel: str
    received: Tensor | None = None


def attention_received(query: Tensor, key: Tensor, counts: Tensor, window: int, scaling: float) -> Tensor:
    """Mean causal attention that each key receives from its row's last `window` queries, at W x k a head.

    Args:
        query: `[B, H, k, d]`.
        key: `[B, H_kv, k, d]`; H is a multiple of H_kv.
        counts: Real tokens of each row `[B]`; the row's padding stands after them.
        window: W.
        scaling: Factor on the scores.

    Returns:
        `[B, k]`: mean over heads and queries; zero for padding.
    """
    n_rows, n_heads, length, width = query.shape
    last = counts[:, None] - min(window, length) + torch.arange(min(window, length), device=query.device)
    spoken = last >= 0
    last = last.clamp(min=0)
    index = last[:, None, :, None].expand(-1, n_heads, -1, width)
    groups = n_heads // key.shape[1]
    # Query heads that share a key head are stacked, so that keys are not repeated.
    asked = query.gather(2, index).reshape(n_rows, key.shape[1], -1, width)
    scores = (asked @ key.transpose(2, 3)).view(n_rows, key.shape[1], groups, -1, length) * scaling
    future = torch.arange(length, device=query.device) > last[:, :, None]
    weights = scores.masked_fill(future[:, None, None], -math.inf).float().softmax(-1)
    weights = weights * spoken[:, None, None, :, None]
    return weights.sum((1, 2, 3)) / (n_heads * spoken.sum(-1, keepdim=True))


def _observed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    observer: AttentionObserver,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    observer.received = attention_received(
        query, key, observer.counts, observer.window, scaling or query.shape[-1] ** -0.5
    )
    kernel = ALL_ATTENTION_FUNCTIONS[observer.kernel]
    output: tuple[Tensor, Tensor | None] = kernel(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output


@dataclass
class AttentionGate:
    """Lets a differentiable gate decide which keys exist, and observes like `AttentionObserver`.

    Attributes:
        gate: 1 where the token is a key of this block, 0 where it is not `[B, L]`.
        observed: Queries whose attention is observed `[B, W]`, as positions; repeated entries count once each.
        observed_weight: 1 for a query that counts, 0 for a filler `[B, W]`.
        received: Attention received `[B, L]` (no gradient); set by the block's forward.
    """

    gate: Tensor
    observed: Tensor
    observed_weight: Tensor
    received: Tensor | None = None


def _gated_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    gate: AttentionGate,
    **_: Any,
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3)) * (scaling or query.shape[-1] ** -0.5)
    length = query.shape[2]
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = scores.masked_fill(future, -math.inf)
    # exp(score) * gate, normalised: unlike a mask of -inf this has a finite gradient where the gate is 0, namely what
    # the query would gain from the key that it cannot see. The maximum runs over open keys; closed ones may exceed it,
    # but not by so much that they overflow.
    opened = gate.gate[:, None, None]
    top = scores.detach().masked_fill(opened == 0, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
    unnormalised = (scores - top).clamp(max=20.0).exp() * opened
    weights = unnormalised / unnormalised.sum(-1, keepdim=True).clamp(min=1e-9)
    with torch.no_grad():
        index = gate.observed[:, None, :, None].expand(-1, weights.shape[1], -1, length)
        heard = weights.gather(2, index).mean(1) * gate.observed_weight[..., None]
        gate.received = heard.sum(1) / gate.observed_weight.sum(1, keepdim=True).clamp(min=1)
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_OBSERVED, _observed_attention)
AttentionInterface.register(_GATED, _gated_attention)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[str]:
    config = model.config
    kernel = config._attn_implementation
    if kernel == "eager":
        raise ModelError(
            "Skipping runs on the sdpa attention kernel, not on eager: load with attn_implementation='sdpa'."
        )
    config._attn_implementation = name
    try:
        yield kernel
    finally:
        config._attn_implementation = kernel


def observed_attention(model: PreTrainedModel) -> Any:
    """Context in which blocks take an `observer=`; yields the name of the model's own attention function."""
    return _attention(model, _OBSERVED)


def gated_attention(model: PreTrainedModel) -> Any:
    """Context in which blocks take a `gate=`: a slow, differentiable computation for training only."""
    return _attention(model, _GATED)
