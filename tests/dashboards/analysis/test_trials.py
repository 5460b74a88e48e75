"""What trials add up to, and the figures that look around in it; no browser is needed for either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import studies.pareto
from dashboards.analysis.axes import Axis
from dashboards.analysis.sensitivities import ablations
from dashboards.analysis.trials import Found
from dashboards.analysis.workers import busy, timeline
from dashboards.figures import (
    front_figure,
    fronts_figure,
    growth_figure,
    parallel_figure,
    proposers_figure,
    schedule_figure,
    schedules_figure,
    sensitivities_figure,
    workers_figure,
)
from dashboards.figures.appearance import INK, INKED, darkened
from dashboards.figures.front import RING, ring_position
from studies import Trial, front
from studies.pareto import front_volume
from studies.records.trial import WorkSpan
from studies.service.service_store import ServiceStore
from tests.dashboards import records
from tests.studies.records import history

OBJECTIVES = ("kl", "latency_ms")


def measured_trials() -> list[Trial]:
    return [
        replace(t, metrics={"accuracy": max(0.3, 0.98 - 0.2 * t.values[0]), "flops": 4e9 * (1 - t.overall_sparsity)})
        if t.values
        else t
        for t in records.TRIALS
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceStore]:
    folder: Path = tmp_path_factory.mktemp("found")
    with ServiceStore(f"sqlite:///{folder / 'studies.db'}") as store:
        store.studies.create("made up", {}, OBJECTIVES)
        store.studies.create("empty", {}, OBJECTIVES)
        trials = measured_trials()
        store.trials.begin("made up", trials)
        store.trials.finish("made up", trials)
        yield store


@pytest.fixture(scope="module")
def found(store: ServiceStore) -> Found:
    return Found(store.columns.of("made up"), OBJECTIVES)


@pytest.fixture(scope="module")
def empty(store: ServiceStore) -> Found:
    return Found(store.columns.of("empty"), OBJECTIVES)


def test_the_front_is_the_one_of_studies(found: Found) -> None:
    assert found.columns.number[found.front()].tolist() == [t.number for t in front(records.TRIALS)]


def test_a_front_of_other_quantities_heeds_which_way_is_better(found: Found) -> None:
    best = found.front("flops", "accuracy")
    accuracy, flops = found.values("accuracy"), found.values("flops")
    for place in best:
        rivals = found.drawable("flops", "accuracy")
        dominates = (accuracy[rivals] >= accuracy[place]) & (flops[rivals] <= flops[place])
        dominates &= (accuracy[rivals] > accuracy[place]) | (flops[rivals] < flops[place])
        assert not dominates.any()
    assert np.all(np.diff(flops[best]) >= 0)


def test_growth_is_the_history_of_studies(found: Found) -> None:
    measured, growth = front_volume(OBJECTIVES, records.TRIALS), found.growth
    assert measured is not None and growth is not None and growth.reference == measured.reference
    volumes = history(measured, records.TRIALS)
    assert growth.volume[-1] == pytest.approx(volumes[-1])
    assert [volumes[at - 1] for at in growth.counted] == pytest.approx(growth.volume.tolist())
    assert np.all(np.diff(growth.volume) > 0)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_growth_is_the_same_however_many_trials_are_compared_at_once(
    found: Found, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(studies.pareto, "_AT_ONCE", at_once)
    growth, before = Found(found.columns, OBJECTIVES).growth, found.growth
    assert growth is not None and before is not None
    assert growth.volume.tolist() == before.volume.tolist() and growth.counted.tolist() == before.counted.tolist()


def test_representatives_keep_the_look_and_are_few() -> None:
    chance = np.random.default_rng(0)
    from studies.records.trial_columns import TrialColumns, WorkColumns

    n = 50_000
    columns = TrialColumns(
        number=np.arange(n),
        state=np.zeros(n, np.int8),
        values=chance.uniform(0.1, 1.0, (n, 2)),
        schedule=chance.uniform(0, 1, (n, 4)).astype(np.float32),
        fidelity=np.ones(n),
        constraint_violation=np.zeros(n),
        seconds=np.ones(n),
        finished_at=np.arange(n, dtype=float),
        round=np.zeros(n, np.int32),
        proposer=np.zeros(n, np.int16),
        parents=np.empty((n, 0), np.int32),
        work=WorkColumns(*(np.empty(0, kind) for kind in (np.int64, np.int16, float, float))),
        proposers=("deap",),
    )
    many = Found(columns, OBJECTIVES)
    places = many.representatives("latency_ms", "kl")
    assert 1000 < len(places) <= 150 * 90
    # Every trial has one of them near.
    grid = np.floor(columns.values * 20).astype(int)
    assert {tuple(cell) for cell in grid[places].tolist()} == {tuple(cell) for cell in grid.tolist()}
    close = many.representatives("latency_ms", "kl", x_range=(0.5, 0.52), y_range=(0.5, 0.52))
    inside = np.all((columns.values > 0.5) & (columns.values < 0.52), axis=1).sum()
    assert len(close) == pytest.approx(inside, rel=0.2)


def test_busy_adds_up_to_the_time_of_evaluations(found: Found) -> None:
    at, evaluations, rate = busy(found.columns, 50)
    width = at[1] - at[0]
    assert (evaluations * width).sum() == pytest.approx(found.columns.seconds.sum())
    assert (rate * width).sum() == pytest.approx(len(found))


def at_work() -> list[Trial]:
    """Two trials whose figures were known, then 8 by three workers, who each take one second in two."""
    trials = [replace(t, finished_at=records.BEGAN, seconds=0.0, work=()) for t in records.TRIALS[:2]]
    for place, t in enumerate(records.TRIALS[8:16]):
        began_at = records.BEGAN + timedelta(seconds=1 + 2 * (place // 2))
        worker = "10" if place % 2 else "2" if place < 6 else "1"
        span = WorkSpan(worker, began_at, 1.0)
        done = began_at + timedelta(seconds=1.5)
        trials.append(
            replace(t, number=2 + place, seconds=1.0, finished_at=done, work=(span,), parents=(0, 1)[: place % 3])
        )
    # One that failed on the way.
    lost = WorkSpan("1", records.BEGAN + timedelta(seconds=1), 1.0)
    return [*trials[:-1], replace(trials[-1], work=(lost, *trials[-1].work))]


@pytest.fixture
def watched(store: ServiceStore) -> Iterator[Found]:
    trials = at_work()
    store.studies.create("watched", {}, OBJECTIVES)
    store.trials.begin("watched", trials)
    store.trials.finish("watched", trials)
    yield Found(store.columns.of("watched"), OBJECTIVES)
    store.delete_study("watched")


def test_the_timeline_has_a_row_for_each_worker_with_its_own_times(found: Found, watched: Found) -> None:
    assert timeline(found.columns).workers == ("0", "1", "2", "3")
    rows = timeline(watched.columns, 82)
    assert rows.workers == ("1", "2", "10")
    width = rows.at[1] - rows.at[0]
    assert (rows.busy * width).sum(1) == pytest.approx([2.0, 3.0, 4.0], abs=1e-6)
    for name, seconds in (("1", (1, 7)), ("2", (1, 3, 5)), ("10", (1, 3, 5, 7))):
        row = rows.busy[rows.workers.index(name)]
        inside = [any(s + width < at < 1 + s - width for s in seconds) for at in rows.at]
        outside = [all(not s - width < at < 1 + s + width for s in seconds) for at in rows.at]
        assert row[inside] == pytest.approx(1.0) and row[outside] == pytest.approx(0.0)
    at, evaluations, rate = busy(watched.columns, 50)
    assert (evaluations * (at[1] - at[0])).sum() == pytest.approx(9.0)
    assert (rate * (at[1] - at[0])).sum() == pytest.approx(len(watched))


def test_the_figure_of_busy_workers_has_a_row_for_each(watched: Found) -> None:
    figure = workers_figure(watched, 4)
    [rows] = [trace for trace in figure.data if trace.type == "heatmap"]
    assert list(rows.y) == ["1", "2", "10"] and np.shape(rows.z) == (3, len(rows.x))
    # What holds for the panels below is not said of the rows.
    assert figure.layout.yaxis.type == "category" and figure.layout.yaxis2.rangemode == "tozero"


def test_hover_labels_carry_units(watched: Found) -> None:
    units = {
        workers_figure: ["busy for", "evaluations at a time", "trials per second"],
        proposers_figure: ["% of the trials", "log nats × ms in"],
        growth_figure: ["log nats × ms"],
        front_figure: ["nats per token", "ms"],
    }
    for draw, expected in units.items():
        said = [one.hovertemplate for one in draw(watched).data if one.hovertemplate]
        texts = [text for one in said for text in ([one] if isinstance(one, str) else one)]
        assert all(any(unit in text for text in texts) for unit in expected)
        assert all(any(unit in text for unit in expected) for text in texts)


def test_points_of_the_front_say_what_they_were_made_from(watched: Found) -> None:
    [line] = [trace for trace in front_figure(watched, "latency_ms", "kl").data if trace.name == "front"]
    made = {number: watched.columns.parents_of(watched.columns.place(number)) for number in line.customdata}
    assert len(set(map(len, made.values()))) > 1 and "%{text}" in line.hovertemplate[0]
    for number, text in zip(line.customdata, line.text, strict=True):
        assert ("made from" in text) == bool(made[number]) and text.count("trial ") == len(made[number])


def test_what_blocks_harm_by_themselves_is_shown_where_it_was_evaluated(found: Found) -> None:
    from dataclasses import replace as changed

    columns = found.columns
    proposer, schedule = columns.proposer.copy(), columns.schedule.copy()
    harm = np.array([0.1 * (1 + block) for block in range(records.N_BLOCKS)])
    values, violation = columns.values.copy(), columns.constraint_violation.copy()
    for place, block in enumerate(reversed(range(records.N_BLOCKS))):
        proposer[place], schedule[place] = len(columns.proposers), 0.0
        schedule[place, block], values[place, 0], violation[place] = 0.95, harm[block], 0.4
    # One failed.
    values[0] = np.nan
    changes = {
        "proposer": proposer,
        "schedule": schedule,
        "values": values,
        "constraint_violation": violation,
    }
    known = Found(changed(columns, proposers=(*columns.proposers, "ablation"), **changes), OBJECTIVES)
    figure = sensitivities_figure(known)
    [bars] = figure.data
    assert list(bars.text) == [f"{kl:.2g}" for kl in bars.y]
    assert dict(zip(bars.x, bars.y, strict=True)) == pytest.approx(dict(enumerate(harm[:-1].tolist())))
    assert "95% of the tokens skip this block alone" in figure.layout.title.subtitle.text
    assert ablations(found) is None and "linear fit" in sensitivities_figure(found).layout.title.subtitle.text


def test_neighbours_that_were_ablated_together_have_one_bar_unless_a_finer_ablation_is_known(found: Found) -> None:
    from dataclasses import replace as changed

    columns = found.columns
    proposer, schedule, values = columns.proposer.copy(), columns.schedule.copy(), columns.values.copy()
    groups, kl = [(0, 1), (2, 3), (2,), (3,)], [0.1, 0.2, 0.3, 0.4]
    for place, (group, harm) in enumerate(zip(groups, kl, strict=True)):
        proposer[place], schedule[place] = len(columns.proposers), 0.0
        schedule[place, list(group)], values[place, 0] = 0.95, harm
    changes = {"proposer": proposer, "schedule": schedule, "values": values}
    known = Found(changed(columns, proposers=(*columns.proposers, "ablation"), **changes), OBJECTIVES)
    alone = ablations(known)
    assert alone is not None
    bars = zip(alone.first.tolist(), alone.last.tolist(), alone.kl.tolist(), strict=True)
    assert sorted(bars) == [(0, 1, 0.1), (2, 2, 0.3), (3, 3, 0.4)]
    figure = sensitivities_figure(known)
    assert "blocks 0 to 1 together" in figure.data[0].customdata and "block 3 alone" in figure.data[0].customdata
    assert "together" in figure.layout.title.subtitle.text


def test_the_front_figure_shows_front_ring_and_comparison(found: Found) -> None:
    figure = front_figure(found, "latency_ms", "kl", measurements=records.measurements(), selected=50)
    by_name = {trace.name: trace for trace in figure.data}
    assert figure.data[RING].name == "selected" and len(figure.data[RING].x) == 1
    assert list(by_name["front"].customdata) == found.columns.number[found.front("latency_ms", "kl")].tolist()
    assert {"dense, measured", "uniform, measured", "static, measured", "refined, measured"} <= set(by_name)
    dominated = [trace for trace in figure.data if trace.name.startswith("by ")]
    assert dominated and all(trace.marker.opacity < 1 for trace in dominated)
    shown = {number for trace in dominated for number in trace.customdata}
    assert not shown & set(by_name["front"].customdata)
    assert ring_position(found, "latency_ms", "kl", None) == ([], [])
    assert ring_position(found, "latency_ms", "kl", 10_000) == ([], [])


def test_a_zoomed_figure_stays_where_it_is(found: Found) -> None:
    figure = front_figure(found, "flops", "accuracy", x_range=(1e9, 2e9), y_range=(0.6, 0.9))
    assert list(figure.layout.xaxis.range) == [1.0, 2.0]
    assert list(figure.layout.yaxis.range) == [0.6, 0.9]
    figure = front_figure(found, "latency_ms", "kl", y_range=(0.01, 0.1))
    assert list(figure.layout.yaxis.range) == pytest.approx([-2, -1])


def test_many_points_are_drawn_with_webgl_where_there_is_webgl(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboards.figures.front._MANY", 10)
    kinds = {trace.type for trace in front_figure(found, "latency_ms", "kl", webgl=True).data}
    assert kinds == {"scatter", "scattergl"}
    assert {trace.type for trace in front_figure(found, "latency_ms", "kl").data} == {"scatter"}


def test_figures_say_why_they_are_empty(empty: Found) -> None:
    figures = [
        front_figure(empty, "latency_ms", "kl"),
        parallel_figure(empty, "latency_ms"),
        growth_figure(empty),
        schedules_figure(empty),
        proposers_figure(empty),
        workers_figure(empty, 4),
        sensitivities_figure(empty),
        fronts_figure({"a": empty}, "latency_ms", "kl"),
        fronts_figure({}, "latency_ms", "kl"),
    ]
    assert all(len(figure.layout.annotations) == 1 and not figure.data for figure in figures)


def test_figures_of_progress_are_about_every_trial(found: Found) -> None:
    growth = growth_figure(found, by_seconds=True)
    assert growth.data[0].x[-1] == pytest.approx(199.4, abs=0.5)
    credit = proposers_figure(found)
    stacked = np.sum([trace.y for trace in credit.data if trace.orientation != "h"], 0)
    assert stacked == pytest.approx(np.full(len(stacked), 100.0))
    gained = {trace.y[0] for trace in credit.data if trace.orientation == "h"}
    assert gained == {"deap", "tpe", "evopress", "cmaes"}
    assert "busy on average" in workers_figure(found, 4).layout.title.subtitle.text
    assert len(sensitivities_figure(found).data[0].x) == records.N_BLOCKS
    assert list(schedule_figure(records.TRIALS[9].schedule, 9).data[0].y) == list(records.TRIALS[9].schedule)


def test_names_cannot_become_markup(found: Found) -> None:
    figure = fronts_figure({"<a href='x'>click</a>": found}, "latency_ms", "kl")
    assert "<a" not in figure.data[0].name and "<a" not in figure.data[0].hovertemplate


def test_a_dark_figure_is_repainted_and_the_light_one_stays(found: Found) -> None:
    light = front_figure(found, "latency_ms", "kl", measurements=records.measurements(), selected=3)
    dark = darkened(light)
    background = [figure.layout.template.layout.paper_bgcolor for figure in (dark, light)]
    assert background[0] != background[1] == "#ffffff"
    inked = [trace for trace in dark.data if trace.meta == INKED]
    assert inked and all(trace.marker.color != INK for trace in inked)
    assert light.data[RING].marker.color == INK


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("accuracy", 0.5, "50.0%"), ("flops", 2e9, "2 GFLOPs"), ("kl", 0.01234, "0.01234 nats per token")],
)
def test_axes_say_values_with_their_units(name: str, value: float, text: str) -> None:
    assert Axis(name).text(value) == text
