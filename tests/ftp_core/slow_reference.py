"""What skipping means, computed slowly: full blocks, one row, skipped tokens masked out of keys and passed through.

No gathering, no cache, one explicit mask for every kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftp_core.routers import Router, RoutingState, ScoringRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.interception import BlockCall, intercepted
from ftp_core.skipping.kept_projections import kept_projections_of
from ftp_core.skipping.substitutes import LowRank, substitutes_of


def attention_of(model: PreTrainedModel, index: int, call: BlockCall, mask: Tensor) -> Tensor:
    """Attention weights of a block `[1, H, T, T]`, from the model's eager attention under a mask."""
    found: list[Tensor] = []
    block = family_of(model.config).blocks_of(model)[index]
    attention = next(module for name, module in block.named_children() if "attn" in name or name == "attention")
    handle = attention.register_forward_hook(lambda _module, _inputs, output: found.append(output[1]))
    kernel = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        call.run(call.hidden, attention_mask=mask)
    finally:
        model.config._attn_implementation = kernel
        handle.remove()
    return found[0]


@contextmanager
def halves_for(
    block: nn.Module, halves: Sequence[str], runs: Sequence[Tensor], maps: Sequence[LowRank | None]
) -> Iterator[None]:
    """Context in which each half of a block adds nothing, or what a map says, to the tokens that do not run it [T]."""
    handles = []
    for name, runs_T, instead in zip(halves, runs, maps, strict=True):

        def changed(
            _: nn.Module,
            args: Any,
            kwargs: Any,
            output: Any,
            runs_1T1: Tensor = runs_T[None, :, None],
            instead: LowRank | None = instead,
        ) -> Any:
            first, *others = output if isinstance(output, tuple) else (output,)
            read = args[0] if args else kwargs["hidden_states"]
            added = torch.zeros_like(read) if instead is None else read @ instead.down.T @ instead.up.T + instead.bias
            first = torch.where(runs_1T1, first.reshape(read.shape), added)
            return (first, *others) if isinstance(output, tuple) else first

        handles.append(block.get_submodule(name).register_forward_hook(changed, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def projecting(block: nn.Module, runs_T: Tensor, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Context in which other projections of a block's attention serve the tokens that do not run it [T]."""
    attention = next(module for name, module in block.named_children() if "attn" in name or name == "attention")
    handles = [
        attention.get_submodule(name).register_forward_hook(
            lambda _, args, output, part=part: torch.where(runs_T[None, :, None], output, part(args[0]))
        )
        for name, part in parts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slow_decoded_logits(
    model: PreTrainedModel,
    ids: list[int],
    n_prompt: int,
    schedule: SparsitySchedule,
    router: Router,
    decode_sparsity: float,
) -> tuple[Tensor, list[int]]:
    """Logits behind the prompt and behind each decoded token `[1 + D, V]`, and decoded tokens skipped by each block.

    Every token is computed anew with all before it, under the decisions that were taken on those.
    """
    family = family_of(model.config)
    runs = [torch.ones(len(ids), dtype=torch.bool) for _ in schedule]
    lines: list[Tensor | None] = [None] * len(schedule)
    skipped, logits = [0] * len(schedule), []
    for total in range(n_prompt, len(ids) + 1):
        n_decoded = total - n_prompt
        state = RoutingState.padded_right(torch.tensor([total]), total)
        distance = torch.arange(total)[:, None] - torch.arange(total)

        def decide(index: int, n_decoded: int = n_decoded, state: RoutingState = state, total: int = total) -> None:
            sparsity = schedule[index]
            state.block = index
            if sparsity == 0:
                return
            if n_decoded == 0:
                runs[index][:total] = router.keep(sparsity, state)[0]
                lines[index] = state.line
                return
            if isinstance(router, StaticRouter):
                keep = True
            else:
                assert isinstance(router, ScoringRouter)
                score = router.scores(sparsity, state)[0, -1]
                line = lines[index]
                if router.thresholds is not None:
                    keep = bool(score > router.thresholds[index])
                else:
                    assert line is not None
                    keep = bool(score >= line[0])
            if not keep and skipped[index] + 1 <= decode_sparsity * n_decoded + 1e-9:
                runs[index][total - 1] = False
                skipped[index] += 1

        def run(
            index: int,
            call: BlockCall,
            state: RoutingState = state,
            distance: Tensor = distance,
            total: int = total,
            decide: Callable[[int], None] = decide,
        ) -> Tensor:
            decide(index)
            ran = runs[index][:total]
            window = family.window(model.config, index)
            near = distance < window if window is not None else torch.ones_like(distance, dtype=torch.bool)
            visible = ((distance >= 0) & near & ran[None]) | torch.eye(total, dtype=torch.bool)
            mask = torch.zeros(1, 1, total, total).masked_fill(~visible, torch.finfo(torch.float32).min)
            out = call.run(call.hidden, **{"attention_mask": mask, family.cache_argument: None})
            if router.window:
                weights = attention_of(model, index, call, mask)[0].mean(0)
                listeners = ran.nonzero().flatten()[-router.window :]
                state.observe((weights[listeners].sum(0) / len(listeners))[None], ran[None])
            return torch.where(ran[None, :, None], out, call.hidden)

        with intercepted(family.blocks_of(model), run), torch.no_grad():
            logits.append(model(torch.tensor([ids[:total]]), use_cache=False).logits[0, -1])
    return torch.stack(logits), skipped


def slow_logits(
    model: PreTrainedModel,
    prompt: list[int],
    completion: list[int],
    schedule: SparsitySchedule,
    router: Router,
    keep_first: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """Logits of all tokens of a row `[T, V]`, and which tokens of the prompt ran each block."""
    family = family_of(model.config)
    n_prompt, total = len(prompt), len(prompt) + len(completion)
    ids = torch.tensor([prompt + completion])
    state = RoutingState.padded_right(torch.tensor([n_prompt]), n_prompt, keep_first)
    distance = torch.arange(total)[:, None] - torch.arange(total)
    kept: list[Tensor] = []

    def run(index: int, call: BlockCall) -> Tensor:
        entry = schedule.blocks[index]
        state.block, state.hidden = index, call.hidden[:, :n_prompt]
        keeps = []
        for half, sparsity in (("attention", entry.attention), ("mlp", entry.mlp)):
            state.half = "block" if entry.is_whole else half
            keeps.append(state.real if sparsity == 0 else router.keep(sparsity, state))
        state.half = "block"
        keep = keeps[0]
        kept.append(keep[0])
        behind = torch.ones(len(completion), dtype=torch.bool)
        runs, runs_mlp = (torch.cat([half[0], behind]) for half in keeps)
        has_key = torch.ones_like(runs) if entry.keeps_kv else runs
        window = family.window(model.config, index)
        near = distance < window if window is not None else torch.ones_like(distance, dtype=torch.bool)
        visible = ((distance >= 0) & near & has_key[None]) | torch.eye(total, dtype=torch.bool)
        # Additive, as every kernel takes it.
        mask = torch.zeros(1, 1, total, total).masked_fill(~visible, torch.finfo(torch.float32).min)
        arguments = {"attention_mask": mask, family.cache_argument: None}
        given = kept_projections_of(model) if entry.keeps_kv else None
        projections = call.block, runs, {} if given is None else given.of(index)
        if entry.is_whole:
            out = torch.where(runs[None, :, None], call.run(call.hidden, **arguments), call.hidden)
        else:
            maps = substitutes_of(model)
            own = (None, None) if maps is None else maps.of(index)[:2]
            with halves_for(call.block, family.halves, (runs, runs_mlp), own), projecting(*projections):
                out = call.run(call.hidden, **arguments)
            if maps is not None:
                passed = call.hidden + maps.of(index).whole(call.hidden)
                out = torch.where((runs | runs_mlp)[None, :, None], out, passed)
        if router.window:
            with projecting(*projections):
                weights = attention_of(model, index, call, mask)[0].mean(0)
            listeners = keep[0].nonzero().flatten()[-router.window :]
            received = weights[listeners].sum(0)[:n_prompt] / len(listeners)
            state.observe(received[None], has_key[None, :n_prompt])
        return out

    with intercepted(family.blocks_of(model), run), torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    return logits, kept
