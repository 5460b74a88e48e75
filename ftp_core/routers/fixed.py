"""Routers that decide by position alone: nothing to train.

Dimensions: B rows, L tokens of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftp_core.routers.protocol import highest
from ftp_core.routers.state import RoutingState


class StaticRouter:
    """Keeps the first token and the most recent ones: priority x_0, x_{L-1}, x_{L-2}, ..., x_1 (FTP, section 3.2).

    Where more tokens are protected, x_0 ... x_{N-1} stand before x_{L-1} (see `RoutingState.protected`).
    A decoded token is always the most recent one: all of them are kept.
    """

    kind = "static"
    window = 0
    reads_hidden = False
    keeps_budget = True
    keeps_ends = True
    routes_decoding = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass with its own `keep` does not keep the ends, unless it says so."""
        super().__init_subclass__(**kwargs)
        if "keep" in cls.__dict__ and "keeps_ends" not in cls.__dict__:
            cls.keeps_ends = False

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        counts_B = state.kept_counts(sparsity)
        n_first_B = (counts_B - 1).clamp_(1, max(1, state.keep_first))
        recent_B1 = (state.lengths - counts_B + n_first_B)[:, None]
        return ((state.positions < n_first_B[:, None]) | (state.positions >= recent_B1)) & state.real

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`."""
        return torch.ones_like(state.lengths, dtype=torch.bool)


# For a multiplicative congruential step (Steele and Vigna 2021, "Computationally easy, spectrally good multipliers").
_MULTIPLIER = 0xD1342543DE82EF95 - 2**64


class RandomRouter:
    """Keeps tokens drawn at random: other ones in every block or half, the same in every row and every run.

    Args:
        seed: Seed of the draws.
    """

    kind = "random"
    window = 0
    reads_hidden = False
    keeps_budget = True
    routes_decoding = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.options = {"seed": seed}

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        return highest(self._draws(state), sparsity, state)

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`."""
        if line is None:
            return torch.ones_like(state.lengths, dtype=torch.bool)
        return self._draws(state)[:, 0] >= line

    def _draws(self, state: RoutingState) -> Tensor:
        of_mlp = 15_485_863 if state.half == "mlp" else 0
        mixed_BL = state.positions * 1_000_003 + (state.block * 7919 + self.seed * 104_729 + of_mlp + 1)
        for _ in range(3):
            mixed_BL = mixed_BL * _MULTIPLIER
            mixed_BL = mixed_BL ^ (mixed_BL >> 29)
        return (mixed_BL & 0xFFFFFF).float()
