"""Fits projections of keys and values to those that the dense model has, by ridge regression.

Dimensions: T tokens, B rows, L tokens of a row, D width of what a projection reads, K width of what it makes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ftp_core.checks import is_plain
from ftp_core.errors import ModelError
from ftp_core.skipping.families import Family
from ftp_core.skipping.halves import keys_and_values
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.norms import MeasuredStates

# Of the mean square of what projections read: few prompts leave most directions of it undecided.
RIDGE = 0.03


class Projected(NamedTuple):
    """What a projection reads, and what it makes of that, `[..., D]` and `[..., K]`."""

    read: Tensor
    made: Tensor


def projected(call: BlockCall, family: Family, states: MeasuredStates) -> dict[str, Projected]:
    """What the projections of a block's keys and values read and make of hidden states `[B, L, D]`, by their names.

    Args:
        call: Call of the block.
        family: Family of the model.
        states: Hidden states before the block, of all tokens of the call.

    Raises:
        ModelError: A projection is quantised or not in memory.
    """
    assert family.halves is not None
    attention, found = call.block.get_submodule(family.halves[0]), dict[str, Projected]()

    def noting(name: str, _: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        found[name] = Projected(arguments[0], made)

    parts = {
        name: part
        for name, part in attention.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and name != family.query
    }
    hooks = [part.register_forward_hook(partial(noting, name)) for name, part in parts.items()]
    try:
        # The output's projection comes behind keys and values, and does not run.
        keys_and_values(call, family, states)
    finally:
        for hook in hooks:
            hook.remove()
    weights: list[Any] = [parts[name].weight for name in found]
    if not weights or not all(is_plain(weight) and weight.is_floating_point() for weight in weights):
        raise ModelError(
            "Projections of keys and values are to be fitted, but those of this model are quantised or not in memory: "
            "load it in floating point, or leave them as they are."
        )
    return found


def of_tokens(found: Mapping[str, Projected], chosen_BL: Tensor) -> dict[str, Projected]:
    """What projections read and make of some tokens; those that read the same still do."""
    reads = {id(one.read): one.read[chosen_BL.to(one.read.device)] for one in found.values()}
    return {
        name: Projected(reads[id(one.read)], one.made[chosen_BL.to(one.made.device)]) for name, one in found.items()
    }


@dataclass
class RidgeSums:
    """Sums over tokens, in float32, of which the regressions of a block's projections are made.

    Projections that read the same are solved together.

    Attributes:
        n_tokens: Number of tokens.
        read: Outer products of what each projection reads `[D, D]`, by its name.
        missed: Products of that with what it misses `[D, K]`, by its name.
        squares: Sum of the squares of what it misses, by its name.
    """

    n_tokens: int = 0
    read: dict[str, Tensor] = field(default_factory=dict)
    missed: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)

    def add(self, found: Mapping[str, Projected], targets: Mapping[str, Tensor]) -> None:
        """Adds tokens: what projections read and made of them `[T, D]`, `[T, K]`, and what they should have made."""
        known: list[tuple[Tensor, Tensor]] = []
        for name, (read_TD, made_TK) in found.items():
            missed_TK = targets[name].to(made_TK.device).float() - made_TK.float()
            product_DD = next((product for read, product in known if read is read_TD), None)
            wide_TD = read_TD.float()
            if product_DD is None:
                product_DD = wide_TD.T @ wide_TD
                known.append((read_TD, product_DD))
            self._sum(name, product_DD, wide_TD.T @ missed_TK, missed_TK.square().sum())
        self.n_tokens += next((len(one.read) for one in found.values()), 0)

    def _sum(self, name: str, read: Tensor, missed: Tensor, squares: Tensor) -> None:
        for sums, more in ((self.read, read), (self.missed, missed), (self.squares, squares)):
            sums[name] = sums[name] + more if name in sums else more

    def joined(self, other: RidgeSums) -> RidgeSums:
        """Sums over the tokens of both."""
        both = RidgeSums(self.n_tokens + other.n_tokens)
        for sums in (self, other):
            for name in sums.read:
                both._sum(name, sums.read[name], sums.missed[name], sums.squares[name])
        return both

    def changes(self, ridge: float) -> dict[str, Tensor]:
        """Changes of the projections' weights with the least squared error `[D, K]`, by their names.

        Args:
            ridge: Weight of the penalty on the change, of the mean square of what projections read.
        """
        # No token may have skipped.
        n_tokens = max(1, self.n_tokens)
        changes = {}
        for name, read_DD in self.read.items():
            mean_DD = read_DD / n_tokens
            penalty = (ridge * mean_DD.diagonal().mean()).clamp(min=torch.finfo(torch.float32).tiny)
            mean_DD.diagonal().add_(penalty)
            changes[name] = torch.linalg.solve(mean_DD, self.missed[name] / n_tokens)
        return changes

    def errors(self, changes: Mapping[str, Tensor]) -> dict[str, float]:
        """Squared error of each projection with a change, as a share of what it is without one."""
        errors = {}
        for name, change_DK in changes.items():
            gained = 2 * (change_DK * self.missed[name]).sum() - (change_DK * (self.read[name] @ change_DK)).sum()
            before = float(self.squares[name])
            errors[name] = 1.0 - float(gained) / before if before > 0 else 1.0
        return errors


def best_changes(fitted: RidgeSums, held_out: RidgeSums, ridges: Sequence[float]) -> dict[str, Tensor]:
    """Changes of projections, each with the penalty that does best on tokens set aside, and fitted to those, too.

    A projection that no penalty improves there has none. Where no token is set aside, the strongest penalty counts.

    Args:
        fitted: Sums over the tokens that penalties are tried on.
        held_out: Sums over those set aside.
        ridges: Penalties, see `RidgeSums.changes`.
    """
    whole, best = fitted.joined(held_out), dict.fromkeys(fitted.read, (1.0, 0.0))
    if not held_out.n_tokens:
        return whole.changes(max(ridges))
    for ridge in ridges:
        for name, error in held_out.errors(fitted.changes(ridge)).items():
            best[name] = min(best[name], (error, ridge))
    solved = {ridge: whole.changes(ridge) for ridge in {ridge for _, ridge in best.values()} if ridge}
    return {name: solved[ridge][name] for name, (_, ridge) in best.items() if ridge}


def changed_copies(attention: nn.Module, changes: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Copies of projections of an attention with changed weights, by their names; in their own precision.

    Args:
        attention: The attention.
        changes: Changes of their weights `[D, K]`.
    """
    copies = {}
    for name, change_DK in changes.items():
        own: Any = attention.get_submodule(name)
        part: Any = copy.deepcopy(own).requires_grad_(False)
        part.weight.copy_(own.weight.float() + (change_DK if isinstance(own, Conv1D) else change_DK.T))
        copies[name] = part
    return copies
