"""Counts the floating-point operations of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedConfig

from ftp_core.cost.memory import head_width, slots_held
from ftp_core.errors import ModelError, ScheduleError
from ftp_core.routers import FEATURES
from ftp_core.routers.scoring import HIDDEN_WIDTH
from ftp_core.schedule import DEFAULT_STEP, kept_counts
from ftp_core.skipping.skipping_model import SkippingModel


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by what they are for, each summed over blocks.

    Attributes:
        projections: Queries, keys, values, and the output of attention.
        attention: Scores and weighted values, over every pair of a query and a key that the block holds.
        mlp: What else is multiplied with a block's weights.
        router: The router's scores, and the attention that it listens to.
        head: Logits.
    """

    projections: float
    attention: float
    mlp: float
    router: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.projections + self.attention + self.mlp + self.router + self.head


class FlopsCounter:
    """Counts what a model computes: two operations per multiply-add, matrix products only, as torch's counter does.

    Attention is counted over all pairs of queries and keys, as torch counts it, although a causal kernel may leave out
    those that the mask hides. Weights are taken from the blocks themselves: those of a submodule with "attn" or
    "attention" in its name are projections, all others MLP. Of a stack of experts, those that a token runs count.

    Args:
        model: The model.

    Raises:
        ModelError: A block has weights that are neither matrices nor stacks of experts.
    """

    def __init__(self, model: SkippingModel) -> None:
        config = model.model.config
        self._model = model
        self._windows = model.family.windows(model.model)
        # FLOPs of one query with one key, and of their score alone.
        self._score = 2.0 * config.num_attention_heads * head_width(config)
        self._pair = 2 * self._score
        self._projections = np.array([_token_flops(block, config, of_attention=True) for block in model.blocks])
        self._mlps = np.array([_token_flops(block, config, of_attention=False) for block in model.blocks])
        self._head = 2.0 * model.model.get_output_embeddings().weight.numel()

    def count(
        self,
        schedule: Sequence[float],
        batch: int,
        length: int,
        new_tokens: int = 0,
        window: int = 0,
        reads_hidden: bool = False,
    ) -> Flops:
        """FLOPs of prompts, and of tokens that are decoded behind them.

        Every decoded token runs every block, attends to what the block holds, itself included, and has its own logits.
        Of the prompt, only the last token has. Where a sliding window lets go of keys, they are those that the static
        router keeps.

        Args:
            schedule: One sparsity per block.
            batch: Rows.
            length: Prompt tokens in each row.
            new_tokens: Tokens run behind the prompt, one at a time; to write n tokens takes n - 1, as the first comes
                from the prompt.
            window: Queries that a dynamic router listens to; 0 for the static router.
            reads_hidden: Whether the router scores hidden states instead.

        Raises:
            ScheduleError: The schedule has another number of blocks.
        """
        schedule = self._model.checked(schedule)
        kept = np.array(schedule.kept_counts(length), dtype=float)
        decoded_pairs = [
            sum(slots + 1 for slots in slots_held(int(k), length, new_tokens, sliding)[:-1])
            for k, sliding in zip(kept, self._windows, strict=True)
        ]
        shares = np.array(schedule)[None]
        if reads_hidden:
            inputs = self._model.model.config.hidden_size + 1
            router = (shares > 0).sum(1) * length * _score_flops(inputs)
        else:
            router = self._router(shares, kept[None], length, window)
        return Flops(
            projections=float(batch * self._projections @ (kept + new_tokens)),
            attention=float(batch * self._pair * (kept**2 + decoded_pairs).sum()),
            mlp=float(batch * self._mlps @ (kept + new_tokens)),
            router=float(batch * router[0]),
            head=batch * self._head * (1 + new_tokens),
        )

    def totals(self, levels_or_sparsities: np.ndarray, batch: int, length: int, window: int = 0) -> np.ndarray:
        """`count(...).total` of the prefill of many schedules at once `[n]`.

        Args:
            levels_or_sparsities: A schedule in each row `[n, N]`: grid points if these are integers, else sparsities.
            batch: Rows.
            length: Tokens in each row.
            window: See `count`.

        Raises:
            ScheduleError: A row has another length than the model has blocks.
        """
        given = np.asarray(levels_or_sparsities)
        if given.ndim != 2 or given.shape[1] != self._model.n_blocks:
            raise ScheduleError(
                f"The schedules are an array of shape {given.shape}, but the model has {self._model.n_blocks} blocks: "
                "give a row for each schedule, with one sparsity per block."
            )
        sparsities = given * DEFAULT_STEP if np.issubdtype(given.dtype, np.integer) else given
        kept = kept_counts(sparsities, length).astype(float)
        blocks = kept @ (self._projections + self._mlps) + self._pair * (kept**2).sum(1)
        totals: np.ndarray = batch * (blocks + self._router(sparsities, kept, length, window) + self._head)
        return totals

    def _router(self, sparsities: np.ndarray, kept: np.ndarray, length: int, window: int) -> np.ndarray:
        """FLOPs of the dynamic router in a row of tokens, of each schedule `[n]`."""
        if not window:
            return np.zeros(len(kept))
        skips = sparsities > 0
        # Every token is scored before a block that skips, and the block before that one is listened to.
        scored = skips.sum(1) * length * _score_flops(len(FEATURES))
        listened = (np.minimum(window, kept) * kept)[:, :-1] * skips[:, 1:]
        routed: np.ndarray = scored + self._score * listened.sum(1)
        return routed


def _score_flops(inputs: int) -> float:
    """FLOPs of one score of a router's network, whose hidden layer reads so many inputs and is read by one output."""
    return 2.0 * (inputs + 1) * HIDDEN_WIDTH


def prefill_flops(model: SkippingModel, schedule: Sequence[float], batch: int, length: int) -> float:
    """Floating-point operations of one prefill with the static router, see `FlopsCounter`.

    Args:
        model: The model.
        schedule: One sparsity per block.
        batch: Rows.
        length: Tokens in each row.
    """
    return FlopsCounter(model).count(schedule, batch, length).total


def _token_flops(block: nn.Module, config: PreTrainedConfig, of_attention: bool) -> float:
    """FLOPs of one token with a block's weights, either those of its attention or all others."""
    total = 0.0
    for name, parameter in block.named_parameters():
        if parameter.ndim < 2 or ("attn" in name or "attention" in name) != of_attention:
            continue
        share = 1.0
        if parameter.ndim > 2:
            n_experts, n_run = parameter.shape[0], getattr(config, "num_experts_per_tok", None)
            if parameter.ndim > 3 or n_run is None:
                raise ModelError(
                    f"Weight {name} has shape {tuple(parameter.shape)}, but FLOPs are only known of matrices, and of "
                    "stacks of experts where the configuration has `num_experts_per_tok`."
                )
            share = n_run / n_experts
        total += 2.0 * share * parameter.numel()
    return total
