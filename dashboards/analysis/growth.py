"""Judges whether more trials would help, from the recent growth of the front."""

from __future__ import annotations

from dashboards.analysis.records import ReportData
from dashboards.analysis.tables import counted
from dashboards.analysis.trials import Growth
from studies.pareto import WORTHWHILE_GROWTH, front_growth
from studies.records.halves import n_blocks

# Trials that have to add nothing before a front counts as flat.
_FEWEST_FLAT = 25


def recent_growth(growth: Growth) -> str:
    """The growth of a front by the last quarter of the trials, as a sentence."""
    n, recent = growth.n_comparable, growth.n_comparable // 4
    if not recent or growth.after(n) <= 0:
        return f"{counted(n, 'trial')}."
    grown = front_growth(growth.after(n - recent), growth.after(n))
    if grown is None:
        return f"Up to the last {recent} of {n} trials it was empty, and they enlarged it."
    return f"The last {recent} of {n} trials enlarged it by {grown:.1%}."


def more_trials(data: ReportData) -> str:
    """Says if more trials would help: that they would not is said only where nothing speaks for them."""
    growth = data.found.growth
    if growth is None:
        return ""
    n, recent, left_out = growth.n_comparable, growth.n_comparable // 4, left_out_ablations(data)
    against = data.against_shortened_prompt
    said = [recent_growth(growth), *([left_out] if left_out else [])]
    grown = front_growth(growth.after(n - recent), growth.after(n)) if recent else None
    if growth.after(n) <= 0:
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
    elif recent < max(_FEWEST_FLAT, n_blocks(data.trials[0].schedule)):
        said.append("These are too few to conclude from that it has become flat.")
    else:
        said.append("It has become flat: more trials of this kind are unlikely to help.")
    return " ".join(said)


def left_out_ablations(data: ReportData) -> str:
    """Ablations that the search left out for want of trials; empty if there are none, or if it is not known."""
    planned = data.study.facts.ablations
    return "" if planned is None else planned.left_out
