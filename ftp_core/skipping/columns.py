"""What the columns of a model's input are: padding, prompt or completion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftp_core.errors import DataError


def real_columns(attention_mask: Tensor | None, n_rows: int, width: int, seen: int, device: torch.device) -> Tensor:
    """Which of the new columns hold tokens, bool `[B, L]`.

    Args:
        attention_mask: 1 for tokens and 0 for padding, of all columns `[B, seen + L]`; None if there is no padding.
        n_rows: B.
        width: L.
        seen: Columns that the cache has seen.
        device: Of the input.

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


def prompt_columns(real: Tensor, labels: Tensor | None, prompt_length: int | Tensor | None) -> Tensor:
    """Which columns are tokens of the prompt, bool `[B, L]`; at least the first token of each row is.

    Args:
        real: True for tokens, False for padding `[B, L]`.
        labels: -100 where no token is to be predicted `[B, L]`; the prompt ends before the first other one.
        prompt_length: How many columns are prompt, of every row or of each `[B]`; overrules labels.

    Raises:
        DataError: A prompt's length is none, or there is not one for every row.
    """
    n_rows, width = real.shape
    columns = torch.arange(width, device=real.device)
    if prompt_length is not None:
        ends = torch.as_tensor(prompt_length, device=real.device).reshape(-1, 1)
        if ends.is_floating_point() or len(ends) not in (1, n_rows) or bool(((ends < 1) | (ends > width)).any()):
            raise DataError(
                f"prompt_length is {prompt_length}, but must be between 1 and the {width} columns of the input, one "
                f"number or one for each of the {n_rows} rows."
            )
    elif labels is not None:
        labelled = labels.to(real.device) != -100
        first = labelled.to(torch.uint8).argmax(1)
        ends = torch.where(labelled.any(1), first, width)[:, None]
    else:
        return real
    first_token = real.to(torch.uint8).argmax(1)[:, None]
    return real & ((columns < ends) | (columns == first_token))


def cut_columns(arguments: dict[str, Any], start: int, stop: int, before: int) -> dict[str, Any]:
    """The arguments of a forward pass for some of its columns; masks keep everything up to them.

    Args:
        arguments: Of the pass.
        start: First column.
        stop: Column behind the last one.
        before: Columns that the cache had seen before the pass, which the mask spans.
    """
    cut = {
        name: arguments[name][:, start:stop] for name in ("input_ids", "inputs_embeds") if arguments[name] is not None
    }
    positions, mask = arguments["position_ids"], arguments["attention_mask"]
    if positions is not None:
        cut["position_ids"] = positions[:, start:stop]
    if mask is not None:
        cut["attention_mask"] = mask[:, : before + stop]
    return {**arguments, **cut}
