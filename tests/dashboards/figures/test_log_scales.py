"""What a logarithmic axis cannot show is drawn apart from it, and hover labels say its true value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboards.analysis.trials import Found
from dashboards.figures import (
    comparison_figure,
    front_figure,
    fronts_figure,
    measurements_figure,
    parallel_figure,
    training_figure,
)
from dashboards.figures.appearance import LogScale
from dashboards.figures.front import ring_position
from studies import Trial, TrialState
from studies.records.trial_columns import columns_of
from tests.dashboards import records

OBJECTIVES = ("kl", "latency_ms")
# The dense model up to rounding, schedules close to it, useful ones, and ruined ones.
kls = st.lists(st.sampled_from([-1e-9, 0.0, 3e-8, 9.9e-6, 2e-4, 0.0067, 0.03, 0.2, 0.9, 4.0]), min_size=2, max_size=12)


def found_of(kl: list[float]) -> Found:
    trials = [
        Trial(
            number=number,
            schedule=(0.05 * number, 0.0),
            values=(one, 10.0 + number % 5),
            state=TrialState.FINISHED,
            fidelity=0.5 if number % 4 == 3 else 1.0,
            proposer=("deap", "tpe")[number % 2],
            seconds=1.0,
            finished_at=records.BEGAN + timedelta(seconds=number),
            metrics={"kl": one},
        )
        for number, one in enumerate(kl)
    ]
    return Found(columns_of(trials, 2), OBJECTIVES)


def drawn(figure: go.Figure) -> list[tuple[int, float, str, str]]:
    """Number, height, symbol and hover label of every trial that is drawn."""
    points = []
    for trace in (one for one in figure.data if one.customdata is not None):
        n = len(trace.x)
        symbols, labels = (
            [own] * n if isinstance(own, str) else list(own) for own in (trace.marker.symbol, trace.hovertemplate)
        )
        points += list(zip(trace.customdata, trace.y, symbols, labels, strict=True))
    return points


@settings(max_examples=40, derandomize=True)
@given(kl=kls, standalone=st.booleans())
def test_every_point_stands_at_its_value_or_says_it_and_stands_apart(kl: list[float], standalone: bool) -> None:
    found = found_of(kl)
    front, fronts = front_figure(found, standalone=standalone), fronts_figure({"one": found}, "latency_ms", "kl")
    assert {number for number, *_ in drawn(front)} <= set(range(len(kl)))
    for figure in (front, fronts):
        lines = [one.y0 for one in figure.layout.shapes]
        for number, height, symbol, label in drawn(figure):
            if height == kl[number]:
                assert "%{y" in label and "triangle-down" not in symbol
                assert not lines or height >= lines[0]
            else:
                [line] = lines
                assert height < line and kl[number] < line and "triangle-down" in symbol
                assert f"{kl[number]:.4g} nats per token, below the scale" in label and "%{y" not in label
                assert [one.text for one in figure.layout.annotations] == ["lower"]
                assert "not to scale" in figure.layout.title.subtitle.text
    for number in found.columns.number[found.comparable].tolist():
        ring = front_figure(found, selected=number).data[0]
        assert (list(ring.x), list(ring.y)) == ring_position(found, "latency_ms", "kl", number)


def test_a_scale_that_shows_everything_has_no_rail() -> None:
    figure = front_figure(found_of([0.01, 0.1, 0.9, 4.0]))
    assert figure.layout.yaxis.type == "log" and not figure.layout.shapes and not figure.layout.annotations


@pytest.mark.parametrize("draw", [measurements_figure, comparison_figure])
def test_a_measured_kl_of_nothing_stands_below_the_line_without_whiskers(draw: Callable[..., go.Figure]) -> None:
    kls = {"dense": 0.0, "uniform": 1e-7, "static": 0.065, "dynamic": 2.0}
    low = [
        replace(m, accuracy=None, kl=kls[m.variant], kl_low=0.5 * kls[m.variant], kl_high=2 * kls[m.variant])
        for m in records.DATA.results
        if m.variant in kls
    ]
    figure = draw(low, None)
    [line] = [one.y0 for one in figure.layout.shapes]
    assert "lower" in [one.text for one in figure.layout.annotations]
    assert "not to scale" in figure.layout.title.subtitle.text
    # The first panel is of KL.
    marks = [one for one in figure.data if one.type == "scatter" and one.hovertext and one.yaxis in (None, "y")]
    for variant, mark in zip(kls, sorted(marks, key=_variant), strict=True):
        assert f"KL {kls[variant]:.4g}" in mark.hovertext[0]
        assert (mark.y[0] < line) == (kls[variant] < 1e-6)
        assert (mark.error_y.array[0] == 0) == (kls[variant] < 1e-6)


def _variant(trace: go.Scatter) -> int:
    variants = ("dense", "uniform", "static", "dynamic")
    return variants.index(trace.legendgroup or trace.name)


def test_ticks_are_set_by_the_browser_so_that_every_zoom_has_some() -> None:
    axis = front_figure(found_of([0.0, 0.01, 0.1, 0.9, 4.0])).layout.yaxis
    assert axis.tickvals is None and axis.tickformat == "~g"


@given(least=st.floats(1e-9, 1e3), times=st.floats(31.0, 9e3))
def test_no_tick_stands_beside_what_is_lower(least: float, times: float) -> None:
    scale = LogScale.of([0.0, least, least * times])
    assert scale is not None and scale.has_lower and scale.rail < scale.floor <= least / 1.1
    ticks = [float(f"{step}e{power}") for power in range(-12, 8) for step in (1, 2, 5)]
    bottom = 10 ** scale.axis()["range"][0]
    assert scale.floor in ticks and not any(bottom <= tick < scale.floor for tick in ticks)


def test_parallel_coordinates_name_what_is_lower() -> None:
    kl = parallel_figure(found_of([0.0, 0.01, 0.1, 0.9, 4.0]), "latency_ms").data[0].dimensions[-1]
    assert kl.ticktext[0] == "lower" and min(kl["values"]) == kl.tickvals[0] < math.log10(0.005) + 1e-9
    assert len(kl.ticktext) >= 3
    close = parallel_figure(found_of([0.11, 0.12, 0.15]), "latency_ms").data[0].dimensions[-1]
    assert close.tickvals is None and sorted(close["values"]) == pytest.approx([0.11, 0.12, 0.15])


def test_gaps_in_the_curves_of_a_router_are_explained() -> None:
    run = records.router_run(0, "distill-1", [0.06, 0.05])
    said = training_figure(run).layout.title.subtitle.text
    assert "gaps in curves" in said
    curves = {**run.curves, "guide": [0.1] * 80, "sparsity": [0.001] * 80}
    assert "gaps" not in training_figure(replace(run, curves=curves)).layout.title.subtitle.text
    guide = next(trace for trace in training_figure(run).data if trace.name == "guide")
    assert all(value is None or np.isnan(value) for value in guide.y)
