"""Keys and values of kept tokens: every block holds its own, of its own number of tokens.

Dimensions: B rows, R some of them, Q new tokens, M slots of a block, G key heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ftp_core.errors import ModelError
from ftp_core.routers.state import DecodeState
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.packing import Packing

DEAD = -1


class BlockCache(CacheLayerMixin):
    """Keys and values that one block holds.

    A slot is one key with its value. Slots stand in the order of their tokens. Rows of a batch that keep fewer tokens
    than the others have dead slots, which no query sees.

    Attributes:
        keys: `[B, G, M, E]`; None before the first update.
        values: Likewise.
        positions: Column of the token in each slot `[B, M]` (of the padded input, so that differences are the tokens'
            distances), `DEAD` for a dead slot.
        has_dead: True if any slot is dead.
        window: Number of columns that the block attends to, its own the last; None for all.
        earliest: First column whose slots have not been let go of.
        record_past: True if nothing may be let go of before the next `crop` (transformers' name).
    """

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, window: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.positions: Tensor = torch.empty(0)
        self.has_dead = False
        self.window = window
        self.earliest = 0
        self.record_past = False
        self._incoming: tuple[Tensor, Tensor | None] | None = None
        self._packing: Packing | None = None
        self._packed: tuple[Tensor, Tensor] | None = None

    def activate_past_recording(self) -> None:
        """Keeps everything until the next `crop`, which may take tokens back."""
        self.record_past = True

    @property
    def held(self) -> int:
        """Slots of each row, M."""
        return 0 if self.keys is None else int(self.keys.shape[2])

    def expect(self, positions_BQ: Tensor, has_dead: bool, rows_R: Tensor | None = None) -> None:
        """Announces the tokens of the next `update` by their columns, `DEAD` where a row has none (`has_dead`).

        The update comes from the rows `rows_R`, None for all; the others get dead slots.
        """
        self.positions = torch.cat([self.positions, positions_BQ], 1) if self.held else positions_BQ
        self.has_dead = self.has_dead or has_dead
        self._incoming = (positions_BQ, rows_R)

    def expect_packed(self, packing: Packing) -> None:
        """Announces that the next `update`, the first, brings the packed tokens of all rows; see `unpack`."""
        self._packing = packing

    def unpack(self, counts: Sequence[int]) -> None:
        """Lays the rows out that came packed, once the tokens of each are known."""
        if self._packing is None or self._packed is None:
            return
        longest, (keys, values), packing = max(counts), self._packed, self._packing
        self._packing = self._packed = None
        within_K = torch.arange(longest, device=packing.run.device)
        slots_BK = packing.starts[:-1, None] + within_K
        self.keys, self.values = (packing.by_slots(part, slots_BK).contiguous() for part in (keys, values))
        columns_BK = packing.columns_N[slots_BK.clamp(max=packing.n_slots - 1)]
        dead_BK = within_K >= packing.counts_B[:, None]
        self.positions = columns_BK.masked_fill(dead_BK, DEAD).to(keys.device)
        self.has_dead = min(counts) < longest

    def start_again(self) -> None:
        """Forgets everything but how it was set up."""
        self.keys = self.values = self._packing = self._packed = self._incoming = None
        self.positions, self.has_dead = torch.empty(0), False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates nothing: the first update does."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends `[R, G, Q, E]`; returns what the rows that ran hold now `[R, G, M, E]`."""
        if self._packing is not None:
            self._packed, self.is_initialized = (key_states, value_states), True
            return key_states, value_states
        assert self._incoming is not None, "expect comes before update"
        (positions_BQ, rows_R), self._incoming = self._incoming, None
        self.is_initialized = True
        if rows_R is not None:
            key_states, value_states = (
                part.new_zeros(len(positions_BQ), *part.shape[1:]).index_copy_(0, rows_R, part)
                for part in (key_states, value_states)
            )
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys = torch.cat([self.keys, key_states], 2)
            self.values = torch.cat([self.values, value_states], 2)
        if rows_R is None:
            return self.keys, self.values
        return self.keys.index_select(0, rows_R), self.values.index_select(0, rows_R)

    def get_seq_length(self) -> int:
        """Slots held."""
        return self.held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys of an update of `query_length` tokens."""
        return self.held + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def per_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Applies a selection of rows to everything held."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = change(self.keys), change(self.values)
            self.positions = change(self.positions)

    def crop_from(self, column: int) -> None:
        """Forgets tokens from a column on."""
        if self.keys is None or self.values is None:
            return
        alive_BM = (self.positions >= 0) & (self.positions < column)
        slots_M = torch.arange(1, self.held + 1, device=alive_BM.device)
        n = int((alive_BM.any(0) * slots_M).amax()) if self.held else 0
        self.keys, self.values = self.keys[:, :, :n], self.values[:, :, :n]
        self.positions = self.positions.masked_fill(~alive_BM, DEAD)[:, :n]
        self.has_dead = self.has_dead or not bool(alive_BM[:, :n].all())

    def slide(self, next_column: int) -> None:
        """Lets go of leading slots that are behind the window of every token from `next_column` on.

        Now and then only, because letting go copies what stays.
        """
        if self.window is None or self.keys is None or self.values is None:
            return
        if self.held < self.window + max(16, self.window // 4):
            return
        self.earliest = max(self.earliest, next_column - self.window + 1)
        n = int((self.positions < self.earliest).all(0).to(torch.uint8).cumprod(0).sum())
        if n:
            # Copies, because a view would keep the memory.
            self.keys, self.values = self.keys[:, :, n:].clone(), self.values[:, :, n:].clone()
            self.positions = self.positions[:, n:].clone()


class FTPCache(Cache):
    """Cache for models that skip tokens: transformers' interface, with another number of keys in every block.

    `get_seq_length` counts the tokens *seen*, from which models derive positions, and `get_mask_sizes` answers for
    them; block i *holds* `layers[i].held`.

    Args:
        windows: Number of columns that each block attends to, its own the last; None for all. Keys behind the window
            are let go of.

    Attributes:
        seen: Columns seen.
        real: True for those that hold tokens `[B, seen]`.
        schedule: Schedule of the prompt, if that was another one than the model's (see `ftp_core.cost.break_even`).
        decode: Memory of routed decoding; None where decoded tokens are not routed.
        is_torn: True if a forward pass broke off, so that blocks have seen different tokens.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        super().__init__(layers=[BlockCache(window) for window in windows])
        self.seen = 0
        self.real: Tensor | None = None
        self.schedule: SparsitySchedule | None = None
        self.decode: DecodeState | None = None
        self.is_torn = False

    @property
    def is_croppable(self) -> bool:
        """True if `crop` can take tokens back."""
        return self.decode is None

    @property
    def blocks(self) -> list[BlockCache]:
        """Keys and values of each block."""
        return cast(list[BlockCache], self.layers)

    def block(self, index: int) -> BlockCache:
        """Keys and values of one block."""
        return self.blocks[index]

    def advance(self, real_BQ: Tensor, next_column: int | None = None) -> None:
        """Counts the columns of a finished forward pass.

        Args:
            real_BQ: True for real tokens.
            next_column: Lowest column of a token that may still come, in any row; the one behind all seen if None.
                Tokens behind rows that are padded right come at the rows' own ends.
        """
        if self.decode is not None and self.seen:
            self.decode.decoded = self.decode.decoded + real_BQ.sum(1)
        self.seen += real_BQ.shape[1]
        self.real = real_BQ if self.real is None else torch.cat([self.real, real_BQ], 1)
        # Where decoded tokens are routed, what the slots heard stands in their order.
        if self.decode is None:
            for block in self.blocks:
                if not block.record_past:
                    block.slide(self.seen if next_column is None else next_column)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, whether their tokens were kept or not."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of what a model's own mask must span: all columns seen."""
        return self.seen + query_length, 0

    def held(self) -> tuple[int, ...]:
        """Slots of each block per row."""
        return tuple(block.held for block in self.blocks)

    def kv_bytes(self) -> int:
        """Bytes of all keys and values held, dead slots included."""
        held = (tensor for block in self.blocks for tensor in (block.keys, block.values))
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Puts rows into another order `[B]`, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows `[R]`, in the order given."""
        self._per_row(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times."""
        self._per_row(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def _per_row(self, change: Callable[[Tensor], Tensor]) -> None:
        for block in self.blocks:
            block.per_row(change)
        self.real = None if self.real is None else change(self.real)
        if self.decode is not None:
            self.decode.per_row(change)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last columns seen, whether their tokens were kept or not.

        Args:
            tokens_to_remove: Number of columns as transformers gives it: zero or negative.

        Raises:
            ModelError: Keys that would be needed again have been let go of: decoded tokens are routed, or a window has
                passed without `activate_past_recording`.
        """
        if tokens_to_remove > 0:
            raise ModelError(
                f"crop was called with {tokens_to_remove}: give a negative number to remove that many tokens."
            )
        n_removed = -tokens_to_remove
        if n_removed > self.seen:
            raise ModelError(f"crop shall remove {n_removed} tokens, but only {self.seen} have been seen.")
        if self.decode is not None and n_removed:
            raise ModelError("Tokens cannot be taken back where decoded tokens skip blocks: set decode_sparsity to 0.")
        seen = self.seen - n_removed
        for index, block in enumerate(self.blocks):
            if block.window is not None and block.earliest > max(0, seen - block.window + 1):
                raise ModelError(
                    f"Block {index} has let go of keys that its window of {block.window} would need again: call "
                    "activate_past_recording before tokens that may be taken back."
                )
        if n_removed:
            for block in self.blocks:
                block.crop_from(seen)
            self.real = None if self.real is None else self.real[:, :seen]
        self.seen = seen
        # What was recorded is no longer needed.
        if self.decode is None:
            for block in self.blocks:
                block.slide(seen)

    def start_again(self) -> None:
        """Forgets a pass that broke off before the first one ended."""
        for block in self.blocks:
            block.start_again()
        self.is_torn = False

    def reset(self) -> None:
        """Forgets everything."""
        self.__init__([block.window for block in self.blocks])  # type: ignore[misc]

    def lend(self, rows_R: Tensor) -> LentCache:
        """A view for continuations of rows, which is read and never grown."""
        return LentCache(self, rows_R)


class LentCache(Cache):
    """A cache as continuations of its rows see it: several may follow one row, and none leaves a trace."""

    def __init__(self, lender: FTPCache, rows_R: Tensor) -> None:
        super().__init__(layers=[_LentBlock(block, rows_R) for block in lender.blocks])
        self.seen = lender.seen

    def block(self, index: int) -> _LentBlock:
        """Keys and values that one block lends."""
        return cast(_LentBlock, self.layers[index])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See `FTPCache.get_seq_length`."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """See `FTPCache.get_mask_sizes`."""
        return self.seen + query_length, 0


class _LentBlock(BlockCache):
    """One block's keys and values, followed by the continuation's own, which are not kept."""

    def __init__(self, lender: BlockCache, rows_R: Tensor) -> None:
        super().__init__()
        self._lender = lender
        self._rows_R = rows_R = rows_R.to(lender.positions.device)
        self.positions = lender.positions.index_select(0, rows_R)
        self.has_dead = lender.has_dead

    @property
    def held(self) -> int:
        """See `BlockCache.held`."""
        return self._lender.held

    def expect(self, positions_BQ: Tensor, has_dead: bool, rows_R: Tensor | None = None) -> None:
        """See `BlockCache.expect`."""
        self.positions = torch.cat([self.positions, positions_BQ], 1)
        self.has_dead = self.has_dead or has_dead

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The lender's keys and values with the new ones behind them."""
        assert self._lender.keys is not None
        assert self._lender.values is not None
        keys = self._lender.keys.index_select(0, self._rows_R)
        values = self._lender.values.index_select(0, self._rows_R)
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
