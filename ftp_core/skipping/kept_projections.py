"""Projections that make the keys and values of tokens that skip attention, where those are not the block's own.

They are parts of a model beside its weights, as substitutes are (`ftp_core.skipping.substitutes`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import count
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ftp_core.schedule import SparsitySchedule

# An attribute of a model that is no submodule: operations are counted by the weights of its blocks.
_FIELD = "_ftp_kept_projections"


class KeptProjections(nn.Module):
    """Projections of some blocks.

    Args:
        of_blocks: By index of the block and name of the projection in its attention, what runs in its place.
        fitted_to: Schedule that they are fitted to; None if they serve any.

    Attributes:
        names: Names of the projections of each block that has any, in the order of `parts`.
        parts: All of them.
    """

    def __init__(
        self, of_blocks: Mapping[int, Mapping[str, nn.Module]], fitted_to: SparsitySchedule | None = None
    ) -> None:
        super().__init__()
        self.fitted_to = fitted_to
        self.names = {index: tuple(parts) for index, parts in of_blocks.items()}
        # By their places, and not the modules themselves: transformers exchanges some as it loads.
        places = count()
        self._places = {index: {name: next(places) for name in names} for index, names in self.names.items()}
        self.parts = nn.ModuleList(part for parts in of_blocks.values() for part in parts.values())

    def of(self, index: int) -> Mapping[str, nn.Module]:
        """Those of a block, by name; none if its own project everything."""
        return {name: self.parts[place] for name, place in self._places.get(index, {}).items()}

    def serving(self, schedule: SparsitySchedule) -> KeptProjections:
        """Those that serve a schedule: what a block is fitted to depends on it and the blocks before it alone."""
        if self.fitted_to is None or self.fitted_to == schedule:
            return self
        pairs = enumerate(zip(self.fitted_to.blocks, schedule.blocks, strict=True))
        n_alike = next((index for index, (own, other) in pairs if own != other), schedule.n_blocks)
        return KeptProjections({index: self.of(index) for index in self.names if index < n_alike}, schedule)

    def described(self) -> dict[str, Any]:
        """What JSON keeps of them, beside their weights."""
        schedule = None if self.fitted_to is None else self.fitted_to.to_json()
        return {"blocks": {str(index): list(names) for index, names in self.names.items()}, "schedule": schedule}

    @classmethod
    def like(cls, described: Mapping[str, Any], attentions: Mapping[int, nn.Module]) -> KeptProjections:
        """Those that `described` tells of, with the weights of a model's own.

        Args:
            described: What `described` returned.
            attentions: Attention of each block, by its index.
        """
        schedule = described["schedule"]
        return cls(
            {
                int(index): {name: copy.deepcopy(attentions[int(index)].get_submodule(name)) for name in names}
                for index, names in described["blocks"].items()
            },
            None if schedule is None else SparsitySchedule.from_json(schedule),
        )


def give_kept_projections(model: PreTrainedModel, projections: KeptProjections | None) -> None:
    """Lets projections make the keys and values of tokens that skip attention from now on; None: the blocks' own do."""
    model.__dict__[_FIELD] = projections


def kept_projections_of(model: PreTrainedModel) -> KeptProjections | None:
    """The projections that a model was given, if any."""
    found: KeptProjections | None = model.__dict__.get(_FIELD)
    return found
