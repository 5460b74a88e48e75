"""Runs a model's blocks behind a prompt: on tokens that are decoded, or on completions that are scored.

Dimensions: B rows, R some of them, L tokens of a row, Q new tokens behind a prompt, M keys that a block holds, D hidden
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftp_core.routers import DecodeState, Router, RoutingState
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import AttentionObserver
from ftp_core.skipping.cache import DEAD, FTPCache, LentCache
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.masks import kernel_mask, visible_keys
from ftp_core.skipping.skipping import BlockPass, reaches_beyond


@dataclass
class DecodePass(BlockPass):
    """Handler of the blocks behind a prompt: for tokens that are decoded, or for completions that are scored.

    Attributes:
        cache: Keys and values of what stands before.
        real: New tokens `[B, Q]`; Q is 1 where decoded tokens are routed.
        query_positions: Their columns `[B, Q]`.
        schedule: One sparsity per block; only needed to route.
        router: Only needed to route.
        decode_sparsity: Most that a block may skip of the decoded tokens; 0 keeps all. Within that, a token skips where
            its score is below the line that the prompt drew.
    """

    cache: FTPCache | LentCache
    real: Tensor
    query_positions: Tensor
    schedule: SparsitySchedule | None = None
    router: Router | None = None
    decode_sparsity: float = 0.0
    _state: RoutingState | None = None

    def __post_init__(self) -> None:
        """Computes what all blocks share."""
        self._all_real = bool(self.real.all())
        if self.decode_sparsity > 0:
            assert isinstance(self.cache, FTPCache)
            assert self.cache.real is not None
            self._state = RoutingState.newest(torch.cat([self.cache.real, self.real], 1))

    def __call__(self, index: int, call: BlockCall) -> Tensor:
        """Runs block `index`; returns the hidden states behind it `[B, Q, D]`."""
        if self._state is not None:
            return self._run_routed(index, call, self._state)
        return self._run_rows(index, call, None, listens=False)[0]

    def _run_rows(
        self, index: int, call: BlockCall, rows_R: Tensor | None, listens: bool
    ) -> tuple[Tensor, AttentionObserver | None]:
        """Runs the block, for some rows only if they are named."""
        block, hidden_BQD, device = self.cache.block(index), call.hidden, call.hidden.device
        positions_BQ = self.query_positions.to(device)
        slots_BQ = positions_BQ if self._all_real else torch.where(self.real.to(device), positions_BQ, DEAD)
        arguments: dict[str, Any] = {}
        if rows_R is None:
            block.expect(slots_BQ, not self._all_real)
            keys_BM = block.positions
        else:
            rows_R = rows_R.to(device)
            ran_B1 = torch.zeros_like(slots_BQ, dtype=torch.bool).index_fill_(0, rows_R, True)
            block.expect(torch.where(ran_B1, slots_BQ, DEAD), True, rows_R)
            rest = (hidden_BQD, positions_BQ, block.positions)
            hidden_BQD, positions_BQ, keys_BM = (part.index_select(0, rows_R) for part in rest)
            arguments = {name: _rows(argument, rows_R) for name, argument in self.per_token(call).items()}
        window = self.window(index)
        mask = visible_BQM = None
        if block.has_dead or hidden_BQD.shape[1] > 1 or reaches_beyond(window, self.cache.seen + 1):
            visible_BQM = visible_keys(positions_BQ, keys_BM, window)
            mask = kernel_mask(visible_BQM, self.kernel, hidden_BQD.dtype)
        arguments |= {"attention_mask": mask, self.family.cache_argument: self.cache}
        observer = AttentionObserver(1, self.kernel, visible=visible_BQM, keeps_rows=True) if listens else None
        return self.run(call, hidden_BQD, observer, **arguments), observer

    def _run_routed(self, index: int, call: BlockCall, state: RoutingState) -> Tensor:
        """Runs the block for the rows whose token is kept there."""
        cache, router = self.cache, self.router
        assert isinstance(cache, FTPCache)
        assert cache.decode is not None
        assert self.schedule is not None
        assert router is not None
        decode, listens = cache.decode, router.window > 0
        state.block = index
        sparsity = self.schedule[index]
        real_B = self.real[:, -1]
        skips_B = torch.zeros_like(real_B)
        if sparsity > 0:
            # Without the slack 0.3 * 10 would be less than 3.
            within_cap_B = decode.skipped[index] + 1 <= self.decode_sparsity * (decode.decoded + 1) + 1e-9
            skips_B = ~router.keep_newest(sparsity, state, decode.lines[index]) & within_cap_B & real_B
            decode.skipped[index] = decode.skipped[index] + skips_B
        skips_B = skips_B | ~real_B
        rows_R = (~skips_B).nonzero().flatten() if bool(skips_B.any()) else None
        hidden_B1D = call.hidden
        if rows_R is None or len(rows_R):
            out_R1D, observer = self._run_rows(index, call, rows_R, listens)
            there_R = None if rows_R is None else rows_R.to(hidden_B1D.device)
            hidden_B1D = out_R1D if there_R is None else hidden_B1D.index_copy(0, there_R, out_R1D)
            if observer is not None and observer.heard is not None:
                decode.hear(index, observer.heard[:, -1], router.window, there_R)
        if listens:
            self._observe(index, state, decode)
        return hidden_B1D

    def _observe(self, index: int, state: RoutingState, decode: DecodeState) -> None:
        """Lets the routing state see what the block's slots received, by column."""
        zeros_BL = torch.zeros_like(state.attention)
        positions_BM = self.cache.block(index).positions.to(zeros_BL.device)
        alive_BM, columns_BM = positions_BM >= 0, positions_BM.clamp(min=0)
        received_BL = zeros_BL.scatter_add(1, columns_BM, decode.received(index).to(zeros_BL.device) * alive_BM)
        attended_BL = zeros_BL.scatter_add(1, columns_BM, alive_BM.to(zeros_BL.dtype)) > 0
        state.observe(received_BL, attended_BL)


def _rows(argument: Any, rows_R: Tensor) -> Any:
    """Some rows of a block's argument `[1 or B, ...]`, or of a tuple of such."""
    if isinstance(argument, tuple):
        return tuple(_rows(part, rows_R) for part in argument)
    return argument if argument.shape[0] == 1 else argument.index_select(0, rows_R.to(argument.device))
