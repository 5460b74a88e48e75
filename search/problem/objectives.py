"""Objectives and constraints of a search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftp_core.schedule import SparsitySchedule
from search.problem.trial import Values
from studies.records.objectives import DEFAULT_COST, CostName


def objective_names(cost: CostName = DEFAULT_COST) -> tuple[str, str]:
    """Names of the objectives of a search, in the order of its values."""
    return ("kl", cost)


OBJECTIVES = objective_names()


@dataclass(frozen=True)
class Objectives:
    """KL on the search set against one cost.

    Attributes:
        cost: Cost of a schedule, predicted or counted, never measured on a worker, which is busy.
        min_accuracy: Accuracy on the search set below which a schedule breaks the constraints; None for any.
    """

    cost: Callable[[SparsitySchedule], float]
    min_accuracy: float | None = None

    def __call__(self, schedule: SparsitySchedule, metrics: Mapping[str, float]) -> tuple[Values, float]:
        """Objective values, lower is better, and by how much the constraints are broken.

        Where no multiple-choice item was among those evaluated, accuracy breaks nothing. A cost among the metrics does
        not count: another study, with another timed input, may have put it there.
        """
        accuracy = metrics.get("accuracy")
        violation = 0.0
        if self.min_accuracy is not None and accuracy is not None:
            violation = max(0.0, self.min_accuracy - accuracy)
        return (metrics["kl"], self.cost(schedule)), violation


def evaluation_context(model: str, search_set: str, router: str, choices: bool, keep_first: int = 0) -> str:
    """Hash of what an evaluation depends on beside the schedule: equal ones need no second evaluation.

    Args:
        model: Fingerprint of the model.
        search_set: Fingerprint of the examples, in their order.
        router: Name of the router.
        choices: True if multiple-choice items are scored, too.
        keep_first: Number of protected tokens at the beginning of every prompt.
    """
    parts = {"model": model, "search_set": search_set, "router": router, "choices": choices, "keep_first": keep_first}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
