"""Takes the tokens that run a block out of the whole sequence, and puts them back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Places:
    """Tokens at any places.

    Args:
        places: Columns of the tokens `[B, k]`.
        rows: Where each row begins if all stand one behind the other `[B, 1]`.
    """

    def __init__(self, places: Tensor, rows: Tensor) -> None:
        self._places = places
        self._flat = (places + rows).view(-1)

    def columns(self, columns: Tensor) -> Tensor:
        """Which columns they stand in `[B, k]`, of all columns `[B, L]`."""
        return self._places

    def gather(self, argument: Any) -> Any:
        """Their entries `[1 or B, k, ...]` of what has one per token `[1 or B, L, ...]`, or of a tuple of such."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        # What is the same for all rows has an entry for each of their tokens afterwards.
        index = self._places.reshape(-1) if argument.shape[0] == 1 else self._flat
        return argument.flatten(0, 1).index_select(0, index).view(*self._places.shape, *argument.shape[2:])

    def scatter(self, short: Tensor, whole: Tensor) -> Tensor:
        """All hidden states `[B, L, D]`, those of the tokens that ran `[B, k, D]` in their places."""
        flat = whole.flatten(0, 1).index_copy(0, self._flat, short.flatten(0, 1))
        return flat.view_as(whole)


class Ends:
    """The first tokens and the last ones of rows without padding: spans, which are copied faster than single tokens.

    Args:
        kept: k.
        width: L.
        n_first: How many of the kept tokens are the first ones.
    """

    def __init__(self, kept: int, width: int, n_first: int) -> None:
        self._n_first = n_first
        self._first_recent = width - kept + n_first

    def columns(self, columns: Tensor) -> Tensor:
        """See `Places.columns`."""
        gathered: Tensor = self.gather(columns)
        return gathered

    def gather(self, argument: Any) -> Any:
        """See `Places.gather`; what is the same for all rows stays one row."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        return torch.cat([argument[:, : self._n_first], argument[:, self._first_recent :]], 1)

    def scatter(self, short: Tensor, whole: Tensor) -> Tensor:
        """See `Places.scatter`."""
        between = whole[:, self._n_first : self._first_recent]
        return torch.cat([short[:, : self._n_first], between, short[:, self._n_first :]], 1)
