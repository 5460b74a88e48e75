"""Which keys a query may see, where blocks hold other tokens than the model's own mask was made for."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Which keys stand at or before a query and within its window, bool `[B, q, M]`.

    Args:
        query_positions: Original positions of the queries `[B, q]`.
        key_positions: Original positions of the keys `[B, M]`; negative where there is none.
        window: How many positions back a query sees, its own included; None for all.
    """
    queries, keys = query_positions[:, :, None], key_positions[:, None]
    # Comparisons of positions are bools at once; their distances would be eight bytes for each pair.
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return visible.logical_and_(keys >= 0)


def kernel_mask(visible: Tensor, kernel: str, dtype: torch.dtype) -> Tensor:
    """A mask as an attention kernel takes it `[B, 1, q, M]`.

    Every query also sees its own key, the last q keys being the queries' own: a query without any key would be NaN.

    Args:
        visible: `[B, q, M]`.
        kernel: Name of the kernel: `sdpa` takes bools, `eager` adds to the scores.
        dtype: Of the hidden states.
    """
    n_queries = visible.shape[1]
    own = torch.eye(n_queries, dtype=torch.bool, device=visible.device)
    own = torch.nn.functional.pad(own, (visible.shape[2] - n_queries, 0))
    mask = (visible | own)[:, None]
    if kernel == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
