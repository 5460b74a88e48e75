"""Routers to compare the dynamic one with: they see more, or share less, and cost more parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.routers.scoring import (
    DEFAULT_WINDOW,
    FEATURES,
    ScoringRouter,
    check_window,
    decide_as_static,
    mlp,
    token_features,
)
from ftp_core.routers.state import RoutingState

_MEMORY_WIDTH = 16


class LocalRouter(ScoringRouter):
    """The dynamic router's features, but an MLP of its own for every block.

    Args:
        n_blocks: N.
        window: See `DynamicRouter`.
    """

    kind = "local"

    def __init__(self, n_blocks: int, window: int = DEFAULT_WINDOW) -> None:
        super().__init__()
        check_window(window)
        self._window = window
        self.mlps = nn.ModuleList(mlp(len(FEATURES)) for _ in range(n_blocks))

    def start_as_static(self) -> bool:
        """See `ScoringRouter.start_as_static`."""
        for network in self.mlps:
            assert isinstance(network, nn.Sequential)
            decide_as_static(network, FEATURES)
        return True

    @property
    def window(self) -> int:
        """W."""
        return self._window

    @property
    def options(self) -> dict[str, Any]:
        """See `ScoringRouter.options`."""
        return {"n_blocks": len(self.mlps), "window": self._window}

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if n_blocks != len(self.mlps):
            raise ModelError(f"The local router is made for {len(self.mlps)} blocks, but the model has {n_blocks}.")

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        scores: Tensor = self.mlps[state.block](token_features(FEATURES, sparsity, state)).squeeze(-1)
        return scores


class HiddenRouter(ScoringRouter):
    """Scores tokens by their hidden states and the block's sparsity, as routers of layer skipping do (SkipGPT).

    Args:
        hidden_size: D.
    """

    kind = "hidden"
    window = 0
    reads_hidden = True
    routes_decoding = False

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self._hidden_size = hidden_size
        self.mlp = mlp(hidden_size + 1)

    @property
    def options(self) -> dict[str, Any]:
        """See `ScoringRouter.options`."""
        return {"hidden_size": self._hidden_size}

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if hidden_size != self._hidden_size:
            raise ModelError(
                f"The hidden-state router reads states of width {self._hidden_size}, but the model's are {hidden_size} "
                "wide."
            )

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        if state.hidden is None:
            raise ModelError("A hidden-state router needs hidden states, but this pass brings none.")
        hidden = state.hidden.detach().float()
        # Residual streams grow from block to block: to their root mean square, so that one network fits all.
        hidden = hidden * hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        share = torch.full_like(hidden[..., :1], sparsity)
        scores: Tensor = self.mlp(torch.cat([hidden, share], -1)).squeeze(-1)
        return scores


class RecurrentRouter(ScoringRouter):
    """The dynamic router's features, and a memory of 16 numbers that each token carries from block to block.

    Args:
        window: See `DynamicRouter`.
    """

    kind = "recurrent"
    routes_decoding = False

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        super().__init__()
        check_window(window)
        self._window = window
        self.cell = nn.GRUCell(len(FEATURES), _MEMORY_WIDTH)
        self.out = nn.Linear(_MEMORY_WIDTH, 1)

    @property
    def window(self) -> int:
        """W."""
        return self._window

    @property
    def options(self) -> dict[str, Any]:
        """See `ScoringRouter.options`."""
        return {"window": self._window}

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        features = token_features(FEATURES, sparsity, state)
        n_rows, length, width = features.shape
        memory: Tensor = self.cell(features.reshape(-1, width), state.memory)
        state.memory = memory
        scores: Tensor = self.out(memory).view(n_rows, length)
        return scores
