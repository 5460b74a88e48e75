"""Progress of sources, for any view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Work(Protocol):
    """Work that goes on."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done, with a word on what was reached."""


class Begin(Protocol):
    """Begins work of so many steps, which ends with the context."""

    def __call__(self, title: str, total: int) -> AbstractContextManager[Work]:
        """Begin it."""


class _Unseen:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


@contextmanager
def unseen(title: str, total: int) -> Iterator[Work]:
    """Work that nobody watches."""
    yield _Unseen()
