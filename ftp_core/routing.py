"""Routers: which tokens of a prompt run a block.

A router sees the prompt alone, never what follows it, and decides block by block from what earlier blocks left behind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ftp_core.errors import ModelError
from ftp_core.schedule import kept_count

DEFAULT_WINDOW = 32
HIDDEN_WIDTH = 64
FEATURES = ("position", "attention", "attention_rank", "block_sparsity")
_METADATA = "dynamic_router"
_LONGEST_STATIC = 10_000.0


@dataclass
class RoutingState:
    """What a router may look at while a batch of prompts passes through the blocks.

    Attributes:
        real: True for tokens, False for padding `[B, L]`.
        lengths: Real tokens of each row `[B]`.
        attention: Attention that each token received in the last block that attended to it, divided by the row's
            maximum `[B, L]`; 0 before the first block.
    """

    real: Tensor
    lengths: Tensor
    attention: Tensor

    @classmethod
    def start(cls, lengths: Tensor, width: int) -> RoutingState:
        """The state before the first block, of rows of `lengths` tokens padded right to `width`."""
        real = torch.arange(width, device=lengths.device) < lengths[:, None]
        return cls(real, lengths, torch.zeros(real.shape, device=lengths.device))

    def observe(self, received: Tensor, attended: Tensor) -> None:
        """Take over the attention received `[B, L]` where a block attended to the token (`attended`, bool)."""
        scaled = received / received.amax(-1, keepdim=True).clamp(min=1e-9)
        self.attention = torch.where(attended, scaled, self.attention)

    def kept_counts(self, sparsity: float) -> Tensor:
        """`k = max(1, ceil((1 - s) * L))` of each row `[B]`."""
        counts = [kept_count(sparsity, int(length)) for length in self.lengths.tolist()]
        return torch.tensor(counts, device=self.lengths.device)


class Router(Protocol):
    """Decides which tokens run a block."""

    @property
    def window(self) -> int:
        """How many last queries the attention feature listens to; 0 if the router does not look at attention."""

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """True for exactly the row's kept count of its real tokens `[B, L]`."""


def _highest(scores: Tensor, state: RoutingState, sparsity: float) -> Tensor:
    """True for the k highest scores of each row `[B, L]`; of equal scores the earlier token wins."""
    order = scores.masked_fill(~state.real, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return rank < state.kept_counts(sparsity)[:, None]


class StaticRouter:
    """Keeps the first token and the most recent ones: priority x_0, x_{L-1}, x_{L-2}, ..., x_1 (FTP, section 3.2)."""

    window = 0

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        position = torch.arange(state.real.shape[1], device=state.real.device)
        first_recent = state.lengths - state.kept_counts(sparsity) + 1
        return ((position == 0) | (position >= first_recent[:, None])) & state.real


class DynamicRouter(nn.Module):
    """Scores tokens by one MLP, 4 -> 64 -> 1, shared by all blocks, and keeps the highest (mode `budget`).

    Its features, all in [0, 1]: position j / (L - 1); attention received; the rank of that attention / L; the
    block's sparsity (FTP, arXiv 2412.11494, section 3.3).

    Args:
        window: How many last queries of the row the attention features listen to (W).
    """

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        super().__init__()
        self._window = window
        self.mlp = nn.Sequential(nn.Linear(len(FEATURES), HIDDEN_WIDTH), nn.ReLU(), nn.Linear(HIDDEN_WIDTH, 1))

    @classmethod
    def static(cls, window: int = DEFAULT_WINDOW) -> DynamicRouter:
        """One that decides as the static router does, for rows of up to 10,000 tokens; no training needed.

        Three hidden units compute z = position - sparsity, and 2 more for the first token: positive for about the
        tokens that the static router keeps, and highest for the first and the most recent ones.
        """
        router = cls(window)
        hidden, out = router.mlp[0], router.mlp[2]
        assert isinstance(hidden, nn.Linear)
        assert isinstance(out, nn.Linear)
        position, sparsity = FEATURES.index("position"), FEATURES.index("block_sparsity")
        with torch.no_grad():
            for parameter in router.parameters():
                parameter.zero_()
            hidden.weight[0, position] = 1.0
            hidden.weight[1, sparsity] = 1.0
            # Positive for position 0 alone.
            hidden.weight[2, position], hidden.bias[2] = -_LONGEST_STATIC, 1.0
            out.weight[0, :3] = torch.tensor([1.0, -1.0, 2.0])
        return router

    @property
    def window(self) -> int:
        """W."""
        return self._window

    def features(self, sparsity: float, state: RoutingState) -> Tensor:
        """The four features of every token `[B, L, 4]`."""
        length = state.real.shape[1]
        position = torch.arange(length, device=state.real.device) / (state.lengths[:, None] - 1).clamp(min=1)
        # Padding is pushed behind every real token, so that it does not shift their ranks.
        order = state.attention.masked_fill(~state.real, -1.0).argsort(dim=-1, descending=True, stable=True)
        places = torch.arange(length, device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places) / state.lengths[:, None]
        share = torch.full_like(state.attention, sparsity)
        return torch.stack([position.clamp(max=1.0), state.attention, rank.clamp(max=1.0), share], dim=-1)

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        """The router's score z of every token `[B, L]`."""
        scores: Tensor = self.mlp(self.features(sparsity, state)).squeeze(-1)
        return scores

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        return _highest(self.scores(sparsity, state), state, sparsity)

    def select(self, scores: Tensor, sparsity: float, state: RoutingState) -> Tensor:
        """The decision that `keep` takes on given scores `[B, L]`."""
        return _highest(scores, state, sparsity)

    def to_bytes(self) -> bytes:
        """The router as a safetensors file."""
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        # One entry: safetensors writes several in an order of its own, and equal routers should be equal files.
        data: bytes = save_safetensors(
            weights, metadata={_METADATA: json.dumps({"window": self._window, "features": FEATURES})}
        )
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> DynamicRouter:
        """Read what `to_bytes` wrote.

        Raises:
            ModelError: The bytes are not a router of this kind.
        """
        try:
            header = int.from_bytes(data[:8], "little")
            metadata = json.loads(json.loads(data[8 : 8 + header])["__metadata__"][_METADATA])
            router = cls(window=int(metadata["window"]))
            router.load_state_dict(load_safetensors(data))
        except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"These weights are not a dynamic router: {error}. Distil the router again.") from error
        return router
