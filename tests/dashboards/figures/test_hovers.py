"""Hover texts give each quantity with its unit."""

from __future__ import annotations

import re
from collections.abc import Iterator

import plotly.graph_objects as go

from dashboards.analysis.axes import OFFERED, Axis
from dashboards.analysis.trials import Found
from dashboards.figures import (
    comparison_figure,
    distributions_figure,
    front_figure,
    fronts_figure,
    groups_figure,
    growth_figure,
    measurements_figure,
    proposers_figure,
    schedule_figure,
    schedules_figure,
    sensitivities_figure,
    slices_figure,
    training_figure,
    workers_figure,
)
from studies.records.objectives import volume_unit
from tests.dashboards import records

# A number that stands in a text or that Plotly fills in, with its interval.
_NUMBER = r"(%\{[xyz]:[^}]*\}|-?\d[\d.e+-]*%?(?: \[[^\]]*\])?)"
# Names of quantities that a number follows, and their units; a range of latencies stands behind the unit.
_UNITS = {
    **{Axis(name).title: "%" if Axis(name).is_share else Axis(name).unit for name in OFFERED},
    **{"KL": "nats per token", "latency": "ms", "measured latency": "ms", "accuracy": "%", "busy for": "%"},
}


def hovers(figure: go.Figure) -> Iterator[str]:
    """Every hover text of a figure; what a template takes from a point's own text stands in it."""
    for trace in figure.data:
        own = [str(one) for one in (trace.customdata if trace.customdata is not None else [""])]
        given = trace.hovertext if trace.hoverinfo == "text" else trace.hovertemplate
        for text in [given] if isinstance(given, str) else given or ():
            yield from (text.replace("%{customdata}", one) for one in own[:3])
        yield from [one for one in trace.text or () if isinstance(trace.text, tuple) and isinstance(one, str)]


def without_units(text: str) -> list[str]:
    """Names of the quantities of a text that a number without the unit follows."""
    return [
        name
        for name, unit in _UNITS.items()
        for number, behind in re.findall(rf"(?<![\w-]){re.escape(name)}:? {_NUMBER} ?(.{{0,14}})", text)
        if unit and not ("%" in number.split("{")[-1] if unit == "%" else behind.startswith(unit))
    ]


def test_every_quantity_in_a_hover_text_has_its_unit(found: Found) -> None:
    measured, volume = records.measurements(), volume_unit(found.objectives)
    figures = {
        "front": front_figure(found, measurements=measured, standalone=True),
        **{f"fronts {x}": fronts_figure({"a": found}, x, "kl") for x in OFFERED[1:]},
        **{"groups": groups_figure(records.EXAMPLES.groups, None), "measured": measurements_figure(measured, None)},
        **{"comparison": comparison_figure(measured), "sensitivities": sensitivities_figure(found)},
        "slices": slices_figure(found),
        **{"schedule": schedule_figure(found.columns.schedule_at(9), 9), "schedules": schedules_figure(found)},
        **{"workers": workers_figure(found), "training": training_figure(records.DATA.router_runs[0])},
        **{f"distributions {x}": distributions_figure({"a": found}, x) for x in OFFERED},
        **{"growth": growth_figure(found), "proposers": proposers_figure(found)},
    }
    for name, figure in figures.items():
        texts = list(hovers(figure))
        assert texts, name
        assert not [wrong for text in texts for wrong in without_units(text)], name
    for name in ("growth", "proposers"):
        assert any(volume in text for text in hovers(figures[name])), name
    for name in ("schedule", "schedules"):
        assert all("%}" in text and "of tokens skip" in text for text in hovers(figures[name])), name


def test_a_number_without_its_unit_is_found() -> None:
    assert without_units("KL 0.3, latency %{x:.4g} ms, KV cache 2.5 MiB, accuracy %{y:.1%}") == ["KL"]
    assert without_units("overall sparsity 0.3<br>KL to dense %{y:.4g} nats per token") == ["overall sparsity"]
    assert without_units("latency 3.1 ms [3.0, 3.2]<br>KL 0.1 [0.05, 0.2] nats per token, accuracy 91.0% [9%]") == []
    assert without_units("accuracy %{y:.3f}<br>prefill arithmetic 3.1") == ["prefill arithmetic", "accuracy"]
