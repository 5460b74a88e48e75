"""Attention functions that observe or gate attention, beside the model's own fast kernel.

transformers looks its attention up by name at every call and hands on keyword arguments from the block, so a wrapper
registered under a name of its own reaches every family without touching a module. See "AttentionInterface" in the
transformers documentation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftp_core.errors import ModelError
from ftp_core.skipping.families import KERNELS

_OBSERVED = "ftp_observed"
_GATED = "ftp_gated"
# Where transformers keeps the name of the attention function.
_KERNEL_FIELD = "_attn_implementation_internal"


@dataclass
class AttentionObserver:
    """Collects how much attention keys receive from some queries, beside the kernel that computes the block's output.

    Attributes:
        window: How many queries to listen to (W): the last ones of the call, or those that `asked` names.
        kernel: Name of the attention function that computes the block's output.
        asked: Places of the queries in the call `[B, W]`; None for the last ones of every row.
        asked_real: False for entries of `asked` that stand for no query `[B, W]`; None if there is none.
        visible: Which keys each asked query sees `[B, W, M]`; None if it sees all up to itself.
        keeps_rows: Whether to set `heard`.
        received: Attention received, mean over heads and queries `[B, M]`; set by the block's forward.
        heard: The same for each query `[B, W, M]`; zero where it is no real one.
    """

    window: int
    kernel: str
    asked: Tensor | None = None
    asked_real: Tensor | None = None
    visible: Tensor | None = None
    keeps_rows: bool = False
    received: Tensor | None = None
    heard: Tensor | None = None

    def observe(self, query: Tensor, key: Tensor, scaling: float, softcap: float | None = None) -> None:
        """Set `received` from queries `[B, H, q, d]` and keys `[B, H_kv, M, d]`, at W x M a head.

        H is a multiple of H_kv; neighbouring query heads share a key head.
        """
        n_rows, n_heads, _, width = query.shape
        n_keys = key.shape[2]
        if self.asked is None:
            asked = query[:, :, -self.window :]
        else:
            index = self.asked[:, None, :, None].expand(-1, n_heads, -1, width)
            asked = query.gather(2, index)
        n_asked = asked.shape[2]
        # Query heads that share a key head are stacked, so that keys are not repeated; and queries are fewer numbers
        # than scores, so that they are scaled.
        stacked = (asked * scaling).reshape(n_rows, key.shape[1], -1, width)
        scores = (stacked @ key.transpose(2, 3)).view(n_rows, n_heads, n_asked, n_keys).float()
        if softcap is not None:
            scores = (scores / softcap).tanh_().mul_(softcap)
        if self.visible is not None:
            scores.masked_fill_(~self.visible[:, None], -math.inf)
        elif n_asked > 1:
            # Only among the last keys is there one that a last query does not see.
            future = torch.ones(n_asked, n_asked, dtype=torch.bool, device=key.device).triu_(1)
            scores[..., -n_asked:].masked_fill_(future, -math.inf)
        weights = scores.softmax(-1)
        if self.asked_real is not None:
            weights = weights.masked_fill_(~self.asked_real[:, None, :, None], 0.0)
            n_real: Tensor | int = self.asked_real.sum(-1, keepdim=True).clamp(min=1)
        else:
            n_real = n_asked
        if self.keeps_rows:
            self.heard = weights.mean(1)
            self.received = self.heard.sum(1) / n_real
        else:
            self.received = weights.view(n_rows, -1, n_keys).sum(1) / (n_heads * n_real)


def kernel_of(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of a name; families bring their own "eager" one."""
    if name == "eager":
        eager: Callable[..., tuple[Tensor, Tensor | None]] = sys.modules[
            type(module).__module__
        ].eager_attention_forward
        return eager
    kernel: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[name]
    return kernel


def _observed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    observer: AttentionObserver,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    observer.observe(query, key, scaling or query.shape[-1] ** -0.5, softcap)
    capped = {} if softcap is None else {"softcap": softcap}
    kernel = kernel_of(observer.kernel, module)
    return kernel(module, query, key, value, attention_mask, scaling=scaling, **capped, **kwargs)


@dataclass
class AttentionGate:
    """Lets a differentiable gate decide which keys exist, and observes like `AttentionObserver`.

    Attributes:
        gate: 1 where the token is a key of this block, 0 where it is not `[B, L]`.
        observed: Queries whose attention is observed `[B, W]`, as positions; repeated entries count once each.
        observed_weight: 1 for a query that counts, 0 for a filler `[B, W]`.
        window: How many positions back the block attends, its own included; None if to all.
        received: Attention received `[B, L]` (no gradient); set by the block's forward.
    """

    gate: Tensor
    observed: Tensor
    observed_weight: Tensor
    window: int | None = None
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

    Products are computed in the precision of the arguments, weights and sums in float32 at least. Autocast has no say
    in that: autograd runs the backward pass without it, and the two must agree.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        asked: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See the class.

        Args:
            ctx: Of autograd.
            query: `[B, H, L, d]`.
            key: `[B, H, L, d]`, of the same dtype.
            value: `[B, H, L, d]`, of the same dtype.
            gate: `[B, L]`, 0 or 1.
            asked: Positions of queries `[B, W]`.
            scaling: Factor on the scores.
            window: How many positions back a query sees, its own included; None for all.
            softcap: c, if scores s become c tanh(s / c).

        Returns:
            Output `[B, H, L, d]`, of the same dtype, and the attention weights of the queries asked for `[B, H, W, L]`,
            in float32 at least (no gradient).
        """
        _, n_heads, length, _ = query.shape
        with torch.autocast(query.device.type, enabled=False):
            visible = _visible(gate, window)
            scores = _scores(query, key, scaling, softcap).masked_fill_(~visible, -math.inf)
            highest = scores.amax(-1, keepdim=True)
            shares = scores.sub_(highest).exp_()
            # Dividing what the shares add up to, not the shares: d numbers a query instead of L.
            sums = shares.sum(-1, keepdim=True)
            output = ((shares.to(value.dtype) @ value) / sums).to(value.dtype)
            rows = asked[:, None, :, None]
            heard = shares.gather(2, rows.expand(-1, n_heads, -1, length))
            heard /= sums.gather(2, rows.expand(-1, n_heads, -1, 1))
            norms = highest.add_(sums.log_())
        ctx.save_for_backward(query, key, value, gate, norms, output)
        ctx.scaling, ctx.window, ctx.softcap = scaling, window, softcap
        ctx.mark_non_differentiable(heard)
        return output, heard

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        """Gradients of query, key, value and gate, as far as they are asked for."""
        query, key, value, gate, norms, output = ctx.saved_tensors
        grad_query = grad_key = grad_value = grad_gate = None
        with torch.autocast(query.device.type, enabled=False):
            grad = grad.to(value.dtype)
            visible = _visible(gate, ctx.window)
            scores = _scores(query, key, ctx.scaling, ctx.softcap)
            # The derivative of c tanh(s / c), from its value.
            slope = None if ctx.softcap is None else 1 - (scores / ctx.softcap).square()
            shares = scores.sub_(norms).clamp_(max=_HIGHEST_EXPONENT).exp_()
            # What moving all weight to key j would change in the loss, for each query.
            gain = (grad @ value.transpose(2, 3)).to(shares.dtype)
            gain.sub_((grad.to(shares.dtype) * output).sum(-1, keepdim=True))
            if ctx.needs_input_grad[3]:
                would_take = torch.where(visible, shares, shares / (1 + shares)).mul_(gain)
                reachable = _reachable(query.shape[2], ctx.window, query.device)
                # The gate of a token has no say in whether the token sees itself.
                grad_gate = would_take.mul_(reachable.tril(-1)).sum((1, 2))
            opened = shares.mul_(visible)
            if ctx.needs_input_grad[2]:
                grad_value = opened.to(grad.dtype).transpose(2, 3) @ grad
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                grad_scores = opened.mul_(gain).mul_(ctx.scaling)
                if slope is not None:
                    grad_scores = grad_scores.mul_(slope)
                grad_scores = grad_scores.to(query.dtype)
                grad_query, grad_key = grad_scores @ key, grad_scores.transpose(2, 3) @ query
        return grad_query, grad_key, grad_value, grad_gate, None, None, None, None


def _scores(query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Scores `[B, H, L, L]` in float32 at least, as the model's own kernels keep them."""
    # Queries are fewer numbers than scores.
    scores = (query * scaling) @ key.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores if softcap is None else (scores / softcap).tanh_().mul_(softcap)


def _reachable(length: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys (last axis) a query could see if all were open `[L, L]`."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal if window is None else causal.triu(1 - window)


def _visible(gate: Tensor, window: int | None) -> Tensor:
    """Which keys (last axis) a query sees: the open ones that it can reach, and itself `[B, 1, L, L]`."""
    length = gate.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=gate.device)
    return (((gate[:, None] > 0.5) & _reachable(length, window, gate.device)) | itself)[:, None]


def _gated_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    gate: AttentionGate,
    **_: Any,
) -> tuple[Tensor, None]:
    # Under autocast, rotary embedding has promoted queries and keys, but values are what the block goes on with.
    query, key = query.to(value.dtype), key.to(value.dtype)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output, heard = _GatedSoftmaxAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, gate.gate, gate.observed, scaling or query.shape[-1] ** -0.5, gate.window, softcap
    )
    weight = gate.observed_weight
    gate.received = (heard.mean(1) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_OBSERVED, _observed_attention)
AttentionInterface.register(_GATED, _gated_attention)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[str]:
    config = model.config
    kernel = kernel_name(model)
    _set_kernel(config, name)
    try:
        yield kernel
    finally:
        _set_kernel(config, kernel)


def _set_kernel(config: PreTrainedConfig, name: str) -> None:
    if config.sub_configs or _KERNEL_FIELD not in config.__dict__:
        config._attn_implementation = name
    else:
        # Once for every block that is listened to: the property checks the whole configuration each time.
        config.__dict__[_KERNEL_FIELD] = name


def kernel_name(model: PreTrainedModel) -> str:
    """Name of the model's own attention function.

    Raises:
        ModelError: Skipping does not know how to mask for it.
    """
    name: str = model.config._attn_implementation
    if name not in KERNELS:
        raise ModelError(
            f"The model runs on the attention kernel {name!r}, but skipping knows {' and '.join(KERNELS)}: load it "
            "with attn_implementation='sdpa'."
        )
    return name


def observed_attention(model: PreTrainedModel) -> Any:
    """Context in which blocks take an `observer=`; yields the name of the model's own attention function."""
    return _attention(model, _OBSERVED)


def gated_attention(model: PreTrainedModel) -> Any:
    """Context in which blocks take a `gate=`: a slow, differentiable computation for training only."""
    return _attention(model, _GATED)
