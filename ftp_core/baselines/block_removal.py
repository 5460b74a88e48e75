"""Depth pruning as a baseline: removes the blocks that change hidden states least, for all tokens.

Blocks are chosen without a search, as in ShortGPT (Men et al. 2024, arXiv 2403.03853). Shapes: B rows, L tokens of a
row, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import ScheduleError
from ftp_core.routers import RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.decoding import DecodePass
from ftp_core.skipping.families import family_of
from ftp_core.skipping.interception import BlockCall, BlockHandler, intercepted
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch


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

    def step_of(self, model: PreTrainedModel) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
        """See `ftp_core.cost.measure.Variant`; removed blocks hold nothing in the cache.

        Raises:
            ModelError: Its family is not supported.
            ScheduleError: It has no such block, or none would remain.
        """
        family = family_of(model.config)
        blocks = family.blocks_of(model)
        gone = set(self.removed)
        if not gone <= set(range(len(blocks))) or len(gone) == len(blocks):
            raise ScheduleError(
                f"Blocks {sorted(gone)} cannot be removed of a model with {len(blocks)}: name some of 0 to "
                f"{len(blocks) - 1}, and leave at least one."
            )
        whole = SparsitySchedule.uniform(0.0, len(blocks))

        def step(ids_BL: Tensor, cache: FTPCache | None) -> tuple[Tensor, FTPCache]:
            cache = FTPCache(family.windows(model)) if cache is None else cache
            real_BL = torch.ones_like(ids_BL, dtype=torch.bool)
            handler: BlockHandler
            if cache.seen == 0:
                state = RoutingState.start(real_BL)
                handler = PromptPass(model, family, whole, StaticRouter(), state, real_BL, cache)
            else:
                columns_L = torch.arange(cache.seen, cache.seen + ids_BL.shape[1], device=ids_BL.device)
                handler = DecodePass(model, family, cache, real_BL, columns_L.expand(ids_BL.shape))

            def handle(index: int, call: BlockCall) -> Tensor:
                return call.hidden if index in gone else handler(index, call)

            with intercepted(blocks, handle):
                outputs = model(input_ids=ids_BL, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.advance(real_BL)
            return outputs.logits[:, -1], cache

        return step
