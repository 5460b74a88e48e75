"""Runs a model's own blocks on kept tokens only.

Block i gets the hidden states `[B, L, D]`; a router names the kept positions; they are gathered with whatever else the
block gets per token, run through the block as a shorter sequence, and scattered back. Skipped tokens pass the block
unchanged and leave no key and no value in it. The work is really gone: nothing here computes on a skipped token.
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
from ftp_core.routers.state import n_protected
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import AttentionObserver, kernel_name, observed_attention
from ftp_core.skipping.cache import DEAD, FTPCache, LentCache
from ftp_core.skipping.families import Family
from ftp_core.skipping.gathering import Ends, Places
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.masks import kernel_mask, visible_keys


@dataclass
class _Listening:
    """What an observer shall listen to in one call of a block."""

    window: int
    asked: Tensor | None = None
    asked_real: Tensor | None = None
    visible: Tensor | None = None


def _run(
    model: PreTrainedModel, call: BlockCall, hidden: Tensor, listening: _Listening | None, keeps_rows: bool, **args: Any
) -> tuple[Tensor, AttentionObserver | None]:
    """Run a block, and listen to its attention if somebody wants to."""
    with observed_attention(model) if listening else nullcontext("") as kernel:
        if listening is None:
            return call.run(hidden, **args), None
        observer = AttentionObserver(
            listening.window, kernel, listening.asked, listening.asked_real, listening.visible, keeps_rows
        )
        return call.run(hidden, observer=observer, **args), observer


@dataclass
class PromptPass:
    """The blocks' handler while prompts run, perhaps with the beginnings of completions behind them.

    Attributes:
        model: The model.
        family: Its family.
        schedule: One sparsity per block.
        router: Names the kept tokens of the prompts.
        state: The prompts; the width L of its tensors is that of the pass.
        real: Tokens, those of completions included `[B, L]`.
        cache: Where keys and values go; None to keep none.
        routes_decoding: Whether decoded tokens will be routed, so that what they need is remembered.
        kept: Which tokens ran each block, bool `[B, L]`; filled as the blocks run.
    """

    model: PreTrainedModel
    family: Family
    schedule: SparsitySchedule
    router: Router
    state: RoutingState
    real: Tensor
    cache: FTPCache | None
    routes_decoding: bool = False
    kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Work out what all blocks share."""
        self._columns = torch.arange(self.real.shape[1], device=self.real.device)
        self._rows = torch.arange(len(self.real), device=self.real.device)[:, None] * self.real.shape[1]
        self._completion = self.real & ~self.state.real
        totals = self.real.sum(1).tolist()
        self._n_completion = [total - prompt for total, prompt in zip(totals, self.state.row_lengths, strict=True)]
        self._has_completion = any(self._n_completion)
        self._has_padding = any(total < self.real.shape[1] for total in totals)
        if self.routes_decoding and self.cache is not None:
            n_decoded = torch.zeros(self.real.shape[0], dtype=torch.long, device=self.real.device)
            self.cache.decode = DecodeState([], [], [], n_decoded, [])

    @cached_property
    def _kernel(self) -> str:
        # Asked for while blocks run, when no other thread has changed it for its own pass.
        return kernel_name(self.model)

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Hidden states behind block `index` `[B, L, D]`."""
        sparsity, state = self.schedule[index], self.state
        state.block, state.line = index, None
        if self.router.reads_hidden:
            state.hidden = call.hidden
        keep = state.real if sparsity == 0 else self.router.keep(sparsity, state)
        if sparsity == 0:
            counts: Sequence[int] = state.row_lengths
        elif self.router.keeps_budget:
            counts = state.row_kept_counts(sparsity)
        else:
            counts = keep.sum(1).tolist()
        self.kept.append(keep | self._completion if self._has_completion else keep)
        # A block that runs whole attends to every token: nobody reads what was heard just before it, or at the end.
        is_read = index + 1 < len(self.schedule) and self.schedule[index + 1] > 0
        listens = self.router.window > 0 and (self.routes_decoding or is_read)
        if tuple(counts) == state.row_lengths:
            hidden, observer = self._run_whole(index, call, listens)
            received = None if observer is None else observer.received
        else:
            hidden, observer, received = self._run_kept(index, call, counts, listens)
        if received is not None:
            state.observe(received, keep)
        if self.routes_decoding and self.cache is not None and self.cache.decode is not None:
            self._remember(index, self.cache.decode, observer)
        return hidden

    def _run_whole(self, index: int, call: BlockCall, listens: bool) -> tuple[Tensor, AttentionObserver | None]:
        """Run the block as the model calls it, mask included: where nothing is skipped, this is the dense model."""
        arguments = {}
        if self.cache is not None:
            positions = self._columns.expand(self.real.shape)
            if self._has_padding:
                positions = torch.where(self.real, positions, DEAD)
            self.cache.block(index).expect(positions, self._has_padding)
            arguments[self.family.cache_argument] = self.cache
        listening = None
        if listens:
            window = self.family.window(self.model.config, index)
            listening = _Listening(self.router.window)
            if self._has_padding or self._has_completion or _reaches_beyond(window, self.real.shape[1]):
                listening = _last_queries(
                    self.state.real, self.router.window, torch.where(self.real, self._columns, DEAD), window
                )
        return _run(self.model, call, call.hidden, listening, self.routes_decoding, **arguments)

    def _run_kept(
        self, index: int, call: BlockCall, prompt_counts: Sequence[int], listens: bool
    ) -> tuple[Tensor, AttentionObserver | None, Tensor | None]:
        """Gather, run, scatter. The attention received comes back by column `[B, L]`."""
        hidden = call.hidden
        n_rows, width, _ = hidden.shape
        counts = [kept + behind for kept, behind in zip(prompt_counts, self._n_completion, strict=True)]
        longest, ragged = max(counts), min(counts) < max(counts)
        tokens: Ends | Places
        # An attribute of fixed routers only: whether the first tokens and the most recent ones are all that they keep.
        if getattr(self.router, "keeps_ends", False) and not (ragged or self._has_completion or self._has_padding):
            tokens = Ends(longest, width, max(1, n_protected(self.state.keep_first, longest)))
        else:
            tokens = Places(_places(self.kept[-1], longest, ragged), self._rows)
        places = tokens.columns(self._columns.expand(n_rows, width))
        short = tokens.gather(hidden)
        changed = {
            name: tokens.gather(call.arguments[name])
            for name in self.family.per_token
            if call.arguments.get(name) is not None
        }
        # Kept tokens stand first, in order; rows that keep fewer are filled with skipped ones, which the causal kernel
        # hides from the kept ones before them, and which are put back as they were.
        filler = None
        if ragged:
            row_counts = torch.tensor(counts, device=places.device)
            filler = torch.arange(longest, device=places.device) >= row_counts[:, None]
        positions = places if filler is None else places.masked_fill(filler, DEAD)
        window = self.family.window(self.model.config, index)
        mask = None
        if self._kernel != "sdpa" or _reaches_beyond(window, width):
            mask = kernel_mask(visible_keys(places, positions, window), self._kernel, hidden.dtype)
        if self.cache is not None:
            self.cache.block(index).expect(positions, ragged)
        changed[self.family.cache_argument] = self.cache
        listening = None
        if listens:
            listening = _Listening(self.router.window)
            if ragged or self._has_completion or _reaches_beyond(window, width):
                of_prompt = self.state.real.gather(1, places)
                listening = _last_queries(
                    of_prompt if filler is None else of_prompt & ~filler, self.router.window, positions, window
                )
        out, observer = _run(self.model, call, short, listening, self.routes_decoding, attention_mask=mask, **changed)
        if filler is not None:
            out = torch.where(filler[..., None], short, out)
        whole = tokens.scatter(out, hidden)
        received = None
        if observer is not None and observer.received is not None:
            received = observer.received.new_zeros(n_rows, width).scatter_(1, places, observer.received)
        return whole, observer, received

    def _remember(self, index: int, decode: DecodeState, observer: AttentionObserver | None) -> None:
        n_rows, device = self.real.shape[0], self.real.device
        decode.skipped.append(torch.zeros(n_rows, dtype=torch.long, device=device))
        decode.lines.append(self.state.line)
        if observer is None or observer.heard is None:
            return
        decode.heard.append(observer.heard)
        real = observer.asked_real
        if real is None:
            real = torch.ones(observer.heard.shape[:2], dtype=torch.bool, device=device)
        decode.heard_real.append(real)


def _reaches_beyond(window: int | None, width: int) -> bool:
    """Whether a sliding window hides anything within `width` positions."""
    return window is not None and width > window


def _places(run: Tensor, longest: int, ragged: bool) -> Tensor:
    """Columns of the tokens that run, in order `[B, longest]`; rows with fewer are filled with ones that do not run."""
    n_rows, width = run.shape
    if ragged:
        return (~run).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    # Each token that runs is put where the count of those up to it says; the others onto a heap behind.
    slot = torch.where(run, run.cumsum(1) - 1, longest)
    columns = torch.arange(width, device=run.device).expand(n_rows, -1)
    return slot.new_empty(n_rows, longest + 1).scatter_(1, slot, columns)[:, :longest]


def _last_queries(listened: Tensor, window: int, key_positions: Tensor, sliding: int | None) -> _Listening:
    """Listen to each row's last `window` queries among those marked.

    Args:
        listened: Queries to choose from, bool `[B, M]`.
        window: W.
        key_positions: Original positions `[B, M]`, which are also the queries'; `DEAD` where there is none.
        sliding: The block's sliding window.
    """
    asked = listened.to(torch.uint8).argsort(dim=1, stable=True)[:, -window:]
    visible = visible_keys(key_positions.gather(1, asked), key_positions, sliding)
    real = listened.gather(1, asked)
    # Those that are not real see something, so that they are no NaN; their weights are dropped.
    return _Listening(window, asked, real, visible | ~real[..., None])


@dataclass
class DecodePass:
    """The blocks' handler behind a prompt: for tokens that are decoded, or for completions that are scored.

    Attributes:
        model: The model.
        family: Its family.
        cache: What the prompt left behind.
        real: New tokens `[B, q]`; q is 1 where decoded tokens are routed.
        query_positions: Their columns `[B, q]`.
        schedule: One sparsity per block; only needed to route.
        router: Only needed to route.
        decode_sparsity: Most that a block may skip of the decoded tokens; 0 keeps all. Within that, a token skips where
            its score is below the line that the prompt drew.
    """

    model: PreTrainedModel
    family: Family
    cache: FTPCache | LentCache
    real: Tensor
    query_positions: Tensor
    schedule: SparsitySchedule | None = None
    router: Router | None = None
    decode_sparsity: float = 0.0
    _state: RoutingState | None = None

    def __post_init__(self) -> None:
        """Work out what all blocks share."""
        self._all_real = bool(self.real.all())
        if self.decode_sparsity > 0:
            assert isinstance(self.cache, FTPCache)
            assert self.cache.real is not None
            self._state = RoutingState.newest(torch.cat([self.cache.real, self.real], 1))

    @cached_property
    def _kernel(self) -> str:
        # Asked for while blocks run, when no other thread has changed it for its own pass.
        return kernel_name(self.model)

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Hidden states behind block `index` `[B, q, D]`."""
        if self._state is not None:
            return self._run_routed(index, call, self._state)
        return self._run(index, call, None, None)[0]

    def _run(
        self, index: int, call: BlockCall, rows: Tensor | None, heard_by: Router | None
    ) -> tuple[Tensor, AttentionObserver | None]:
        """Run the block, for some rows only if `rows` names them `[R]`."""
        block, positions = self.cache.block(index), self.query_positions
        dead = not self._all_real or rows is not None
        slots = positions if self._all_real else torch.where(self.real, positions, DEAD)
        if rows is not None:
            ran = torch.zeros(len(slots), 1, dtype=torch.bool, device=slots.device)
            ran[rows] = True
            slots = torch.where(ran, slots, DEAD)
        block.expect(slots, dead, rows)
        window = self.family.window(self.model.config, index)
        hidden, arguments = call.hidden, {}
        keys = block.positions
        if rows is not None:
            hidden, positions, keys = (part.index_select(0, rows) for part in (hidden, positions, keys))
            arguments = {
                name: _rows(call.arguments[name], rows)
                for name in self.family.per_token
                if call.arguments.get(name) is not None
            }
        mask = visible = None
        if block.has_dead or hidden.shape[1] > 1 or _reaches_beyond(window, self.cache.seen + 1):
            visible = visible_keys(positions, keys, window)
            mask = kernel_mask(visible, self._kernel, hidden.dtype)
        arguments["attention_mask"] = mask
        arguments[self.family.cache_argument] = self.cache
        listening = _Listening(1, visible=visible) if heard_by is not None and heard_by.window > 0 else None
        out, observer = _run(self.model, call, hidden, listening, True, **arguments)
        return out, observer

    def _run_routed(self, index: int, call: BlockCall, state: RoutingState) -> Tensor:
        """Run the block for the rows whose token is kept there."""
        cache, router = self.cache, self.router
        assert isinstance(cache, FTPCache)
        assert cache.decode is not None
        assert self.schedule is not None
        assert router is not None
        decode = cache.decode
        state.block = index
        sparsity = self.schedule[index]
        skips = torch.zeros(len(self.real), dtype=torch.bool, device=self.real.device)
        if sparsity > 0:
            # Without the slack 0.3 * 10 would be less than 3.
            within_cap = decode.skipped[index] + 1 <= self.decode_sparsity * (decode.decoded + 1) + 1e-9
            keep = router.keep_newest(sparsity, state, decode.lines[index])
            skips = ~keep & within_cap & self.real[:, -1]
            decode.skipped[index] = decode.skipped[index] + skips
        skips = skips | ~self.real[:, -1]
        rows = None if not bool(skips.any()) else (~skips).nonzero().flatten()
        hidden = call.hidden
        if rows is None or len(rows):
            out, observer = self._run(index, call, rows, router)
            hidden = out if rows is None else hidden.index_copy(0, rows, out)
            if observer is not None and observer.heard is not None:
                decode.hear(index, observer.heard[:, -1], router.window, rows)
        if router.window > 0:
            self._observe(index, state, decode)
        return hidden

    def _observe(self, index: int, state: RoutingState, decode: DecodeState) -> None:
        """Let the routing state see what the block's slots received, by column."""
        positions = self.cache.block(index).positions
        alive = positions >= 0
        columns = positions.clamp(min=0)
        by_column = torch.zeros_like(state.attention)
        by_column.scatter_add_(1, columns, decode.received(index) * alive)
        attended = torch.zeros_like(by_column).scatter_add_(1, columns, alive.to(by_column.dtype)) > 0
        state.observe(by_column, attended)


def _rows(argument: Any, rows: Tensor) -> Any:
    """Some rows `[R]` of a block's argument `[1 or B, ...]`, or of a tuple of such."""
    if isinstance(argument, tuple):
        return tuple(_rows(part, rows) for part in argument)
    return argument if argument.shape[0] == 1 else argument.index_select(0, rows)
