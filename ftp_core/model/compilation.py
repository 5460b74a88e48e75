"""Compiled blocks that can still be copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

_T = TypeVar("_T")


class CompiledForward:
    """Compiled forward of a block; what is copied or pickled with the block is the plain one.

    The function that `torch.compile` makes holds on to the block that it was made for: copied as it is, it would run
    that block's weights in the place of the copy's own, and it cannot be pickled.
    """

    def __init__(self, plain: Callable[..., Any], options: dict[str, Any]) -> None:
        self.plain = plain
        self._compiled = torch.compile(plain, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the block."""
        return self._compiled(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Callable[..., Any]]]:
        """A method of a block, copied along with the block, becomes the copy's method."""
        return _itself, (self.plain,)


def compile_block(block: nn.Module, options: dict[str, Any]) -> None:
    """Compiles a block in place with options of `torch.compile`, anew if it was compiled before."""
    forward = block.forward
    block.forward = CompiledForward(forward.plain if isinstance(forward, CompiledForward) else forward, options)


def _itself(value: _T) -> _T:
    return value
