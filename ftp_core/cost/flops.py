"""Counts the floating-point operations of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ftp_core.cost.memory import BlockHeads, block_configs, block_heads, head_width, slots_held
from ftp_core.errors import ModelError
from ftp_core.routers import Router, ScoringRouter
from ftp_core.schedule import BlockSparsity, kept_count
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import substitutes_of


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by what they are for, each summed over blocks.

    Attributes:
        projections: Queries, keys, values, and the output of attention.
        attention: Scores and weighted values, over every pair of a query and a key that the block holds.
        mlp: Products with all other weights of a block.
        router: The router's scores, and the attention that it listens to.
        head: Logits, and products with weights between embedding and blocks.
    """

    projections: float
    attention: float
    mlp: float
    router: float
    head: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.projections + self.attention + self.mlp + self.router + self.head


class FlopsCounter:
    """Counts floating-point operations as torch's counter does: matrix products only, two per multiply-add.

    Attention is counted over all pairs of queries and keys, although a causal kernel may leave out those that the mask
    hides. Weights of a submodule with "attn" or "attention" in its name are projections, all others MLP. Of a stack of
    experts, those that the model's code runs for a token count.

    Args:
        model: The model.
        heads: Heads of each block, where they are not those of the configuration.

    Raises:
        ModelError: A block has weights that are neither matrices nor stacks of experts.
    """

    def __init__(self, model: SkippingModel, heads: Sequence[BlockHeads] | None = None) -> None:
        config, configs = model.model.config, block_configs(model)
        heads = block_heads(model) if heads is None else heads
        widths = [head_width(block) for block in configs]
        self._model = model
        self._windows = model.family.windows(model.model)
        # FLOPs of the score of one query with one key in each block; their weighted values take as many.
        self._scores = np.array([2.0 * own.query * width for own, width in zip(heads, widths, strict=True)])
        n_run = getattr(config, model.family.experts_run, None)
        self._projections = np.array([_token_flops(block, n_run, of_attention=True) for block in model.blocks])
        self._mlps = np.array([_token_flops(block, n_run, of_attention=False) for block in model.blocks])
        # A projection that is fused computes queries along with keys and values.
        n_heads = [2 * own.key + (own.query if model.family.query is None else 0) for own in heads]
        self._keys_only = 2.0 * config.hidden_size * np.array(n_heads, dtype=float) * widths
        in_blocks = {module for block in model.blocks for module in block.modules()}
        self._before = sum(
            2.0 * module.weight.numel()
            for module in model.decoder.modules()
            if isinstance(module, nn.Linear) and module not in in_blocks
        )
        self._head = 2.0 * model.model.get_output_embeddings().weight.numel()

    def count(
        self,
        schedule: Sequence[float],
        batch: int,
        length: int,
        new_tokens: int = 0,
        router: Router | None = None,
    ) -> Flops:
        """FLOPs of prompts, and of tokens that are decoded behind them.

        Every decoded token runs every block, attends to all keys that the block holds, its own included, and has
        logits; of the prompt only the last token has. Sliding windows drop keys as with the static router.

        Args:
            schedule: One sparsity per block, or a schedule with halves.
            batch: Rows.
            length: Prompt tokens in each row.
            new_tokens: Tokens run behind the prompt, one at a time; to write n tokens takes n - 1, as the first comes
                from the prompt.
            router: Router whose scores of the prompts count, and the attention that it listens to; None for one that
                computes nothing, as the static one.

        Raises:
            ScheduleError: The schedule has another number of blocks.
        """
        entries = self._model.checked(schedule).blocks
        in_blocks = self._in_blocks(slice(None), entries, batch, length, new_tokens, router)
        once = 0.0
        if isinstance(router, ScoringRouter) and router.n_scored_once and not all(entry.is_dense for entry in entries):
            once = batch * length * router.score_flops
        head = batch * (self._head * (1 + new_tokens) + self._before * (length + new_tokens))
        return replace(in_blocks, router=in_blocks.router + once, head=head)

    def of_block(
        self,
        index: int,
        sparsity: BlockSparsity,
        batch: int,
        length: int,
        new_tokens: int = 0,
        router: Router | None = None,
    ) -> Flops:
        """FLOPs of one block, whatever the schedule says of the others.

        Those of all blocks and the `head` of `count` add up to what a schedule takes; but for what a dynamic router
        listens to, which two neighbouring blocks decide together, and for what a router scores once per pass: no block
        is charged for either.

        Args:
            index: The block.
            sparsity: Its sparsity under a schedule.
            batch: See `count`.
            length: See `count`.
            new_tokens: See `count`.
            router: See `count`.
        """
        return self._in_blocks(slice(index, index + 1), [sparsity], batch, length, new_tokens, router)

    def _in_blocks(
        self,
        which: slice,
        entries: Sequence[BlockSparsity],
        batch: int,
        length: int,
        new_tokens: int,
        router: Router | None,
    ) -> Flops:
        """FLOPs of some successive blocks, of which a schedule says `entries`."""
        scores = self._scores[which]
        kept, kept_mlp = (
            np.array([kept_count(share, length) for share in shares], dtype=float)
            for shares in zip(*((entry.attention, entry.mlp) for entry in entries), strict=True)
        )
        held = np.array([entry.n_keys(length) for entry in entries], dtype=float)
        decoded_pairs = [
            sum(slots + 1 for slots in slots_held(int(n), length, new_tokens, sliding)[:-1])
            for n, sliding in zip(held, self._windows[which], strict=True)
        ]
        decisions = np.array([entry.n_decisions for entry in entries])
        # Every token is scored before a block that skips, for each half where they decide apart.
        router_flops = 0.0
        if router is not None:
            # Those of a one-pass router are counted with the whole pass.
            score_flops = router.score_flops if isinstance(router, ScoringRouter) and not router.n_scored_once else 0.0
            # The block before that one is listened to.
            heard = (scores * np.minimum(router.window, kept) * held)[:-1][decisions[1:] > 0].sum()
            router_flops = decisions.sum() * length * score_flops + heard
        keys_only = batch * self._keys_only[which] @ (held - kept)
        # What stands in for halves that tokens skip, where blocks do not skip as a whole.
        apart = np.array([not entry.is_whole for entry in entries], dtype=float)
        maps = substitutes_of(self._model.model)
        per_token = 0.0 if maps is None else 4.0 * maps.rank * self._model.model.config.hidden_size
        instead, instead_of_mlp = (batch * per_token * apart @ (length - of) for of in (kept, kept_mlp))
        return Flops(
            projections=float(batch * self._projections[which] @ (kept + new_tokens) + keys_only + instead),
            attention=float(2 * batch * scores @ (kept * held + decoded_pairs)),
            mlp=float(batch * self._mlps[which] @ (kept_mlp + new_tokens) + instead_of_mlp),
            router=float(batch * router_flops),
            head=0.0,
        )


def _token_flops(block: nn.Module, n_experts_run: int | None, of_attention: bool) -> float:
    """FLOPs of one token with the weights of a block's attention, or with all others."""
    total = 0.0
    for name, parameter in block.named_parameters():
        if ("attn" in name or "attention" in name) != of_attention:
            continue
        # Weights of a norm of heads (Cohere) have two dimensions, but are no matrix that anything is multiplied with.
        if parameter.ndim < 2 or "norm" in name.rpartition(".")[0].rpartition(".")[2]:
            continue
        share = 1.0
        if parameter.ndim > 2:
            if parameter.ndim > 3 or n_experts_run is None:
                raise ModelError(
                    f"Weight {name} has shape {tuple(parameter.shape)}, but FLOPs are only known of matrices, and of "
                    "stacks of experts where the configuration says how many a token runs (`Family.experts_run`)."
                )
            share = n_experts_run / parameter.shape[0]
        total += 2.0 * share * parameter.numel()
    return total
