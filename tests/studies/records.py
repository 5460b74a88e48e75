"""Trials made for tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import optuna

from studies import Trial, TrialState
from studies.pareto import FrontVolume


def trial(
    number: int,
    values: tuple[float, ...] | None,
    schedule: tuple[float, ...] = (0.0, 0.5),
    fidelity: float = 1.0,
) -> Trial:
    return Trial(
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


def running(schedule: tuple[float, ...], proposer: str) -> Trial:
    return Trial(0, tuple(schedule), proposer)


# Of a trial that a search ended; what else there is in a study is left aside.
SAID = {"proposer": "optuna", "fidelity": 1.0, "seconds": 0.0, "metrics": {}}


def said(trial: optuna.Trial) -> optuna.Trial:
    """The trial, with what a search says of its own."""
    for key, value in SAID.items():
        trial.set_user_attr(key, value)
    return trial


def history(measured: FrontVolume, trials: Sequence[Trial]) -> list[float]:
    """The hypervolume after each comparable trial."""
    points = np.array([one.values for one in trials if one.is_comparable])
    volumes = [0.0] * len(points)
    for place, volume in measured.growth(points):
        volumes[place:] = [volume] * (len(points) - place)
    return volumes
