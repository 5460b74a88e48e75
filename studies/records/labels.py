"""What people say of a study, and the sweep that it belongs to: nothing of it changes what a study does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Labels:
    """Labels of a study."""

    tags: tuple[str, ...] = ()
    note: str = ""  # empty for none
    sweep: str | None = None  # name of the sweep that made it; None for a study by itself


NO_LABELS = Labels()
