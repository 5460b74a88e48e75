"""Trials made for tests."""

from __future__ import annotations

from datetime import UTC, datetime

from studies import TrialRecord, TrialState


def trial(
    number: int,
    values: tuple[float, ...] | None,
    schedule: tuple[float, ...] = (0.0, 0.5),
    fidelity: float = 1.0,
) -> TrialRecord:
    return TrialRecord(
        number=number,
        schedule=schedule,
        values=values,
        state=TrialState.FAILED if values is None else TrialState.FINISHED,
        fidelity=fidelity,
        proposer="deap",
        seconds=0.25,
        finished_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        metrics={"perplexity": 1.5},
        error="broken" if values is None else None,
    )
