"""Routers to compare the dynamic one with: they see more, or share less, and cost more parameters.

Dimensions: B rows, L tokens of a row, D hidden width, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.routers.scoring import (
    DEFAULT_WINDOW,
    FEATURES,
    FEATURES_OF_HALVES,
    ScoringRouter,
    check_window,
    decide_as_static,
    mlp,
    token_features,
)
from ftp_core.routers.state import RoutingState

_MEMORY_WIDTH = 16


def _features(halves: bool) -> tuple[str, ...]:
    return FEATURES_OF_HALVES if halves else FEATURES


def _said(halves: bool) -> dict[str, bool]:
    # Not among the options of routers that are not for halves, whose files are as they always were.
    return {"halves": True} if halves else {}


def normed_hidden(state: RoutingState) -> Tensor:
    """Hidden states before a block, divided by their root mean square, in float32 and without gradient `[B, L, D]`.

    Residual streams grow from block to block: so divided, they suit one network.

    Raises:
        ModelError: There are none.
    """
    if state.hidden is None:
        raise ModelError("A router that reads hidden states needs them, but this pass brings none.")
    hidden_BLD = state.hidden.detach().float()
    return hidden_BLD * hidden_BLD.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class LocalRouter(ScoringRouter):
    """The dynamic router's features, but an MLP of its own for every block.

    Args:
        n_blocks: N.
        window: See `DynamicRouter`.
        halves: True if it sees which half of a block is decided.
    """

    kind = "local"

    def __init__(self, n_blocks: int, window: int = DEFAULT_WINDOW, halves: bool = False) -> None:
        super().__init__()
        check_window(window)
        self.window, self.options = window, {"n_blocks": n_blocks, "window": window, **_said(halves)}
        self.features = _features(halves)
        self.mlps = nn.ModuleList(mlp(len(self.features)) for _ in range(n_blocks))

    def start_as_static(self) -> bool:
        """See `ScoringRouter.start_as_static`."""
        for network in self.mlps:
            assert isinstance(network, nn.Sequential)
            decide_as_static(network, self.features)
        return True

    @property
    def score_flops(self) -> float:
        """See `ScoringRouter.score_flops`; a block has one MLP of them."""
        return super().score_flops / len(self.mlps)

    def check_model(self, n_blocks: int, hidden_size: int) -> None:
        """See `ScoringRouter.check_model`."""
        super().check_model(n_blocks, hidden_size)
        if n_blocks != len(self.mlps):
            raise ModelError(f"The local router is made for {len(self.mlps)} blocks, but the model has {n_blocks}.")

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        scores_BL: Tensor = self.mlps[state.block](token_features(self.features, sparsity, state)).squeeze(-1)
        return scores_BL


class HiddenRouter(ScoringRouter):
    """Scores tokens by their hidden states and the block's sparsity, as routers of layer skipping do (SkipGPT).

    Args:
        hidden_size: D.
        halves: True if it sees which half of a block is decided.
    """

    kind = "hidden"
    reads_hidden = True
    routes_decoding = False

    def __init__(self, hidden_size: int, halves: bool = False) -> None:
        super().__init__()
        self._hidden_size, self.options = hidden_size, {"hidden_size": hidden_size, **_said(halves)}
        self.features = ("block_sparsity", "half") if halves else ("block_sparsity",)
        self.mlp = mlp(hidden_size + len(self.features))

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
        features_BLF = token_features(self.features, sparsity, state)
        scores_BL: Tensor = self.mlp(torch.cat([normed_hidden(state), features_BLF], -1)).squeeze(-1)
        return scores_BL


class RecurrentRouter(ScoringRouter):
    """The dynamic router's features, and a memory of 16 numbers that each token carries from block to block.

    Args:
        window: See `DynamicRouter`.
        halves: True if it sees which half of a block is decided.
    """

    kind = "recurrent"
    routes_decoding = False

    def __init__(self, window: int = DEFAULT_WINDOW, halves: bool = False) -> None:
        super().__init__()
        check_window(window)
        self.window, self.options = window, {"window": window, **_said(halves)}
        self.features = _features(halves)
        self.cell = nn.GRUCell(len(self.features), _MEMORY_WIDTH)
        self.out = nn.Linear(_MEMORY_WIDTH, 1)

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `ScoringRouter.scores`."""
        features_BLF = token_features(self.features, sparsity, state)
        state.memory = self.cell(features_BLF.flatten(0, 1), state.memory)
        scores_BL: Tensor = self.out(state.memory).view(features_BLF.shape[:2])
        return scores_BL
