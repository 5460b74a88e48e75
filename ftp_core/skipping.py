"""Runs a model's own blocks on kept tokens only.

Block i gets the hidden states `[B, L, D]`; a router names the kept positions; they are gathered with their rotary
embeddings, run through the block as a shorter sequence, and scattered back. Skipped tokens pass the block unchanged and
leave no key and no value in it. The work is really gone: nothing here computes on a skipped token.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ftp_core.attention import AttentionObserver, observed_attention
from ftp_core.encoding import IGNORED, ContinuationBatch, PromptBatch
from ftp_core.errors import ModelError, ScheduleError
from ftp_core.routing import Router, RoutingState
from ftp_core.schedule import SparsitySchedule

SUPPORTED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def check_supported(config: PreTrainedConfig) -> None:
    """Raise `ModelError` unless models of this configuration can skip tokens."""
    if config.model_type not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"Models of type {config.model_type!r} cannot skip tokens; supported are {', '.join(SUPPORTED_FAMILIES)}."
        )
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        raise ModelError("Sliding-window attention cannot skip tokens yet: set sliding_window to null in the config.")


@dataclass
class PromptCache:
    """Keys and values of the kept prompt tokens, each block with its own length.

    It answers the `update` that blocks call: while the prompt runs it stores, afterwards it lends.

    Attributes:
        keys: `[B, H_kv, k_i, d]` of each block.
        values: Likewise.
        counts: Real tokens that each block holds of each row `[B]`; they stand first.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the prompt's keys and values of a block."""
        self.keys.append(key)
        self.values.append(value)
        return key, value

    def expand(self, rows: Tensor) -> LentCache:
        """The cache for continuations of the given prompts `[R]`."""
        return LentCache(self, rows)


@dataclass
class LentCache:
    """A prompt's cache as its continuations see it: read, never grown.

    Attributes:
        prompt: The cache of the prompts.
        rows: Which prompt each continuation follows `[R]`.
    """

    prompt: PromptCache
    rows: Tensor

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The prompt's keys and values of a block, followed by the continuation's own."""
        keys = self.prompt.keys[layer_idx].index_select(0, self.rows)
        values = self.prompt.values[layer_idx].index_select(0, self.rows)
        return torch.cat([keys, key], 2), torch.cat([values, value], 2)

    def mask(self, layer_idx: int, length: int) -> Tensor:
        """Which keys each of `length` continuation tokens may see in a block, bool `[R, 1, length, k_i + length]`."""
        held = self.prompt.keys[layer_idx].shape[2]
        device = self.rows.device
        seen = torch.arange(held, device=device) < self.prompt.counts[layer_idx].index_select(0, self.rows)[:, None]
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        n_rows = len(self.rows)
        return torch.cat(
            [seen[:, None].expand(n_rows, length, held), causal.expand(n_rows, length, length)], dim=-1
        ).unsqueeze(1)


@dataclass
class Prefill:
    """What remains of prompts that passed through the blocks.

    Attributes:
        last_hidden: Hidden state of each row's last token behind the last block `[B, D]`.
        cache: Keys and values of the kept tokens.
        lengths: Real tokens of each row `[B]`.
        kept: Which tokens ran each block, bool `[B, L]`.
    """

    last_hidden: Tensor
    cache: PromptCache
    lengths: Tensor
    kept: list[Tensor]


class SkippingModel:
    """A dense model whose prompts skip tokens by schedule and router; continuations run every block.

    Args:
        model: A causal language model of a supported family, on the sdpa attention kernel. It is not changed.

    Raises:
        ModelError: See `check_supported`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        check_supported(model.config)
        self.model = model.eval().requires_grad_(False)
        self.decoder: Any = model.model
        self.blocks: list[nn.Module] = list(self.decoder.layers)

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self.blocks)

    @property
    def context(self) -> int:
        """Tokens that the model reads at once."""
        return int(self.model.config.max_position_embeddings)

    def check(self, schedule: SparsitySchedule) -> None:
        """Raise `ScheduleError` unless the schedule has one sparsity per block."""
        if len(schedule) != self.n_blocks:
            raise ScheduleError(
                f"The schedule has {len(schedule)} sparsities, but the model has {self.n_blocks} blocks: give one each."
            )

    @torch.inference_mode()
    def prefill(self, prompts: PromptBatch, schedule: SparsitySchedule, router: Router) -> Prefill:
        """Run prompts through all blocks, each on its kept tokens.

        Args:
            prompts: `[B, L]`, padded right.
            schedule: One sparsity per block.
            router: Names the kept tokens.
        """
        self.check(schedule)
        width = prompts.ids.shape[1]
        state = RoutingState.start(prompts.lengths, width)
        hidden: Tensor = self.decoder.embed_tokens(prompts.ids)
        position_ids = torch.arange(width, device=hidden.device)[None]
        rotary: tuple[Tensor, Tensor] = self.decoder.rotary_emb(hidden, position_ids=position_ids)
        cache, kept = PromptCache(), []
        # Nobody reads the attention of a block after which no block skips.
        last_routed = max((i for i, s in enumerate(schedule) if s > 0), default=-1)
        for index, sparsity in enumerate(schedule):
            keep = state.real if sparsity == 0 else router.keep(sparsity, state)
            listens = router.window > 0 and index < last_routed
            run = _BlockRun(self.model, self.blocks[index], cache, rotary, router.window if listens else 0)
            hidden, received = run(hidden, keep, state.lengths, position_ids)
            if received is not None:
                state.observe(received, keep)
            kept.append(keep)
        last_hidden = hidden[torch.arange(len(hidden), device=hidden.device), prompts.lengths - 1]
        return Prefill(last_hidden, cache, prompts.lengths, kept)

    @torch.inference_mode()
    def next_logits(self, prefill: Prefill) -> Tensor:
        """Logits of the token after each prompt `[B, V]`."""
        return self.logits(self.decoder.norm(prefill.last_hidden))

    @torch.inference_mode()
    def continuation_hidden(self, prefill: Prefill, continuations: ContinuationBatch) -> Tensor:
        """Final hidden states from which each continuation token is predicted `[R, C, D]`; see `logits`.

        Each comes from the prompt and the continuation's tokens before it. Continuation tokens run every block
        (`decode_sparsity` 0), and the prompt's routing never saw them.
        """
        rows = continuations.rows
        hidden = prefill.last_hidden.index_select(0, rows)[:, None]
        length = continuations.ids.shape[1] - 1
        if length > 0:
            ids = continuations.ids[:, :-1]
            new: Tensor = self.decoder.embed_tokens(ids.masked_fill(ids == IGNORED, 0))
            position_ids = prefill.lengths.index_select(0, rows)[:, None] + torch.arange(length, device=new.device)
            rotary = self.decoder.rotary_emb(new, position_ids=position_ids)
            cache = prefill.cache.expand(rows)
            for index, block in enumerate(self.blocks):
                new = block(
                    new,
                    attention_mask=cache.mask(index, length),
                    position_ids=position_ids,
                    past_key_values=cache,
                    use_cache=True,
                    position_embeddings=rotary,
                )
            hidden = torch.cat([hidden, new], 1)
        final: Tensor = self.decoder.norm(hidden)
        return final

    @torch.inference_mode()
    def continuation_logits(self, prefill: Prefill, continuations: ContinuationBatch) -> Tensor:
        """Logits that predict each continuation token from the prompt and the tokens before it `[R, C, V]`."""
        return self.logits(self.continuation_hidden(prefill, continuations))

    def logits(self, final_hidden: Tensor) -> Tensor:
        """Logits `[..., V]` of final hidden states `[..., D]`."""
        logits: Tensor = self.model.lm_head(final_hidden)
        return logits


@dataclass
class _BlockRun:
    """One pass of one block over the kept tokens of a batch."""

    model: PreTrainedModel
    block: Callable[..., Tensor]
    cache: PromptCache
    rotary: tuple[Tensor, Tensor]
    window: int

    def __call__(
        self, hidden: Tensor, keep: Tensor, lengths: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states behind the block `[B, L, D]`, and the attention received `[B, L]` if it was listened to."""
        n_rows, width, depth = hidden.shape
        counts = keep.sum(1)
        self.cache.counts.append(counts)
        if torch.equal(counts, lengths):
            # Padding stands last, where the causal kernel lets no real token see it: no need to gather it away.
            return self._run(hidden, counts, position_ids, self.rotary)
        longest = int(counts.max())
        # Kept positions first, in order; rows that keep fewer are filled with skipped ones, which the causal kernel
        # hides from the kept ones before them, and which are put back as they were.
        index = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        flat = (index + torch.arange(n_rows, device=index.device)[:, None] * width).reshape(-1)
        short = hidden.reshape(-1, depth).index_select(0, flat).view(n_rows, longest, depth)
        cos, sin = (part[0][index] for part in self.rotary)
        out, heard = self._run(short, counts, index, (cos, sin))
        if int(counts.min()) < longest:
            filler = torch.arange(longest, device=counts.device) >= counts[:, None]
            out = torch.where(filler[..., None], short, out)
        whole = hidden.reshape(-1, depth).index_copy(0, flat, out.reshape(-1, depth)).view_as(hidden)
        received = None if heard is None else heard.new_zeros(n_rows, width).scatter_(1, index, heard)
        return whole, received

    def _run(
        self, hidden: Tensor, counts: Tensor, position_ids: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        with observed_attention(self.model) if self.window else nullcontext("") as kernel:
            observer = AttentionObserver(counts, self.window, kernel)
            out = self.block(
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
                position_embeddings=rotary,
                **({"observer": observer} if self.window else {}),
            )
        return out, observer.received
