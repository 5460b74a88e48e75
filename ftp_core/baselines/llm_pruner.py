"""LLM-Pruner: removes coupled attention heads and MLP channels of least first-order importance.

Dimensions: G groups of heads that share a key head, E width of a head, F channels of an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ftp_core.baselines.fitting import Effort, as_it_is, closest, negative_log_likelihood, text_batches
from ftp_core.baselines.projections import (
    INTO_CHANNELS,
    INTO_HEADS,
    OUT_OF_CHANNELS,
    OUT_OF_HEADS,
    check_projections,
    projection,
)
from ftp_core.baselines.protocol import Budget, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.baselines.sharing import shared_copy
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.memory import BlockHeads, block_configs, block_heads, head_width
from ftp_core.errors import ModelError
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample

# Blocks that the paper leaves alone, of 32.
_PROTECTED_FIRST, _PROTECTED_LAST, _OF_BLOCKS = 4, 2, 32


@dataclass(frozen=True)
class Importance:
    """First-order importance of what can be removed from a block.

    Attributes:
        groups: Importance of each key head with the query heads that share it `[G]`.
        channels: Importance of each channel of the MLP `[F]`.
    """

    groups: Tensor
    channels: Tensor

    def kept(self, of_groups: float, of_channels: float) -> tuple[Tensor, Tensor]:
        """Indices of the groups and channels that stay at ratios to remove, ascending; at least one of each."""
        kept = []
        for scores, ratio in ((self.groups, of_groups), (self.channels, of_channels)):
            n_kept = max(1, len(scores) - int(ratio * len(scores) + 0.5))
            kept.append(scores.topk(n_kept).indices.sort().values)
        return kept[0], kept[1]


class LLMPruner:
    """Removes coupled structures at the same ratio in each block but the first and last ones.

    A structure is a key head with its query heads (rows of the query, key and value projections, columns of the output
    projection), or a channel of the MLP (a row of the gate and of the up projection, a column of the down projection).
    Its importance is the sum of |w dL/dw| over all its weights, L the mean loss of next tokens on the calibration
    texts: the paper's element-wise first-order criterion, summed over the group. As in the paper blocks are pruned
    apart, and the first 4 and the last 2 of 32 not at all; of shallower models in proportion, at least one each. Where
    heads come in steps too large for the budget, the ratio of channels makes up for it. The paper's recovery by LoRA is
    left out.
    """

    name = "llm_pruner"
    paper = "LLM-Pruner: On the Structural Pruning of Large Language Models (arXiv 2305.11627)"
    has_chance = False
    trains = False

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`."""
        effort, blocks = Effort(model), prunable_blocks(model.n_blocks)
        for index in blocks:
            check_separable(model, index)
        found = importances(model, calibration, blocks, effort, on_step)
        n_channels = max(len(of.channels) for of in found.values())
        ratios = [step / n_channels for step in range(n_channels)]
        costs, heads = _Costs(model, budget), block_heads(model)
        rest = costs.dense - sum(costs.of(index, heads[index].key, len(of.channels)) for index, of in found.items())

        def flops_of(of_groups: float, of_channels: float) -> float:
            kept = {index: of.kept(of_groups, of_channels) for index, of in found.items()}
            return rest + sum(costs.of(i, len(groups), len(channels)) for i, (groups, channels) in kept.items())

        target = budget.target_flops(model)
        of_groups = closest(ratios, lambda ratio: flops_of(ratio, ratio), target)
        of_channels = closest(ratios, lambda ratio: flops_of(of_groups, ratio), target)
        pruned = shared_copy(model)
        if of_groups > 0 or of_channels > 0:
            for index, importance in found.items():
                groups, channels = importance.kept(of_groups, of_channels)
                heads[index] = _narrow(pruned, index, groups, channels)
        n_before, n_after = (sum(one.numel() for one in of.model.parameters()) for of in (model, pruned))
        return ScheduledModel(
            self.name,
            model,
            pruned,
            SparsitySchedule.uniform(0.0, model.n_blocks),
            Sparsity(1.0 - n_after / n_before, "of the parameters removed"),
            effort.preparation(),
            heads=heads,
        )


def prunable_blocks(n_blocks: int) -> range:
    """Blocks that are pruned: those of models of fewer than 4 blocks all."""
    if n_blocks < 4:
        return range(n_blocks)
    first, last = (max(1, round(n * n_blocks / _OF_BLOCKS)) for n in (_PROTECTED_FIRST, _PROTECTED_LAST))
    return range(first, n_blocks - last)


@torch.inference_mode(False)
def importances(
    model: SkippingModel,
    calibration: Sequence[EncodedExample],
    blocks: Sequence[int],
    effort: Effort,
    on_step: Callable[[float], None] = lambda share: None,
) -> dict[int, Importance]:
    """Importance of all structures of some blocks.

    Args:
        model: The model.
        calibration: Examples, whose texts the loss is of.
        blocks: Indices of the blocks.
        effort: Count of what it takes.
        on_step: See `Baseline.fit`.
    """
    batches = text_batches(model, calibration)
    n_targets = sum(int(texts.lengths.sum()) - len(texts.lengths) for texts in batches)
    weights = {
        (index, name): parameter
        for index in blocks
        for name, parameter in model.blocks[index].named_parameters()
        if parameter.ndim == 2
    }
    gradients = {key: torch.zeros_like(weight, dtype=torch.float32) for key, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for number, texts in enumerate(batches, 1):
            with torch.enable_grad():
                loss = negative_log_likelihood(model, texts, as_it_is) / n_targets
                for key, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                    gradients[key] += gradient
            effort.tokens += int(texts.lengths.sum())
            on_step(number / len(batches))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    found, heads = {}, block_heads(model)
    for index in blocks:
        salience = {
            name.rsplit(".", 2)[-2]: (weights[index, name].detach().float() * gradients[index, name]).abs()
            for name, _ in model.blocks[index].named_parameters()
            if (index, name) in weights
        }
        n_groups = heads[index].key
        groups = sum(
            (salience[name].sum(1).view(n_groups, -1).sum(1) for name in INTO_HEADS),
            salience[OUT_OF_HEADS].sum(0).view(n_groups, -1).sum(1),
        )
        channels = sum((salience[name].sum(1) for name in INTO_CHANNELS), salience[OUT_OF_CHANNELS].sum(0))
        found[index] = Importance(groups, channels)
    return found


def check_separable(model: SkippingModel, index: int) -> None:
    """Raises `ModelError` unless heads and channels of a block are rows and columns of projections of their own."""
    check_projections(model, index, "LLM-Pruner")
    block, config = model.blocks[index], block_configs(model)[index]
    attention, kind = block.get_submodule("self_attn"), model.model.config.model_type
    for half in (attention, block.get_submodule("mlp")):
        for name, parameter in half.named_parameters():
            # Norms of each head alone have as many weights as a head is wide.
            if not (name.rpartition(".")[0].endswith("_proj") or parameter.numel() == head_width(config)):
                raise ModelError(
                    f"LLM-Pruner cannot remove heads or channels of this {kind} model: weight {name} of block {index} "
                    "is of all heads at once."
                )
    if hasattr(attention, "num_heads"):
        raise ModelError(
            f"LLM-Pruner cannot remove heads of this {kind} model: its attention expects as many in every block."
        )


class _Costs:
    """Operations of a narrower block in the dense prefill that a budget is of."""

    def __init__(self, model: SkippingModel, budget: Budget) -> None:
        counter, dense = FlopsCounter(model), BlockSparsity(0.0, 0.0)
        self._whole = [counter.of_block(i, dense, budget.batch, budget.length) for i in range(model.n_blocks)]
        self._heads, self._blocks = block_heads(model), model.blocks
        self.dense = budget.dense_flops(model)

    def of(self, index: int, n_groups: int, n_channels: int) -> float:
        """Operations of a block with some of its groups and channels, which all cost alike."""
        whole, down = self._whole[index], self._blocks[index].get_submodule(f"mlp.{OUT_OF_CHANNELS}")
        assert isinstance(down, nn.Linear)
        of_attention = (whole.projections + whole.attention) * n_groups / self._heads[index].key
        return of_attention + whole.mlp * n_channels / down.in_features


def _narrow(model: SkippingModel, index: int, groups: Tensor, channels: Tensor) -> BlockHeads:
    """Keeps some groups of heads and channels of a block of a weight-sharing copy; returns its heads."""
    block, config, before = model.blocks[index], block_configs(model)[index], block_heads(model)[index]
    width, per_group = head_width(config), before.query // before.key
    of_keys = (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()
    of_queries = (groups[:, None] * per_group * width + torch.arange(per_group * width, device=groups.device)).flatten()
    attention, mlp = block.get_submodule("self_attn"), block.get_submodule("mlp")
    for name in INTO_HEADS:
        rows = of_queries if name == "q_proj" else of_keys
        setattr(attention, name, _part(attention.get_submodule(name), rows, None))
    setattr(attention, OUT_OF_HEADS, _part(attention.get_submodule(OUT_OF_HEADS), None, of_queries))
    for name in INTO_CHANNELS:
        setattr(mlp, name, _part(mlp.get_submodule(name), channels, None))
    setattr(mlp, OUT_OF_CHANNELS, _part(mlp.get_submodule(OUT_OF_CHANNELS), None, channels))
    return BlockHeads(len(groups) * per_group, len(groups))


@torch.no_grad()
def _part(linear: nn.Module, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    """Some rows and columns of a projection."""
    assert isinstance(linear, nn.Linear)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if rows is not None:
        weight = weight.index_select(0, rows.to(weight.device))
        bias = bias if bias is None else bias.index_select(0, rows.to(weight.device))
    if columns is not None:
        weight = weight.index_select(1, columns.to(weight.device))
    return projection(weight, bias)
