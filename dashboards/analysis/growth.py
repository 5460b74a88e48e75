"""Whether more trials would help: how much the front grew of late, and what speaks against concluding from it."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.analysis.records import ReportData
from dashboards.analysis.tables import counted
from studies import front_growth, study_volume
from studies.pareto import WORTHWHILE_GROWTH

# Trials that have to add nothing before a front counts as flat.
_FEWEST_FLAT = 25


def recent_growth(history: Sequence[float]) -> str:
    """How much the last quarter of the trials enlarged the front, as a sentence.

    Args:
        history: Hypervolume after each comparable trial.
    """
    recent = len(history) // 4
    if not recent or history[-1] <= 0:
        return f"{counted(len(history), 'trial')}."
    grown = front_growth(history[-1 - recent], history[-1])
    if grown is None:
        return f"Up to the last {recent} of {len(history)} trials it was empty, and they enlarged it."
    return f"The last {recent} of {len(history)} trials enlarged it by {grown:.1%}."


def more_trials(data: ReportData) -> str:
    """Whether more trials would help, in sentences: that they would not is said only where nothing speaks for them."""
    measured = study_volume(data.study, data.trials)
    if measured is None:
        return ""
    history = measured.history(data.trials)
    recent, left_out = len(history) // 4, left_out_ablations(data)
    against = data.against_shortened_prompt
    said = [recent_growth(history), *([left_out] if left_out else [])]
    grown = front_growth(history[-1 - recent], history[-1]) if recent else None
    if history[-1] <= 0:
        said.append("No schedule has been found yet that is both useful and cheaper than the dense model.")
    elif recent and (grown is None or grown > WORTHWHILE_GROWTH):
        said.append("It still grows: more trials are likely to find better trades.")
    elif left_out:
        said.append("That it is flat says little: a longer search begins with what this one left out.")
    elif against is not None and not against.is_better:
        said.append(
            "That it is flat says little, as nothing better than a shortened prompt has been found: a longer search "
            "may find it."
        )
    elif recent < max(_FEWEST_FLAT, len(data.trials[0].schedule)):
        said.append("These are too few to conclude from that it has become flat.")
    else:
        said.append("It has become flat: more trials of this kind are unlikely to help.")
    return " ".join(said)


def left_out_ablations(data: ReportData) -> str:
    """What the search left out, as it had too few trials; empty if it left out nothing, or if it is not known."""
    planned = data.study.facts.get("ablations") or {}
    return str(planned.get("left_out", ""))
