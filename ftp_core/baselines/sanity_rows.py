"""The rows that any method must beat: prompts shortened without any thought of which tokens matter.

Each keeps the last token, from which the first new one is predicted. Dimensions: B rows, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ftp_core.baselines.protocol import Budget
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.shortened_prompt import uniformly_pruned
from ftp_core.routers import RandomRouter, Router, RoutingState
from ftp_core.routers.protocol import highest
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample


def last_tokens(state: RoutingState) -> Tensor:
    """The last token of each row, bool `[B, L]`."""
    return (state.positions == state.lengths[:, None] - 1) & state.real


class RandomButLast(RandomRouter):
    """Keeps the last token, and others drawn at random, other ones in every block."""

    kind = "random_but_last"
    reads_hidden = False
    routes_decoding = False

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        return highest(self._draws(state).masked_fill(last_tokens(state), torch.inf), sparsity, state)


class OneEnd:
    """Keeps the last token, and others from one end of the prompt.

    Args:
        first: True for the first tokens, False for the most recent ones.
    """

    kind = "one_end"
    window = 0
    reads_hidden = False
    keeps_budget = True
    routes_decoding = False

    def __init__(self, first: bool) -> None:
        self._sign = -1.0 if first else 1.0

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        scores_BL = (self._sign * state.positions).float()
        return highest(scores_BL.masked_fill(last_tokens(state), torch.inf), sparsity, state)

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`; never called."""
        return torch.ones_like(state.lengths, dtype=torch.bool)


class _SanityRow:
    """A prompt shortened by a router that knows nothing but positions."""

    name: ClassVar[str]
    paper = ""
    has_chance = False
    trains = False

    def router(self, seed: int) -> Router:
        """The router."""
        raise NotImplementedError

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`; no example is looked at."""
        pruned = uniformly_pruned(self.name, model, budget, self.router(seed))
        on_step(1.0)
        return pruned


class RandomTokens(_SanityRow):
    """Keeps random tokens, other ones in every block, and the last one."""

    name = "random"
    has_chance = True

    def router(self, seed: int) -> Router:
        """See `_SanityRow`."""
        return RandomButLast(seed)


class FirstTokens(_SanityRow):
    """Keeps the first tokens, the same in every block, and the last one."""

    name = "first_k"

    def router(self, seed: int) -> Router:
        """See `_SanityRow`."""
        return OneEnd(first=True)


class LastTokens(_SanityRow):
    """Keeps the last tokens, the same in every block, without the first one that others attend to as a sink."""

    name = "last_k"

    def router(self, seed: int) -> Router:
        """See `_SanityRow`."""
        return OneEnd(first=False)
