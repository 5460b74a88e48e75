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


# A closed key may score far above the open ones; beyond this, e^score / (1 + e^score) is 1 in float32 anyway.
_HIGHEST_EXPONENT = 30.0


class _GatedSoftmaxAttention(torch.autograd.Function):
    """Causal attention over the open keys, with a gradient for the gate of every key, open or closed.

    A token always sees itself: one that is skipped is asked what it would have computed had it run. The gate's gradient
    is what the outputs would change by: `w (v - o)` for an open key of weight w, and for a closed one
    `e / (Z + e) (v - o)`, the whole step from absence to presence, where `e` is its exponential score and Z the sum
    over the open keys. Scores are computed again in the backward pass, so that memory is O(L^2) for one block at a
    time and not for all of them.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, asked: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See the class.

        Args:
            ctx: Of autograd.
            query: `[B, H, L, d]`.
            key: `[B, H, L, d]`.
            value: `[B, H, L, d]`.
            gate: `[B, L]`, 0 or 1.
            asked: Positions of queries `[B, W]`.
            scaling: Factor on the scores.

        Returns:
            Output `[B, H, L, d]`, and the attention weights of the queries asked for `[B, H, W, L]` (no gradient).
        """
        _, n_heads, length, _ = query.shape
        visible = _visible(gate)
        scores = _scores(query, key, scaling).masked_fill_(~visible, -math.inf)
        norms = scores.logsumexp(-1, keepdim=True)
        weights = scores.sub_(norms).exp_()
        output = weights @ value
        heard = weights.gather(2, asked[:, None, :, None].expand(-1, n_heads, -1, length))
        ctx.save_for_backward(query, key, value, gate, norms, output)
        ctx.scaling = scaling
        ctx.mark_non_differentiable(heard)
        return output, heard

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of query, key, value and gate, as far as they are asked for."""
        query, key, value, gate, norms, output = ctx.saved_tensors
        visible = _visible(gate)
        length = query.shape[2]
        causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        shares = _scores(query, key, ctx.scaling).sub_(norms).clamp_(max=_HIGHEST_EXPONENT).exp_()
        opened = shares * visible
        grad_value = opened.transpose(2, 3) @ grad if ctx.needs_input_grad[2] else None
        # What moving all weight to key j would change in the loss, for each query.
        gain = (grad @ value.transpose(2, 3)).sub_((grad * output).sum(-1, keepdim=True))
        grad_gate = None
        if ctx.needs_input_grad[3]:
            closed = (~visible & causal).to(shares.dtype)
            others = (visible & ~torch.eye(length, dtype=torch.bool, device=query.device)).to(shares.dtype)
            would_take = shares / (1 + shares) * closed + shares * others
            grad_gate = would_take.mul_(gain).sum((1, 2))
        grad_query = grad_key = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_scores = opened.mul_(gain).mul_(ctx.scaling)
            grad_query, grad_key = grad_scores @ key, grad_scores.transpose(2, 3) @ query
        return grad_query, grad_key, grad_value, grad_gate, None, None


def _scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    # Queries are fewer numbers than scores.
    return (query * scaling) @ key.transpose(2, 3)


def _visible(gate: Tensor) -> Tensor:
    """Which keys (last axis) a query sees: the open ones up to itself, and itself `[B, 1, L, L]`."""
    length = gate.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=gate.device)
    return ((gate[:, None] > 0.5).expand(-1, length, -1).tril() | itself)[:, None]


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
    output, heard = _GatedSoftmaxAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, gate.gate, gate.observed, scaling or query.shape[-1] ** -0.5
    )
    weight = gate.observed_weight
    gate.received = (heard.mean(1) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
    return output.transpose(1, 2).contiguous(), None


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
