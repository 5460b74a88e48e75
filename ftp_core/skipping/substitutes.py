"""Low-rank maps that stand in for the halves of blocks that tokens skip.

They are parts of a model: fitted once (`ftp_core.training.substitution`), whatever the schedule. Tokens that skip the
attention or the MLP of a block get the map of what it would have read, instead of nothing. Tokens that skip both get
one map for the whole block, of what is before it, so that they pass none of its norms, which take a CPU longer than the
map. Where whole blocks skip and leave no keys and values there are no maps: with the static router, such tokens are a
shorter prompt.

Dimensions: T tokens, D hidden width, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftp_core.skipping.norms import MeasuredStates

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


class ScaledLowRank(LowRank):
    """A `LowRank` of hidden states scaled to a root mean square of 1, as norms do it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """What stands in for a block's change `[..., D]` of hidden states `[..., D]`."""
        return self.of_measured(MeasuredStates(hidden.contiguous()))

    def of_measured(self, states: MeasuredStates) -> Tensor:
        """The same of hidden states whose mean squares others ask for, too."""
        # Scaled behind the first map, where it is R numbers a token.
        down = nn.functional.linear(states.hidden, self.down) * states.inverse_root_mean_square()
        return nn.functional.linear(down, self.up, self.bias)


class BlockSubstitutes(NamedTuple):
    """Maps that stand in for parts of a block.

    Attributes:
        attention: Stands in for its attention, of what that reads.
        mlp: Stands in for its MLP, of what that reads.
        whole: Stands in for both, of what is before the block.
    """

    attention: LowRank
    mlp: LowRank
    whole: ScaledLowRank


class Substitutes(nn.Module):
    """Maps for the attention, the MLP and the whole of each block.

    The one for the whole has twice the rank, so that tokens that skip both halves take as many operations as with a map
    for each.

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
        self._of: list[BlockSubstitutes] = []
        self.blocks = nn.ModuleList()
        for _ in range(n_blocks):
            maps = LowRank(width, rank, dtype), LowRank(width, rank, dtype), ScaledLowRank(width, 2 * rank, dtype)
            self._of.append(BlockSubstitutes(*maps))
            self.blocks.append(nn.ModuleDict(self._of[-1]._asdict()))

    @classmethod
    def from_bytes(cls, blocks: Sequence[bytes]) -> Substitutes:
        """Those that `block_bytes` returned."""
        states = [load(block) for block in blocks]
        down_RD = states[0]["attention.down"]
        made = cls(len(states), down_RD.shape[1], down_RD.shape[0], down_RD.dtype)
        for block, state in zip(made.blocks, states, strict=True):
            block.load_state_dict(state)
        return made

    def block_bytes(self) -> list[bytes]:
        """The maps of each block as safetensors bytes."""
        states = [block.state_dict() for block in self.blocks]
        return [save({name: one.detach().cpu().contiguous() for name, one in state.items()}) for state in states]

    def of(self, index: int) -> BlockSubstitutes:
        """Those of a block."""
        return self._of[index]

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
