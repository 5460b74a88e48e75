"""Projections that make the keys and values of tokens that skip attention, where those are not the block's own.

They are parts of a model beside its weights, as substitutes are (`ftp_core.skipping.substitutes`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

# An attribute of a model that is no submodule: operations are counted by the weights of its blocks.
_FIELD = "_ftp_kept_projections"


class KeptProjections(nn.Module):
    """Projections of some blocks.

    Args:
        of_blocks: By index of the block and name of the projection in its attention, what runs in its place.
    """

    def __init__(self, of_blocks: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__()
        self._of = {index: dict(parts) for index, parts in of_blocks.items()}
        self.parts = nn.ModuleList(part for parts in self._of.values() for part in parts.values())

    def of(self, index: int) -> Mapping[str, nn.Module]:
        """Those of a block, by name; none if its own project everything."""
        return self._of.get(index, {})


def give_kept_projections(model: PreTrainedModel, projections: KeptProjections | None) -> None:
    """Lets projections make the keys and values of tokens that skip attention from now on; None: the blocks' own do."""
    model.__dict__[_FIELD] = projections


def kept_projections_of(model: PreTrainedModel) -> KeptProjections | None:
    """The projections that a model was given, if any."""
    found: KeptProjections | None = model.__dict__.get(_FIELD)
    return found
