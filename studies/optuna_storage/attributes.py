"""Reads attributes of trials: if a search began and ended one, and by how much it breaks constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY, _get_constraints_from_system_attrs

from studies.sql import schema

_said = schema.trial.c.user_attributes
# What a search says of every trial that it begins, and of every one that it ends.
_BEGUN = frozenset({"proposer"})
_ENDED = frozenset({"proposer", "fidelity", "seconds", "metrics"})

# Of a trial that has ended, the negation of `ended_by_search` in SQL, where all of them are too many to decode.
ENDED_BY_OTHERS = sa.or_(_said.is_(None), *(~_said.contains(f'"{key}":', autoescape=True) for key in sorted(_ENDED)))


def begun_by_search(user_attributes: Mapping[str, Any]) -> bool:
    """True if a search began a trial with these attributes, so that it may evaluate it."""
    return user_attributes.keys() >= _BEGUN


def ended_by_search(user_attributes: Mapping[str, Any]) -> bool:
    """True if a search ended a trial with these attributes: others say nothing of what was evaluated, and how."""
    return user_attributes.keys() >= _ENDED


def violation_attributes(violation: float) -> dict[str, Any]:
    """The system attributes of a trial that breaks constraints by so much; none where it keeps them."""
    return {_CONSTRAINTS_KEY: [violation]} if violation > 0 else {}


def attributed_violation(system_attributes: Mapping[str, Any]) -> float:
    """Constraint violation by a trial's system attributes: named constraints, or the list of Optuna before 5."""
    return constraint_violation(_get_constraints_from_system_attrs(dict(system_attributes)))


def constraint_violation(constraints: Mapping[str, float]) -> float:
    """By how much constraints are broken, as Optuna's samplers add it up; 0 just where Optuna finds a trial feasible.

    Args:
        constraints: Constraints of a trial, by name, as `FrozenTrial.constraints` has them.

    Returns:
        The sum of those above 0; infinity where one is no number, which nothing keeps.
    """
    return sum((math.inf if math.isnan(value) else value for value in constraints.values() if not value <= 0), 0.0)
