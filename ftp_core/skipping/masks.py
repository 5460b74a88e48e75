"""Masks for blocks that hold other tokens than the model's own mask was made for.

Dimensions: B rows, Q queries, M keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(query_positions_BQ: Tensor, key_positions_BM: Tensor, window: int | None) -> Tensor:
    """Keys that stand at or before a query and within its window, bool `[B, Q, M]`; a negative position is no key."""
    queries_BQ1, keys_B1M = query_positions_BQ[:, :, None], key_positions_BM[:, None]
    # Comparisons of positions are bools at once; their distances would be eight bytes for each pair.
    visible_BQM = keys_B1M <= queries_BQ1
    if window is not None:
        visible_BQM &= keys_B1M > queries_BQ1 - window
    return visible_BQM.logical_and_(keys_B1M >= 0)


def kernel_mask(visible_BQM: Tensor, kernel: str, dtype: torch.dtype) -> Tensor:
    """Makes the mask of an attention kernel `[B, 1, Q, M]`: `sdpa` takes bools, `eager` adds to scores of a dtype.

    Every query also sees its own key, the last Q keys being the queries' own: a query without any key would be NaN.
    """
    _, n_queries, n_keys = visible_BQM.shape
    own_QM = torch.ones(n_queries, n_keys, dtype=torch.bool, device=visible_BQM.device)
    own_QM = own_QM.triu_(n_keys - n_queries).tril_(n_keys - n_queries)
    return _as_kernel_takes_it(visible_BQM | own_QM, kernel, dtype)


def kernel_mask_of_some(visible_BQM: Tensor, kernel: str, dtype: torch.dtype) -> Tensor:
    """The same for queries of some of the tokens whose keys there are; who sees no key sees all, which is no NaN."""
    return _as_kernel_takes_it(visible_BQM | ~visible_BQM.any(-1, keepdim=True), kernel, dtype)


def _as_kernel_takes_it(visible_BQM: Tensor, kernel: str, dtype: torch.dtype) -> Tensor:
    mask_B1QM = visible_BQM[:, None]
    if kernel == "sdpa":
        return mask_B1QM
    zeros_B1QM = torch.zeros(mask_B1QM.shape, dtype=dtype, device=mask_B1QM.device)
    return zeros_B1QM.masked_fill_(~mask_B1QM, torch.finfo(dtype).min)
