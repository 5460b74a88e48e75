"""LaCo: merges successive blocks into one where the model's final states stay similar.

Dimensions: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ftp_core.baselines.fitting import Effort, as_it_is, closest, flops_of_blocks, text_batches, threshold_of
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import PassesThrough, heads_without, set_block, shared_copy
from ftp_core.checks import is_plain
from ftp_core.errors import ModelError
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch

_BISECTIONS = 8

Merge = tuple[int, ...]
"""Indices of blocks that become one, the first of which stays."""


class LaCo:
    """Merges the blocks that follow one into it: theta_l* = theta_l + sum_k (theta_{l+k} - theta_l), k = 1 ... C - 1.

    From the last blocks to the first, a merge is kept if the mean cosine similarity of final hidden states with the
    dense model's exceeds a threshold; the next one then begins I blocks before it, else one (the paper's algorithm 1).
    The budget says how many merges are wanted, and bisection finds the highest threshold under which there are so many,
    where it stops; the similarity is the mean over all tokens of the calibration texts. The paper sets by hand how many
    blocks become one. Here it is the number after whose merges final states are the most similar, of those that meet
    the budget about as well as any: within half a block, and saving no less. (Merging two would be to remove the first
    of them.) Nothing is trained afterwards.

    Args:
        n_merged: C, blocks that become one; several to choose from.
        interval: I.

    Raises:
        ModelError: Fewer than two blocks are to become one, or the interval is no positive number.
    """

    name = "laco"
    paper = "LaCo: Large Language Model Pruning via Layer Collapse (arXiv 2402.11187)"
    has_chance = False
    trains = False

    def __init__(self, n_merged: Sequence[int] = (3, 4, 5), interval: int = 2) -> None:
        if min(n_merged, default=0) < 2 or interval < 1:
            raise ModelError(
                f"LaCo is to merge {list(n_merged)} blocks at intervals of {interval}: give at least 2, and at least 1."
            )
        self._n_merged, self._interval = tuple(n_merged), interval

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
        check_alike(model)
        options = self._near(model, budget)
        merges, done = options[0], 0

        def advance() -> None:
            nonlocal done
            done += 1
            on_step(done / (_BISECTIONS * len(options)))

        if merges:
            states = StateSimilarity(model, batches, effort)
            # Of equal ones the first.
            merges = max((self._most_similar(option, states, advance) for option in options), key=states.of)
        on_step(1.0)
        removed = [index for merge in merges for index in merge[1:]]
        return ScheduledModel(
            self.name,
            model,
            collapsed(model, merges),
            SparsitySchedule.uniform(0.0, model.n_blocks),
            Sparsity(len(removed) / model.n_blocks, "of the blocks merged into others"),
            effort.preparation(),
            heads=heads_without(model, removed),
        )

    def _near(self, model: SkippingModel, budget: Budget) -> list[list[Merge]]:
        """As many merges of so many blocks as come close to a budget, for each number of blocks with which some do.

        They are the first ones that there could be. Where it is nearest to merge nothing, there is nothing else.
        """
        of_blocks, dense, target = flops_of_blocks(model, budget), budget.dense_flops(model), budget.target_flops(model)

        def flops_of(merges: Sequence[Merge]) -> float:
            return dense - sum(of_blocks[index] for merge in merges for index in merge[1:])

        def gap(merges: Sequence[Merge]) -> float:
            return abs(flops_of(merges) - target)

        options: list[list[Merge]] = []
        for n_merged in self._n_merged:
            merges = self._merges(model.n_blocks, lambda merges: True, n_merged, model.n_blocks)
            options.append(closest([merges[:count] for count in range(len(merges) + 1)], flops_of, target))
        nearest = min(options, key=gap)
        if not nearest:
            return [nearest]
        half_block = sum(of_blocks) / (2 * model.n_blocks)
        # Those that save less would be the more similar for that alone.
        most = flops_of(nearest) * (1 + 1e-9)
        return [merges for merges in options if gap(merges) <= gap(nearest) + half_block and flops_of(merges) <= most]

    def _most_similar(
        self, merges: list[Merge], states: StateSimilarity, on_bisection: Callable[[], None]
    ) -> list[Merge]:
        """As many merges of as many blocks as given, but those under the highest threshold with which there are any."""
        n_merged, low, high = len(merges[0]), 0.0, 8.0
        for _ in range(_BISECTIONS):
            exponent = (low + high) / 2
            found = self.merges_above(threshold_of(exponent), states, n_merged, len(merges))
            if len(found) == len(merges):
                merges, low = found, exponent
            else:
                high = exponent
            on_bisection()
        return merges

    def merges_above(self, threshold: float, states: StateSimilarity, n_merged: int, at_most: int) -> list[Merge]:
        """The merges of so many blocks that a threshold lets pass, until there are so many.

        A block may have been merged before, and then bring what it has become.
        """
        return self._merges(states.n_blocks, lambda merges: states.of(merges) > threshold, n_merged, at_most)

    def _merges(
        self, n_blocks: int, accepts: Callable[[list[Merge]], bool], n_merged: int, at_most: int
    ) -> list[Merge]:
        alive, merges = list(range(n_blocks)), list[Merge]()
        place = n_blocks - n_merged
        while place >= 0 and len(merges) < at_most:
            merge = tuple(alive[place : place + n_merged])
            if accepts([*merges, merge]):
                merges.append(merge)
                del alive[place + 1 : place + n_merged]
                place = min(place - self._interval, len(alive) - n_merged)
            else:
                place -= 1
        return merges


class StateSimilarity:
    """Compares final hidden states of collapsed models with the dense model's."""

    def __init__(self, model: SkippingModel, batches: Sequence[PromptBatch], effort: Effort) -> None:
        self._model, self._batches, self._effort = model, batches, effort
        self.n_blocks = model.n_blocks
        self._known: dict[tuple[Merge, ...], float] = {}
        self._dense = [self._states(model, texts) for texts in batches]

    @torch.inference_mode()
    def _states(self, model: SkippingModel, texts: PromptBatch) -> Tensor:
        """Final hidden states of all real tokens of texts `[T, D]`."""
        self._effort.tokens += int(texts.lengths.sum())
        hidden_BLD = model.run(as_it_is, texts.ids, use_cache=False).to(model.device)
        real_BL = torch.arange(texts.ids.shape[1], device=model.device) < texts.lengths[:, None]
        return hidden_BLD[real_BL].float()

    def of(self, merges: Sequence[Merge]) -> float:
        """Mean cosine similarity of a collapsed model, 1 at most."""
        key = tuple(merges)
        if key not in self._known:
            merged = collapsed(self._model, merges)
            found = [
                cosine_similarity(self._states(merged, texts), dense_TD, dim=-1)
                for texts, dense_TD in zip(self._batches, self._dense, strict=True)
            ]
            self._known[key] = min(1.0, float(torch.cat(found).mean()))
        return self._known[key]


def collapsed(model: SkippingModel, merges: Sequence[Merge]) -> SkippingModel:
    """The model after merges, in their order; it shares the weights of all other blocks."""
    shared = shared_copy(model)
    for first, *others in merges:
        block = _merged(shared.blocks[first], [shared.blocks[index] for index in others])
        set_block(shared, first, block)
        for index in others:
            set_block(shared, index, PassesThrough(shared.blocks[index]))
    return shared


@torch.no_grad()
def _merged(first: nn.Module, others: Sequence[nn.Module]) -> nn.Module:
    """A block with the weights theta + sum_k (theta_k - theta) (arXiv 2402.11187, equation 1)."""
    # Attention is switched by the model's own configuration.
    configs: dict[int, Any] = {id(one.config): one.config for one in first.modules() if hasattr(one, "config")}
    merged, weights = copy.deepcopy(first, memo=configs), [dict(other.named_parameters()) for other in others]
    for name, weight in merged.named_parameters():
        own = weight.float()
        weight.copy_(own + sum(other[name].float() - own for other in weights))
    return merged


def check_alike(model: SkippingModel) -> None:
    """Raises `ModelError` unless the weights of all blocks can be added."""
    expected = {name: weight.shape for name, weight in model.blocks[0].named_parameters()}
    for index, block in enumerate(model.blocks):
        weights = dict(block.named_parameters())
        if {name: weight.shape for name, weight in weights.items()} != expected:
            raise ModelError(
                f"LaCo adds the weights of blocks, but block {index} of this {model.model.config.model_type} model has "
                "others than block 0: it needs blocks of one kind and shape."
            )
        if not all(is_plain(weight) and weight.is_floating_point() for weight in weights.values()):
            raise ModelError(
                f"LaCo adds the weights of blocks, but those of block {index} are quantised or not in memory: load the "
                "model in floating point."
            )
