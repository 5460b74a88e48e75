"""Runs a model's own blocks on kept tokens only.

Block i gets the hidden states `[B, L, D]`; a router names the kept positions; they are gathered with whatever else the
block gets per token, run through the block as a shorter sequence, and scattered back. Skipped tokens pass the block
unchanged and leave no key and no value in it. The work is really gone: nothing here computes on a skipped token.

Dimensions: B rows, L tokens of a row, K kept tokens, W queries listened to, N slots of a packed sequence, D hidden
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.routers import DecodeState, Router, RoutingState
from ftp_core.routers.protocol import needs_hidden
from ftp_core.routers.state import n_protected
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.attention import (
    AttentionObserver,
    attention_by,
    kernel_name,
    observed_attention,
    packed_attention,
)
from ftp_core.skipping.cache import DEAD, FTPCache
from ftp_core.skipping.cpu_attention import kernel_for
from ftp_core.skipping.families import Family
from ftp_core.skipping.gathering import Chosen
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.kept_projections import kept_projections_of
from ftp_core.skipping.masks import kernel_mask, visible_keys
from ftp_core.skipping.packing import Packing, SlotsExceededError, bucket, note_share, slots_expected
from ftp_core.skipping.prompt_halves import HalvesPlan, run_halves
from ftp_core.skipping.substitutes import substitutes_of


@dataclass
class BlockPass:
    """A forward pass through the blocks of a model.

    Attributes:
        model: The model.
        family: Its family.
    """

    model: PreTrainedModel
    family: Family

    @cached_property
    def kernel(self) -> str:
        """Name of the model's attention function."""
        # Asked for while blocks run, when no other thread has changed it for its own pass.
        return kernel_name(self.model)

    def window(self, index: int) -> int | None:
        """Number of columns that a block attends to, its own the last; None for all."""
        return self.family.window(self.model.config, index)

    def per_token(self, call: BlockCall) -> dict[str, Any]:
        """Arguments of a call that have an entry for each token."""
        given = {name: call.arguments.get(name) for name in self.family.per_token}
        return {name: argument for name, argument in given.items() if argument is not None}

    def run(self, call: BlockCall, hidden: Tensor, observer: AttentionObserver | None, **arguments: Any) -> Tensor:
        """Runs a block on other hidden states and arguments, perhaps listening to its attention."""
        kernel = self.kernel
        if "attention_mask" in arguments:
            kernel = kernel_for(kernel, hidden, arguments["attention_mask"])
        if observer is None:
            with attention_by(self.model, kernel) if kernel != self.kernel else nullcontext():
                return call.run(hidden, **arguments)
        observer.kernel = kernel
        with observed_attention(self.model, call.block, observer) as observed:
            return call.run(hidden, **observed, **arguments)


@dataclass
class PromptPass(BlockPass):
    """Handler of the blocks while prompts run, perhaps with the beginnings of completions behind them.

    Attributes:
        schedule: Sparsity of each block.
        router: Names the kept tokens of the prompts.
        state: The prompts; the width L of its tensors is that of the pass.
        real: Tokens, those of completions included `[B, L]`.
        cache: Cache to fill; None to keep no keys and values.
        routes_decoding: True if decoded tokens will be routed, so that what they need is remembered.
        packs: True if rows that keep different counts are packed and not padded; not with `routes_decoding`.
        kept: Tokens that ran each block, or its attention, bool `[B, L]`; filled as the blocks run.
        kept_mlp: Tokens that ran each block's MLP, bool `[B, L]`; filled as the blocks run.
    """

    schedule: SparsitySchedule
    router: Router
    state: RoutingState
    real: Tensor
    cache: FTPCache | None
    routes_decoding: bool = False
    packs: bool = False
    kept: list[Tensor] = field(default_factory=list)
    kept_mlp: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Computes what all blocks share."""
        n_rows, width = self.real.shape
        self._entries = self.schedule.blocks
        self.columns = torch.arange(width, device=self.real.device)
        self._completion = self.real & ~self.state.real
        totals = self.real.sum(1).tolist()
        self._n_completion = [total - prompt for total, prompt in zip(totals, self.state.row_lengths, strict=True)]
        self.has_completion = any(self._n_completion)
        self.has_padding = any(total < width for total in totals)
        self._packings: dict[int, Packing] = {}
        self.plans: dict[tuple[BlockSparsity, int | None], HalvesPlan] = {}
        self.substitutes = substitutes_of(self.model)
        given = kept_projections_of(self.model)
        self.kept_projections = None if given is None else given.serving(self.schedule)
        if self.routes_decoding and self.cache is not None:
            n_decoded = torch.zeros(n_rows, dtype=torch.long, device=self.real.device)
            self.cache.decode = DecodeState([], [], [], n_decoded, [])

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Runs block `index`; returns the hidden states behind it `[B, L, D]`.

        Raises:
            SlotsExceededError: A router with thresholds kept more tokens than there was room for where rows are packed.
        """
        entry, state = self._entries[index], self.state
        sparsity = entry.attention
        state.block, state.line = index, None
        home = self.real.device
        state.hidden = call.hidden.to(home) if needs_hidden(self.router, state) else None
        # A block that runs whole attends to every token: nobody reads what was heard just before it, or at the end.
        is_read = index + 1 < len(self._entries) and not self._entries[index + 1].is_dense
        listens = self.router.window > 0 and (self.routes_decoding or is_read)
        if not entry.is_whole:
            return run_halves(self, index, call, entry, listens)
        keep_BL = state.real if sparsity == 0 else self.router.keep(sparsity, state)
        can_pack = self.packs and not reaches_beyond(self.window(index), self.real.shape[1])
        # Not known where thresholds decide, unless the host waits for them.
        counts: Sequence[int] | None = None
        if sparsity == 0:
            counts = state.row_lengths
        elif self.router.keeps_budget:
            counts = state.row_kept_counts(sparsity)
        elif not can_pack:
            counts = keep_BL.sum(1).tolist()
            note_share(self.router, index, sum(counts) / sum(state.row_lengths))
        self.kept.append(self.with_completions(keep_BL))
        self.kept_mlp.append(self.kept[-1])
        if counts is None:
            n_slots = slots_expected(self.router, index, sparsity, sum(state.row_lengths)) + sum(self._n_completion)
            hidden_BLD, observer = self._run_packed(index, call, n_slots, None, listens)
        elif tuple(counts) == state.row_lengths:
            hidden_BLD, observer = self._run_whole(index, call, listens)
        elif can_pack and len(set(totals := self.totals(counts))) > 1:
            hidden_BLD, observer = self._run_packed(index, call, sum(totals), totals, listens)
        else:
            hidden_BLD, observer = self._run_kept(index, call, counts, listens)
        if observer is not None and observer.received is not None:
            state.observe(observer.received.to(home), keep_BL)
        if self.routes_decoding and self.cache is not None and self.cache.decode is not None:
            self._remember(self.cache.decode, observer)
        return self.ended(index, hidden_BLD)

    def with_completions(self, keep_BL: Tensor) -> Tensor:
        """Tokens of the prompts, and all of the completions `[B, L]`."""
        return keep_BL | self._completion if self.has_completion else keep_BL

    def ended(self, index: int, hidden_BLD: Tensor) -> Tensor:
        """Does what is left to do behind a block; returns the hidden states."""
        if self._packings and index + 1 == len(self._entries):
            self._unpack()
        return hidden_BLD

    def totals(self, prompt_counts: Sequence[int]) -> tuple[int, ...]:
        """Tokens of each row that run, those of completions included."""
        return tuple(kept + behind for kept, behind in zip(prompt_counts, self._n_completion, strict=True))

    def _run_packed(
        self, index: int, call: BlockCall, n_tokens: int, counts: tuple[int, ...] | None, listens: bool
    ) -> tuple[Tensor, AttentionObserver | None]:
        """Runs the block on one sequence of the tokens of all rows; `counts` are None where the host does not know."""
        packing = self._packings[index] = Packing(self.kept[-1], bucket(n_tokens, self.real.numel()), counts)
        changed = {name: packing.gather(argument) for name, argument in self.per_token(call).items()}
        short_1ND, observer = packing.gather(call.hidden), None
        if self.cache is not None:
            self.cache.block(index).expect_packed(packing)
        if listens:
            listened_BL = packing.run & self.state.real
            asked_BW = listened_BL.to(torch.uint8).argsort(dim=1, stable=True)[:, -self.router.window :]
            real_BW = listened_BL.gather(1, asked_BW)
            visible_BWL = packing.run[:, None] & (self.columns <= asked_BW[..., None])
            observer = AttentionObserver(self.router.window, self.kernel)
            observer.asked, observer.asked_real = (
                of.to(call.hidden.device) for of in (packing.slots_BL.gather(1, asked_BW), real_BW)
            )
            observer.visible = (visible_BWL | ~real_BW[..., None]).to(call.hidden.device)
        changed |= {"attention_mask": None, self.family.cache_argument: self.cache}
        with packed_attention(self.model, call.block, packing, observer) as packed:
            out_1ND = call.run(short_1ND, **packed, **changed)
        filler_1N1 = packing.filler_N[None, :, None].to(call.hidden.device)
        return packing.scatter(torch.where(filler_1N1, short_1ND, out_1ND), call.hidden), observer

    def _unpack(self) -> None:
        """Lays out in the cache what came packed; this reads all counts that the host does not know, at once."""
        unknown = [index for index, packing in self._packings.items() if packing.counts is None]
        known = {index: packing.counts for index, packing in self._packings.items() if packing.counts is not None}
        if unknown:
            read = torch.stack([self._packings[index].counts_B for index in unknown]).tolist()
            n_behind, n_prompts = sum(self._n_completion), sum(self.state.row_lengths)
            for index, counts in zip(unknown, read, strict=True):
                note_share(self.router, index, (sum(counts) - n_behind) / n_prompts)
                if sum(counts) > self._packings[index].n_slots:
                    # Blocks behind it ran on what it left out.
                    raise SlotsExceededError
                known[index] = tuple(counts)
        if self.cache is not None:
            for index, counts in known.items():
                self.cache.block(index).unpack(counts)

    def _run_whole(self, index: int, call: BlockCall, listens: bool) -> tuple[Tensor, AttentionObserver | None]:
        """Runs the block as the model calls it, mask included: where nothing is skipped, this is the dense model."""
        arguments, observer = self.whole_attention(index, call, listens)
        return self.run(call, call.hidden, observer, **arguments), observer

    def whole_attention(
        self, index: int, call: BlockCall, listens: bool
    ) -> tuple[dict[str, Any], AttentionObserver | None]:
        """Arguments of a block whose attention all tokens run, as the model calls it, and what listens to it."""
        positions_BL = self.columns.expand(self.real.shape)
        if self.has_padding:
            positions_BL = torch.where(self.real, positions_BL, DEAD)
        arguments: dict[str, Any] = {}
        if self.cache is not None:
            self.cache.block(index).expect(positions_BL.to(call.hidden.device), self.has_padding)
            arguments[self.family.cache_argument] = self.cache
        observer = None
        if listens:
            window = self.window(index)
            all_ask = not (self.has_padding or self.has_completion or reaches_beyond(window, self.real.shape[1]))
            observer = self.observer(None if all_ask else self.state.real, positions_BL, window, call.hidden.device)
        return arguments, observer

    def _run_kept(
        self, index: int, call: BlockCall, prompt_counts: Sequence[int], listens: bool
    ) -> tuple[Tensor, AttentionObserver | None]:
        """Gathers, runs, scatters; the attention received is put back by column, too."""
        device = call.hidden.device
        # Kept tokens stand first, in order; rows that keep fewer are filled with skipped ones, which the causal kernel
        # hides from the kept ones before them, and which are put back as they were.
        chosen = self.chosen(self.kept[-1], self.totals(prompt_counts))
        short_BKD = chosen.tokens.gather(call.hidden)
        changed = {name: chosen.tokens.gather(argument) for name, argument in self.per_token(call).items()}
        positions_BK = chosen.columns(DEAD)
        changed |= self.for_some(index, call, chosen)
        observer = None
        if listens:
            observer = self.observer(self.listened(index, chosen), positions_BK, self.window(index), device)
        out_BKD = chosen.restored(self.run(call, short_BKD, observer, **changed), short_BKD)
        if observer is not None and observer.received is not None:
            observer.received = self.by_column(observer.received, chosen)
        return chosen.tokens.scatter(out_BKD, call.hidden), observer

    def chosen(self, run_BL: Tensor, counts: Sequence[int]) -> Chosen:
        """Tokens that run something, of all columns or of some that the first tokens and the last ones are among."""
        n_first = None
        # An attribute of fixed routers only: the first tokens and the most recent ones are all that they keep.
        if getattr(self.router, "keeps_ends", False) and not (
            min(counts) < max(counts) or self.has_completion or self.has_padding
        ):
            n_first = max(1, n_protected(self.state.keep_first, max(counts)))
        return Chosen.of(run_BL, counts, n_first)

    def for_some(self, index: int, call: BlockCall, chosen: Chosen) -> dict[str, Any]:
        """Mask and cache of a block, or of its attention, that tokens run whose keys alone there are."""
        window, mask, is_ragged = self.window(index), None, chosen.filler is not None
        positions_BK = chosen.columns(DEAD)
        if self.kernel != "sdpa" or reaches_beyond(window, self.real.shape[1]):
            mask = kernel_mask(visible_keys(chosen.places, positions_BK, window), self.kernel, call.hidden.dtype)
        if self.cache is not None:
            self.cache.block(index).expect(positions_BK.to(call.hidden.device), is_ragged)
        return {"attention_mask": mask, self.family.cache_argument: self.cache}

    def listened(self, index: int, chosen: Chosen, always: bool = False) -> Tensor | None:
        """Tokens among those that run whose queries are listened to `[B, K]`; None if all are."""
        is_far = reaches_beyond(self.window(index), self.real.shape[1])
        if not (always or chosen.filler is not None or self.has_completion or is_far):
            return None
        listened_BK = self.state.real.gather(1, chosen.places)
        return listened_BK if chosen.filler is None else listened_BK & ~chosen.filler

    def by_column(self, received_BK: Tensor, chosen: Chosen) -> Tensor:
        """Puts the attention that some tokens received at their columns `[B, L]`."""
        places_BK = chosen.places.to(received_BK.device)
        return received_BK.new_zeros(self.real.shape).scatter_(1, places_BK, received_BK)

    def observer(
        self,
        listened_BK: Tensor | None,
        positions_BK: Tensor,
        sliding: int | None,
        device: torch.device,
        keys_BM: Tensor | None = None,
    ) -> AttentionObserver:
        """Makes an observer, on a block's device, of each row's last W queries among those marked; None: all.

        Keys are those of the queries' own tokens, unless others are given by their columns.
        """
        observer = AttentionObserver(self.router.window, self.kernel, keeps_rows=self.routes_decoding)
        if listened_BK is not None:
            asked_BW = listened_BK.to(torch.uint8).argsort(dim=1, stable=True)[:, -observer.window :]
            visible_BWK = visible_keys(
                positions_BK.gather(1, asked_BW), positions_BK if keys_BM is None else keys_BM, sliding
            )
            real_BW = listened_BK.gather(1, asked_BW)
            # Those that are not real see something, so that they are no NaN; their weights are dropped.
            visible_BWK |= ~real_BW[..., None]
            observer.asked, observer.asked_real = asked_BW.to(device), real_BW.to(device)
            observer.visible = visible_BWK.to(device)
        return observer

    def _remember(self, decode: DecodeState, observer: AttentionObserver | None) -> None:
        decode.skipped.append(torch.zeros_like(decode.decoded))
        decode.lines.append(self.state.line)
        if observer is not None and observer.heard is not None:
            real_BW = observer.asked_real
            if real_BW is None:
                real_BW = torch.ones(observer.heard.shape[:2], dtype=torch.bool, device=observer.heard.device)
            decode.heard.append(observer.heard)
            decode.heard_real.append(real_BW)


def reaches_beyond(window: int | None, width: int) -> bool:
    """Returns True if a sliding window hides anything within `width` positions."""
    return window is not None and width > window
