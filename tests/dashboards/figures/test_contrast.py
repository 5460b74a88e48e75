"""What is drawn of trials is told from the page, light or dark: the contrast of graphics in WCAG 2.2 is 3 to 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import plotly.graph_objects as go
import pytest

from dashboards.analysis.trials import Found
from dashboards.figures import (
    PROPOSER_COLOURS,
    front_figure,
    fronts_figure,
    groups_figure,
    growth_figure,
    measurements_figure,
    parallel_figure,
    proposers_figure,
    schedules_figure,
)
from dashboards.figures.appearance import _OTHER_PROPOSERS, VARIANT_COLOURS, darkened, proposer_colour
from studies import Trial, TrialState
from studies.records.compared import Compared
from studies.records.trial_columns import columns_of
from tests.dashboards import records
from tests.dashboards.report.test_methods import MODEL

# Names without a colour of their own get each of the others.
STRANGERS = [next(name for name in map(str, range(99)) if proposer_colour(name) == one) for one in _OTHER_PROPOSERS]
PROPOSERS = [*PROPOSER_COLOURS, *STRANGERS]
LEAST = 3.0


def channels(colour: str) -> list[float]:
    return [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]


def luminance(rgb: list[float]) -> float:
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, page: str, opacity: float = 1.0) -> float:
    blended = [
        opacity * own + (1 - opacity) * behind for own, behind in zip(channels(colour), channels(page), strict=True)
    ]
    low, high = sorted([luminance(blended), luminance(channels(page))])
    return (high + 0.05) / (low + 0.05)


def drawn(figure: go.Figure) -> Iterator[tuple[str, str, float]]:
    """Name, colour and opacity of every mark and line."""
    for trace in figure.data:
        for part in ("marker", "line"):
            colours = trace[part].color if part in trace else None
            for colour in [colours] if isinstance(colours, str) else colours or ():
                yield trace.name, colour, trace.opacity or (trace[part].opacity if part == "marker" else None) or 1.0


def page_of(figure: go.Figure) -> str:
    return str(figure.layout.template.layout.paper_bgcolor)


@pytest.fixture(scope="module")
def found() -> Found:
    trials = [
        Trial(
            number=number,
            schedule=(0.05 * (number % 19), 0.0),
            values=(0.001 * 1.5**number if number else 1e-9, 10.0 + number),
            state=TrialState.FINISHED,
            fidelity=1.0,
            proposer=PROPOSERS[number % len(PROPOSERS)],
            seconds=1.0,
            finished_at=records.BEGAN + timedelta(seconds=number),
        )
        for number in range(2 * len(PROPOSERS))
    ]
    return Found(columns_of(trials, 2), ("kl", "latency_ms"))


THEMES = pytest.mark.parametrize("themed", [go.Figure, darkened], ids=["light", "dark"])


@THEMES
@pytest.mark.parametrize("standalone", [False, True])
def test_trials_of_every_proposer_and_every_variant_are_seen(
    found: Found, standalone: bool, themed: Callable[[go.Figure], go.Figure]
) -> None:
    shown = front_figure(found, selected=3, standalone=standalone, measurements=records.measurements())
    assert {name for name, _, _ in drawn(shown)} >= {f"by {name}" for name in PROPOSERS if name != PROPOSERS[0]}
    several = fronts_figure({str(number): found for number in range(8)}, "latency_ms", "kl")
    groups = [groups_figure(records.EXAMPLES.groups, selected) for selected in (None, "refined")]
    measured = [measurements_figure(records.measurements(), None, cost) for cost in ("latency_ms", "flops")]
    for figure in map(themed, (shown, several, *groups, *measured, proposers_figure(found), growth_figure(found))):
        faint = {mark: contrast(*mark[1:2], page_of(figure), mark[2]) for mark in drawn(figure)}
        assert min(faint.values()) >= LEAST, min(faint, key=lambda mark: faint[mark])


@THEMES
def test_more_stands_out_more_from_the_page_where_colour_says_how_much(
    found: Found, themed: Callable[[go.Figure], go.Figure]
) -> None:
    heatmap, lines = themed(schedules_figure(found, 3)), themed(parallel_figure(found, "latency_ms"))
    page = page_of(heatmap)
    least, middle, most = (contrast(colour.lower(), page) for _, colour in heatmap.data[0].colorscale)
    assert least < middle < most and most >= LEAST
    # The frame of the selected row is told from what it frames.
    assert contrast(heatmap.layout.shapes[0].line.color, heatmap.data[0].colorscale[0][1]) >= LEAST
    others, front = (contrast(colour, page) for _, colour in lines.data[0].line.colorscale)
    assert LEAST <= others < front


def test_other_methods_are_told_apart_and_seen_on_any_page() -> None:
    measured = records.measurements()
    dense = next(m for m in measured if m.variant == "dense")
    model = replace(MODEL, batch=dense.batch, length=dense.length)
    rows = [Compared(f"method {number}", "", "latency", 0.25, 0, "c", model) for number in range(16)]
    figure = measurements_figure(measured, None, compared=rows)
    others = [trace for trace in figure.data if (trace.name or "").startswith("method")]
    assert len({(one.marker.color, one.marker.symbol) for one in others}) == len(rows)
    # Reports leave colours as they are on dark pages; the dashboard has others.
    pages = page_of(figure), page_of(darkened(figure))
    for shown, page in ((figure, pages[0]), (figure, pages[1]), (darkened(figure), pages[1])):
        assert min(contrast(one[1], page) for one in drawn(shown) if (one[0] or "").startswith("method")) >= LEAST


def test_proposers_keep_different_colours_on_a_dark_page(found: Found) -> None:
    light, dark = proposers_figure(found), darkened(proposers_figure(found))
    colours = [{trace.name: trace.marker.color for trace in figure.data if trace.name} for figure in (light, dark)]
    assert len(set(colours[0].values())) == len(set(colours[1].values()))


def test_a_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast(VARIANT_COLOURS["static"], "#ffffff", 0.0) == pytest.approx(1.0)
