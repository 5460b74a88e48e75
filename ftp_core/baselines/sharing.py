"""Copies of a model that share its weights, and parts that stand in for removed ones.

Dimensions: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftp_core.cost.memory import BlockHeads, block_heads
from ftp_core.errors import ModelError, ScheduleError
from ftp_core.skipping.dispatch import is_spread
from ftp_core.skipping.families import family_of
from ftp_core.skipping.fitted_keys import fitted_keys_of
from ftp_core.skipping.kept_projections import kept_projections_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import substitutes_of

NO_HEADS = BlockHeads(0, 0)


class StandsIn(nn.Module):
    """A module in a block's place.

    Args:
        block: The block, whose plain attributes models may ask for.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        own = vars(self)
        vars(self).update({name: value for name, value in vars(block).items() if name not in own})


class PassesThrough(StandsIn):
    """A removed block: returns the hidden states that it gets."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Returns `[B, L, D]` as it is."""
        return hidden_states


class AddsNothing(nn.Module):
    """A removed half of a block: adds zeros to the hidden states.

    Args:
        in_tuple: True if the block expects them first in a tuple.
    """

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self._in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Returns zeros `[B, L, D]`."""
        zeros_BLD = torch.zeros_like(hidden_states)
        return (zeros_BLD, None) if self._in_tuple else zeros_BLD


def shared_copy(model: SkippingModel) -> SkippingModel:
    """A model of its own whose modules may be exchanged; all weights are those of the given one, and take no memory.

    Raises:
        ModelError: Parts of the model are on several devices, or not in memory.
    """
    return _around(model, _shared_base(model.model))


def without_blocks(model: SkippingModel, removed: Iterable[int]) -> SkippingModel:
    """The model without some of its blocks, which hold nothing in the cache; see `shared_copy`.

    Raises:
        ModelError: See `shared_copy`.
        ScheduleError: There is no such block, or none would remain.
    """
    return _around(model, base_without_blocks(model.model, removed))


def base_without_blocks(base: PreTrainedModel, removed: Iterable[int]) -> PreTrainedModel:
    """The same of a transformers model, to be run with a cache of `ftp_core.skipping.cache`."""
    family = family_of(base.config)
    n_blocks, gone = len(family.blocks_of(base)), sorted(set(removed))
    if not set(gone) <= set(range(n_blocks)) or len(gone) == n_blocks:
        raise ScheduleError(
            f"Blocks {gone} cannot be removed of a model with {n_blocks}: name some of 0 to {n_blocks - 1}, and leave "
            "at least one."
        )
    shared = _shared_base(base)
    blocks = getattr(family.decoder_of(shared), family.blocks)
    for index in gone:
        blocks[index] = PassesThrough(blocks[index])
    return shared


def _shared_base(base: PreTrainedModel) -> PreTrainedModel:
    if is_spread(base):
        raise ModelError(
            "Parts of this model are on several devices or offloaded, and cannot be exchanged: load it on one device."
        )
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    # Nothing is skipped, so that nothing stands in for it, and no keys are fitted to it.
    parts = substitutes_of(base), fitted_keys_of(base), kept_projections_of(base)
    memo |= {id(part): None for part in parts if part is not None}
    shared = copy.deepcopy(base, memo=memo)
    return shared


def _around(model: SkippingModel, base: PreTrainedModel) -> SkippingModel:
    """The same as a skipping model, without another look at all weights."""
    shared = copy.copy(model)
    shared.model = base
    shared.decoder, shared.blocks = model.family.decoder_of(base), model.family.blocks_of(base)
    return shared


def set_block(model: SkippingModel, index: int, block: nn.Module) -> None:
    """Exchanges a block of a model that `shared_copy` made."""
    getattr(model.decoder, model.family.blocks)[index] = block
    model.blocks = model.family.blocks_of(model.model)


def heads_without(model: SkippingModel, without_attention: Iterable[int]) -> list[BlockHeads]:
    """Heads of each block of a model where some blocks have no attention."""
    gone = set(without_attention)
    return [NO_HEADS if index in gone else own for index, own in enumerate(block_heads(model))]


def absent_halves(model: SkippingModel) -> list[tuple[AddsNothing, AddsNothing]]:
    """What stands in for the attention and the MLP of each block where they are removed."""
    assert model.family.halves is not None
    _, mlp = model.family.halves
    stand_ins = []
    for block in model.blocks:
        one_11D = torch.zeros(1, 1, model.model.config.hidden_size, dtype=model.model.dtype, device=model.device)
        with torch.inference_mode():
            in_tuple = isinstance(block.get_submodule(mlp)(one_11D), tuple)
        stand_ins.append((AddsNothing(True), AddsNothing(in_tuple)))
    return stand_ins
