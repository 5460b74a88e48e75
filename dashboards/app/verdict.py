"""What a study came to, before all else on its page: a verdict, what speaks against it, and what to take along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from dash import html

from dashboards.analysis.records import ReportData
from dashboards.analysis.speed_tones import is_usable, prefill_tone
from dashboards.app.parts import attributes, terms
from dashboards.report.limits import limits_of_results
from dashboards.report.summary import KeyFigure, key_figures
from studies import StudyState
from studies.analysis.clock import check_clock
from studies.analysis.predictions import LatencyPredictions
from studies.records.records import StageRecord

# Limits that are shown at once; the others are a click away.
_MOST_LIMITS = 3
# Files of a study: their words, the stage that writes them, and their place below the study's address in the API.
_FILES = (("Report", "report", "report/report.html"), ("Model (ZIP)", "export", "model"))


class Judgement(NamedTuple):
    """A verdict in a few words."""

    tone: Literal["good", "unclear", "bad"]
    words: str


def judgement(data: ReportData) -> Judgement | None:
    """Judges the selected point by its measured speed and against a shortened prompt; None before it was measured."""
    selected, dense, against = data.selected, data.measured("dense"), data.against_shortened_prompt
    if selected is None:
        return None
    if not any(selected.schedule):
        return Judgement("unclear", "Nothing is skipped: this is the dense model")
    clock = check_clock(data.measurements, "test")
    tone = prefill_tone(selected, dense, clock)
    if not is_usable(clock):
        return Judgement("unclear", "The times are not usable: no speed-up can be stated")
    if tone == "bad":
        return Judgement("bad", "Slower than the dense model")
    if against is not None and not against.is_better:
        return Judgement("bad", "No better than a shortened prompt")
    if tone == "unclear":
        return Judgement("unclear", "No speed-up is shown")
    better = "" if against is None else ", and better than a shortened prompt"
    return Judgement("good", f"Faster than the dense model{better}")


def verdict(data: ReportData, predictions: LatencyPredictions) -> list[Any]:
    """The verdict of a study with what limits it, what to do with it, and its figures; nothing where none is known."""
    found, doubt = judgement(data), predictions.sentence(data.study.name)
    limits = [*([doubt] if doubt else []), *limits_of_results(data)]
    steps = [(step.words, html.Code(step.command)) for step in data.next_steps] if data.verdict else []
    headline = [] if found is None else [html.P(found.words, className="judgement")]
    said = [html.P(data.verdict, className="verdict")] if data.verdict else []
    content = [
        *headline,
        *said,
        *_limits(limits),
        *([_cards(key_figures(data))] if found is not None else []),
        *([terms(steps)] if steps else []),
    ]
    if not content:
        return []
    tone = "" if found is None else found.tone
    return [html.Section(content, className=f"outcome {tone}".rstrip(), **attributes(aria_label="Verdict"))]


def files(name: str, stages: Sequence[StageRecord]) -> list[html.A]:
    """Links to the report and to the model of a study, as far as their stages have finished."""
    written = {one.name for one in stages if one.state is StudyState.FINISHED}
    place = f"/api/v1/studies/{quote(name, safe='')}"
    return [
        html.A(words, href=f"{place}/{file}", className="quiet", download="")
        for words, stage, file in _FILES
        if stage in written
    ]


def _limits(limits: Sequence[str]) -> list[Any]:
    if not limits:
        return []
    first, others = limits[:_MOST_LIMITS], limits[_MOST_LIMITS:]
    shown: list[Any] = [html.Ul([html.Li(one) for one in first], className="limits", **attributes(aria_label="Limits"))]
    if others:
        more = f"{len(others)} further limit{'s' * (len(others) != 1)}"
        shown.append(html.Details([html.Summary(more), html.Ul([html.Li(one) for one in others], className="limits")]))
    return shown


def _cards(figures: Sequence[KeyFigure]) -> html.Div:
    return html.Div(
        [
            html.Div(
                [html.B(one.value), html.Span(one.label), *([html.Small(one.detail)] if one.detail else [])],
                className=f"card {one.tone}".rstrip(),
            )
            for one in figures
        ],
        className="cards",
    )
