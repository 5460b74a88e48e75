"""The distribution of a quantity over the trials of several studies."""

from __future__ import annotations

import numpy as np
import pytest

from dashboards.analysis.axes import OFFERED, Axis
from dashboards.analysis.trials import Found
from dashboards.figures import distributions_figure
from dashboards.figures.appearance import darkened
from tests.dashboards.figures.test_contrast import LEAST, contrast, drawn, page_of


@pytest.mark.parametrize("name", OFFERED)
def test_a_line_gives_the_share_of_trials_that_have_at_most_a_value(found: Found, name: str) -> None:
    figure = distributions_figure({"<b>one": found, "two": found}, name)
    axis = Axis(name)
    values = axis.shown(found.values(name)[found.comparable])
    values = values[np.isfinite(values)]
    assert len(figure.data) == 2 and len(values) and figure.data[0].name == "&lt;b&gt;one"
    line = figure.data[0]
    assert list(line.y) == pytest.approx([(values <= at).mean() for at in line.x]) and line.y[-1] == 1.0
    assert figure.layout.xaxis.title.text == axis.heading and axis.title in figure.layout.title.text
    assert (".1%" if axis.is_share else axis.unit) in line.hovertemplate.partition("at most")[2]


def test_lines_are_told_apart_and_from_light_and_dark_pages(found: Found) -> None:
    light = distributions_figure({str(number): found for number in range(12)}, "latency_ms")
    assert len({(trace.line.color, trace.line.dash) for trace in light.data}) == 12
    for figure in (light, darkened(light)):
        assert min(contrast(colour, page_of(figure)) for _, colour, _ in drawn(figure)) >= LEAST


def test_studies_without_the_quantity_are_left_out(found: Found) -> None:
    assert "know this" in distributions_figure({"one": found}, "no such").layout.annotations[0].text
    assert not distributions_figure({}, "kl").data
