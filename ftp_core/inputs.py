"""Checks of what a pruned model is handed: its router, and every input."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from ftp_core.errors import DataError, ModelError
from ftp_core.routers import Router


def checked_router(router: Any) -> Router:
    """What was given as a router.

    Raises:
        ModelError: It is none, perhaps the name or the class of one.
    """
    if isinstance(router, type) or not callable(getattr(router, "keep", None)):
        raise ModelError(f"{router!r} is no router: give an object such as StaticRouter(), or a distilled one.")
    checked: Router = router
    return checked


def check_input(ids: Tensor | None, embeddings: Tensor | None, cache: Cache | None, vocabulary: int) -> None:
    """Check the input of a forward pass.

    Args:
        ids: `[B, L]`.
        embeddings: Instead of `ids` `[B, L, D]`.
        cache: Of an earlier pass.
        vocabulary: How many tokens the model knows.

    Raises:
        DataError: There is not one of the two, it has another shape, or a prompt has a token that the model does not
            know.
    """
    if (ids is None) == (embeddings is None):
        raise DataError("Give either input_ids or inputs_embeds.")
    if ids is None:
        _check_shape("inputs_embeds", embeddings, "B, L, D")
        return
    _check_shape("input_ids", ids, "B, L")
    # Not of tokens behind a prompt: on a GPU the question would take as long as many a block takes for one token.
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
