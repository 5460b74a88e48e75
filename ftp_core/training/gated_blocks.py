"""Blocks whose tokens stand behind gates: all of them are computed, and a gate says whose results count.

Shapes: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.skipping.attention import AttentionGate, gated_attention
from ftp_core.skipping.halves import names_of_halves
from ftp_core.skipping.interception import BlockCall, replaced_forwards
from ftp_core.skipping.skipping_model import SkippingModel


def gated_block(
    model: SkippingModel, call: BlockCall, hidden_BLD: Tensor, keys: AttentionGate, gate_BL: Tensor | None
) -> Tensor:
    """Runs a whole block; returns the hidden states behind it `[B, L, D]`.

    Args:
        model: The model.
        call: Call of the block.
        hidden_BLD: Hidden states before it.
        keys: Gate of the keys in its attention.
        gate_BL: 1 for tokens that run it, 0 for those that skip it; None if none skips.
    """
    arguments = {model.family.cache_argument: None, "attention_mask": None}
    with gated_attention(model.model, call.block, keys) as gated:
        out_BLD = call.run(hidden_BLD, **arguments, **gated)
    return _between(hidden_BLD, out_BLD, gate_BL)


def gated_halves(
    model: SkippingModel,
    call: BlockCall,
    hidden_BLD: Tensor,
    keys: AttentionGate,
    attention_BL: Tensor | None,
    mlp_BL: Tensor | None,
) -> Tensor:
    """Runs the halves of a block; returns the hidden states behind it `[B, L, D]`.

    Each half runs in a call of the block where the other one adds nothing, so that a gate stands behind whatever norm
    there is: before it, a norm would take its gradient away from open gates, and make that of closed ones huge.

    Args:
        model: The model.
        call: Call of the block.
        hidden_BLD: Hidden states before it.
        keys: Gate of the keys in its attention.
        attention_BL: 1 for tokens that run its attention, 0 for those that skip it; None if none skips.
        mlp_BL: The same for its MLP.

    Raises:
        ModelError: Blocks of the family have other parts beside these halves.
    """
    config = model.model.config
    attention, mlp = (call.block.get_submodule(name) for name in names_of_halves(model.family, config.model_type))
    returned: list[Any] = []
    listening = attention.register_forward_hook(lambda _module, _inputs, output: returned.append(output))
    # What an MLP returns, one token shows.
    with _adding_nothing(mlp, lambda forward, hidden: forward(hidden[:, :1])):
        attended_BLD = gated_block(model, call, hidden_BLD, keys, attention_BL)
    listening.remove()
    is_parallel = model.family.adds_in_parallel(config)
    before_BLD = hidden_BLD if is_parallel else attended_BLD
    with _adding_nothing(attention, lambda *_: returned[0]):
        out_BLD = call.run(before_BLD, **{model.family.cache_argument: None, "attention_mask": None})
    if is_parallel:
        out_BLD = attended_BLD + (out_BLD - hidden_BLD)
    return _between(attended_BLD, out_BLD, mlp_BL)


def _between(before_BLD: Tensor, behind_BLD: Tensor, gate_BL: Tensor | None) -> Tensor:
    if gate_BL is None:
        return behind_BLD
    # At both ends it is exact in any precision: training computes what inference does.
    return torch.lerp(before_BLD, behind_BLD, gate_BL[..., None].to(behind_BLD.dtype))


@contextmanager
def _adding_nothing(half: nn.Module, example: Callable[[Callable[..., Any], Tensor], Any]) -> Iterator[None]:
    """Context in which a half of a block returns zeros, in whatever `example(forward, hidden)` returns others."""

    def silenced(_: int, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            hidden_BLD = args[0] if args else kwargs["hidden_states"]
            with torch.no_grad():
                out = example(forward, hidden_BLD)
            first, *others = out if isinstance(out, tuple) else (out,)
            zeros_BLD = first.new_zeros(hidden_BLD.shape)
            return (zeros_BLD, *others) if isinstance(out, tuple) else zeros_BLD

        return run

    with replaced_forwards([half], silenced):
        yield
