"""Blocks whose tokens stand behind gates: all of them are computed, and a gate says whose results count.

Shapes: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftp_core.skipping.attention import AttentionGate, gated_attention
from ftp_core.skipping.halves import names_of_halves
from ftp_core.skipping.interception import BlockCall, replaced_forwards
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import LowRank, substitutes_of


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
    with gated_attention(model.model, call.block, keys) as gated:
        out_BLD = call.run(hidden_BLD, **_alone(model), **gated)
    return _between(hidden_BLD, out_BLD, gate_BL)


def gated_halves(
    model: SkippingModel,
    index: int,
    call: BlockCall,
    hidden_BLD: Tensor,
    keys: AttentionGate,
    attention_BL: Tensor | None,
    mlp_BL: Tensor | None,
) -> Tensor:
    """Runs the halves of a block; returns the hidden states behind it `[B, L, D]`.

    Each half runs in a call of the block where the other one adds nothing, so that a gate stands behind whatever norm
    there is: before it, a norm would take its gradient away from open gates, and make that of closed ones huge. So does
    what stands in for a half that is skipped.

    Args:
        model: The model.
        index: Number of the block.
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
    with _adding(None, mlp, _one_token):
        attended_BLD = gated_block(model, call, hidden_BLD, keys, None)
    listening.remove()
    found = substitutes_of(model.model)
    maps = None if found is None else found.of(index)
    skipped_BLD = hidden_BLD
    if maps is not None and attention_BL is not None:
        with _adding(maps.attention, attention, lambda *_: returned[0]), _adding(None, mlp, _one_token):
            skipped_BLD = call.run(hidden_BLD, **_alone(model))
    attended_BLD = _between(skipped_BLD, attended_BLD, attention_BL)
    is_parallel = model.family.adds_in_parallel(config)
    skipped_BLD = before_BLD = hidden_BLD if is_parallel else attended_BLD
    with _adding(None, attention, lambda *_: returned[0]):
        out_BLD = call.run(before_BLD, **_alone(model))
        if maps is not None and mlp_BL is not None:
            with _adding(maps.mlp, mlp, _one_token):
                skipped_BLD = call.run(before_BLD, **_alone(model))
    if is_parallel:
        out_BLD, skipped_BLD = (attended_BLD + (one_BLD - hidden_BLD) for one_BLD in (out_BLD, skipped_BLD))
    out_BLD = _between(skipped_BLD, out_BLD, mlp_BL)
    if maps is None or attention_BL is None or mlp_BL is None:
        return out_BLD
    # Tokens that skip both get one map for the whole block.
    return _between(out_BLD, hidden_BLD + maps.whole(hidden_BLD), (1 - attention_BL) * (1 - mlp_BL))


@contextmanager
def projected_apart(
    model: SkippingModel, block: nn.Module, projections: Mapping[str, nn.Module] | None, gate_BL: Tensor | None
) -> Iterator[None]:
    """Context in which other projections make keys and values of the tokens that skip a block's attention.

    Args:
        model: The model.
        block: The block.
        projections: What runs in place of projections of its attention, by their names; None or empty: nothing does.
        gate_BL: 1 for tokens that run its attention, 0 for those that skip it; None if none skips.
    """
    if not projections or gate_BL is None:
        yield
        return
    assert model.family.halves is not None
    attention, others = block.get_submodule(model.family.halves[0]), list(projections.values())

    def replaced(number: int, module: nn.Module) -> Callable[..., Tensor]:
        forward = module.forward
        return lambda hidden_BLD: _between(others[number](hidden_BLD), forward(hidden_BLD), gate_BL)

    with replaced_forwards([attention.get_submodule(name) for name in projections], replaced):
        yield


def _alone(model: SkippingModel) -> dict[str, None]:
    return {model.family.cache_argument: None, "attention_mask": None}


def _one_token(forward: Callable[..., Any], hidden_BLD: Tensor) -> Any:
    """What a half returns, as one token shows it."""
    return forward(hidden_BLD[:, :1])


def _between(before_BLD: Tensor, behind_BLD: Tensor, gate_BL: Tensor | None) -> Tensor:
    if gate_BL is None:
        return behind_BLD
    # At both ends it is exact in any precision: training computes what inference does.
    return torch.lerp(before_BLD, behind_BLD, gate_BL[..., None].to(behind_BLD.dtype))


@contextmanager
def _adding(
    substitute: LowRank | None, half: nn.Module, example: Callable[[Callable[..., Any], Tensor], Any]
) -> Iterator[None]:
    """Context in which a half of a block returns what stands in for it, or zeros if nothing does.

    Args:
        substitute: What stands in for it.
        half: The half.
        example: Gives what it returns beside that, of its forward and the hidden states that it reads.
    """

    def replaced(_: int, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            hidden_BLD = args[0] if args else kwargs["hidden_states"]
            with torch.no_grad():
                out = example(forward, hidden_BLD)
            first, *others = out if isinstance(out, tuple) else (out,)
            added_BLD = first.new_zeros(hidden_BLD.shape) if substitute is None else substitute(hidden_BLD)
            return (added_BLD, *others) if isinstance(out, tuple) else added_BLD

        return run

    with replaced_forwards([half], replaced):
        yield
