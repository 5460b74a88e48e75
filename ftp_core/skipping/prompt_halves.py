"""Runs prompts through a block whose halves skip different tokens.

Dimensions: B rows, L tokens of a row, U tokens that run any half, K tokens that run one, S tokens that skip attention,
M keys, D hidden width, G key heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ftp_core.schedule import BlockSparsity
from ftp_core.skipping.cache import DEAD
from ftp_core.skipping.gathering import Between, Chosen, Ends
from ftp_core.skipping.halves import MergedKeys, keys_and_values, names_of_halves, on_their_tokens
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.masks import kernel_mask_of_some, visible_keys

if TYPE_CHECKING:
    from ftp_core.skipping.skipping import PromptPass


def run_halves(prompts: PromptPass, index: int, call: BlockCall, entry: BlockSparsity, listens: bool) -> Tensor:
    """Runs a block's attention on some tokens of prompts and its MLP on others; returns `[B, L, D]`.

    Args:
        prompts: The pass of the prompts.
        index: Number of the block.
        call: Call of the block.
        entry: What the schedule says of it.
        listens: Whether attention received is to be observed.

    Raises:
        ModelError: The block has other parts beside attention and MLP.
    """
    names_of_halves(prompts.family, prompts.model.config.model_type)
    device, state = call.hidden.device, prompts.state
    attention_BL, attention_counts = _decided(prompts, entry.attention, "attention")
    mlp_BL, mlp_counts = _decided(prompts, entry.mlp, "mlp")
    prompts.note_kept(attention_BL, mlp_BL)
    run_attention_BL, run_mlp_BL = prompts.kept[-1], prompts.kept_mlp[-1]
    everything = prompts.totals(state.row_lengths)
    n_attention, n_mlp = prompts.totals(attention_counts), prompts.totals(mlp_counts)
    used_BL = run_attention_BL | run_mlp_BL
    if everything in (n_attention, n_mlp):
        n_used = everything
    elif getattr(prompts.router, "keeps_ends", False):
        n_used = tuple(map(max, n_attention, n_mlp))
    else:
        n_used = tuple(used_BL.sum(1).tolist())
    # Tokens that run nothing, padding included, are left out of the call.
    used = None if n_used == everything else prompts.chosen(used_BL, n_used)

    halves = tuple(
        _within(prompts, used, run_BL, counts, n_used)
        for run_BL, counts in ((run_attention_BL, n_attention), (run_mlp_BL, n_mlp))
    )
    changed: dict[str, Any] = {}
    hidden_BUD = call.hidden
    if used is not None:
        hidden_BUD = used.tokens.gather(call.hidden)
        changed = {name: used.tokens.gather(argument) for name, argument in prompts.per_token(call).items()}
    observer, attended_BL, chosen = None, state.real, None
    if n_attention == everything:
        arguments, observer = prompts.whole_attention(index, call, listens)
        changed |= arguments
    else:
        chosen = halves[0] if used is None else used if halves[0] is None else used.of_them(halves[0])
        assert chosen is not None
        positions_BK = chosen.columns(DEAD)
        keys_BM = positions_BK
        if entry.keeps_kv:
            keys_BM = torch.where(prompts.real, prompts.columns, DEAD)
            changed |= _with_kept_keys(prompts, index, call, chosen, run_attention_BL, n_attention, keys_BM)
        else:
            attended_BL = attention_BL
            changed |= prompts.for_some(index, call, chosen)
        if listens:
            listened_BK = prompts.listened(index, chosen, always=entry.keeps_kv)
            observer = prompts.observer(listened_BK, positions_BK, prompts.window(index), device, keys_BM)
    with on_their_tokens(prompts.family, call.block, *halves):
        out_BUD = prompts.run(call, hidden_BUD, observer, **changed)
    if observer is not None and observer.received is not None:
        received = observer.received
        if chosen is not None and not entry.keeps_kv:
            received = prompts.by_column(received, chosen)
        state.observe(received.to(prompts.real.device), attended_BL)
    if used is None:
        return prompts.ended(index, out_BUD)
    return prompts.ended(index, used.tokens.scatter(used.restored(out_BUD, hidden_BUD), call.hidden))


def _within(
    prompts: PromptPass, used: Chosen | None, run_BL: Tensor, counts: tuple[int, ...], n_used: tuple[int, ...]
) -> Chosen | None:
    """Tokens that run a half, by their columns among those of the call; None if they are all of them."""
    if counts == n_used:
        return None
    if used is not None:
        run_BL = run_BL.gather(1, used.places)
        run_BL = run_BL if used.filler is None else run_BL & ~used.filler
    return prompts.chosen(run_BL, counts)


def _decided(prompts: PromptPass, sparsity: float, half: Literal["attention", "mlp"]) -> tuple[Tensor, tuple[int, ...]]:
    """Tokens of the prompts that run a half `[B, L]`, and how many of each row."""
    state = prompts.state
    if sparsity == 0:
        return state.real, state.row_lengths
    state.half = half
    keep_BL = prompts.router.keep(sparsity, state)
    state.half = "block"
    if prompts.router.keeps_budget:
        return keep_BL, state.row_kept_counts(sparsity)
    return keep_BL, tuple(keep_BL.sum(1).tolist())


def _with_kept_keys(
    prompts: PromptPass,
    index: int,
    call: BlockCall,
    chosen: Chosen,
    run_BL: Tensor,
    counts: Sequence[int],
    columns_BL: Tensor,
) -> dict[str, Any]:
    """Mask and cache of an attention that some tokens run while the others have keys and values, too."""
    rest_BL = prompts.real & ~run_BL
    totals = prompts.totals(prompts.state.row_lengths)
    rest = _rest(prompts, chosen, rest_BL, [total - n for total, n in zip(totals, counts, strict=True)])
    per_token = {name: rest.tokens.gather(argument) for name, argument in prompts.per_token(call).items()}
    keys_BGSE, values_BGSE = keys_and_values(call, prompts.family, rest.tokens.gather(call.hidden), **per_token)
    # Rows whose tokens stand alike see alike.
    n_rows = 1 if isinstance(chosen.tokens, Ends) else len(columns_BL)
    visible_BKL = visible_keys(chosen.places[:n_rows], columns_BL[:n_rows], prompts.window(index))
    mask = kernel_mask_of_some(visible_BKL, prompts.kernel, call.hidden.dtype).to(call.hidden.device)
    cache = None if prompts.cache is None else prompts.cache.block(index)
    merged = MergedKeys(cache, columns_BL, prompts.has_padding, chosen, rest, keys_BGSE, values_BGSE)
    return {"attention_mask": mask, prompts.family.cache_argument: merged}


def _rest(prompts: PromptPass, chosen: Chosen, rest_BL: Tensor, counts: Sequence[int]) -> Chosen:
    """Tokens that are not among others."""
    if isinstance(chosen.tokens, Ends):
        between = Between(chosen.tokens)
        return Chosen(between, between.columns(prompts.columns.expand(rest_BL.shape)), None)
    return Chosen.of(rest_BL, counts)
