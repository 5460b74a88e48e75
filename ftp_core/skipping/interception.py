"""Hands the calls of a model's blocks to a handler during a forward pass; the model itself stays as it is."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ftp_core.skipping.dispatch import execution_device


@dataclass(frozen=True)
class BlockCall:
    """One call of one block, as the model's own forward makes it.

    Attributes:
        hidden: Hidden states before the block, on its device `[B, L, D]`.
        arguments: The other arguments by name.
        forward: The block's own forward.
        block: The block.
    """

    hidden: Tensor
    arguments: dict[str, Any]
    forward: Callable[..., Any]
    block: nn.Module

    def run(self, hidden: Tensor, **changed: Any) -> Tensor:
        """Runs the block on other hidden states or changed arguments; returns the hidden states behind it."""
        out = self.forward(hidden, **{**self.arguments, **changed})
        behind: Tensor = out[0] if isinstance(out, tuple) else out
        return behind


BlockHandler = Callable[[int, BlockCall], Tensor]


@contextmanager
def intercepted(blocks: Sequence[nn.Module], handler: BlockHandler) -> Iterator[None]:
    """Context in which calls of the blocks go to `handler(index, call)`, which returns hidden states `[B, L, D]`.

    Other threads wait, see `exclusive`.
    """

    def intercepting(index: int, block: nn.Module) -> Callable[..., Tensor]:
        names, forward = _argument_names(type(block).forward), block.forward
        device = execution_device(block)

        def call(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            named = dict(zip(names, args, strict=False))
            if device is not None:
                hidden_states = hidden_states.to(device)
            return handler(index, BlockCall(hidden_states, {**named, **kwargs}, forward, block))

        return call

    with exclusive(blocks), replaced_forwards(blocks, intercepting):
        yield


@contextmanager
def replaced_forwards(
    modules: Sequence[nn.Module], replacement: Callable[[int, nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    """Context in which modules run something else: `replacement(index, module)`, which may call `module.forward`.

    Instances of `forward` are replaced, as accelerate does it, so that hooks, names and weights of the modules are not
    touched.
    """
    before = [module.__dict__.get("forward") for module in modules]
    for index, module in enumerate(modules):
        module.__dict__["forward"] = replacement(index, module)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


@contextmanager
def exclusive(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which no other thread runs these blocks through this module: a model serves one thread at a time."""
    with _GUARD:
        lock = _LOCKS.setdefault(blocks[0], threading.RLock())
    with lock:
        yield


_GUARD = threading.Lock()
_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


@cache
def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the positional arguments of a block's forward after `self` and the hidden states."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)[2:]
