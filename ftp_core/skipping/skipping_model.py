"""A dense model seen as one that skips: prompts run under a schedule, and what follows them is scored.

Dimensions: B rows, R continuations, L tokens of a row, C tokens of a continuation, D hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.checks import check_finite, check_lengths, checked_keep_first
from ftp_core.errors import ScheduleError
from ftp_core.routers import Router, RoutingState
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import kernel_name
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.decoding import DecodePass
from ftp_core.skipping.dispatch import device_of_inputs
from ftp_core.skipping.families import context_of, family_of
from ftp_core.skipping.head import Head, read_in_one_piece
from ftp_core.skipping.interception import BlockHandler, intercepted
from ftp_core.skipping.packing import AUTO, SlotsExceededError, packs
from ftp_core.skipping.prefixes import Passage
from ftp_core.skipping.rotary import depends_on_length, length_regime, rotary_lengths
from ftp_core.skipping.skipping import PromptPass
from ftp_core.skipping.substitutes import give_substitutes, substitutes_of
from ftp_core.text.encoding import IGNORED, ContinuationBatch, PromptBatch


@dataclass
class Prefill:
    """Results of prompts that passed through the blocks.

    Attributes:
        last_hidden: Final hidden state of each row's last token `[B, D]`.
        cache: Keys and values of the kept tokens.
        lengths: Real tokens of each row `[B]`.
        kept: Tokens that ran each block, or its attention, bool `[B, L]`; only for blocks that ran, see `Passage`.
        kept_mlp: Tokens that ran each block's MLP, likewise.
        text_lengths: See `PromptBatch`; None if the model embeds texts of all lengths alike.
    """

    last_hidden: Tensor
    cache: FTPCache
    lengths: Tensor
    kept: list[Tensor]
    kept_mlp: list[Tensor]
    text_lengths: Sequence[int] | None = None


class SkippingModel:
    """A dense model whose prompts skip tokens by schedule and router; continuations run every block.

    For search and training: each call names its schedule and router, and several continuations may follow one prompt.
    `ftp_core.FTPForCausalLM` is the same as a Hugging Face model.

    Args:
        model: Causal language model of a supported family. Its weights are not changed; gradients are switched off.
        keep_first: Number of tokens at the beginning of every prompt, such as a chat's system turn, that are protected:
            whatever the router, a block keeps them before any other (see `ftp_core.routers.state.n_protected` where it
            keeps fewer).

    Attributes:
        packing: Whether rows that keep different counts are packed and not padded: `auto` where a GPU has a kernel for
            it, `always`, or `never`.

    Raises:
        ModelError: Its family or its attention kernel is not supported, or a weight is not finite.
        ScheduleError: `keep_first` is no whole number from 0.
    """

    def __init__(self, model: PreTrainedModel, keep_first: int = 0) -> None:
        self._keep_first = checked_keep_first(keep_first)
        self.packing = AUTO
        self.family = family_of(model.config)
        kernel_name(model)
        self.model = model.eval().requires_grad_(False)
        read_in_one_piece(model.get_output_embeddings())
        self.decoder: Any = self.family.decoder_of(model)
        self.blocks = self.family.blocks_of(model)
        # Where the model was moved, they are now.
        give_substitutes(model, substitutes_of(model), self.blocks)
        self._windows = self.family.windows(model)
        self._depends_on_length = depends_on_length(model.config)
        check_finite(model)

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self.blocks)

    @property
    def keep_first(self) -> int:
        """Number of tokens at the beginning of every prompt that are protected."""
        return self._keep_first

    def protecting(self, keep_first: int) -> SkippingModel:
        """Returns the same model, weights shared, with another number of protected tokens at the beginning of prompts.

        Raises:
            ScheduleError: It is no whole number from 0.
        """
        other = copy.copy(self)
        other._keep_first = checked_keep_first(keep_first)
        return other

    @property
    def context(self) -> int:
        """Number of tokens that the model reads at once."""
        return context_of(self.model.config)

    @property
    def device(self) -> torch.device:
        """Device of the model's inputs, and of all that is decided about them."""
        return device_of_inputs(self.model)

    def length_regime(self, n_tokens: int) -> int:
        """Number that texts share if the model embeds their positions alike; see `ftp_core.skipping.rotary`."""
        return length_regime(self.model.config, n_tokens) if self._depends_on_length else 0

    def checked(self, schedule: Sequence[float]) -> SparsitySchedule:
        """Returns numbers as a schedule of this model: one sparsity per block, or `SparsitySchedule.numbers`.

        Raises:
            ScheduleError: It is no schedule, or has another number of blocks.
        """
        checked = SparsitySchedule.of(schedule, self.n_blocks)
        check_schedule(checked, self.n_blocks)
        return checked

    def run(
        self, handler: BlockHandler, ids_BL: Tensor, text_lengths: Sequence[int] | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the decoder with its blocks in the hands of a handler; returns final hidden states `[B, L, D]`.

        Args:
            handler: Handler that runs a block.
            ids_BL: Tokens.
            text_lengths: See `PromptBatch`; None to embed positions as the model does by itself.
            arguments: Other arguments of the decoder.
        """
        embedded = nullcontext() if text_lengths is None else rotary_lengths(self.model, text_lengths)
        with embedded, intercepted(self.blocks, handler):
            hidden_BLD: Tensor = self.decoder(input_ids=ids_BL, **arguments).last_hidden_state
        return hidden_BLD

    @torch.inference_mode()
    def prefill(
        self, prompts: PromptBatch, schedule: Sequence[float], router: Router, passage: Passage | None = None
    ) -> Prefill:
        """Runs prompts through all blocks, each on its kept tokens.

        Args:
            prompts: Prompts `[B, L]`, padded right.
            schedule: One sparsity per block.
            router: Router of the prompts.
            passage: First block to run, and states to keep; None to run every block. Blocks that do not run leave no
                keys and values: continuations must begin behind them, too.

        Raises:
            ScheduleError: The schedule has another number of blocks.
            DataError: A prompt is empty, or longer than the model's context.
        """
        schedule = self.checked(schedule)
        passage = passage or Passage()
        lengths = prompts.lengths.tolist()
        check_lengths(lengths, self.context)
        text_lengths = None
        if self._depends_on_length:
            text_lengths = lengths if prompts.text_lengths is None else prompts.text_lengths.tolist()
        prompts = prompts.to(self.device)
        try:
            hidden_BLD, handler, cache = self._run_prompts(
                prompts, schedule, router, passage, text_lengths, packs(self.model, self.device, self.packing)
            )
        except SlotsExceededError:
            hidden_BLD, handler, cache = self._run_prompts(prompts, schedule, router, passage, text_lengths, False)
        cache.advance(handler.real, min(lengths))
        last_B = (prompts.lengths - 1).to(hidden_BLD.device)
        last_hidden_BD = hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B].to(self.device)
        return Prefill(last_hidden_BD, cache, prompts.lengths, handler.kept, handler.kept_mlp, text_lengths)

    def _run_prompts(
        self,
        prompts: PromptBatch,
        schedule: SparsitySchedule,
        router: Router,
        passage: Passage,
        text_lengths: Sequence[int] | None,
        is_packed: bool,
    ) -> tuple[Tensor, PromptPass, FTPCache]:
        state = RoutingState.padded_right(prompts.lengths, prompts.ids.shape[1], self.keep_first)
        cache = FTPCache(self._windows)
        handler = PromptPass(self.model, self.family, schedule, router, state, state.real, cache, packs=is_packed)
        for index in range(passage.start):
            cache.block(index).positions = prompts.ids[:, :0]
        # Padding stands last, where causality hides it from every token: no mask is needed.
        hidden_BLD = self.run(
            passage.through(handler, state), prompts.ids, text_lengths, past_key_values=cache, use_cache=True
        )
        return hidden_BLD, handler, cache

    @torch.inference_mode()
    def next_logits(self, prefill: Prefill) -> Tensor:
        """Computes logits of the token after each prompt `[B, V]`."""
        return self.logits(prefill.last_hidden)

    @torch.inference_mode()
    def continuation_hidden(
        self, prefill: Prefill, continuations: ContinuationBatch, passage: Passage | None = None
    ) -> Tensor:
        """Computes final hidden states from which each continuation token is predicted `[R, C, D]`; see `logits`.

        Each comes from the prompt and the continuation's tokens before it. Continuation tokens run every block
        (`decode_sparsity` 0), and the prompt's routing never saw them.

        Args:
            prefill: Results of the prompts.
            continuations: Continuations of them.
            passage: First block to run, which is that of the prompts, and states to keep; None to run every block.
        """
        passage = passage or Passage()
        continuations = continuations.to(self.device)
        rows_R, ids_RC = continuations.rows, continuations.ids[:, :-1]
        hidden_R1D = prefill.last_hidden.index_select(0, rows_R)[:, None]
        if ids_RC.shape[1] == 0:
            return hidden_R1D
        starts_R = prefill.lengths.index_select(0, rows_R)
        positions_RC = starts_R[:, None] + torch.arange(ids_RC.shape[1], device=ids_RC.device)
        cache = prefill.cache.lend(rows_R)
        # Padding stands last here too, and is as good as any token.
        all_RC = torch.ones_like(ids_RC, dtype=torch.bool)
        handler = DecodePass(self.model, self.family, cache, all_RC, positions_RC)
        text_lengths = None
        if prefill.text_lengths is not None:
            ends = (starts_R + (continuations.ids != IGNORED).sum(1) - 1).tolist()
            text_lengths = [max(prefill.text_lengths[row], end) for row, end in zip(rows_R.tolist(), ends, strict=True)]
        hidden_RCD = self.run(
            passage.through(handler),
            ids_RC.masked_fill(ids_RC == IGNORED, 0),
            text_lengths,
            position_ids=positions_RC,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([hidden_R1D, hidden_RCD.to(self.device)], 1)

    @torch.inference_mode()
    def continuation_logits(self, prefill: Prefill, continuations: ContinuationBatch) -> Tensor:
        """Computes logits of each continuation token from the prompt and the tokens before it `[R, C, V]`."""
        return self.logits(self.continuation_hidden(prefill, continuations))

    @property
    def head(self) -> Head:
        """The model's head, for logits of a part of the vocabulary."""
        config, module = self.model.config, self.model.get_output_embeddings()
        return Head(module, partial(self.family.finished, config), getattr(module, "out_features", config.vocab_size))

    def logits(self, final_hidden: Tensor) -> Tensor:
        """Computes logits `[..., V]` of final hidden states `[..., D]`."""
        return self.family.logits(self.model, final_hidden)


def check_schedule(schedule: SparsitySchedule, n_blocks: int) -> None:
    """Raises `ScheduleError` unless the schedule is one of so many blocks."""
    if schedule.n_blocks != n_blocks:
        raise ScheduleError(
            f"The schedule has {schedule.n_blocks} sparsities, but the model has {n_blocks} blocks: give one each."
        )
