"""Rotary frequencies that depend on how long a text is, set for each row of a batch.

transformers derives them from the highest position of a forward pass: `longrope` has one set up to the original context
and another beyond, `dynamic` another one for every length beyond the context. Left to itself, a row is embedded
otherwise beside a longer one, and a completion otherwise than the prompt before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ftp_core.skipping.families import context_of, family_of
from ftp_core.skipping.interception import exclusive, replaced_forwards


def length_regime(config: PreTrainedConfig, n_tokens: int) -> int:
    """Number that texts of `n_tokens` share if and only if their positions have the same frequencies."""
    regime = 0
    for parameters in _rope_parameters(config):
        kind = parameters["rope_type"]
        if kind == "longrope" and n_tokens > parameters["original_max_position_embeddings"]:
            regime = max(regime, 1)
        if "dynamic" in kind and n_tokens > context_of(config):
            regime = n_tokens
    return regime


def depends_on_length(config: PreTrainedConfig) -> bool:
    """Returns True if a model's rotary frequencies depend on the length of a text."""
    return any(_is_dependent(parameters["rope_type"]) for parameters in _rope_parameters(config))


@contextmanager
def rotary_lengths(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[None]:
    """Context in which every row of a forward pass is embedded as the beginning of a text.

    Args:
        model: The model; nothing happens if its frequencies do not depend on lengths.
        lengths: Tokens of each row's text, those still to come included; one number for all rows, or one each.
    """
    if not depends_on_length(model.config):
        yield
        return
    groups: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        groups[length_regime(model.config, length)].append(row)
    parts = [(max(lengths[row] for row in rows), rows) for rows in groups.values()]
    modules = [module for module in model.modules() if _has_dependent_frequencies(module)]

    def rowwise(_: int, module: nn.Module) -> _RowwiseRotary:
        return _RowwiseRotary(module.forward, len(lengths), parts)

    with exclusive(family_of(model.config).blocks_of(model)), replaced_forwards(modules, rowwise):
        yield


@dataclass(frozen=True)
class _RowwiseRotary:
    """Replaces the forward of a rotary embedding, for rows of the texts' lengths, or 1 if all share one.

    Attributes:
        parts: Tokens of the longest text of each regime, and the rows in it.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    n_rows: int
    parts: list[tuple[int, list[int]]]

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Cosines and sines of each row's positions `[1 or B, L, E]`."""
        if len(self.parts) == 1:
            return self._embed(self.parts[0][0], x, position_ids, *args, **kwargs)
        whole: list[Tensor] = []
        positions = position_ids.expand(self.n_rows, -1)
        for length, rows in self.parts:
            index = torch.tensor(rows, device=positions.device)
            found = self._embed(length, x, positions.index_select(0, index), *args, **kwargs)
            whole = whole or [part.new_empty(self.n_rows, *part.shape[1:]) for part in found]
            for target, part in zip(whole, found, strict=True):
                target.index_copy_(0, index, part)
        return tuple(whole)

    def _embed(self, length: int, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        # The module looks for the highest position: padding must not be it, and the last of the text must be there.
        inside = position_ids.clamp(max=length - 1)
        last = torch.full_like(inside[:, :1], length - 1)
        found = self.forward(x, torch.cat([inside, last], 1), *args, **kwargs)
        return tuple(part[:, :-1] for part in found)


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Parameters of each rotary embedding; families with several kinds of layers may have several."""
    found = getattr(config, "rope_parameters", None) or {}
    every = [found] if "rope_type" in found else [part for part in found.values() if isinstance(part, dict)]
    return [part for part in every if "rope_type" in part]


def _is_dependent(rope_type: str) -> bool:
    return rope_type == "longrope" or "dynamic" in rope_type


def _has_dependent_frequencies(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):
        return any(_is_dependent(kind) for kind in kinds.values())
    return isinstance(kinds, str) and _is_dependent(kinds)
