"""Takes the tokens that run a block out of the whole sequence, and puts them back.

Dimensions: B rows, L tokens of a row, K kept tokens, D hidden width, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        self.n_first = n_first
        self.width = width
        self.first_recent = width - kept + n_first

    def columns(self, columns_BL: Tensor) -> Tensor:
        """See `Places.columns`."""
        columns_BK: Tensor = self.gather(columns_BL)
        return columns_BK

    def gather(self, argument: Any) -> Any:
        """See `Places.gather`; an argument that is the same for all rows stays one row."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        return torch.cat([argument[:, : self.n_first], argument[:, self.first_recent :]], 1)

    def scatter(self, short_BKD: Tensor, whole_BLD: Tensor) -> Tensor:
        """See `Places.scatter`."""
        return self.joined(short_BKD, whole_BLD[:, self.n_first : self.first_recent])

    def joined(self, short: Tensor, between: Tensor, dim: int = 1) -> Tensor:
        """What belongs to these tokens and to all others, each in order along a dimension, in the order of all."""
        last = short.shape[dim] - self.n_first
        first, recent = short.narrow(dim, 0, self.n_first), short.narrow(dim, self.n_first, last)
        return torch.cat([first, between, recent], dim)


class Between:
    """The tokens that `Ends` leave out.

    Args:
        ends: The first tokens and the last ones.
    """

    def __init__(self, ends: Ends) -> None:
        self._span = slice(ends.n_first, ends.first_recent)

    def columns(self, columns_BL: Tensor) -> Tensor:
        """See `Places.columns`."""
        return columns_BL[:, self._span]

    def gather(self, argument: Any) -> Any:
        """See `Ends.gather`."""
        if isinstance(argument, tuple):
            return tuple(self.gather(part) for part in argument)
        return argument[:, self._span]

    def scatter(self, short_BKD: Tensor, whole_BLD: Tensor) -> Tensor:
        """See `Places.scatter`."""
        return torch.cat([whole_BLD[:, : self._span.start], short_BKD, whole_BLD[:, self._span.stop :]], 1)


@dataclass(frozen=True)
class Chosen:
    """Tokens of each row that run something, in order; rows with fewer are filled with tokens that do not run.

    Attributes:
        tokens: Takes them out of all columns, and puts them back.
        places: Their columns `[B, K]`.
        filler: True for fillers `[B, K]`; None if there is none.
    """

    tokens: Places | Ends | Between
    places: Tensor
    filler: Tensor | None

    @classmethod
    def of(cls, run_BL: Tensor, counts: Sequence[int], n_first: int | None = None) -> Chosen:
        """Chooses tokens.

        Args:
            run_BL: True for the tokens.
            counts: Number of them in each row.
            n_first: If they are the first tokens of each row and its last ones, and as many in every row: the number of
                the first ones.
        """
        (n_rows, width), longest, is_ragged = run_BL.shape, max(counts), min(counts) < max(counts)
        columns_L = torch.arange(width, device=run_BL.device)
        if n_first is not None:
            ends = Ends(longest, width, n_first)
            return cls(ends, ends.columns(columns_L.expand(n_rows, width)), None)
        places_BK = _places(run_BL, longest, is_ragged)
        filler_BK = None
        if is_ragged:
            filler_BK = columns_L[:longest] >= torch.tensor(counts, device=run_BL.device)[:, None]
        rows_B1 = torch.arange(n_rows, device=run_BL.device)[:, None] * width
        return cls(Places(places_BK, rows_B1), places_BK, filler_BK)

    def columns(self, dead: int) -> Tensor:
        """Columns of the tokens, `dead` in place of fillers `[B, K]`."""
        return self.places if self.filler is None else self.places.masked_fill(self.filler, dead)

    def of_them(self, some: Chosen) -> Chosen:
        """Some of these tokens, given by their columns among these, by their columns among all."""
        places_BK = self.places.gather(1, some.places)
        if isinstance(self.tokens, Ends) and isinstance(some.tokens, Ends):
            return Chosen(Ends(some.places.shape[1], self.tokens.width, some.tokens.n_first), places_BK, None)
        return Chosen(some.tokens, places_BK, some.filler)

    def restored(self, behind_BKD: Tensor, before_BKD: Tensor) -> Tensor:
        """The tokens behind a block, with the fillers as they were before it."""
        if self.filler is None:
            return behind_BKD
        return torch.where(self.filler[..., None].to(behind_BKD.device), before_BKD, behind_BKD)

    def among_zeros(self, short_BKD: Tensor, width: int) -> Tensor:
        """The tokens' entries at their places, zero everywhere else `[B, L, D]`."""
        if self.filler is not None:
            short_BKD = short_BKD.masked_fill(self.filler[..., None].to(short_BKD.device), 0.0)
        n_rows, _, n_numbers = short_BKD.shape
        # Zeros are written where they are wanted alone.
        return self.tokens.scatter(short_BKD, short_BKD.new_zeros(()).expand(n_rows, width, n_numbers))


def _places(run_BL: Tensor, longest: int, ragged: bool) -> Tensor:
    """Columns of the tokens that run, in order `[B, K]`; rows with fewer are filled with ones that do not run."""
    n_rows, width = run_BL.shape
    if ragged:
        return (~run_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    # Each token that runs is put where the count of those up to it says; the others onto a heap behind.
    slot_BL = torch.where(run_BL, run_BL.cumsum(1) - 1, longest)
    columns_BL = torch.arange(width, device=run_BL.device).expand(n_rows, -1)
    return slot_BL.new_empty(n_rows, longest + 1).scatter_(1, slot_BL, columns_BL)[:, :longest]
