"""Takes the tokens that run a block out of the whole sequence, and puts them back.

Dimensions: B rows, L tokens of a row, K kept tokens, D hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Places:
    """Tokens at any places.

    Args:
        places_BK: Columns of the tokens.
        rows_B1: First place of each row if all stand one behind the other.
    """

    def __init__(self, places_BK: Tensor, rows_B1: Tensor) -> None:
        self._places_BK = places_BK
        self._flat = (places_BK + rows_B1).view(-1)

    def columns(self, columns_BL: Tensor) -> Tensor:
        """Columns of the tokens `[B, K]`, out of all columns."""
        return self._places_BK

    def gather(self, argument: Any) -> Any:
        """Takes the tokens' entries `[1 or B, K, ...]` out of `[1 or B, L, ...]`, or out of a tuple of such."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        # An argument that is the same for all rows has an entry for each of their tokens afterwards.
        index = (self._places_BK.reshape(-1) if argument.shape[0] == 1 else self._flat).to(argument.device)
        return argument.flatten(0, 1).index_select(0, index).view(*self._places_BK.shape, *argument.shape[2:])

    def scatter(self, short_BKD: Tensor, whole_BLD: Tensor) -> Tensor:
        """Puts the tokens that ran into their places among all hidden states `[B, L, D]`."""
        index = self._flat.to(whole_BLD.device)
        return whole_BLD.flatten(0, 1).index_copy(0, index, short_BKD.flatten(0, 1)).view_as(whole_BLD)


class Ends:
    """The first tokens and the last ones of rows without padding: spans, which are copied faster than single tokens.

    Args:
        kept: K.
        width: L.
        n_first: Number of kept tokens at the beginning.
    """

    def __init__(self, kept: int, width: int, n_first: int) -> None:
        self._n_first = n_first
        self._first_recent = width - kept + n_first

    def columns(self, columns_BL: Tensor) -> Tensor:
        """See `Places.columns`."""
        columns_BK: Tensor = self.gather(columns_BL)
        return columns_BK

    def gather(self, argument: Any) -> Any:
        """See `Places.gather`; an argument that is the same for all rows stays one row."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        return torch.cat([argument[:, : self._n_first], argument[:, self._first_recent :]], 1)

    def scatter(self, short_BKD: Tensor, whole_BLD: Tensor) -> Tensor:
        """See `Places.scatter`."""
        between = whole_BLD[:, self._n_first : self._first_recent]
        return torch.cat([short_BKD[:, : self._n_first], between, short_BKD[:, self._n_first :]], 1)
