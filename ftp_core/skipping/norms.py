"""Divides hidden states by their root mean square, in fewer passes over them than models' own norms take.

Those widen all numbers to float32 and back; here that happens to one number of each token.

Dimensions: T tokens in any arrangement, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class MeasuredStates:
    """Hidden states with their mean squares, which several parts of a block ask for.

    Attributes:
        hidden: The states, one behind the other in memory `[..., T, D]`.
    """

    hidden: Tensor

    @cached_property
    def mean_square(self) -> Tensor:
        """Mean of the squares of each token's numbers, in float32 at least `[..., T, 1]`."""
        wide = torch.promote_types(self.hidden.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(self.hidden, dim=-1, keepdim=True, dtype=wide)
        return norm.square() / self.hidden.shape[-1]

    def inverse_root_mean_square(self, epsilon: float = 0.0) -> Tensor:
        """1 over the root of the mean square `[..., T, 1]`, in the type of the hidden states.

        Args:
            epsilon: Added to the mean square.
        """
        square = self.mean_square
        scale = (square + epsilon).clamp(min=torch.finfo(square.dtype).tiny).rsqrt()
        # Tokens whose numbers are all 0 stay so where the type is narrow.
        return scale.clamp(max=torch.finfo(self.hidden.dtype).max).to(self.hidden.dtype)


def root_mean_square_norms(block: nn.Module) -> list[nn.Module]:
    """Parts of a block that are nothing but `weight * hidden / sqrt(mean(hidden ** 2) + epsilon)`."""
    return [part for part in block.children() if _is_root_mean_square_norm(part)]


def normed(norm: Any, states: MeasuredStates) -> Tensor:
    """What one of `root_mean_square_norms` returns for hidden states `[..., T, D]`."""
    scaled: Tensor = states.hidden * states.inverse_root_mean_square(epsilon_of(norm)) * norm.weight
    return scaled


_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _is_root_mean_square_norm(part: nn.Module) -> bool:
    known = _KNOWN.get(part)
    if known is None:
        known = _KNOWN[part] = _acts_as_one(part)
    return known


def _acts_as_one(part: nn.Module) -> bool:
    """Asks the part itself: names of classes do not tell Llama's norms from Gemma's, which add 1 to the weight."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or weight.is_meta or epsilon_of(part) is None:
        return False
    if getattr(part, "bias", None) is not None:
        return False
    # Its mean is not 0, so that a norm that takes the mean away answers something else.
    asked = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1).to(weight.dtype)
    with torch.no_grad():
        answer, expected = part(asked), normed(part, MeasuredStates(asked))
    # Models' own norms compute in float32, whatever the type.
    tolerance = 8 * max(torch.finfo(weight.dtype).eps, torch.finfo(torch.float32).eps)
    # Small weights make small answers.
    largest = tolerance * float(weight.detach().abs().max())
    return torch.allclose(answer.float(), expected.float(), rtol=tolerance, atol=largest)


def epsilon_of(part: nn.Module) -> Any:
    """What a norm adds to the mean square; None if it has no such setting."""
    return getattr(part, "variance_epsilon", getattr(part, "eps", None))
