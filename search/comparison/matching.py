"""Finds how many operations a method has to save for a prefill to take as long as asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ftp_core.errors import CoreError
from search.errors import SearchError

T = TypeVar("T")
# Models that are made and timed at most, and how near their saved share of time comes to what is asked for.
_MOST, _NEAR = 6, 0.015
# Most operations that anything is asked to save.
_HIGHEST = 0.95


class Matched(NamedTuple, Generic[T]):
    """A model, and the share of operations that it was asked to save."""

    share: float
    model: T


def matched_in_time(make: Callable[[float], T], saved_time: Callable[[T], float], wanted: float) -> Matched[T]:
    """The model whose prefill saves about a share of the dense model's time.

    The share of operations to save is bracketed, and guessed in proportion to the time that was saved so far. Methods
    that can only do steps stop where two models in a row are as fast; of those that come no nearer, the slowest one
    that saves enough is taken, so that nobody is compared with a faster one than asked for, or else the fastest one.

    Args:
        make: Makes the model that saves a share of operations.
        saved_time: Share of the dense model's time that one saves, as measured.
        wanted: Share of it to save.

    Raises:
        CoreError: The method cannot be applied, or saves no such share of operations.
        SearchError: Likewise.
    """
    low, high, share = 0.0, _HIGHEST, wanted
    tried: list[tuple[float, Matched[T]]] = []
    refused: CoreError | SearchError | None = None
    for _ in range(_MOST):
        try:
            model = make(share)
        except (CoreError, SearchError) as error:
            refused, high, share = error, share, (low + share) / 2
            continue
        saved = saved_time(model)
        tried.append((saved, Matched(share, model)))
        if abs(saved - wanted) <= _NEAR:
            break
        low, high = (share, high) if saved < wanted else (low, share)
        guess = share * wanted / saved if saved > _NEAR else (share + high) / 2
        share = guess if low < guess < high else (low + high) / 2
    if not tried:
        assert refused is not None
        raise refused
    enough = [one for one in tried if one[0] >= wanted - _NEAR]
    return (min if enough else max)(enough or tried, key=lambda one: one[0])[1]
