"""Projections of blocks as Llama names them: whether a model has them, and others in their place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ftp_core.checks import is_plain
from ftp_core.errors import ModelError
from ftp_core.skipping.skipping_model import SkippingModel

INTO_HEADS, OUT_OF_HEADS = ("q_proj", "k_proj", "v_proj"), "o_proj"
INTO_CHANNELS, OUT_OF_CHANNELS = ("gate_proj", "up_proj"), "down_proj"


def check_projections(model: SkippingModel, index: int, method: str) -> None:
    """Raises `ModelError` unless attention and MLP of a block are made of Llama's projections, and not quantised."""
    block, kind = model.blocks[index], model.model.config.model_type
    expected = {"self_attn": {*INTO_HEADS, OUT_OF_HEADS}, "mlp": {*INTO_CHANNELS, OUT_OF_CHANNELS}}
    for of_half, names in expected.items():
        half: Any = getattr(block, of_half, None)
        children = {} if half is None else dict(half.named_children())
        if {name for name, child in children.items() if type(child) is nn.Linear} != names:
            raise ModelError(
                f"{method} cuts projections {', '.join(sorted(names))}, but blocks of this {kind} model have "
                f"{', '.join(sorted(children)) or 'none of them'}: it needs a family with those of Llama."
            )
        for name, parameter in half.named_parameters():
            if not is_plain(parameter):
                raise ModelError(
                    f"{method} cannot cut projections of this {kind} model: weight {name} of block {index} is "
                    "quantised or not in memory. Load the model in floating point."
                )


def projection(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A projection with these weights `[out, in]`, which are not trained."""
    made: nn.Linear = nn.utils.skip_init(
        nn.Linear, weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype
    )
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made.eval()
