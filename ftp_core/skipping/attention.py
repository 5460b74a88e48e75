"""Attention functions that observe or gate attention, beside the model's own fast kernel.

transformers looks its attention up by name at every call and hands on keyword arguments from the block, so a wrapper
registered under a name of its own reaches every family without touching a module. See "AttentionInterface" in the
transformers documentation.

Dimensions: B rows, L tokens of a row, Q queries of a call, W queries listened to, M keys, H heads, G key heads, E width
of a head.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ftp_core.errors import ModelError
from ftp_core.skipping.families import KERNELS, family_of
from ftp_core.skipping.interception import replaced_forwards
from ftp_core.skipping.packing import Packing, varlen_attention

_OBSERVED = "ftp_observed"
_GATED = "ftp_gated"
_PACKED = "ftp_packed"
# Where transformers keeps the name of the attention function.
_KERNEL_FIELD = "_attn_implementation_internal"


@dataclass
class AttentionObserver:
    """Collects how much attention keys receive from some queries, beside the kernel that computes the block's output.

    Attributes:
        window: Number of queries to listen to (W): the last ones of the call, or those that `asked` names.
        kernel: Name of the attention function that computes the block's output.
        asked: Places of the queries in the call `[B, W]`; None for the last ones of every row.
        asked_real: False for entries of `asked` that stand for no query `[B, W]`; None if there is none.
        visible: Keys that each asked query sees `[B, W, M]`; None if it sees all up to itself.
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

    def observe(self, query_BHQE: Tensor, key_BGME: Tensor, scaling: float, softcap: float | None = None) -> None:
        """Sets `received` at W x M a head; neighbouring query heads share a key head."""
        n_rows, n_heads, _, width = query_BHQE.shape
        n_keys = key_BGME.shape[2]
        if self.asked is None:
            asked_BHWE = query_BHQE[:, :, -self.window :]
        else:
            asked_BHWE = query_BHQE.gather(2, self.asked[:, None, :, None].expand(-1, n_heads, -1, width))
        n_asked = asked_BHWE.shape[2]
        # Query heads that share a key head are stacked, so that keys are not repeated; and queries are fewer numbers
        # than scores, so that they are scaled.
        stacked = (asked_BHWE * scaling).reshape(n_rows, key_BGME.shape[1], -1, width)
        scores_BHWM = (stacked @ key_BGME.transpose(2, 3)).view(n_rows, n_heads, n_asked, n_keys).float()
        if softcap is not None:
            scores_BHWM = (scores_BHWM / softcap).tanh_().mul_(softcap)
        if self.visible is not None:
            scores_BHWM.masked_fill_(~self.visible[:, None], -math.inf)
        elif n_asked > 1:
            # Only among the last keys is there one that a last query does not see.
            future_WW = torch.ones(n_asked, n_asked, dtype=torch.bool, device=key_BGME.device).triu_(1)
            scores_BHWM[..., -n_asked:].masked_fill_(future_WW, -math.inf)
        weights_BHWM = scores_BHWM.softmax(-1)
        n_real: Tensor | int = n_asked
        if self.asked_real is not None:
            weights_BHWM = weights_BHWM.masked_fill_(~self.asked_real[:, None, :, None], 0.0)
            n_real = self.asked_real.sum(-1, keepdim=True).clamp(min=1)
        if self.keeps_rows:
            self.heard = weights_BHWM.mean(1)
            self.received = self.heard.sum(1) / n_real
        else:
            self.received = weights_BHWM.view(n_rows, -1, n_keys).sum(1) / (n_heads * n_real)


def _kernel_of(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    # Families bring their own "eager" one.
    found: Any = sys.modules[type(module).__module__].eager_attention_forward if name == "eager" else None
    kernel: Callable[..., tuple[Tensor, Tensor | None]] = found or ALL_ATTENTION_FUNCTIONS[name]
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
    return _kernel_of(observer.kernel, module)(
        module, query, key, value, attention_mask, scaling=scaling, **capped, **kwargs
    )


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing,
    observer: AttentionObserver | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    scaling = scaling or query.shape[-1] ** -0.5
    if observer is not None and observer.asked is not None:
        # Slots are asked; keys are laid out by column, where what they receive is wanted.
        asked_BHWE, observer.asked = packing.by_slots(query, observer.asked), None
        observer.observe(asked_BHWE, packing.by_slots(key, packing.slots_BL), scaling)
    query_NHE, key_NGE, value_NGE = (part[0].transpose(0, 1) for part in (query, key, value))
    return varlen_attention(query_NHE, key_NGE, value_NGE, packing, scaling)[None], None


@dataclass
class AttentionGate:
    """Lets a differentiable gate decide which keys exist, and observes like `AttentionObserver`.

    Attributes:
        gate: 1 where the token is a key of this block, 0 where it is not `[B, L]`.
        observed: Positions of the queries whose attention is observed `[B, W]`; repeated entries count once each.
        observed_weight: 1 for a query that counts, 0 for a filler `[B, W]`.
        window: Number of positions that the block attends to, its own the last; None for all.
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
        query_BHLE: Tensor,
        key_BHLE: Tensor,
        value_BHLE: Tensor,
        gate_BL: Tensor,
        asked_BW: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See the class.

        Args:
            ctx: Context of autograd.
            query_BHLE: Queries.
            key_BHLE: Keys, of the same dtype.
            value_BHLE: Values, of the same dtype.
            gate_BL: 0 or 1.
            asked_BW: Positions of queries.
            scaling: Factor on the scores.
            window: Number of positions that a query sees, its own the last; None for all.
            softcap: c, if scores s become c tanh(s / c).

        Returns:
            Output `[B, H, L, E]`, of the same dtype, and the attention weights of the queries asked for `[B, H, W, L]`,
            in float32 at least (no gradient).
        """
        _, n_heads, length, _ = query_BHLE.shape
        with torch.autocast(query_BHLE.device.type, enabled=False):
            visible_B1LL = _visible(gate_BL, window)
            scores_BHLL = _scores(query_BHLE, key_BHLE, scaling, softcap).masked_fill_(~visible_B1LL, -math.inf)
            highest_BHL1 = scores_BHLL.amax(-1, keepdim=True)
            shares_BHLL = scores_BHLL.sub_(highest_BHL1).exp_()
            # Dividing what the shares add up to, not the shares: E numbers a query instead of L.
            sums_BHL1 = shares_BHLL.sum(-1, keepdim=True)
            output_BHLE = ((shares_BHLL.to(value_BHLE.dtype) @ value_BHLE) / sums_BHL1).to(value_BHLE.dtype)
            asked_B1W1 = asked_BW[:, None, :, None]
            heard_BHWL = shares_BHLL.gather(2, asked_B1W1.expand(-1, n_heads, -1, length))
            heard_BHWL /= sums_BHL1.gather(2, asked_B1W1.expand(-1, n_heads, -1, 1))
            norms_BHL1 = highest_BHL1.add_(sums_BHL1.log_())
        ctx.save_for_backward(query_BHLE, key_BHLE, value_BHLE, gate_BL, norms_BHL1, output_BHLE)
        ctx.scaling, ctx.window, ctx.softcap = scaling, window, softcap
        ctx.mark_non_differentiable(heard_BHWL)
        return output_BHLE, heard_BHWL

    @staticmethod
    def backward(
        ctx: Any, grad_BHLE: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        """Gradients of query, key, value and gate, as far as they are asked for."""
        query_BHLE, key_BHLE, value_BHLE, gate_BL, norms_BHL1, output_BHLE = ctx.saved_tensors
        grad_query = grad_key = grad_value = grad_gate = None
        with torch.autocast(query_BHLE.device.type, enabled=False):
            grad_BHLE = grad_BHLE.to(value_BHLE.dtype)
            visible_B1LL = _visible(gate_BL, ctx.window)
            scores_BHLL = _scores(query_BHLE, key_BHLE, ctx.scaling, ctx.softcap)
            # The derivative of c tanh(s / c), from its value.
            slope_BHLL = None if ctx.softcap is None else 1 - (scores_BHLL / ctx.softcap).square()
            shares_BHLL = scores_BHLL.sub_(norms_BHL1).clamp_(max=_HIGHEST_EXPONENT).exp_()
            # Change of the loss if all weight moved to one key, for each query.
            gain_BHLL = (grad_BHLE @ value_BHLE.transpose(2, 3)).to(shares_BHLL.dtype)
            gain_BHLL.sub_((grad_BHLE.to(shares_BHLL.dtype) * output_BHLE).sum(-1, keepdim=True))
            if ctx.needs_input_grad[3]:
                step_BHLL = torch.where(visible_B1LL, shares_BHLL, shares_BHLL / (1 + shares_BHLL)).mul_(gain_BHLL)
                reachable_LL = _reachable(query_BHLE.shape[2], ctx.window, query_BHLE.device)
                # The gate of a token has no say in whether the token sees itself.
                grad_gate = step_BHLL.mul_(reachable_LL.tril(-1)).sum((1, 2))
            opened_BHLL = shares_BHLL.mul_(visible_B1LL)
            if ctx.needs_input_grad[2]:
                grad_value = opened_BHLL.to(grad_BHLE.dtype).transpose(2, 3) @ grad_BHLE
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                grad_scores_BHLL = opened_BHLL.mul_(gain_BHLL).mul_(ctx.scaling)
                if slope_BHLL is not None:
                    grad_scores_BHLL = grad_scores_BHLL.mul_(slope_BHLL)
                grad_scores_BHLL = grad_scores_BHLL.to(query_BHLE.dtype)
                grad_query, grad_key = grad_scores_BHLL @ key_BHLE, grad_scores_BHLL.transpose(2, 3) @ query_BHLE
        return grad_query, grad_key, grad_value, grad_gate, None, None, None, None


def _scores(query_BHLE: Tensor, key_BHLE: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Scores `[B, H, L, L]` in float32 at least, as the model's own kernels keep them."""
    # Queries are fewer numbers than scores.
    scores_BHLL = (query_BHLE * scaling) @ key_BHLE.transpose(2, 3)
    scores_BHLL = scores_BHLL.to(torch.promote_types(scores_BHLL.dtype, torch.float32))
    return scores_BHLL if softcap is None else (scores_BHLL / softcap).tanh_().mul_(softcap)


def _reachable(length: int, window: int | None, device: torch.device) -> Tensor:
    """Keys (last axis) that a query could see if all were open `[L, L]`."""
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return causal_LL if window is None else causal_LL.triu(1 - window)


def _visible(gate_BL: Tensor, window: int | None) -> Tensor:
    """Keys (last axis) that a query sees: the open ones that it can reach, and itself `[B, 1, L, L]`."""
    length, device = gate_BL.shape[1], gate_BL.device
    itself_LL = torch.eye(length, dtype=torch.bool, device=device)
    return (((gate_BL[:, None] > 0.5) & _reachable(length, window, device)) | itself_LL)[:, None]


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
    output_BHLE, heard_BHWL = _GatedSoftmaxAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, gate.gate, gate.observed, scaling or query.shape[-1] ** -0.5, gate.window, softcap
    )
    weight_BW = gate.observed_weight
    gate.received = (heard_BHWL.mean(1) * weight_BW[..., None]).sum(1) / weight_BW.sum(1, keepdim=True).clamp(min=1)
    return output_BHLE.transpose(1, 2).contiguous(), None


AttentionInterface.register(_OBSERVED, _observed_attention)
AttentionInterface.register(_GATED, _gated_attention)
AttentionInterface.register(_PACKED, _packed_attention)


@contextmanager
def attention_by(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Context in which a model's attention is computed by the function that transformers knows by this name."""
    kernel = kernel_name(model)
    _set_kernel(model.config, name)
    try:
        yield
    finally:
        _set_kernel(model.config, kernel)


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


@contextmanager
def observed_attention(
    model: PreTrainedModel, block: nn.Module, observer: AttentionObserver
) -> Iterator[dict[str, Any]]:
    """Context in which a block's attention is observed; gives the arguments to call the block with."""
    with attention_by(model, _OBSERVED), _handed_on(model, block, observer=observer) as arguments:
        yield arguments


@contextmanager
def packed_attention(
    model: PreTrainedModel, block: nn.Module, packing: Packing, observer: AttentionObserver | None
) -> Iterator[dict[str, Any]]:
    """Context in which a block's attention is that of packed rows; gives the arguments to call the block with."""
    with attention_by(model, _PACKED), _handed_on(model, block, packing=packing, observer=observer) as arguments:
        yield arguments


@contextmanager
def gated_attention(model: PreTrainedModel, block: nn.Module, gate: AttentionGate) -> Iterator[dict[str, Any]]:
    """Context in which a block's attention is gated: a slow, differentiable computation for training only.

    Gives the arguments to call the block with.
    """
    with attention_by(model, _GATED), _handed_on(model, block, gate=gate) as arguments:
        yield arguments


@contextmanager
def _handed_on(model: PreTrainedModel, block: nn.Module, **arguments: Any) -> Iterator[dict[str, Any]]:
    attention = family_of(model.config).attention
    if attention is None:
        yield arguments
        return

    def with_arguments(_: int, module: nn.Module) -> Callable[..., Any]:
        return partial(module.forward, **arguments)

    with replaced_forwards([block.get_submodule(attention)], with_arguments):
        yield {}
