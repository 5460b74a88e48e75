"""Tells the columns of a model's input apart: padding, prompt or completion.

Dimensions: B rows, L columns of a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftp_core.errors import DataError


def real_columns(attention_mask: Tensor | None, n_rows: int, width: int, seen: int, device: torch.device) -> Tensor:
    """Marks the new columns that hold tokens, bool `[B, L]`, by a mask `[B, seen + L]` of 1 for tokens, 0 for padding.

    Raises:
        DataError: The mask has another shape.
    """
    if attention_mask is None:
        return torch.ones(n_rows, width, dtype=torch.bool, device=device)
    expected = (n_rows, seen + width)
    shape = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
    if shape != expected:
        raise DataError(
            f"attention_mask has the shape {shape}, but skipping needs {expected}: 1 for tokens "
            "and 0 for padding, one row per row of the input, and one column for every token seen so far and now."
        )
    return attention_mask[:, seen:].to(device).bool()


def prompt_columns(real_BL: Tensor, labels: Tensor | None, prompt_length: int | Tensor | None) -> Tensor:
    """Marks the columns with tokens of the prompt, bool `[B, L]`: at least the first token of each row.

    The prompt is as long as `prompt_length` tells, or else ends before the first label that is not -100.

    Raises:
        DataError: A prompt has no valid length, or there is not one for every row.
    """
    n_rows, width = real_BL.shape
    columns_L = torch.arange(width, device=real_BL.device)
    if prompt_length is not None:
        ends_B1 = torch.as_tensor(prompt_length, device=real_BL.device).reshape(-1, 1)
        is_outside = bool(((ends_B1 < 1) | (ends_B1 > width)).any())
        if ends_B1.is_floating_point() or len(ends_B1) not in (1, n_rows) or is_outside:
            raise DataError(
                f"prompt_length is {prompt_length}, but must be between 1 and the {width} columns of the input, one "
                f"number or one for each of the {n_rows} rows."
            )
    elif labels is not None:
        labelled_BL = labels.to(real_BL.device) != -100
        first_B = labelled_BL.to(torch.uint8).argmax(1)
        ends_B1 = torch.where(labelled_BL.any(1), first_B, width)[:, None]
    else:
        return real_BL
    first_token_B1 = real_BL.to(torch.uint8).argmax(1)[:, None]
    return real_BL & ((columns_L < ends_B1) | (columns_L == first_token_B1))


def cut_columns(arguments: dict[str, Any], start: int, stop: int, before: int) -> dict[str, Any]:
    """Cuts the arguments of a pass to some columns; the mask spans the `before` columns seen, too, and keeps them."""
    cut = {
        name: arguments[name][:, start:stop] for name in ("input_ids", "inputs_embeds") if arguments[name] is not None
    }
    positions, mask = arguments["position_ids"], arguments["attention_mask"]
    if positions is not None:
        cut["position_ids"] = positions[:, start:stop]
    if mask is not None:
        cut["attention_mask"] = mask[:, : before + stop]
    return {**arguments, **cut}
