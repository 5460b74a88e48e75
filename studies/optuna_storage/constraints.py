"""Constraints of trials, among the system attributes where Optuna keeps them: positive ones are broken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.study._constrained_optimization import _CONSTRAINTS_KEY, _get_constraints_from_system_attrs


def violation_attributes(violation: float) -> dict[str, Any]:
    """The system attributes of a trial that breaks constraints by so much; none where it keeps them."""
    return {_CONSTRAINTS_KEY: [violation]} if violation > 0 else {}


def attributed_violation(system_attributes: Mapping[str, Any]) -> float:
    """Constraint violation by a trial's system attributes: named constraints, or the list of Optuna before 5."""
    return (
        constraint_violation(_get_constraints_from_system_attrs(dict(system_attributes))) if system_attributes else 0.0
    )


def constraint_violation(constraints: Mapping[str, float]) -> float:
    """By how much constraints are broken, as Optuna's samplers add it up; 0 just where Optuna finds a trial feasible.

    Args:
        constraints: Constraints of a trial, by name, as `FrozenTrial.constraints` has them.

    Returns:
        The sum of those above 0; infinity where one is no number, which nothing keeps.
    """
    return sum((math.inf if math.isnan(value) else value for value in constraints.values() if not value <= 0), 0.0)
