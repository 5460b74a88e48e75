"""Attention of some of a prompt's tokens on a CPU, in shapes that its kernel is fast at.

Dimensions: B rows, H heads, G key heads, Q queries, M keys, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

KERNEL = "ftp_cpu"
"""Name under which transformers knows it."""
# In low precision, other numbers of queries and keys take up to 1.8 times as long.
_FAST_LENGTHS = 16


def kernel_for(kernel: str, hidden: Tensor, mask: Tensor | None) -> str:
    """Name of the attention function for tokens of a prompt: this one in place of `sdpa` where it is faster.

    Args:
        kernel: Name of the model's own.
        hidden: Hidden states of the tokens.
        mask: Mask of their attention; None if each sees all before it.
    """
    is_faster = hidden.device.type == "cpu" and (mask is not None or _is_low(hidden.dtype))
    return KERNEL if kernel == "sdpa" and is_faster and hidden.shape[1] > 1 else kernel


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes what transformers' `sdpa` computes of masked queries, or of causal ones of which each has a key.

    With a mask, transformers repeats keys and values for every query head, as kernels of GPUs need it. CPUs' own lays
    out each key head once: 154 queries on 512 keys take 0.4 of the time.

    Args:
        module: The block's attention.
        query: Queries `[B, H, Q, E]`.
        key: Keys `[B, G, M, E]`.
        value: Values `[B, G, M, E]`.
        attention_mask: True for keys that a query sees `[1 or B, 1, Q, M]`; None if Q is M and each sees those up to
            its own.
        scaling: Factor on the scores.

    Returns:
        Output `[B, Q, H, E]`, and no weights.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    if _is_low(query.dtype):
        more_queries, more_keys = -n_queries % _FAST_LENGTHS, -n_keys % _FAST_LENGTHS
        if attention_mask is not None and (more_queries or more_keys):
            attention_mask = nn.functional.pad(attention_mask, (0, more_keys, 0, more_queries))
        query, key, value = (
            nn.functional.pad(part, (0, 0, 0, more)) if more else part
            for part, more in ((query, more_queries), (key, more_keys), (value, more_keys))
        )
    output_BHQE = nn.functional.scaled_dot_product_attention(
        query, key, value, attention_mask, is_causal=attention_mask is None, scale=scaling, enable_gqa=True
    )
    return output_BHQE[:, :, :n_queries].transpose(1, 2).contiguous(), None


def _is_low(dtype: torch.dtype) -> bool:
    return dtype.itemsize < torch.float32.itemsize


AttentionInterface.register(KERNEL, cpu_attention)
