"""Low-rank maps that stand in for the halves of blocks that tokens skip.

They are parts of a model: fitted once (`ftp_core.training.substitution`), whatever the schedule. Tokens that skip the
attention or the MLP of a block get the map of what it would have read, instead of nothing. Where whole blocks skip and
leave no keys and values there are none: with the static router, such tokens are a shorter prompt.

Dimensions: T tokens, D hidden width, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

HALVES = ("attention", "mlp")
# An attribute of a dense model that is no submodule: its weights stay those that were published.
_FIELD = "_ftp_substitutes"


class LowRank(nn.Module):
    """Maps what a half of a block reads to what it would about add, through R numbers.

    Args:
        width: D.
        rank: R.
        dtype: Type of the weights.
        device: Device of the weights.
    """

    def __init__(
        self, width: int, rank: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)

        self.down, self.up, self.bias = zeros(rank, width), zeros(width, rank), zeros(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """What stands in for the half's output `[..., D]` of hidden states `[..., D]`."""
        # Of a slice, torch would multiply row by row, and copy the weights for each.
        down = nn.functional.linear(hidden.contiguous(), self.down)
        return nn.functional.linear(down, self.up, self.bias)


class Substitutes(nn.Module):
    """A map for the attention and one for the MLP of each block.

    Args:
        n_blocks: Number of blocks.
        width: D.
        rank: R.
        dtype: Type of the weights.

    Attributes:
        rank: R.
    """

    def __init__(self, n_blocks: int, width: int, rank: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.rank = rank
        self.blocks = nn.ModuleList(
            nn.ModuleDict({half: LowRank(width, rank, dtype) for half in HALVES}) for _ in range(n_blocks)
        )

    def of(self, index: int) -> tuple[LowRank, LowRank]:
        """Those of a block: of its attention, and of its MLP."""
        halves: Any = self.blocks[index]
        return halves["attention"], halves["mlp"]

    def fingerprint(self) -> str:
        """SHA-256 of all maps."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def give_substitutes(model: PreTrainedModel, substitutes: Substitutes | None, blocks: Sequence[nn.Module]) -> None:
    """Lets maps stand in for what tokens skip of a dense model from now on; None: nothing does.

    Args:
        model: The dense model, which is the same as before where nothing is skipped.
        substitutes: The maps, which move to the devices of the blocks.
        blocks: Blocks of the model.
    """
    if substitutes is not None:
        for index, block in enumerate(blocks):
            place = next(block.parameters()).device
            if place.type != "meta":
                substitutes.blocks[index].to(place)
    model.__dict__[_FIELD] = substitutes


def substitutes_of(model: PreTrainedModel) -> Substitutes | None:
    """The maps that stand in for what tokens skip of a dense model, if it has any."""
    found: Substitutes | None = model.__dict__.get(_FIELD)
    return found
