"""Checks of a user's input, before any work starts.

Shapes: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ftp_core.errors import DataError, ModelError, ScheduleError

if TYPE_CHECKING:
    from ftp_core.routers import Router


def check_finite(model: PreTrainedModel) -> None:
    """Raise `ModelError` if a weight of the model is NaN or infinite; names the first one."""
    check_finite_weights(model.named_parameters())


def is_plain(weight: object) -> bool:
    """True if a weight is an ordinary tensor in memory, neither quantised by a class of its own nor offloaded."""
    return type(weight) in (Tensor, nn.Parameter) and not weight.is_meta  # type: ignore[attr-defined]


def check_finite_weights(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `ModelError` if a plain weight is NaN or infinite; names the first one."""
    for name, tensor in weights:
        # Numbers of one byte have a scale of their own, or no infinity.
        if not is_plain(tensor) or tensor.numel() == 0 or tensor.dtype.itemsize == 1:
            continue
        # Extremes need no memory, and are NaN where a weight is; sums of half precision take five times as long.
        if not all(bool(extreme.isfinite()) for extreme in tensor.detach().aminmax()):
            raise ModelError(
                f"Weight {name} of the model is not finite: its file is damaged, or its training diverged."
            )


def check_prompts(real_BL: Tensor, context: int) -> None:
    """Raise `DataError` for prompts without a token, or longer than the context; padding is False."""
    n_rows, width = real_BL.shape
    if n_rows == 0 or width == 0:
        raise DataError(f"The prompts are empty (shape {n_rows} x {width}): give at least one token.")
    check_lengths(real_BL.sum(1).tolist(), context)


def check_lengths(lengths: Sequence[int], context: int) -> None:
    """Raise `DataError` unless every row of a batch has between one and `context` real tokens."""
    if 0 in lengths:
        raise DataError(f"Row {lengths.index(0)} of the batch is all padding: give at least one token.")
    longest = max(lengths)
    if longest > context:
        raise DataError(
            f"Row {lengths.index(longest)} of the batch is {longest} tokens long, but the model reads {context}: "
            "shorten it."
        )


def checked_router(router: Any) -> Router:
    """The router; raises `ModelError` if it is none, perhaps the name or the class of one."""
    if isinstance(router, type) or not callable(getattr(router, "keep", None)):
        raise ModelError(f"{router!r} is no router: give an object such as StaticRouter(), or a distilled one.")
    checked: Router = router
    return checked


def checked_keep_first(n_tokens: Any) -> int:
    """The number of protected tokens; raises `ScheduleError` if it is no whole number from 0."""
    if type(n_tokens) is not int or n_tokens < 0:  # not isinstance: True is an int
        raise ScheduleError(
            f"keep_first is {n_tokens!r}, but must be a whole number from 0: tokens at the beginning of every prompt "
            "that blocks keep before any other."
        )
    return n_tokens


def check_input(ids: Tensor | None, embeddings: Tensor | None, cache: Cache | None, vocabulary: int) -> None:
    """Check the input of a forward pass: ids `[B, L]` or embeddings `[B, L, D]`, behind an earlier pass's cache.

    Raises:
        DataError: Not exactly one is given, it has another shape, or a prompt has a token beyond the vocabulary.
    """
    if (ids is None) == (embeddings is None):
        raise DataError("Give either input_ids or inputs_embeds.")
    if ids is None:
        _check_shape("inputs_embeds", embeddings, "B, L, D")
        return
    _check_shape("input_ids", ids, "B, L")
    # Not for tokens behind a prompt: on a GPU the check would take as long as a block takes for one token.
    if ids.numel() == 0 or (cache is not None and cache.get_seq_length() > 0):
        return
    lowest, highest = (int(end) for end in ids.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise DataError(
            f"input_ids holds the token {lowest if lowest < 0 else highest}, but the model knows {vocabulary} tokens, "
            f"0 to {vocabulary - 1}: use the model's own tokenizer."
        )


def _check_shape(name: str, given: object, shape: str) -> None:
    if not isinstance(given, Tensor):
        raise DataError(f"{name} is a {type(given).__name__}, but must be a tensor [{shape}].")
    if given.ndim != len(shape.split(", ")):
        raise DataError(f"{name} has the shape {tuple(given.shape)}, but must be a tensor [{shape}].")
