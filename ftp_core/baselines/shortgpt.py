"""Depth pruning as a baseline: removes the blocks that change hidden states least, for all tokens.

Blocks are chosen without a search, as in ShortGPT (Men et al. 2024, arXiv 2403.03853). Shapes: B rows, L tokens of a
row, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ftp_core.baselines.fitting import Effort, closest, flops_of_blocks, text_batches
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel, cached_step
from ftp_core.baselines.sharing import base_without_blocks, heads_without, without_blocks
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Step
from ftp_core.errors import ScheduleError
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch


@torch.inference_mode()
def block_influence(model: SkippingModel, prompts: PromptBatch) -> tuple[float, ...]:
    """Change of hidden states by each block: 1 - E[cos(x_i, x_{i+1})] over tokens (arXiv 2403.03853, equation 1)."""
    prompts = prompts.to(model.device)
    real_BL = torch.arange(prompts.ids.shape[1], device=model.device) < prompts.lengths[:, None]
    influence: list[float] = []

    def observe(index: int, call: BlockCall) -> Tensor:
        behind_BLD = call.run(call.hidden)
        similarity_BL = cosine_similarity(call.hidden.float(), behind_BLD.float(), dim=-1)
        influence.append(1.0 - float(similarity_BL.to(real_BL.device)[real_BL].mean()))
        return behind_BLD

    # Padding stands last, where causality hides it from every token.
    model.run(observe, prompts.ids, use_cache=False)
    return tuple(influence)


def least_influential(influence: Sequence[float], n_removed: int) -> tuple[int, ...]:
    """The blocks of least influence, ascending; of equal ones the earlier.

    Raises:
        ScheduleError: There are not so many blocks, or none would remain.
    """
    if not 0 <= n_removed < len(influence):
        raise ScheduleError(
            f"{n_removed} blocks shall be removed of {len(influence)}: remove none or more, and leave at least one."
        )
    return tuple(sorted(sorted(range(len(influence)), key=influence.__getitem__)[:n_removed]))


def flops_without_blocks(model: SkippingModel, n_removed: int, batch: int, length: int, new_tokens: int = 0) -> float:
    """Floating-point operations of the dense model with so many blocks removed, which all count alike."""
    dense = FlopsCounter(model).count(SparsitySchedule.uniform(0.0, model.n_blocks), batch, length, new_tokens)
    return float(dense.head + (dense.total - dense.head) * (model.n_blocks - n_removed) / model.n_blocks)


def blocks_removed_at(model: SkippingModel, schedule: Sequence[float], batch: int, length: int) -> int:
    """The number of blocks to remove for about as many operations as a schedule's prefill."""
    target = FlopsCounter(model).count(schedule, batch, length).total
    return min(
        range(model.n_blocks), key=lambda n_removed: abs(flops_without_blocks(model, n_removed, batch, length) - target)
    )


@dataclass(frozen=True)
class BlockRemoval:
    """A dense model run without some of its blocks, as a variant to be measured (`ftp_core.cost.measure`).

    Attributes:
        removed: Indices of the removed blocks.
        name: Name in results.
    """

    removed: tuple[int, ...]
    name: str = "block removal"

    def step_of(self, model: PreTrainedModel) -> Step:
        """See `ftp_core.cost.measure.Variant`; removed blocks hold nothing in the cache.

        Raises:
            ModelError: Its family is not supported.
            ScheduleError: It has no such block, or none would remain.
        """
        base = base_without_blocks(model, self.removed)
        return cached_step(base, SparsitySchedule.uniform(0.0, len(family_of(base.config).blocks_of(base))))


class ShortGPT:
    """Removes the blocks of least Block Influence, BI_i = 1 - E[cos(x_i, x_{i+1})], in one go.

    As in the paper, and without training afterwards. BI is the mean over all tokens of the calibration texts.
    """

    name = "shortgpt"
    paper = "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect (arXiv 2403.03853)"
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
        effort, batches = Effort(model), text_batches(model, calibration)
        weighted = torch.zeros(model.n_blocks)
        for number, texts in enumerate(batches, 1):
            n_tokens = int(texts.lengths.sum())
            weighted += n_tokens * torch.tensor(block_influence(model, texts))
            effort.tokens += n_tokens
            on_step(number / len(batches))
        influence, dense = (weighted / effort.tokens).tolist(), budget.dense_flops(model)
        of_blocks = flops_of_blocks(model, budget)

        def flops_of(n_removed: int) -> float:
            return dense - sum(of_blocks[index] for index in least_influential(influence, n_removed))

        n_removed = closest(range(model.n_blocks), flops_of, budget.target_flops(model))
        removed = least_influential(influence, n_removed)
        return ScheduledModel(
            self.name,
            model,
            without_blocks(model, removed),
            SparsitySchedule.uniform(0.0, model.n_blocks),
            Sparsity(len(removed) / model.n_blocks, "of the blocks removed"),
            effort.preparation(),
            heads=heads_without(model, removed),
        )
