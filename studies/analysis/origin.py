"""Origin of a measured schedule, in words: a name such as "static" does not say that a search found it."""

from __future__ import annotations

from collections.abc import Sequence

from studies.analysis.shortened_prompt import is_uniform
from studies.records.trial import ABLATION, INITIAL_DESIGN, SOLVED


def schedule_origin(schedule: Sequence[float], proposer: str | None) -> str:
    """Names the kind of a schedule and its proposer, such as "uniform schedule of the initial design".

    Args:
        schedule: One sparsity per block.
        proposer: Name of its proposer; None where that is not known.
    """
    kind = "dense schedule" if not any(schedule) else "uniform schedule" if is_uniform(schedule) else "schedule"
    if proposer is None:
        return kind
    if proposer == INITIAL_DESIGN:
        return f"{kind} of the initial design"
    if proposer == ABLATION:
        return "single-block ablation"
    if proposer == SOLVED:
        return f"{kind} solved for a target"
    return f"{kind} proposed by {proposer}"


def is_searched(schedule: Sequence[float], proposer: str | None) -> bool:
    """Tells if a proposer found a schedule that is not the same in every block, as far as that is known.

    Args:
        schedule: One sparsity per block.
        proposer: Name of its proposer; None where that is not known.
    """
    return not is_uniform(schedule) and proposer not in (INITIAL_DESIGN, ABLATION)
