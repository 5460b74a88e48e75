"""What skipping means, computed slowly: full blocks, one row, skipped tokens masked out of keys and passed through.

No gathering, no cache, one explicit mask for every kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.families import family_of
from ftp_core.interception import BlockCall, intercepted
from ftp_core.routers import Router, RoutingState
from ftp_core.schedule import SparsitySchedule


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


def slow_logits(
    model: PreTrainedModel,
    prompt: list[int],
    completion: list[int],
    schedule: SparsitySchedule,
    router: Router,
) -> tuple[Tensor, list[Tensor]]:
    """Logits of all tokens of a row `[T, V]`, and which tokens of the prompt ran each block."""
    family = family_of(model.config)
    n_prompt, total = len(prompt), len(prompt) + len(completion)
    ids = torch.tensor([prompt + completion])
    state = RoutingState.padded_right(torch.tensor([n_prompt]), n_prompt)
    distance = torch.arange(total)[:, None] - torch.arange(total)
    kept: list[Tensor] = []

    def run(index: int, call: BlockCall) -> Tensor:
        sparsity = schedule[index]
        state.block, state.hidden = index, call.hidden[:, :n_prompt]
        keep = state.real if sparsity == 0 else router.keep(sparsity, state)
        kept.append(keep[0])
        runs = torch.cat([keep[0], torch.ones(len(completion), dtype=torch.bool)])
        window = family.window(model.config, index)
        near = distance < window if window is not None else torch.ones_like(distance, dtype=torch.bool)
        visible = ((distance >= 0) & near & runs[None]) | torch.eye(total, dtype=torch.bool)
        # Additive, as every kernel takes it.
        mask = torch.zeros(1, 1, total, total).masked_fill(~visible, torch.finfo(torch.float32).min)
        arguments = {"attention_mask": mask, family.cache_argument: None}
        out = call.run(call.hidden, **arguments)
        if router.window:
            weights = attention_of(model, index, call, mask)[0].mean(0)
            listeners = keep[0].nonzero().flatten()[-router.window :]
            received = weights[listeners].sum(0)[:n_prompt] / len(listeners)
            state.observe(received[None], keep)
        return torch.where(runs[None, :, None], out, call.hidden)

    with intercepted(family.blocks_of(model), run), torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    return logits, kept
