"""Runs prompts through a block whose halves skip different tokens.

What hangs on the tokens that run and on nothing else is a plan, made once for all blocks that decide alike.

Dimensions: B rows, L tokens of a row, U tokens that run any half, K tokens that run one, S tokens that skip attention,
M keys, D hidden width, G key heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ftp_core.schedule import BlockSparsity
from ftp_core.skipping.cache import DEAD
from ftp_core.skipping.gathering import Between, Chosen, Ends
from ftp_core.skipping.halves import MergedKeys, Share, keys_and_values, names_of_halves, on_their_tokens
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.masks import kernel_mask_of_some, visible_keys
from ftp_core.skipping.norms import MeasuredStates

if TYPE_CHECKING:
    from ftp_core.skipping.skipping import PromptPass


@dataclass(frozen=True)
class OtherKeys:
    """Keys and values of tokens that skip a block's attention.

    Attributes:
        tokens: These tokens.
        columns: Column of each token of the prompts, `DEAD` where there is none `[B, L]`.
        mask: Mask of the attention with all keys, as its kernel takes it.
    """

    tokens: Chosen
    columns: Tensor
    mask: Tensor


@dataclass(frozen=True)
class HalvesPlan:
    """Tokens that run the halves of a block, and what follows from them.

    Attributes:
        attention: Tokens of the prompts that run its attention `[B, L]`.
        run_attention: The same with those of completions `[B, L]`.
        run_mlp: Tokens that run its MLP `[B, L]`.
        used: Tokens that run any half, which the block is called with; None for all.
        halves: Those that run its attention and its MLP, by their columns among the former; None for all of them.
        chosen: Those that run its attention, by their columns among all; None for all.
        others: Keys of the others; None if they have none.
        rests: Tokens of the call that skip its attention, and that skip its MLP, by their columns among those of the
            call; None if nothing stands in for what they skip.
        passing: Tokens that skip both, which are none of the call, by their columns among all; None if nothing stands
            in for what they skip.
    """

    attention: Tensor
    run_attention: Tensor
    run_mlp: Tensor
    used: Chosen | None
    halves: tuple[Chosen | None, Chosen | None]
    chosen: Chosen | None = None
    others: OtherKeys | None = None
    rests: tuple[Chosen | None, Chosen | None] = (None, None)
    passing: Chosen | None = None


def run_halves(prompts: PromptPass, index: int, call: BlockCall, entry: BlockSparsity, listens: bool) -> Tensor:
    """Runs a block's attention on some tokens of prompts and its MLP on others; returns `[B, L, D]`.

    Args:
        prompts: The pass of the prompts.
        index: Number of the block.
        call: Call of the block.
        entry: Its sparsity in the schedule.
        listens: Whether attention received is to be observed.

    Raises:
        ModelError: The block has other parts beside attention and MLP.
    """
    names_of_halves(prompts.family, prompts.model.config.model_type)
    plan = _plan(prompts, index, entry, call.hidden.dtype)
    prompts.kept.append(plan.run_attention)
    prompts.kept_mlp.append(plan.run_mlp)
    used, chosen = plan.used, plan.chosen
    changed: dict[str, Any] = {}
    hidden_BUD = call.hidden
    # Tokens that run nothing, padding included, are left out of the call.
    if used is not None:
        hidden_BUD = used.tokens.gather(call.hidden)
        changed = {name: used.tokens.gather(argument) for name, argument in prompts.per_token(call).items()}
    observer = keyed = None
    if chosen is None:
        arguments, observer = prompts.whole_attention(index, call, listens)
        changed |= arguments
    else:
        if plan.others is None:
            changed |= prompts.for_some(index, call, chosen)
        else:
            keyed = _states_of(plan.others.tokens, call.hidden)
            changed |= _with_kept_keys(prompts, index, call, chosen, plan.others, keyed)
        if listens:
            listened_BK = prompts.listened(index, chosen, always=entry.keeps_kv)
            window, device = prompts.window(index), call.hidden.device
            keys_BL = None if plan.others is None else plan.others.columns
            observer = prompts.observer(listened_BK, chosen.columns(DEAD), window, device, keys_BL)
    maps = None if prompts.substitutes is None else prompts.substitutes.of(index)
    own = (None, None) if maps is None else (maps.attention, maps.mlp)
    theirs = [
        None if chosen is None else Share(chosen, rest, substitute)
        for chosen, rest, substitute in zip(plan.halves, plan.rests, own, strict=True)
    ]
    with on_their_tokens(prompts.family, call.block, *theirs):
        out_BUD = prompts.run(call, hidden_BUD, observer, **changed)
    if observer is not None and observer.received is not None:
        received, attended_BL = observer.received, prompts.state.real
        if chosen is not None and plan.others is None:
            received, attended_BL = prompts.by_column(received, chosen), plan.attention
        prompts.state.observe(received.to(prompts.real.device), attended_BL)
    if used is None:
        return prompts.ended(index, out_BUD)
    passing = plan.passing
    if passing is None or maps is None:
        return prompts.ended(index, used.tokens.scatter(used.restored(out_BUD, hidden_BUD), call.hidden))
    if keyed is None or plan.others is None or plan.others.tokens is not passing:
        keyed = _states_of(passing, call.hidden)
    passed_BSD = keyed.hidden + maps.whole.of_measured(keyed)
    if isinstance(used.tokens, Ends):
        return prompts.ended(index, used.tokens.joined(out_BUD, passed_BSD))
    behind_BLD = passing.tokens.scatter(passing.restored(passed_BSD, keyed.hidden), call.hidden)
    # Fillers are tokens that have just passed.
    hidden_BUD = hidden_BUD if used.filler is None else used.tokens.gather(behind_BLD)
    return prompts.ended(index, used.tokens.scatter(used.restored(out_BUD, hidden_BUD), behind_BLD))


def _states_of(chosen: Chosen, hidden_BLD: Tensor) -> MeasuredStates:
    # Of a slice, projections would multiply row by row, and copy their weights for each.
    return MeasuredStates(chosen.tokens.gather(hidden_BLD).contiguous())


def _plan(prompts: PromptPass, index: int, entry: BlockSparsity, dtype: torch.dtype) -> HalvesPlan:
    """The plan of a block with a sparsity: a known one where the router always decides alike."""
    if not getattr(prompts.router, "keeps_ends", False):
        return _new_plan(prompts, index, entry, dtype)
    known = prompts.plans.get(key := (entry, prompts.window(index)))
    if known is None:
        known = prompts.plans[key] = _new_plan(prompts, index, entry, dtype)
    return known


def _new_plan(prompts: PromptPass, index: int, entry: BlockSparsity, dtype: torch.dtype) -> HalvesPlan:
    attention_BL, attention_counts = _decided(prompts, entry.attention, "attention")
    mlp_BL, mlp_counts = _decided(prompts, entry.mlp, "mlp")
    run_attention_BL, run_mlp_BL = map(prompts.with_completions, (attention_BL, mlp_BL))
    everything = prompts.totals(prompts.state.row_lengths)
    n_attention, n_mlp = prompts.totals(attention_counts), prompts.totals(mlp_counts)
    used_BL = run_attention_BL | run_mlp_BL
    if everything in (n_attention, n_mlp):
        n_used = everything
    elif getattr(prompts.router, "keeps_ends", False):
        n_used = tuple(map(max, n_attention, n_mlp))
    else:
        n_used = tuple(used_BL.sum(1).tolist())
    used = None if n_used == everything else prompts.chosen(used_BL, n_used)
    of_attention = _within(prompts, used, run_attention_BL, n_attention, n_used)
    halves = of_attention, _within(prompts, used, run_mlp_BL, n_mlp, n_used)
    rests: tuple[Chosen | None, Chosen | None] = (None, None)
    passing = None
    if prompts.substitutes is not None:
        attention, mlp = (
            None if half is None else _rest(half, _among(used, prompts.real), _among(used, run_BL), n_used, n_run)
            for half, run_BL, n_run in zip(halves, (run_attention_BL, run_mlp_BL), (n_attention, n_mlp), strict=True)
        )
        rests = attention, mlp
        passing = None if used is None else _rest(used, prompts.real, used_BL, everything, n_used)
    if n_attention == everything:
        return HalvesPlan(attention_BL, run_attention_BL, run_mlp_BL, used, halves, rests=rests, passing=passing)
    chosen = of_attention if used is None else used if of_attention is None else used.of_them(of_attention)
    assert chosen is not None
    others = None
    if entry.keeps_kv:
        # Those that skip attention may be those that skip both: their states are then taken out and measured once.
        rest = passing if of_attention is None else None
        rest = rest or _rest(chosen, prompts.real, run_attention_BL, everything, n_attention)
        others = _other_keys(prompts, index, chosen, rest, dtype)
    return HalvesPlan(attention_BL, run_attention_BL, run_mlp_BL, used, halves, chosen, others, rests, passing)


def _within(
    prompts: PromptPass, used: Chosen | None, run_BL: Tensor, counts: tuple[int, ...], n_used: tuple[int, ...]
) -> Chosen | None:
    """Tokens that run a half, by their columns among those of the call; None if they are all of them."""
    if counts == n_used:
        return None
    return prompts.chosen(_among(used, run_BL), counts)


def _among(used: Chosen | None, marks_BL: Tensor) -> Tensor:
    """Marks of tokens by their columns among those of the call `[B, U]`; fillers have none."""
    if used is None:
        return marks_BL
    marks_BU = marks_BL.gather(1, used.places)
    return marks_BU if used.filler is None else marks_BU & ~used.filler


def _rest(chosen: Chosen, real_BL: Tensor, run_BL: Tensor, n_real: Sequence[int], n_run: Sequence[int]) -> Chosen:
    """Tokens that skip what others run, of all columns that these are given by.

    Args:
        chosen: Tokens that run it.
        real_BL: Marks of all tokens.
        run_BL: Marks of those that run it.
        n_real: Number of all tokens of each row, for which no device has to be asked.
        n_run: Number of those that run it.
    """
    if isinstance(chosen.tokens, Ends):
        between = Between(chosen.tokens)
        columns_L = torch.arange(run_BL.shape[1], device=run_BL.device)
        return Chosen(between, between.columns(columns_L.expand(run_BL.shape)), None)
    return Chosen.of(real_BL & ~run_BL, [all_of - ran for all_of, ran in zip(n_real, n_run, strict=True)])


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


def _other_keys(prompts: PromptPass, index: int, chosen: Chosen, rest: Chosen, dtype: torch.dtype) -> OtherKeys:
    columns_BL = torch.where(prompts.real, prompts.columns, DEAD)
    # Rows whose tokens stand alike see alike.
    n_rows = 1 if isinstance(chosen.tokens, Ends) else len(columns_BL)
    visible_BKL = visible_keys(chosen.places[:n_rows], columns_BL[:n_rows], prompts.window(index))
    return OtherKeys(rest, columns_BL, kernel_mask_of_some(visible_BKL, prompts.kernel, dtype))


def _with_kept_keys(
    prompts: PromptPass, index: int, call: BlockCall, chosen: Chosen, others: OtherKeys, states: MeasuredStates
) -> dict[str, Any]:
    """Mask and cache of an attention that some tokens run while the others have keys and values, too."""
    take = others.tokens.tokens.gather
    per_token = {name: take(argument) for name, argument in prompts.per_token(call).items()}
    own = None if prompts.kept_projections is None else prompts.kept_projections.of(index)
    keys_BGSE, values_BGSE = keys_and_values(call, prompts.family, states, own, **per_token)
    cache = None if prompts.cache is None else prompts.cache.block(index)
    merged = MergedKeys(cache, others.columns, prompts.has_padding, chosen, others.tokens, keys_BGSE, values_BGSE)
    return {"attention_mask": others.mask.to(call.hidden.device), prompts.family.cache_argument: merged}
