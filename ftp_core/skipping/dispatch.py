"""Models whose parts accelerate has spread over devices, or offloaded: where they compute, and where weights lie.

Everything that is decided about a batch stays on the model's own device, that of its inputs; what a block needs of it
is moved to the block's. Without accelerate's hooks there is one device, and nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def execution_device(module: nn.Module) -> torch.device | None:
    """Device that a hook of accelerate moves a module's inputs to; None if there is no such hook."""
    for hook in _hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return None


def device_of_inputs(model: PreTrainedModel) -> torch.device:
    """Device of a model's inputs and logits."""
    own: torch.device = model.device
    return execution_device(model) or own


def is_spread(model: PreTrainedModel) -> bool:
    """Returns True if parts of a model are on other devices than its inputs, or not in memory."""
    return execution_device(model) is not None


def stored_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a model's state, ordered by name; offloaded weights are read when it is their turn."""
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            prefix, _, leaf = name.rpartition(".")
            maps = [getattr(hook, "weights_map", None) for hook in _hooks(model.get_submodule(prefix))]
            found = next((weights for weights in maps if weights is not None), None)
            tensor = tensor if found is None else found[leaf]
        yield name, tensor


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    # Asked before every block: a module that has no such attribute takes long to say so.
    hook = vars(module).get("_hf_hook")
    return tuple(getattr(hook, "hooks", (hook,)))
