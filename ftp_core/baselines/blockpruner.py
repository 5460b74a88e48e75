"""BlockPruner: greedy removal of attention and MLP halves by the perplexity of what is left.

Dimensions: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ftp_core.baselines.fitting import Effort, check_halves, negative_log_likelihood, text_batches
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import PassesThrough, absent_halves, heads_without, set_block, shared_copy
from ftp_core.cost.flops import FlopsCounter
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch


class Half(NamedTuple):
    """A half of a block.

    Attributes:
        block: Index of the block.
        part: 0 for its attention, 1 for its MLP.
    """

    block: int
    part: int


class BlockPruner:
    """Removes attention and MLP halves, one after the other: the one without which perplexity is lowest.

    As in the paper perplexity decides anew after each removal, and nothing is trained afterwards. It is that of all
    tokens of the calibration texts but each one's first. A block of which both halves are gone costs nothing; of one
    half the norm before it still runs.
    """

    name = "blockpruner"
    paper = "BlockPruner: Fine-grained Pruning for Large Language Models (arXiv 2406.10594)"
    has_chance = False
    trains = False

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`."""
        check_halves(model, self.name)
        effort, batches = Effort(model), text_batches(model, calibration)
        shrinking, costs = _Shrinking(model, effort), _flops_of_halves(model, budget)
        removed: list[Half] = []
        left, target = budget.dense_flops(model), budget.target_flops(model)
        to_save = left - target
        # At least one half remains.
        while left > target and len(removed) < 2 * model.n_blocks - 1:
            best = shrinking.best(batches, removed)
            after = left - costs[best]
            if abs(after - target) >= abs(left - target):
                break
            shrinking.remove(best)
            removed.append(best)
            left = after
            on_step(min(1.0, 1.0 - (left - target) / to_save))
        on_step(1.0)
        pruned = shrinking.finished(removed)
        return ScheduledModel(
            self.name,
            model,
            pruned,
            SparsitySchedule.uniform(0.0, model.n_blocks),
            Sparsity(len(removed) / (2 * model.n_blocks), "of the attention and MLP halves removed"),
            effort.preparation(),
            heads=heads_without(model, [half.block for half in removed if half.part == 0]),
        )


class _Shrinking:
    """A weight-sharing copy of a model that loses one half after the other."""

    def __init__(self, model: SkippingModel, effort: Effort) -> None:
        self._stand_ins = absent_halves(model)
        self._model, self._effort = shared_copy(model), effort
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

    @torch.inference_mode()
    def best(self, batches: Sequence[PromptBatch], removed: Sequence[Half]) -> Half:
        """The half without which perplexity is lowest; of equal ones the first."""
        candidates = [
            half
            for block in range(self._model.n_blocks)
            for half in (Half(block, 0), Half(block, 1))
            if half not in removed
        ]
        sums = dict.fromkeys(candidates, 0.0)
        for texts in batches:
            before: list[Tensor] = []

            def keep(_: int, call: BlockCall, before: list[Tensor] = before) -> Tensor:
                before.append(call.hidden)
                return call.run(call.hidden)

            negative_log_likelihood(self._model, texts, keep)
            self._effort.tokens += int(texts.lengths.sum())
            for half in candidates:
                kept = self._exchange(half, self._stand_ins[half.block][half.part])
                sums[half] += float(self._from(half.block, before[half.block], texts))
                self._exchange(half, kept)
        return min(candidates, key=sums.__getitem__)

    def _from(self, start: int, known_BLD: Tensor, texts: PromptBatch) -> Tensor:
        """Negative log-likelihood of texts whose hidden states before a block are known."""

        def handle(index: int, call: BlockCall) -> Tensor:
            if index < start:
                return call.hidden
            return call.run(known_BLD if index == start else call.hidden)

        self._effort.tokens += int(texts.lengths.sum())
        return negative_log_likelihood(self._model, texts, handle)

    def finished(self, removed: Sequence[Half]) -> SkippingModel:
        """The model, whose blocks without any half pass hidden states through."""
        for index, block in enumerate(self._model.blocks):
            if {Half(index, 0), Half(index, 1)} <= set(removed):
                set_block(self._model, index, PassesThrough(block))
        return self._model


def _flops_of_halves(model: SkippingModel, budget: Budget) -> dict[Half, float]:
    """Operations of each half in the dense prefill that a budget is of."""
    counter, costs = FlopsCounter(model), {}
    for index in range(model.n_blocks):
        counted = counter.of_block(index, BlockSparsity(0.0, 0.0), budget.batch, budget.length)
        costs[Half(index, 0)] = counted.projections + counted.attention
        costs[Half(index, 1)] = counted.mlp
    return costs
