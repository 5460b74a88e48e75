"""A model that loses attention and MLP halves, and what is lost by each.

Dimensions: B rows, L tokens of a row, D hidden width, T predicted tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ftp_core.baselines.fitting import Effort, as_it_is, negative_log_likelihood, predicts
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import PassesThrough, absent_halves, heads_without, set_block, shared_copy
from ftp_core.cost.flops import FlopsCounter
from ftp_core.quality.divergence import divergence
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.interception import BlockCall, BlockHandler
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch


class Half(NamedTuple):
    """A half of a block.

    Attributes:
        block: Index of the block.
        part: 0 for its attention, 1 for its MLP.
    """

    block: int
    part: int


# Loss of a model on texts whose blocks a handler runs, summed over their tokens, given its dense model and the texts.
Loss = Callable[[SkippingModel, PromptBatch], Callable[[BlockHandler], Tensor]]


def likelihood(model: SkippingModel, texts: PromptBatch) -> Callable[[BlockHandler], Tensor]:
    """The loss of `negative_log_likelihood`."""
    return lambda handler: negative_log_likelihood(model, texts, handler)


def divergence_from_dense(model: SkippingModel, texts: PromptBatch) -> Callable[[BlockHandler], Tensor]:
    """The loss of KL from the model as it is now, at all tokens of texts but each one's first."""
    predicts_BL = predicts(texts, model.device)
    dense_TD = model.run(as_it_is, texts.ids, use_cache=False).to(model.device)[:, :-1][predicts_BL]

    def loss(handler: BlockHandler) -> Tensor:
        hidden_TD = model.run(handler, texts.ids, use_cache=False).to(model.device)[:, :-1][predicts_BL]
        return divergence(model.head, hidden_TD, dense_TD).double().sum()

    return loss


class Shrinking:
    """A weight-sharing copy of a model that loses halves.

    Args:
        model: The dense model.
        effort: Counts the tokens that run.
    """

    def __init__(self, model: SkippingModel, effort: Effort) -> None:
        self._stand_ins = absent_halves(model)
        self._dense, self._model, self._effort = model, shared_copy(model), effort
        assert model.family.halves is not None
        self._names = model.family.halves

    def _exchange(self, half: Half, module: nn.Module) -> nn.Module:
        """Puts a module in the place of a half; returns what was there."""
        block, name = self._model.blocks[half.block], self._names[half.part]
        before = block.get_submodule(name)
        setattr(block, name, module)
        return before

    def remove(self, half: Half) -> None:
        """Removes a half for good."""
        self._exchange(half, self._stand_ins[half.block][half.part])

    @contextmanager
    def without(self, halves: Sequence[Half]) -> Iterator[SkippingModel]:
        """The copy without some more halves for as long as the context lasts."""
        kept = [self._exchange(half, self._stand_ins[half.block][half.part]) for half in halves]
        try:
            yield self._model
        finally:
            for half, module in zip(halves, kept, strict=True):
                self._exchange(half, module)

    @torch.inference_mode()
    def losses(
        self,
        batches: Sequence[PromptBatch],
        candidates: Sequence[tuple[Half, ...]],
        loss_of: Loss = likelihood,
        on_loss: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """Loss without each candidate, summed over texts; each runs from its own block on, from states that are known.

        Args:
            batches: Texts.
            candidates: Halves of one block each, to be left out together.
            loss_of: Loss.
            on_loss: Called after each candidate has run a batch: their number by that of batches times.
        """
        sums = [0.0] * len(candidates)
        for texts in batches:
            before: list[Tensor] = []

            def keep(_: int, call: BlockCall, before: list[Tensor] = before) -> Tensor:
                before.append(call.hidden)
                return call.run(call.hidden)

            loss = loss_of(self._model, texts)
            loss(keep)
            self._effort.tokens += int(texts.lengths.sum())
            for place, halves in enumerate(candidates):
                self._effort.tokens += int(texts.lengths.sum())
                with self.without(halves):
                    sums[place] += float(loss(_starting(halves[0].block, before[halves[0].block])))
                on_loss()
        return sums

    def pruned(self, name: str, removed: Sequence[Half]) -> ScheduledModel:
        """The model without some halves for good; its blocks without any half pass hidden states through.

        Args:
            name: Name in results.
            removed: All halves that are removed, those of `remove` included.
        """
        for half in removed:
            self.remove(half)
        n_blocks = self._dense.n_blocks
        for index in range(n_blocks):
            if {Half(index, 0), Half(index, 1)} <= set(removed):
                set_block(self._model, index, PassesThrough(self._model.blocks[index]))
        return ScheduledModel(
            name,
            self._dense,
            self._model,
            SparsitySchedule.uniform(0.0, n_blocks),
            Sparsity(len(removed) / (2 * n_blocks), "of the attention and MLP halves removed"),
            self._effort.preparation(),
            heads=heads_without(self._dense, [half.block for half in removed if half.part == 0]),
        )


def _starting(start: int, known_BLD: Tensor) -> BlockHandler:
    """Runs the blocks from one on, whose hidden states are known before it."""

    def handle(index: int, call: BlockCall) -> Tensor:
        if index < start:
            return call.hidden
        return call.run(known_BLD if index == start else call.hidden)

    return handle


def flops_of_halves(model: SkippingModel, budget: Budget) -> dict[Half, float]:
    """Operations of each half in the dense prefill that a budget is of."""
    counter, costs = FlopsCounter(model), {}
    for index in range(model.n_blocks):
        counted = counter.of_block(index, BlockSparsity(0.0, 0.0), budget.batch, budget.length)
        costs[Half(index, 0)] = counted.projections + counted.attention
        costs[Half(index, 1)] = counted.mlp
    return costs
