"""Funnel: from some block on, groups of adjacent tokens run as one, and their states are told apart again at the end.

Dimensions: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.baselines.fitting import Effort, check_halves, closest, share_kept
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel, cached_step
from ftp_core.baselines.sanity_rows import last_tokens
from ftp_core.cost.measure import Step
from ftp_core.cost.memory import kv_bytes
from ftp_core.errors import ModelError
from ftp_core.routers import Router, RoutingState
from ftp_core.schedule import MAX_SPARSITY, BlockSparsity, SparsitySchedule
from ftp_core.skipping.interception import BlockCall, BlockHandler
from ftp_core.skipping.prefixes import Passage
from ftp_core.skipping.skipping_model import Prefill, SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch

_WIDEST = round(1 / (1 - MAX_SPARSITY))


class GroupEndsRouter:
    """Keeps the last token of each group of adjacent ones, whatever the sparsity.

    The first token, protected ones and the last token are groups of their own; the last group before that may be
    smaller than others.

    Args:
        width: Tokens of a group.
    """

    kind = "group_ends"
    window = 0
    reads_hidden = False
    keeps_budget = False
    routes_decoding = False

    def __init__(self, width: int) -> None:
        self.width = width

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        place_BL = state.positions - max(1, state.keep_first)
        is_last_but_one_BL = state.positions == state.lengths[:, None] - 2
        ends_BL = (place_BL < 0) | (place_BL % self.width == self.width - 1) | is_last_but_one_BL
        return (ends_BL & state.real) | last_tokens(state)

    def keep_newest(self, sparsity: float, state: RoutingState, line: Tensor | None) -> Tensor:
        """See `Router.keep_newest`; never called."""
        return torch.ones_like(state.lengths, dtype=torch.bool)

    def n_kept(self, length: int, keep_first: int = 0) -> int:
        """Groups of a prompt of `length` tokens, `keep_first` of which are protected."""
        n_first = min(length - 1, max(1, keep_first))
        return n_first + -(-(length - 1 - n_first) // self.width) + 1


class Groups:
    """Groups of adjacent tokens of each row.

    Args:
        ends_BL: Last tokens of the groups.
        real_BL: True for tokens; what is none stays as it is.
    """

    def __init__(self, ends_BL: Tensor, real_BL: Tensor) -> None:
        n_rows, width = ends_BL.shape
        self._ends_BL = ends_BL
        # The last number is that of what belongs to no group.
        self._numbers_BL = (ends_BL.cumsum(1) - ends_BL.long()).masked_fill(~real_BL, width)
        zeros_BG = torch.zeros(n_rows, width + 1, dtype=torch.long, device=ends_BL.device)
        columns_BL = torch.arange(width, device=ends_BL.device).expand(n_rows, -1)
        # Of each token's group: the number of tokens, and the column of the last one.
        self._sizes_BL = self._of_each(zeros_BG.scatter_add(1, self._numbers_BL, real_BL.long()))
        self._end_BL = self._of_each(zeros_BG.scatter_reduce(1, self._numbers_BL, columns_BL, "amax"))
        self._alone_BL = ~real_BL | (self._sizes_BL == 1)

    def _of_each(self, of_groups: Tensor) -> Tensor:
        """What each token's group has `[B, L, ...]`."""
        numbers = self._numbers_BL.to(of_groups.device)
        if of_groups.ndim > 2:
            numbers = numbers[..., None].expand(-1, -1, of_groups.shape[2])
        return of_groups.gather(1, numbers)

    def pooled(self, hidden_BLD: Tensor) -> Tensor:
        """States where the last token of each group has the mean of the group, and all others their own."""
        (n_rows, width, n_numbers), device = hidden_BLD.shape, hidden_BLD.device
        numbers_BLD = self._numbers_BL.to(device)[..., None].expand_as(hidden_BLD)
        sums_BGD = torch.zeros(n_rows, width + 1, n_numbers, device=device)
        sums_BGD = sums_BGD.scatter_add_(1, numbers_BLD, hidden_BLD.float())
        mean_BLD = self._of_each(sums_BGD) / self._sizes_BL.to(device)[..., None].clamp(min=1)
        pools_BL1 = (self._ends_BL & ~self._alone_BL).to(device)[..., None]
        return torch.where(pools_BL1, mean_BLD.to(hidden_BLD.dtype), hidden_BLD)

    def restored(self, own_BLD: Tensor, pooled_BLD: Tensor, behind_BLD: Tensor) -> Tensor:
        """States of all tokens behind blocks that groups ran: each one's own, and what its group's end has gained.

        Args:
            own_BLD: States before these blocks.
            pooled_BLD: The same, pooled.
            behind_BLD: The latter behind the blocks.
        """
        end_BLD = self._end_BL.to(own_BLD.device)[..., None].expand_as(own_BLD)
        gained_BLD = (behind_BLD - pooled_BLD).gather(1, end_BLD)
        return torch.where(self._alone_BL.to(own_BLD.device)[..., None], behind_BLD, own_BLD + gained_BLD)


@dataclass
class PooledPassage(Passage):
    """One forward pass of prompts in some of whose blocks groups of tokens run as one.

    Attributes:
        router: Names the last token of each group, in whose place the group runs.
        pooled: Blocks in which it does, one behind the other.
    """

    router: Router | None = None
    pooled: range = range(0)

    def through(self, handler: BlockHandler, routing: RoutingState | None = None) -> BlockHandler:
        """See `Passage.through`; continuations run as they are."""
        inner, router = super().through(handler, routing), self.router
        if routing is None or router is None or not self.pooled:
            return inner
        groups = Groups(router.keep(0.0, routing), routing.real)
        before: list[tuple[Tensor, Tensor]] = []

        def handle(index: int, call: BlockCall) -> Tensor:
            if index == self.pooled.start:
                before.append((call.hidden, groups.pooled(call.hidden)))
                call = replace(call, hidden=before[-1][1])
            behind_BLD = inner(index, call)
            if index != self.pooled.stop - 1:
                return behind_BLD
            own_BLD, pooled_BLD = (states.to(behind_BLD.device) for states in before[-1])
            return groups.restored(own_BLD, pooled_BLD, behind_BLD)

        return handle


@dataclass(frozen=True)
class PooledModel(ScheduledModel):
    """A model in some of whose blocks groups of the prompt's tokens run as one.

    Attributes:
        pooled: These blocks.
    """

    pooled: range = range(0)

    def prefill(self, prompts: PromptBatch) -> Prefill:
        """See `PrunedModel`."""
        return self.model.prefill(prompts, self.schedule, self.router, self._passage())

    def step_of(self, model: PreTrainedModel) -> Step:
        """See `PrunedModel`."""
        self.check_model(model)
        return cached_step(self.model.model, self.schedule, self.router, self.model.keep_first, self._passage())

    def kv_bytes(self, batch: int, length: int, new_tokens: int = 0) -> int:
        """See `PrunedModel`."""
        assert self.entries is not None
        schedule = SparsitySchedule([entry.attention for entry in self.entries(length)])
        return kv_bytes(self.model, schedule, batch, length, new_tokens)

    def _passage(self) -> PooledPassage:
        return PooledPassage(router=self.router, pooled=self.pooled)


class Funnel:
    """From some block on, each group of adjacent tokens runs as their mean, until they are told apart again.

    h'_g = mean of h_j over group g before block l, and h_j + (h''_g - h'_g) for each of its tokens behind the last
    pooled block, where h'' is what becomes of h'. The first token is never pooled, as in the paper, nor are protected
    ones and the last one, from which the first new token is predicted. A group stands at the position of its last
    token, so that nothing is seen before it stands; keys and values are those of groups in pooled blocks, and of all
    tokens elsewhere, and decoded tokens run every block as they are.

    The paper trains encoders of several stages, each half as long as the one before, whose first block has pooled
    queries alone attend to keys that are not; where predictions of all tokens are wanted, its decoder runs some blocks
    at full length on h_j + h''_g. Here nothing is trained and there is one stage, the mean makes queries and keys
    alike, and what the group has gained is added, as the model's blocks know no sums of two states. Without training,
    a decoder loses more at equal operations than an encoder that goes on to the end, so that there is none by default.
    The budget says l. At most about 1 - 1 / width can be saved.

    Args:
        width: Tokens of a group.
        n_decoder: Number of last blocks that run all tokens.

    Raises:
        ModelError: The width is not from 1 to 20, or the number of blocks negative.
    """

    name = "funnel"
    paper = (
        "Funnel-Transformer: Filtering out Sequential Redundancy for Efficient Language Processing (arXiv 2006.03236)"
    )
    has_chance = False
    trains = False

    def __init__(self, width: int = 2, n_decoder: int = 0) -> None:
        if not 1 <= width <= _WIDEST or n_decoder < 0:
            raise ModelError(
                f"Funnel is to pool {width} tokens and leave {n_decoder} last blocks as they are: give a width from 1 "
                f"to {_WIDEST}, and no negative number of blocks."
            )
        self._width, self._n_decoder = width, n_decoder

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> PooledModel:
        """See `Baseline`; no example is looked at."""
        check_halves(model, self.name)
        effort = Effort(model)
        stop = max(0, model.n_blocks - self._n_decoder)
        options = [pooled_model(model, range(start, stop), self._width) for start in range(stop, -1, -1)]
        found = closest(options, lambda option: option.flops(budget.batch, budget.length), budget.target_flops(model))
        on_step(1.0)
        return replace(found, preparation=effort.preparation())


def pooled_model(model: SkippingModel, pooled: range, width: int) -> PooledModel:
    """The model in some of whose blocks groups of `width` tokens run as one."""
    effort, router = Effort(model), GroupEndsRouter(width)

    def schedule_of(share: float) -> SparsitySchedule:
        return SparsitySchedule([share if index in pooled else 0.0 for index in range(model.n_blocks)])

    def entries(length: int) -> Sequence[BlockSparsity]:
        return schedule_of(share_kept(router.n_kept(length, model.keep_first), length)).blocks

    return PooledModel(
        Funnel.name,
        model,
        model,
        schedule_of(1.0 - 1.0 / width),
        Sparsity(len(pooled) / model.n_blocks, f"of the blocks on groups of {width}"),
        effort.preparation(),
        router,
        entries=entries,
        pooled=pooled,
    )
