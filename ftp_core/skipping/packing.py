"""Kept tokens of rows that keep different counts, packed one behind the other, without padding between rows.

For GPUs, whose kernels take such sequences with the places where rows begin; the counts may stay on the device, so that
no block waits for the host. Elsewhere, and where a kernel cannot do what a block asks for, rows are padded to the
longest (`ftp_core.skipping.skipping`), which is the reference.

Dimensions: B rows, L tokens of a row, N packed tokens, D hidden width, W queries listened to, H heads, G key heads, E
width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from ftp_core.routers import Router

AUTO, ALWAYS, NEVER = "auto", "always", "never"
_VARLEN = "torch.nn.attention.varlen"
# Tiles of matrix products have so many rows: fewer, in larger numbers of tokens, would leave parts of a GPU idle.
_BUCKETS = ((1024, 64), (8192, 128))
_LARGEST_BUCKET = 256
# Room for more tokens than were expected where thresholds decide.
_SLACK = 1 / 8
_SHARES = "_shares_kept"


class SlotsExceededError(Exception):
    """More tokens were kept than there was room for: the pass must run again, padded."""


@dataclass(frozen=True)
class Packing:
    """Tokens that run a block, row by row, and fillers behind them: tokens that do not run, put back as they were.

    Attributes:
        run: Tokens that run `[B, L]`.
        n_slots: N, a bucket; a host's number, where the number of tokens that run may be known to the device alone.
        counts: Tokens of each row that run, if the host knows; None if not.
    """

    run: Tensor
    n_slots: int
    counts: tuple[int, ...] | None = None

    @cached_property
    def counts_B(self) -> Tensor:  # noqa: N802
        """Tokens of each row that run `[B]`."""
        return self.run.sum(1)

    @cached_property
    def starts(self) -> Tensor:
        """Slot at which each row begins, and the one behind the last row, as kernels take it: int32 `[B + 1]`."""
        return torch.nn.functional.pad(self.counts_B.cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def slots_BL(self) -> Tensor:  # noqa: N802
        """Slot of each token `[B, L]`: those that run in order, then the others; there are N of them."""
        run_T = self.run.flatten()
        rank_T = run_T.cumsum(0)
        tokens_T = torch.arange(len(run_T), device=run_T.device)
        return torch.where(run_T, rank_T - 1, rank_T[-1] + tokens_T - rank_T).view(self.run.shape)

    @cached_property
    def places_N(self) -> Tensor:  # noqa: N802
        """Place of each slot's token if all rows stand one behind the other `[N]`."""
        slots_T = self.slots_BL.flatten()
        places_T = torch.empty_like(slots_T)
        places_T.scatter_(0, slots_T, torch.arange(len(slots_T), device=slots_T.device))
        return places_T[: self.n_slots]

    @cached_property
    def columns_N(self) -> Tensor:  # noqa: N802
        """Column of each slot's token `[N]`."""
        return self.places_N % self.run.shape[1]

    @cached_property
    def filler_N(self) -> Tensor:  # noqa: N802
        """True for fillers `[N]`."""
        return torch.arange(self.n_slots, device=self.run.device) >= self.starts[-1]

    def gather(self, argument: Any) -> Any:
        """Takes the tokens' entries `[1, N, ...]` out of `[1 or B, L, ...]`, or out of a tuple of such."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        index = (self.columns_N if argument.shape[0] == 1 else self.places_N).to(argument.device)
        return argument.flatten(0, 1).index_select(0, index)[None]

    def scatter(self, short_1ND: Tensor, whole_BLD: Tensor) -> Tensor:
        """Puts the tokens that ran into their places among all hidden states `[B, L, D]`."""
        index = self.places_N.to(whole_BLD.device)
        return whole_BLD.flatten(0, 1).index_copy(0, index, short_1ND[0]).view_as(whole_BLD)

    def by_slots(self, packed_1HNE: Tensor, slots_BM: Tensor) -> Tensor:
        """Queries or keys at some slots of each row `[B, H, M, E]`; any where there is no such slot."""
        slots_BM = slots_BM.clamp(max=self.n_slots - 1).to(packed_1HNE.device)
        rows = packed_1HNE[0].index_select(1, slots_BM.flatten())
        return rows.view(rows.shape[0], *slots_BM.shape, -1).transpose(0, 1)


def bucket(n_tokens: int, n_all: int) -> int:
    """Number of slots for so many tokens: a multiple of a kernel's tile, and no more than there are tokens."""
    step = next((step for most, step in _BUCKETS if n_tokens <= most), _LARGEST_BUCKET)
    return min(-(-n_tokens // step) * step, n_all)


def slots_expected(router: Router, block: int, sparsity: float, n_tokens: int) -> int:
    """Most tokens that a router with thresholds is expected to keep in a block, of `n_tokens`.

    By the sparsity that the thresholds were calibrated for, or by what the router was seen to keep, if that is more.
    """
    share = max(1 - sparsity, vars(router).get(_SHARES, {}).get(block, 0.0))
    return min(n_tokens, int(n_tokens * share * (1 + _SLACK)) + 1)


def note_share(router: Router, block: int, share: float) -> None:
    """Notes the share of tokens that a router with thresholds kept in a block."""
    seen = vars(router).setdefault(_SHARES, {})
    seen[block] = max(share, seen.get(block, 0.0))


def packs(model: PreTrainedModel, device: torch.device, asked: str) -> bool:
    """Returns True if rows of different counts are to be packed.

    Args:
        model: Dense model.
        device: Device of its inputs.
        asked: `auto` where a GPU has a kernel for it, `always` (for tests, slow on a CPU), or `never`.
    """
    config = model.config
    # What packed attention does not compute.
    if asked == NEVER or config._attn_implementation != "sdpa" or getattr(config, "attn_logit_softcapping", None):
        return False
    return asked == ALWAYS or _has_kernel(model, device)


def _has_kernel(model: PreTrainedModel, device: torch.device) -> bool:
    if device.type != "cuda" or model.dtype not in (torch.bfloat16, torch.float16):
        return False
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    is_able = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_able and width <= 256 and _has_varlen()


@cache
def _has_varlen() -> bool:
    # Earlier ones take no scale.
    return find_spec(_VARLEN) is not None and "window_size" in inspect.signature(_varlen_attn()).parameters


def _varlen_attn() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def varlen_attention(query_NHE: Tensor, key_NGE: Tensor, value_NGE: Tensor, packing: Packing, scaling: float) -> Tensor:
    """Causal attention of each row of a packing to itself `[N, H, E]`; fillers get zeros."""
    starts, longest = packing.starts.to(query_NHE.device), packing.run.shape[1]
    if query_NHE.device.type == "cpu":
        out_NHE = _row_by_row(query_NHE, key_NGE, value_NGE, starts, scaling)
    else:
        out_NHE = _kernel(query_NHE, key_NGE, value_NGE, starts, longest, scaling)
    # Kernels leave what is behind the last row as it was in memory.
    return out_NHE.masked_fill_(packing.filler_N[:, None, None].to(out_NHE.device), 0.0)


def _kernel(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float) -> Tensor:
    attend, options = _varlen_attn(), dict[str, Any]()
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(attend).parameters:
            options["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out: Tensor = attend(
        query, key, value, starts, starts, longest, longest, scale=scaling, window_size=(-1, 0), **options
    )
    return out


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scaling: float) -> Tensor:
    """The same on a CPU, for tests: one row after the other."""
    out, edges = torch.zeros_like(query), starts.tolist()
    for start, end in pairwise(edges):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        out[start:end] = found[0].transpose(0, 1)
    return out
