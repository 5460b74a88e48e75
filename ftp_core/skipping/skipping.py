"""Runs a model's own blocks on kept tokens only.

Block i gets the hidden states `[B, L, D]`; a router names the kept positions; they are gathered with whatever else the
block gets per token, run through the block as a shorter sequence, and scattered back. Skipped tokens pass the block
unchanged and leave no key and no value in it. The work is really gone: nothing here computes on a skipped token.

Dimensions: B rows, L tokens of a row, K kept tokens, W queries listened to, N slots of a packed sequence, D hidden
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.routers import DecodeState, Router, RoutingState
from ftp_core.routers.state import n_protected
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import AttentionObserver, kernel_name, observed_attention, packed_attention
from ftp_core.skipping.cache import DEAD, FTPCache
from ftp_core.skipping.families import Family
from ftp_core.skipping.gathering import Ends, Places
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.masks import kernel_mask, visible_keys
from ftp_core.skipping.packing import Packing, SlotsExceededError, bucket, note_share, slots_expected


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
    def _kernel(self) -> str:
        # Asked for while blocks run, when no other thread has changed it for its own pass.
        return kernel_name(self.model)

    def _window(self, index: int) -> int | None:
        return self.family.window(self.model.config, index)

    def _per_token(self, call: BlockCall) -> dict[str, Any]:
        given = {name: call.arguments.get(name) for name in self.family.per_token}
        return {name: argument for name, argument in given.items() if argument is not None}

    def _run(self, call: BlockCall, hidden: Tensor, observer: AttentionObserver | None, **arguments: Any) -> Tensor:
        if observer is None:
            return call.run(hidden, **arguments)
        with observed_attention(self.model, call.block, observer) as observed:
            return call.run(hidden, **observed, **arguments)


@dataclass
class PromptPass(BlockPass):
    """Handler of the blocks while prompts run, perhaps with the beginnings of completions behind them.

    Attributes:
        schedule: One sparsity per block.
        router: Names the kept tokens of the prompts.
        state: The prompts; the width L of its tensors is that of the pass.
        real: Tokens, those of completions included `[B, L]`.
        cache: Cache to fill; None to keep no keys and values.
        routes_decoding: True if decoded tokens will be routed, so that what they need is remembered.
        packs: True if rows that keep different counts are packed and not padded; not with `routes_decoding`.
        kept: Tokens that ran each block, bool `[B, L]`; filled as the blocks run.
    """

    schedule: SparsitySchedule
    router: Router
    state: RoutingState
    real: Tensor
    cache: FTPCache | None
    routes_decoding: bool = False
    packs: bool = False
    kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Computes what all blocks share."""
        n_rows, width = self.real.shape
        self._columns = torch.arange(width, device=self.real.device)
        self._rows = torch.arange(n_rows, device=self.real.device)[:, None] * width
        self._completion = self.real & ~self.state.real
        totals = self.real.sum(1).tolist()
        self._n_completion = [total - prompt for total, prompt in zip(totals, self.state.row_lengths, strict=True)]
        self._has_completion = any(self._n_completion)
        self._has_padding = any(total < width for total in totals)
        self._packings: dict[int, Packing] = {}
        if self.routes_decoding and self.cache is not None:
            n_decoded = torch.zeros(n_rows, dtype=torch.long, device=self.real.device)
            self.cache.decode = DecodeState([], [], [], n_decoded, [])

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Runs block `index`; returns the hidden states behind it `[B, L, D]`.

        Raises:
            SlotsExceededError: A router with thresholds kept more tokens than there was room for where rows are packed.
        """
        sparsity, state = self.schedule[index], self.state
        state.block, state.line = index, None
        home = self.real.device
        if self.router.reads_hidden:
            state.hidden = call.hidden.to(home)
        keep_BL = state.real if sparsity == 0 else self.router.keep(sparsity, state)
        can_pack = self.packs and not reaches_beyond(self._window(index), self.real.shape[1])
        # Not known where thresholds decide, unless the host waits for them.
        counts: Sequence[int] | None = None
        if sparsity == 0:
            counts = state.row_lengths
        elif self.router.keeps_budget:
            counts = state.row_kept_counts(sparsity)
        elif not can_pack:
            counts = keep_BL.sum(1).tolist()
            note_share(self.router, index, sum(counts) / sum(state.row_lengths))
        self.kept.append(keep_BL | self._completion if self._has_completion else keep_BL)
        # A block that runs whole attends to every token: nobody reads what was heard just before it, or at the end.
        is_read = index + 1 < len(self.schedule) and self.schedule[index + 1] > 0
        listens = self.router.window > 0 and (self.routes_decoding or is_read)
        if counts is None:
            n_slots = slots_expected(self.router, index, sparsity, sum(state.row_lengths)) + sum(self._n_completion)
            hidden_BLD, observer = self._run_packed(index, call, n_slots, None, listens)
        elif tuple(counts) == state.row_lengths:
            hidden_BLD, observer = self._run_whole(index, call, listens)
        elif can_pack and len(set(totals := self._totals(counts))) > 1:
            hidden_BLD, observer = self._run_packed(index, call, sum(totals), totals, listens)
        else:
            hidden_BLD, observer = self._run_kept(index, call, counts, listens)
        if observer is not None and observer.received is not None:
            state.observe(observer.received.to(home), keep_BL)
        if self.routes_decoding and self.cache is not None and self.cache.decode is not None:
            self._remember(self.cache.decode, observer)
        if self._packings and index + 1 == len(self.schedule):
            self._unpack()
        return hidden_BLD

    def _totals(self, prompt_counts: Sequence[int]) -> tuple[int, ...]:
        """Tokens of each row that run, those of completions included."""
        return tuple(kept + behind for kept, behind in zip(prompt_counts, self._n_completion, strict=True))

    def _run_packed(
        self, index: int, call: BlockCall, n_tokens: int, counts: tuple[int, ...] | None, listens: bool
    ) -> tuple[Tensor, AttentionObserver | None]:
        """Runs the block on one sequence of the tokens of all rows; `counts` are None where the host does not know."""
        packing = self._packings[index] = Packing(self.kept[-1], bucket(n_tokens, self.real.numel()), counts)
        changed = {name: packing.gather(argument) for name, argument in self._per_token(call).items()}
        short_1ND, observer = packing.gather(call.hidden), None
        if self.cache is not None:
            self.cache.block(index).expect_packed(packing)
        if listens:
            listened_BL = packing.run & self.state.real
            asked_BW = listened_BL.to(torch.uint8).argsort(dim=1, stable=True)[:, -self.router.window :]
            real_BW = listened_BL.gather(1, asked_BW)
            visible_BWL = packing.run[:, None] & (self._columns <= asked_BW[..., None])
            observer = AttentionObserver(self.router.window, self._kernel)
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
        positions_BL = self._columns.expand(self.real.shape)
        if self._has_padding:
            positions_BL = torch.where(self.real, positions_BL, DEAD)
        arguments = {}
        if self.cache is not None:
            self.cache.block(index).expect(positions_BL.to(call.hidden.device), self._has_padding)
            arguments[self.family.cache_argument] = self.cache
        observer = None
        if listens:
            window = self._window(index)
            all_ask = not (self._has_padding or self._has_completion or reaches_beyond(window, self.real.shape[1]))
            observer = self._observer(None if all_ask else self.state.real, positions_BL, window, call.hidden.device)
        return self._run(call, call.hidden, observer, **arguments), observer

    def _run_kept(
        self, index: int, call: BlockCall, prompt_counts: Sequence[int], listens: bool
    ) -> tuple[Tensor, AttentionObserver | None]:
        """Gathers, runs, scatters; the attention received is put back by column, too."""
        (n_rows, width, _), device = call.hidden.shape, call.hidden.device
        counts = self._totals(prompt_counts)
        longest, ragged = max(counts), min(counts) < max(counts)
        tokens: Ends | Places
        # An attribute of fixed routers only: the first tokens and the most recent ones are all that they keep.
        if getattr(self.router, "keeps_ends", False) and not (ragged or self._has_completion or self._has_padding):
            tokens = Ends(longest, width, max(1, n_protected(self.state.keep_first, longest)))
        else:
            tokens = Places(_places(self.kept[-1], longest, ragged), self._rows)
        places_BK = tokens.columns(self._columns.expand(n_rows, width))
        short_BKD = tokens.gather(call.hidden)
        changed = {name: tokens.gather(argument) for name, argument in self._per_token(call).items()}
        # Kept tokens stand first, in order; rows that keep fewer are filled with skipped ones, which the causal kernel
        # hides from the kept ones before them, and which are put back as they were.
        filler_BK = None
        positions_BK = places_BK
        if ragged:
            counts_B1 = torch.tensor(counts, device=places_BK.device)[:, None]
            filler_BK = torch.arange(longest, device=places_BK.device) >= counts_B1
            positions_BK = places_BK.masked_fill(filler_BK, DEAD)
        window = self._window(index)
        mask = None
        if self._kernel != "sdpa" or reaches_beyond(window, width):
            mask = kernel_mask(visible_keys(places_BK, positions_BK, window), self._kernel, call.hidden.dtype)
        if self.cache is not None:
            self.cache.block(index).expect(positions_BK.to(device), ragged)
        changed |= {"attention_mask": mask, self.family.cache_argument: self.cache}
        observer = None
        if listens:
            listened_BK = None
            if ragged or self._has_completion or reaches_beyond(window, width):
                listened_BK = self.state.real.gather(1, places_BK)
                listened_BK = listened_BK if filler_BK is None else listened_BK & ~filler_BK
            observer = self._observer(listened_BK, positions_BK, window, device)
        out_BKD = self._run(call, short_BKD, observer, **changed)
        if filler_BK is not None:
            out_BKD = torch.where(filler_BK[..., None].to(device), short_BKD, out_BKD)
        if observer is not None and observer.received is not None:
            zeros_BL = observer.received.new_zeros(n_rows, width)
            observer.received = zeros_BL.scatter_(1, places_BK.to(device), observer.received)
        return tokens.scatter(out_BKD, call.hidden), observer

    def _observer(
        self, listened_BK: Tensor | None, positions_BK: Tensor, sliding: int | None, device: torch.device
    ) -> AttentionObserver:
        """Makes an observer, on a block's device, of each row's last W queries among those marked; None: all."""
        observer = AttentionObserver(self.router.window, self._kernel, keeps_rows=self.routes_decoding)
        if listened_BK is not None:
            asked_BW = listened_BK.to(torch.uint8).argsort(dim=1, stable=True)[:, -observer.window :]
            visible_BWK = visible_keys(positions_BK.gather(1, asked_BW), positions_BK, sliding)
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


def _places(run_BL: Tensor, longest: int, ragged: bool) -> Tensor:
    """Columns of the tokens that run, in order `[B, K]`; rows with fewer are filled with ones that do not run."""
    n_rows, width = run_BL.shape
    if ragged:
        return (~run_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    # Each token that runs is put where the count of those up to it says; the others onto a heap behind.
    slot_BL = torch.where(run_BL, run_BL.cumsum(1) - 1, longest)
    columns_BL = torch.arange(width, device=run_BL.device).expand(n_rows, -1)
    return slot_BL.new_empty(n_rows, longest + 1).scatter_(1, slot_BL, columns_BL)[:, :longest]
