"""Every place agrees on which trials compare: values that are not finite are worth nothing, and spoil nothing."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from rich.console import Console

import studies
from dashboards import ReportData, write_report
from dashboards.analysis.trials import Found
from dashboards.app.pages.explore import described
from dashboards.figures import (
    front_figure,
    fronts_figure,
    growth_figure,
    parallel_figure,
    proposers_figure,
    schedules_figure,
    sensitivities_figure,
)
from dashboards.report.effort import rounds_table
from ftp_core.schedule import SparsitySchedule
from search.cli.show import describe_study
from search.cli.tables import print_rounds
from search.config.run_config import RunConfig
from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.evaluators import Evaluation, Task
from search.problem.initial_design import initial_design
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.progress.progress_view import _pieces
from search.proposers.catalogue import make_proposers
from search.proposers.deap_sampler import DEAPSampler
from search.proposers.operators import Individual, Population
from search.service.http.analysis import analyse
from search.service.http.app import create_app
from search.service.rules.settings import ServiceSettings
from search.stages.candidates import best_at
from search.stages.knee import why_no_front
from search.stages.refine_rounds import begun, ended
from search.stages.search_schedules import front_figures, warm_trials
from search.stages.select import select
from search.stages.sql_trial_store import SqlTrialStore
from studies import StudyRecord, StudyState, Trial, TrialState, best_point, front, hypervolume
from studies.pareto import FrontVolume, ParetoArchive, front_growth, reference_point, study_volume, usable_front
from studies.records.objectives import COSTS, CostName, objective, reference_text, shown_volume
from studies.records.study_facts import Round, StudyFacts
from studies.records.target import Target
from studies.service.service_store import ServiceStore
from tests.search.stages.test_select import DENSE, measured
from tests.search.synthetic import Notebook, ShufflingEvaluator, judge, metrics_of
from tests.studies.records import history

optuna.logging.set_verbosity(optuna.logging.ERROR)

N_BLOCKS = 3
SPACE = ScheduleSpace(N_BLOCKS)
OBJECTIVES = ("kl", "latency_ms")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STUDY = StudyRecord("one", StudyState.RUNNING, BEGAN, {}, OBJECTIVES, StudyFacts(), None)
# A coarse grid, so that ties and duplicates occur, and all that floats know beside numbers.
figure = st.integers(0, 6).map(float) | st.sampled_from([math.inf, -math.inf, math.nan])
ends = st.sampled_from(
    [(TrialState.FINISHED, 1.0, 0.0)] * 4 + [(TrialState.PRUNED, 0.5, 0.0), (TrialState.FINISHED, 1.0, 0.5)]
)
made = st.lists(st.tuples(st.tuples(figure, figure), ends), max_size=16)


def trials_of(said: list[tuple[tuple[float, float], tuple[TrialState, float, float]]]) -> list[Trial]:
    """Trials with different schedules."""
    return [
        Trial(
            number=number,
            schedule=(round(0.05 * number, 2), 0.0, 0.05),
            values=values,
            state=state,
            fidelity=fidelity,
            proposer=("deap", "tpe")[number % 2],
            seconds=1.0,
            finished_at=BEGAN + timedelta(seconds=number),
            metrics=dict(zip(OBJECTIVES, values, strict=True)),
            constraint_violation=violation,
        )
        for number, (values, (state, fidelity, violation)) in enumerate(said)
    ]


def slow_comparable(trials: list[Trial]) -> list[Trial]:
    return [
        one
        for one in trials
        if one.state is TrialState.FINISHED and one.fidelity == 1.0 and one.constraint_violation == 0.0
        if one.values is not None and not any(v != v or v in (math.inf, -math.inf) for v in one.values)
    ]


def slow_front(trials: list[Trial]) -> list[Trial]:
    """Those that none has values as good as, none of them better and none of equals earlier; lowest KL first."""
    known = [(one, one.values or ()) for one in slow_comparable(trials)]
    points = [
        one
        for one, own in known
        if not any(
            all(a <= b for a, b in zip(values, own, strict=True)) and (values != own or other.number < one.number)
            for other, values in known
        )
    ]
    return sorted(points, key=lambda one: one.values or ())


def slow_volume(points: list[Trial], corner: tuple[float, float]) -> float:
    """Area under a staircase, cell by cell of the grid that its corners span."""
    values = [one.values or () for one in points]
    xs, ys = (sorted({*(own[i] for own in values), corner[i]}) for i in (0, 1))
    return sum(
        (right - left) * (high - low)
        for left, right in pairwise(xs)
        for low, high in pairwise(ys)
        if any(own[0] <= left and own[1] <= low for own in values)
    )


def put(store: ServiceStore, trials: list[Trial]) -> None:
    """Write trials as a database may hold them: through Optuna's storage, which takes every value."""
    share = FloatDistribution(0.0, 1.0)
    state = {TrialState.FINISHED: OptunaState.COMPLETE, TrialState.PRUNED: OptunaState.PRUNED}
    said = ("proposer", "fidelity", "seconds", "metrics")
    for one in trials:
        params = {f"block_{block}": index for block, index in enumerate(one.schedule)}
        frozen = FrozenTrial(
            number=one.number,
            state=state[one.state],
            value=None,
            values=list(one.values or ()),
            datetime_start=datetime(2026, 1, 1),
            # Optuna's times are local, without a zone.
            datetime_complete=one.finished_at.astimezone().replace(tzinfo=None),
            params=params,
            distributions=dict.fromkeys(params, share),
            user_attrs={name: getattr(one, name) for name in said},
            system_attrs={"constraints": [one.constraint_violation]} if one.constraint_violation else {},
            intermediate_values={},
            trial_id=-1,
        )
        store.storage.create_new_trial(store.storage.get_study_id_from_name("one"), frozen)


@contextmanager
def stored(trials: list[Trial]) -> Iterator[ServiceStore]:
    with ServiceStore("sqlite://") as store:
        store.studies.create("one", {}, OBJECTIVES)
        put(store, trials)
        yield store


def same(one: Trial, other: Trial) -> bool:
    """Equality for which NaN is NaN."""
    return repr(asdict(one)) == repr(asdict(other))


def numbers_in(drawn: Any) -> list[float]:
    """All numbers that a figure draws."""
    if isinstance(drawn, Mapping):
        return [number for name, part in drawn.items() if name != "template" for number in numbers_in(part)]
    if isinstance(drawn, list | tuple | np.ndarray):
        return [number for part in drawn for number in numbers_in(part)]
    return [float(drawn)] if isinstance(drawn, int | float | np.number) else []


@given(said=made)
def test_fronts_volumes_and_choices_are_those_of_finite_values(
    said: list[tuple[tuple[float, float], tuple[TrialState, float, float]]],
) -> None:
    trials = trials_of(said)
    comparable, expected = slow_comparable(trials), slow_front(trials)
    assert [one for one in trials if one.is_comparable] == comparable
    assert front(trials) == expected
    legal = [one for one in trials if one.state is TrialState.FINISHED and not one.constraint_violation]
    archive = ParetoArchive()
    gains = [archive.add(one.values or ()) for one in legal]
    assert all(0.0 <= gain <= 1.0 for gain in gains) and len(archive) == len(expected)
    assert all(archive.holds(one.values or ()) for one in expected)
    assert all(gain == 0.0 for gain, one in zip(gains, legal, strict=True) if not one.is_comparable)
    near = best_at(trials, Target("target_sparsity", 0.0), 100)
    assert all(one in comparable for one in near)
    population: Population[int] = Population(4, "nsga2")
    population.tell(
        [Individual(one.number, one.values or (), one.constraint_violation) for one in trials], random.Random(0)
    )
    assert all(math.isfinite(value) for one in population.members for value in one.values)
    outcomes = warm_trials(trials, SPACE, Objectives(lambda s: (trials[round(s[0] / 0.05)].values or ())[1]))
    assert all(one.is_finite for one in outcomes)
    assert {outcome.values for outcome in outcomes if outcome.is_comparable} >= {one.values for one in expected}
    if not expected:
        with pytest.raises(ValueError, match="No trial has finished"):
            reference_point([one.values for one in comparable])
        assert hypervolume(trials, (9.0, 9.0)) == 0.0 and analyse(STUDY, trials).reference is None
        assert why_no_front(trials, RunConfig())
        return
    corner = reference_point([one.values for one in comparable])
    for place in (0, 1):
        column = [(one.values or ())[place] for one in comparable]
        span = max(column) - min(column) or 1.0
        assert corner[place] == pytest.approx(max(column) + 0.1 * span)
    volume = slow_volume(expected, (corner[0], corner[1]))
    volumes = history(FrontVolume(corner, of_log_kl=False), trials)
    assert hypervolume(trials, corner) == pytest.approx(volume) == pytest.approx(volumes[-1])
    assert volumes == pytest.approx(
        [slow_volume(slow_front(comparable[: n + 1]), (corner[0], corner[1])) for n in range(len(comparable))]
    )
    found, measured = analyse(STUDY, trials), study_volume(STUDY, trials)
    assert measured is not None and math.isfinite(measured.of(trials))
    assert found.front == expected and found.growth[-1][1] == pytest.approx(measured.of(trials))
    assert best_point(expected, None) in expected and best_point(expected, Target("target_sparsity", 0.1)) in expected
    assert all(one in expected for one in usable_front(trials))


@settings(max_examples=15)
@given(said=made)
def test_what_reads_a_database_agrees_with_what_reads_records(
    said: list[tuple[tuple[float, float], tuple[TrialState, float, float]]],
) -> None:
    trials = trials_of(said)
    expected = slow_front(trials)
    with stored(trials) as store:
        kept = store.trials.of("one")
        # They stay recorded as they are.
        assert all(same(one, other) for one, other in zip(kept, trials, strict=True))
        found = Found(store.columns.of("one"), OBJECTIVES)
        assert found.columns.number[found.comparable].tolist() == [one.number for one in slow_comparable(trials)]
        assert found.columns.number[found.front()].tolist() == [one.number for one in expected]
        loaded, shown = studies.load("one", store), describe_study(store, "one")
        assert (
            loaded.front().index.tolist() == [one["number"] for one in shown["front"]] == [t.number for t in expected]
        )
        assert len(loaded.trials()) == len(trials)
        json.dumps(shown["hypervolume"], allow_nan=False)
        with store.runs.lease("one") as lease:
            trial_store = SqlTrialStore(store, "one", lease, "context")
            known = list(trial_store.known())
            assert [one.number for one in trial_store.front] == [one.number for one in expected]
            assert len(known) == len(trials)
            told: list[Trial] = []
            portfolio = Portfolio(make_proposers("deap,evopress,additive,tpe,cmaes", SPACE, 0), 0)
            portfolio.learn = told.append  # type: ignore[method-assign]
            costs = {one.schedule: (one.values or ())[1] for one in trials}
            engine_judge = Objectives(lambda schedule: costs[tuple(round(share, 2) for share in schedule)])
            SearchEngine(SPACE, portfolio, ShufflingEvaluator(1), engine_judge, trial_store)
            finite = [one.number for one in trials if all(map(math.isfinite, one.values or ()))]
            assert [outcome.number for outcome in told] == finite
            assert all(math.isfinite(own.gain) for own in portfolio.statistics.values())
        if expected:
            assert loaded.best() == best_point(expected)
            # Whatever says how large the front is, or how it grew, says the same.
            growth, measured = found.growth, study_volume(loaded.record, trials)
            assert growth is not None and measured is not None
            assert list(growth.reference) == shown["hypervolume"]["reference"] == list(measured.reference)
            volumes = history(measured, trials)
            assert loaded.hypervolume() == shown["hypervolume"]["value"] == pytest.approx(volumes[-1])
            assert growth.volume.tolist()[-1:] == pytest.approx([volumes[-1]] if volumes[-1] else [])
            assert [volumes[at - 1] for at in growth.counted] == pytest.approx(growth.volume.tolist())
            assert [growth.after(n + 1) for n in range(len(volumes))] == pytest.approx(volumes)
            half = [one for one in trials if one.is_comparable][: len(volumes) // 2]
            one = ended(begun(Round(1, 0, 0), 0, measured.of(half)), 1, loaded.hypervolume())
            assert one.growth == front_growth(volumes[len(half) - 1] if half else 0.0, volumes[-1])
        study = optuna.load_study(study_name="one", storage=store.storage, sampler=DEAPSampler(4, seed=0))
        members = study.sampler._population(study).members  # type: ignore[attr-defined]
        assert all(math.isfinite(value) for one in members for value in one.values)
        study.ask({f"block_{block}": FloatDistribution(0.0, 1.0) for block in range(N_BLOCKS)})
        drawn = [
            front_figure(found, standalone=True),
            *(growth_figure(found), proposers_figure(found), schedules_figure(found, 3)),
            *(front_figure(found, "latency_ms", "kl"), fronts_figure({"one": found}, "latency_ms", "kl")),
            *(front_figure(found, "overall_sparsity", "kl", selected=3), parallel_figure(found, "latency_ms")),
            sensitivities_figure(found),
        ]
        for one in drawn:
            assert all(map(math.isfinite, numbers_in(one.to_dict())))


BROKEN = trials_of(
    [
        *(((0.0, 6.0), (TrialState.FINISHED, 1.0, 0.0)), ((1.0, 3.0), (TrialState.FINISHED, 1.0, 0.0))),
        *(((math.inf, 1.0), (TrialState.FINISHED, 1.0, 0.0)), ((-math.inf, 9.0), (TrialState.FINISHED, 1.0, 0.0))),
        *(((0.5, math.nan), (TrialState.FINISHED, 1.0, 0.0)), ((4.0, 1.0), (TrialState.FINISHED, 1.0, 0.0))),
    ]
)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[ServiceStore]:
    with ServiceStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        store.studies.create("one", {}, OBJECTIVES)
        put(store, BROKEN)
        yield store


def test_pages_reports_and_answers_show_them_as_not_comparable(broken: ServiceStore, tmp_path: Path) -> None:
    store = broken
    client = TestClient(create_app(store, ServiceSettings(out=tmp_path)), base_url="http://127.0.0.1:8000")
    assert [one["number"] for one in client.get("/api/v1/studies/one/front").json()["items"]] == [0, 1, 5]
    assert client.get("/api/v1/studies/one/hypervolume").json()["reference"] == pytest.approx([1.0, 6.5])
    values = [one["values"] for one in client.get("/api/v1/studies/one/trials").json()["items"]]
    assert values == [[0.0, 6.0], [1.0, 3.0], None, None, None, [4.0, 1.0]]
    found = Found(store.columns.of("one"), OBJECTIVES)
    assert dict(described(BROKEN[2], found))["trial"] == (
        "2, finished, compares with no other, since its values are not finite"
    )
    assert dict(described(BROKEN[1], found))["trial"] == "1, finished, on the front"
    assert "3 comparable trials, 3 on the front, 3 not drawn, since their values are not finite" in (
        front_figure(found, standalone=True).layout.title.subtitle.text
    )
    data = ReportData(store.studies.get("one"), store.trials.of("one"), [], [])
    write_report(data, tmp_path)
    said = "3 of 6 trials have objective values that are not finite, and compare with no other."
    assert said in (tmp_path / "report.html").read_text() and said in (tmp_path / "report.md").read_text()
    assert len((tmp_path / "front.csv").read_text().splitlines()) == 4


def test_a_candidate_without_finite_figures_is_never_selected() -> None:
    good = measured(3, 0.5, 0.5)
    broken = [
        *(measured(0, kl) for kl in (math.nan, math.inf, -math.inf)),
        *(measured(1, 0.1, latency_ms=ms, flops=flops) for ms, flops in ((-math.inf, 1e9), (math.nan, 1e9))),
        measured(2, 0.1, flops=-math.inf),
    ]
    demands: list[dict[str, Any]] = [
        {},
        {"target": Target("target_sparsity", 0.5)},
        {"min_retention": 0.5},
        {"max_latency_ms": 10.0},
    ]
    for demand in demands:
        assert select([*broken, good], DENSE, cost="flops", **demand).measurement == good


class Diverging(ShufflingEvaluator):
    """Finds figures that are not finite for many schedules, for those of some kinds on the second part alone."""

    late: tuple[int, ...] = ()

    def _evaluate(self, task: Task) -> Evaluation:
        self.evaluated.append(task)
        found = metrics_of(task.schedule, task.part)
        kind = sum(task.schedule.grid_indices(0.05)) % 9
        # With several parts, some do so on the last one alone.
        if kind in WRONG and (task.part or kind not in self.late):
            found["kl"] = WRONG[kind]
        return Evaluation(task, found, n_tokens=10, seconds=0.01)


WRONG = {0: math.inf, 3: math.nan, 6: -math.inf, 7: math.inf}


def is_wrong(indices: GridIndices) -> bool:
    return sum(indices) % 9 in WRONG


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fidelities", [(1.0,), (0.25, 1.0)])
def test_a_search_keeps_diverged_evaluations_and_learns_nothing_from_them(
    deterministic: bool, fidelities: tuple[float, ...]
) -> None:
    with ServiceStore("sqlite://") as store, store_lease(store) as lease:
        for n in (40, 40):
            trial_store = SqlTrialStore(store, "one", lease, "context")
            told: list[Trial] = []
            portfolio = Portfolio(make_proposers("deap,evopress,additive,tpe", SPACE, 0), 0, by_trial=deterministic)
            learn = portfolio.learn

            def listen(outcome: Trial, told: list[Trial] = told, learn: Any = learn) -> None:
                told.append(outcome)
                learn(outcome)

            portfolio.learn = listen  # type: ignore[method-assign]
            options: dict[str, Any] = {"deterministic": deterministic, "fidelities": fidelities}
            evaluator = Diverging(3)
            evaluator.late = (3, 7) if len(fidelities) > 1 else ()
            engine = SearchEngine(SPACE, portfolio, evaluator, judge, trial_store, **options)
            assert engine.run(Stopping(n)) == n
            assert told and all(one.is_finite for one in told)
            assert all(math.isfinite(own.gain) for own in portfolio.statistics.values())
        kept = store.trials.of("one")
        assert len(kept) == trial_store.n_trials == 80
        wrong = [one for one in kept if one.state is TrialState.FAILED]
        assert len(wrong) > 5 and all(one.error is not None and "not finite" in one.error for one in wrong)
        assert all(one.values is None and not math.isfinite(one.metrics["kl"]) for one in wrong)
        if len(fidelities) == 1:
            assert {one.number for one in wrong} == {
                one.number for one in kept if is_wrong(SparsitySchedule(one.schedule).grid_indices(0.05))
            }
        assert trial_store.front == front(kept) == slow_front(kept)
        assert math.isfinite(hypervolume(kept, reference_point([one.values for one in front(kept)])))


@pytest.mark.parametrize("cost", COSTS)
def test_page_answer_report_and_log_give_one_hypervolume(cost: CostName, tmp_path: Path) -> None:
    """In each objective's unit, and up to the dense model's cost as the search noted it."""
    scale, rng = {"latency_ms": 100.0, "flops": 2e9, "kv_bytes": 3.0 * 2**20}[cost], random.Random(0)
    points = [(2.0 * share**2, scale * (1 - share)) for share in (rng.random() for _ in range(16))]
    trials = trials_of([(point, (TrialState.FINISHED, 1.0, 0.0)) for point in points])
    before = front_figures(StudyRecord("one", StudyState.RUNNING, BEGAN, {}, ("kl", cost), StudyFacts(), None), [])
    assert before["hypervolume"] == before["front"] == 0
    with ServiceStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        store.studies.create("one", {}, ("kl", cost))
        store.studies.update_facts("one", StudyFacts(dense_costs={cost: 0.9 * scale}))
        put(store, trials)
        study = store.studies.get("one")
        client = TestClient(create_app(store, ServiceSettings(out=tmp_path)), base_url="http://127.0.0.1:8000")
        answer = client.get("/api/v1/studies/one/hypervolume").json()
        shown, noted = describe_study(store, "one"), front_figures(study, front(trials))
        assert [noted["reference_kl"], noted["reference_cost"]] == answer["reference"] == [1.0, 0.9 * scale]
        assert shown["hypervolume"]["reference"] == answer["reference"]
        value = answer["items"][-1]["value"]
        assert value == pytest.approx(noted["hypervolume"]) == pytest.approx(shown["hypervolume"]["value"])

        read = f"{shown_volume(value, study.objectives):.4g}"
        reference = reference_text(answer["reference"], study.objectives)
        assert objective(cost).text(0.9 * scale) in reference and reference.startswith("KL 1, ")
        assert f"hypervolume {read} up to {reference}" in _pieces(noted, cost)
        figure = growth_figure(Found.of_study(study, store.columns.of("one")))
        assert f"{figure.data[0].y[-1]:.4g}" == read and reference in figure.layout.title.subtitle.text
        facts = study.facts.updated(StudyFacts(rounds=(Round(1, 0, 0, hypervolume_before=value),)))
        rounds = rounds_table(ReportData(replace(study, facts=facts), trials, [], []))
        assert rounds.rows[0].cells[4].text == read and reference in rounds.reading
        console = Console(width=200, file=io.StringIO())
        print_rounds(console, {**shown, "rounds": [asdict(facts.rounds[0])]})
        assert read in console.file.getvalue()


@contextmanager
def store_lease(store: ServiceStore) -> Iterator[Any]:
    store.studies.create("one", {}, OBJECTIVES)
    with store.runs.lease("one") as lease:
        yield lease


def test_what_an_evaluator_cannot_say_in_json_is_kept_to_its_study() -> None:
    """A perplexity overflows long before KL does: the trial counts, and no other study takes it over."""

    class Overflowing(ShufflingEvaluator):
        def _evaluate(self, task: Task) -> Evaluation:
            return replace(super()._evaluate(task), metrics=metrics_of(task.schedule) | {"perplexity": math.inf})

    with ServiceStore("sqlite://") as store, store_lease(store) as lease:
        trial_store = SqlTrialStore(store, "one", lease, "context")
        portfolio = Portfolio(make_proposers("deap", SPACE, 0), 0)
        assert SearchEngine(SPACE, portfolio, Overflowing(2), judge, trial_store).run(Stopping(12)) == 12
        kept = store.trials.of("one")
        assert all(one.is_comparable and one.metrics["perplexity"] == math.inf for one in kept)
        assert trial_store.recall(kept) == [None] * 12


def test_an_infinite_warm_start_is_no_start() -> None:
    portfolio = Portfolio(make_proposers("deap", SPACE, 0), 0)
    found = {(1, 2, 3): (math.inf, 0.0), (2, 2, 2): (0.1, math.nan), (3, 2, 2): (0.1, 0.5)}
    warm = [
        Trial(0, SPACE.schedule(indices), "deap", state=TrialState.FINISHED, values=values)
        for indices, values in found.items()
    ]
    book = Notebook()
    SearchEngine(SPACE, portfolio, ShufflingEvaluator(1), judge, book, warm=warm).run(Stopping(20))
    begun = [SPACE.grid_indices(one.schedule) for one in book.begun.values() if one.proposer == "initial design"]
    first, *others = initial_design(SPACE)
    assert begun == [first, (3, 2, 2), *others]
