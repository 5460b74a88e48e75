"""That more trials would not help is said only where nothing speaks for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dashboards import ReportData
from dashboards.analysis.growth import more_trials, recent_growth
from dashboards.report.limits import limits
from dashboards.report.sections import search_sections
from studies import Trial
from studies.records.study_facts import Ablations, StudyFacts
from tests.dashboards.records import STUDY
from tests.studies.records import trial

COSTS = {"flops": 10.0}
LEFT_OUT = "24 trials are too few to ablate each of 30 blocks by itself."


def flat(n: int) -> list[Trial]:
    """A dense trial, a uniform one, one that is better, and then none that is."""
    firsts = [((0.0, 10.0), (0.0, 0.0)), ((0.5, 5.0), (0.5, 0.5)), ((0.1, 5.0), (0.2, 0.8))]
    points = [*firsts, *(((0.6, 6.0), (0.1, 0.2 + 0.001 * k)) for k in range(n - 3))]
    made = [trial(number, values, schedule) for number, (values, schedule) in enumerate(points)]
    return [replace(one, metrics={"flops": (one.values or ())[1], "kl": (one.values or ())[0]}) for one in made]


def ablations(left_out: str) -> Ablations:
    return Ablations(schedules=0, blocks=12, trials=24, trials_for_each=30, left_out=left_out)


def said(trials: list[Trial], chosen: int = 2, **facts: Any) -> ReportData:
    study = replace(
        STUDY, objectives=("kl", "flops"), facts=StudyFacts(dense_costs=COSTS, **facts), chosen_trial=chosen
    )
    return ReportData(study=study, trials=trials, measurements=[], router_runs=[])


def test_a_flat_front_that_beats_a_shortened_prompt_is_called_flat() -> None:
    data = said(flat(200))
    assert data.against_shortened_prompt is not None and data.against_shortened_prompt.is_better
    text = more_trials(data)
    assert "The last 50 of 200 trials enlarged it by 0.0%." in text and text.endswith("unlikely to help.")
    assert text in " ".join(section.reading for section in search_sections(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (said(flat(200), ablations=ablations(LEFT_OUT)), LEFT_OUT),
        (said(flat(200), chosen=1), "nothing better than a shortened prompt"),
        (said([*flat(160), trial(160, (0.05, 4.0), (0.6, 0.4))]), "It still grows"),
        (said(flat(20)), "too few to conclude"),
        (said(flat(3)), "too few to conclude"),
        (said([trial(0, (0.0, 10.0), (0.0, 0.0)), trial(1, (4.0, 1.0), (0.9, 0.9))]), "No schedule has been found yet"),
    ],
)
def test_what_speaks_for_more_trials_is_said_instead(data: ReportData, reason: str) -> None:
    text = more_trials(data)
    assert reason in text and "unlikely" not in text


def test_what_a_short_search_left_out_is_among_the_limits() -> None:
    assert LEFT_OUT in limits(said(flat(24), ablations=ablations(LEFT_OUT)))
    assert "Fewer items than asked for." in limits(said(flat(24), fewer_items="Fewer items than asked for."))
    assert not limits(said(flat(24), ablations=ablations(""), fewer_items=""))


def test_before_a_trial_has_ended_nothing_is_said_of_more() -> None:
    assert more_trials(said([trial(0, None)])) == ""
    firsts = [trial(number, (2.0, 10.0)) for number in range(3)]
    alone, late = said(firsts[:1]).found.growth, said([*firsts, trial(3, (0.5, 5.0))]).found.growth
    assert alone is not None and recent_growth(alone) == "1 trial."
    assert late is not None and "empty" in recent_growth(late)
