"""Tells the trials of a search from those that other programs put into its study through Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

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
