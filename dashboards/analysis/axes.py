"""Axes that trials and measurements are drawn against: objectives, costs, and figures beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from studies.records.objectives import COSTS, objective
from studies.records.trial_columns import TrialColumns

Floats = NDArray[np.float64]
SPARSITY = "overall_sparsity"
# Where more is better.
_HIGHER = ("accuracy", SPARSITY)
_TITLES = {"accuracy": "accuracy on the search set", SPARSITY: "overall sparsity", "perplexity": "perplexity"}
_SHARES = ("accuracy", SPARSITY)
# What is offered, in this order, as far as trials have it.
OFFERED = ("kl", "accuracy", "perplexity", *COSTS, SPARSITY)


@dataclass(frozen=True)
class Axis:
    """One quantity."""

    name: str  # name that trials keep it under

    @property
    def title(self) -> str:
        """Its name in words."""
        return _TITLES.get(self.name) or objective(self.name).title

    @property
    def heading(self) -> str:
        """The title of an axis."""
        return f"{self.title}{f', {self.unit}' if self.unit else ''}"

    @property
    def unit(self) -> str:
        """The unit that people read it in; empty for shares."""
        return objective(self.name).unit

    @property
    def higher_is_better(self) -> bool:
        """True if more of it is better."""
        return self.name in _HIGHER

    @property
    def is_share(self) -> bool:
        """True if it is shown in percent."""
        return self.name in _SHARES

    def shown(self, values: Floats) -> Floats:
        """Stored values in the unit that people read."""
        return np.asarray(values / objective(self.name).per_unit)

    def text(self, value: float) -> str:
        """A stored value with its unit."""
        if self.is_share:
            return f"{value:.1%}"
        if self.name in COSTS:
            return objective(self.name).text(value)
        return f"{value:.4g} {objective(self.name).unit}".rstrip()

    def losses(self, values: Floats) -> Floats:
        """Stored values, turned so that lower is better."""
        return -values if self.higher_is_better else values


def default_axes(objectives: tuple[str, ...]) -> tuple[str, str]:
    """The quantities across and upwards at first: the cost, and KL."""
    return (objectives[1] if len(objectives) > 1 else SPARSITY), objectives[0]


def values_of(columns: TrialColumns, objectives: tuple[str, ...], name: str) -> Floats:
    """[n] A quantity of each trial as it is stored; NaN where a trial has none."""
    if name in objectives:
        return np.asarray(columns.values[:, objectives.index(name)])
    if name == SPARSITY:
        return columns.overall_sparsity
    return columns.metrics.get(name, np.full(len(columns), np.nan))


def offered(columns: TrialColumns, objectives: tuple[str, ...]) -> list[Axis]:
    """The quantities that the trials of a study can be drawn against."""
    known = {*objectives, *columns.metrics, SPARSITY}
    return [Axis(name) for name in dict.fromkeys([*OFFERED, *objectives]) if name in known]
