"""Busy times of the workers of a study."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from dashboards.analysis.axes import Floats
from studies.records.trial_columns import TrialColumns


@dataclass(frozen=True)
class Timeline:
    """Busy times of the workers."""

    at: Floats  # [bins] seconds since the first evaluation began, at the middle of each bin
    workers: tuple[str, ...]  # [workers] their names
    busy: Floats  # [workers, bins] share of the bin's time


def timeline(columns: TrialColumns, bins: int = 240) -> Timeline:
    """Adds up the busy times of each worker of trials that some worker evaluated."""
    work = columns.work
    first, edges = _edges(columns, bins)
    rows = {}
    for place, worker in enumerate(columns.workers):
        own = work.worker == place
        began = work.began_at[own] - first
        # Clocks are not exact: one evaluation may seem to begin before the last one has ended.
        rows[worker] = np.minimum(1.0, _shares(edges, began, began + work.seconds[own]))
    names = sorted(rows, key=_natural)
    return Timeline(_middles(edges), tuple(names), np.array([rows[one] for one in names]))


def busy(columns: TrialColumns, bins: int = 120) -> tuple[Floats, Floats, Floats]:
    """Counts evaluations at a time, and trials that ended per second, of trials that some worker evaluated.

    Returns:
        [bins] Seconds since the first one began, at the middle of each bin; [bins] evaluations at a time on
        average; [bins] trials that ended per second.
    """
    first, edges = _edges(columns, bins)
    began = columns.work.began_at - first
    rate = np.histogram(columns.finished_at - first, edges)[0] / (edges[1] - edges[0])
    return _middles(edges), _shares(edges, began, began + columns.work.seconds), rate


def _edges(columns: TrialColumns, bins: int) -> tuple[float, Floats]:
    """Beginning of the first evaluation, and the ends of bins up to the end of the last, in seconds since."""
    work, ended = columns.work, columns.finished_at
    first = min(work.began_at.min(), ended.min())
    last = max((work.began_at + work.seconds).max(), ended.max())
    return float(first), np.linspace(0.0, max(float(last - first), 1e-9), bins + 1)


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them: 2 before 10."""
    # Every other part is a number.
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(re.split(r"(\d+)", name))]


def _middles(edges: Floats) -> Floats:
    return np.asarray((edges[:-1] + edges[1:]) / 2)


def _shares(edges: Floats, begins: Floats, ends: Floats) -> Floats:
    """Average number of the times from begin to end that go on in each bin."""
    # Up to a moment: the part of each of them that lies before it.
    done = _before(edges, begins) - _before(edges, ends)
    return np.asarray(np.diff(done) / np.diff(edges))


def _before(moments: Floats, instants: Floats) -> Floats:
    """Sum, for each moment, of the times since the instants before it."""
    ordered = np.sort(instants)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    n = np.searchsorted(ordered, moments)
    return np.asarray(n * moments - sums[n])
