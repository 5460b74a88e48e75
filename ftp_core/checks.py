"""Checks of what a user hands in, before any work starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.errors import DataError, ModelError


def check_finite(model: PreTrainedModel) -> None:
    """Raise `ModelError` if a weight of the model is NaN or infinite; names the first one."""
    for name, tensor in model.named_parameters():
        if tensor.device.type == "meta":
            continue
        # A sum needs no memory. It can overflow where no weight is at fault, so that only then each is looked at.
        if not bool(tensor.detach().sum(dtype=torch.float32).isfinite()) and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"Weight {name} of the model is not finite: its file is damaged, or its training diverged."
            )


def check_prompts(real: Tensor, context: int) -> None:
    """Raise `DataError` for prompts without a token, or too long for the model.

    Args:
        real: True for tokens, False for padding `[B, L]`.
        context: Tokens that the model reads at once.
    """
    n_rows, width = real.shape
    if n_rows == 0 or width == 0:
        raise DataError(f"The prompts are empty (shape {n_rows} x {width}): give at least one token.")
    check_lengths(real.sum(1).tolist(), context)


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
