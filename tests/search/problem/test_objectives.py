"""A search trades KL against a cost of its choice; trials remember all costs, whichever of them is the objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from ftp_core.cost import LatencyProfile, timing_batch
from ftp_core.cost.conditions import profile_conditions
from ftp_core.routers import HiddenRouter, OnePassRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from search.cli.show import describe_study
from search.cli.tables import print_front
from search.config.run_config import RunConfig
from search.engine.engine import SearchEngine
from search.engine.termination import Stopping
from search.errors import ConfigError, SearchError
from search.inputs.data import Workload, load_workload
from search.problem.costs import Costs
from search.problem.initial_design import ablations, initial_design
from search.problem.objectives import OBJECTIVES, Objectives, objective_names
from search.problem.space import ScheduleSpace
from search.progress.progress_view import ProgressView
from search.stages.knee import why_no_front
from search.stages.open_study import OpenStudy
from search.stages.search_schedules import best_note, schedule_space, warm_trials
from search.stages.sql_trial_store import SqlTrialStore
from search.stages.study_costs import note_costs, study_costs
from studies import StudyStore, Trial, TrialState, front
from studies.records import objectives as shown
from studies.records.objectives import COSTS, DEFAULT_COST, CostName
from studies.records.study_facts import TimedInput
from studies.records.target import Target
from tests.ftp_core.cost.made_up_profiles import profile_of, shape_of
from tests.search.synthetic import Notebook, ShufflingEvaluator, metrics_of, portfolio, timeless
from tests.studies.records import trial

N_BLOCKS = 12
SMALL = {"calibration_items": 4, "validation_items": 2, "test_items": 4, "search_items": 4, "workers": 1}
PROFILE = profile_of(N_BLOCKS, shape_of(2, 64, (4, 63, 64), ((0.1, 1.0, 0.9),), fixed_ms=1.0))
DENSE, HALF = (SparsitySchedule.uniform(s, N_BLOCKS) for s in (0.0, 0.5))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture(scope="module")
def costs(workload: Workload) -> Costs:
    return Costs(workload.model.skipping, batch=2, length=64, profile=PROFILE)


def test_costs_are_those_of_the_prefill_that_a_study_times(workload: Workload, costs: Costs) -> None:
    model = workload.model.skipping
    prompts = timing_batch([[3, 4, 5]], batch=2, length=64)
    for schedule in (DENSE, HALF):
        held = model.prefill(prompts, schedule, StaticRouter()).cache.kv_bytes()
        known = costs.of(schedule)
        assert known["latency_ms"] == PROFILE.predict_ms(schedule)
        assert known["kv_bytes"] == held
        assert list(known) == list(COSTS)
    assert 0.4 < costs.of(HALF)["flops"] / costs.of(DENSE)["flops"] < 0.5
    assert costs.of(HALF)["kv_bytes"] == costs.of(DENSE)["kv_bytes"] / 2


def test_routers_cost_what_they_compute_and_a_one_pass_router_scores_once(costs: Costs) -> None:
    width = costs.model.model.config.hidden_size
    shape = shape_of(2, 64, (4, 63, 64), ((0.1, 1.0, 0.9),), score_ms=0.3, choice_ms=0.1, once_ms=0.5)
    routers: list[Router] = [StaticRouter(), HiddenRouter(width), OnePassRouter(width, N_BLOCKS)]
    by_router = [replace(costs, profile=profile_of(N_BLOCKS, shape), router=router).of(HALF) for router in routers]
    static, hidden, one_pass = ({name: of[name] - by_router[0][name] for name in COSTS} for of in by_router)
    assert static == costs.of(HALF) | dict.fromkeys(COSTS, 0.0)
    assert hidden["latency_ms"] == pytest.approx(0.3 * N_BLOCKS)
    assert one_pass["latency_ms"] == pytest.approx(0.1 * N_BLOCKS + 0.5)
    assert 0 < one_pass["flops"] < hidden["flops"] / 8
    assert hidden["kv_bytes"] == one_pass["kv_bytes"] == 0


def test_each_cost_can_be_the_objective(costs: Costs) -> None:
    for name in COSTS:
        judge = Objectives(costs.function(name))
        assert judge(HALF, {"kl": 0.3}) == ((0.3, costs.of(HALF)[name]), 0.0)
        assert objective_names(name) == ("kl", name)
    assert OBJECTIVES == ("kl", DEFAULT_COST) == ("kl", "latency_ms")


def test_without_a_profile_everything_but_latency_is_known(costs: Costs) -> None:
    blind = replace(costs, profile=None)
    assert blind.of(HALF) == {name: costs.of(HALF)[name] for name in ("flops", "kv_bytes")}
    with pytest.raises(SearchError, match="Latency cannot be predicted without a profile"):
        blind.function("latency_ms")


def test_a_cost_among_the_metrics_is_not_believed() -> None:
    # It may come from a study that timed another input.
    judge = Objectives(lambda _: 7.0)
    assert judge(HALF, {"kl": 0.3, "latency_ms": 1.0, "flops": 2.0})[0] == (0.3, 7.0)


def test_what_every_cost_is_shown_in_is_known() -> None:
    assert shown.COSTS == COSTS and shown.DEFAULT_COST == DEFAULT_COST
    texts = [shown.objective(name).text(3.0 * 2**30) for name in ("flops", "kv_bytes")]
    assert texts == ["3.22 GFLOPs", "3072.0 MiB"]
    assert [shown.objective("latency_ms").text(ms) for ms in (0.0, 5.254, 105.25)] == ["0.0 ms", "5.25 ms", "105.2 ms"]
    assert shown.objective("latency_ms").axis == "predicted latency, ms"
    assert (shown.objective("carbon").text(12.0), shown.objective("carbon").axis) == ("12.0", "carbon")


def test_the_cost_is_part_of_the_configuration_and_latency_in_those_that_do_not_name_it() -> None:
    assert RunConfig.checked(cost="flops", **SMALL).model_dump()["cost"] == "flops"
    assert RunConfig.stored({"workers": 1}).cost == "latency_ms"
    with pytest.raises(ConfigError, match="--cost is 'money': expected one of 'latency_ms', 'flops' or 'kv_bytes'"):
        RunConfig.checked(cost="money")


def test_latency_is_profiled_for_those_searches_alone_that_cannot_do_without() -> None:
    needs = {
        (cost, limit): RunConfig.checked(cost=cost, max_latency_ms=limit, **SMALL).predicts_latency
        for cost in COSTS
        for limit in (None, 5.0)
    }
    assert [pair for pair, needed in needs.items() if not needed] == [("flops", None), ("kv_bytes", None)]


@pytest.fixture
def store() -> Iterator[StudyStore]:
    with StudyStore("sqlite://") as store:
        store.studies.create("one", {}, objective_names())
        yield store


@pytest.mark.parametrize("cost", COSTS)
def test_a_search_finds_the_front_of_its_cost_and_its_trials_remember_all_costs(
    store: StudyStore, costs: Costs, cost: CostName
) -> None:
    space, judge = ScheduleSpace(N_BLOCKS), Objectives(costs.function(cost))
    with store.runs.lease("one") as lease:
        engine = SearchEngine(
            space,
            portfolio(space, by_trial=True),
            ShufflingEvaluator(3, fails=40),
            judge,
            SqlTrialStore(store, "one", lease, "context", costs=costs.of),
            deterministic=True,
            fidelities=(0.25, 1.0),
        )
        assert engine.run(Stopping(60)) == 60
    ended = [one for one in store.trials.of("one") if one.values is not None]
    for one in ended:
        schedule = SparsitySchedule(one.schedule)
        assert {name: one.metrics[name] for name in COSTS} == costs.of(schedule)
        assert one.values is not None and one.values[1] == costs.of(schedule)[cost]
        assert not any(name.startswith("latency_ms@") for name in one.metrics)
    assert {one.fidelity for one in ended} == {0.25, 1.0}


def test_a_search_that_goes_on_proposes_as_if_it_had_not_stopped(store: StudyStore, costs: Costs) -> None:
    space, trials = ScheduleSpace(N_BLOCKS), []
    store.studies.create("other", {}, objective_names())
    for name, parts in (("one", (40,)), ("other", (15, 25))):
        for part in parts:
            with store.runs.lease(name) as lease:
                kept = SqlTrialStore(store, name, lease, name, costs=costs.of)
                judge = Objectives(costs.function("kv_bytes"))
                members = portfolio(space, by_trial=True)
                SearchEngine(space, members, ShufflingEvaluator(3), judge, kept, deterministic=True).run(Stopping(part))
        trials.append(timeless(store.trials.of(name)))
    assert trials[0] == trials[1] and len(trials[0]) == 40


def test_a_trial_that_failed_has_no_costs(store: StudyStore, costs: Costs) -> None:
    space, judge = ScheduleSpace(N_BLOCKS), Objectives(costs.function("flops"))
    with store.runs.lease("one") as lease:
        kept = SqlTrialStore(store, "one", lease, "context", costs=costs.of)
        SearchEngine(space, portfolio(space), ShufflingEvaluator(1, fails=1), judge, kept).run(Stopping(2))
    assert [one.metrics for one in store.trials.of("one")] == [{}, {}]


def test_what_another_study_found_out_comes_without_its_costs(costs: Costs) -> None:
    """Its input was larger, and it had a profile, which this study has not."""
    evaluations = {}
    with StudyStore("sqlite://") as store:
        for name, own in (("larger", costs), ("smaller", replace(costs, batch=1, profile=None))):
            store.studies.create(name, {}, objective_names("flops"))
            space = ScheduleSpace(N_BLOCKS)
            with store.runs.lease(name) as lease:
                kept = SqlTrialStore(store, name, lease, "context", costs=own.of)
                evaluator = ShufflingEvaluator(3)
                engine = SearchEngine(
                    space, portfolio(space), evaluator, Objectives(own.function("flops")), kept, deterministic=True
                )
                engine.run(Stopping(8))
            evaluations[name] = evaluator.evaluated
        larger, smaller = store.trials.of("larger"), store.trials.of("smaller")
    # The initial design, which every search begins with.
    assert [t.schedule for t in larger] == [t.schedule for t in smaller]
    assert len(evaluations["larger"]) == 8 and evaluations["smaller"] == []
    for theirs, ours in zip(larger, smaller, strict=True):
        assert ours.metrics["kl"] == theirs.metrics["kl"] and "latency_ms" not in ours.metrics
        assert ours.values is not None and ours.values[1] == ours.metrics["flops"] == theirs.metrics["flops"] / 2


def test_a_study_of_another_cost_is_started_from_by_what_it_evaluated(costs: Costs) -> None:
    """Values are computed anew, and the front is that of this study's cost."""
    space = ScheduleSpace(N_BLOCKS)
    uneven = [0.0] * 6 + [0.6] * 6
    schedules = [DENSE, HALF, SparsitySchedule(uneven), SparsitySchedule(uneven[::-1])]
    records = [
        replace(trial(n, (kl, 99.0 - n), tuple(schedule)), metrics={"kl": kl, "latency_ms": 99.0 - n})
        for n, (schedule, kl) in enumerate(zip(schedules, (0.0, 0.4, 0.2, 0.3), strict=True))
    ]
    unknown = [
        replace(records[0], number=4, metrics={}),
        replace(records[0], number=5, state=TrialState.PRUNED, fidelity=0.25),
        replace(trial(6, None), number=6),
        replace(records[0], number=7, schedule=(0.5,) * 11),
    ]
    judge = Objectives(costs.function("kv_bytes"))
    assert warm_trials([*records, *unknown[:3]], space, judge) == [
        replace(record, values=(record.metrics["kl"], costs.of(schedule)["kv_bytes"]))
        for schedule, record in zip(schedules, records, strict=True)
    ]
    assert warm_trials(unknown, space, judge) == []
    demanding = Objectives(costs.function("kv_bytes"), min_accuracy=0.9)
    right = [replace(one, metrics={**one.metrics, "accuracy": 0.8}) for one in records[:2]]
    assert [one.constraint_violation for one in warm_trials([*right, *records[2:]], space, demanding)] == pytest.approx(
        [0.1] * 2
    )


def test_a_search_at_a_target_learns_from_earlier_ablations_though_they_are_off_it(costs: Costs) -> None:
    space, judge = ScheduleSpace(N_BLOCKS, 0.3), Objectives(costs.function("flops"))
    other, planned = ScheduleSpace(N_BLOCKS, 0.4), ablations(space)
    records = [
        replace(trial(n, (0.1, 1.0), tuple(space.schedule(one))), metrics={"kl": 0.1})
        for n, one in enumerate([*planned, initial_design(other)[0], initial_design(space)[0]])
    ]
    warm = warm_trials(records, space, judge)
    assert [space.grid_indices(one.schedule) for one in warm] == [*planned, initial_design(space)[0]]
    assert [one.constraint_violation for one in warm] == pytest.approx([0.3 - 0.6 / 12] * 12 + [0.0], abs=1e-3)


def test_why_a_study_has_no_front_is_said_with_what_came_nearest() -> None:
    config = RunConfig.checked(min_accuracy=0.9, **SMALL)
    below = [
        replace(trial(n, (0.1, 1.0)), constraint_violation=0.9 - right, metrics={"accuracy": right})
        for n, right in enumerate((0.5, 0.75))
    ]
    # An ablation may be accurate enough, but off the target.
    ablation = replace(trial(2, (0.1, 1.0)), constraint_violation=0.2, metrics={"accuracy": 0.95})
    assert "the best of those that miss it has 0.75" in why_no_front([*below, ablation, trial(3, None)], config)
    assert why_no_front([trial(0, None)], config) == "All 1 trials failed; the last one says: broken"
    assert "more seconds" in why_no_front([], config)


def test_of_many_trials_a_search_starts_from_the_front_of_its_own_cost_and_the_latest(
    costs: Costs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.stages.search_schedules._LATEST", 2)
    space, judge = ScheduleSpace(N_BLOCKS), Objectives(costs.function("flops"))
    indices = [(0,) * 12, (4,) * 12, (10,) * 12, (4,) * 11 + (3,), (9,) * 12, (8,) * 12]
    kls = (0.0, 0.1, 0.2, 0.9, 0.9, 0.9)
    # By the values that the other study gave them, trial 3 alone would be on the front.
    records = [
        replace(trial(n, (kl, -float(n == 3)), tuple(space.schedule(one))), metrics={"kl": kl})
        for n, (one, kl) in enumerate(zip(indices, kls, strict=True))
    ]
    kept = [space.grid_indices(one.schedule) for one in warm_trials(records, space, judge)]
    assert kept == [indices[0], indices[1], indices[2], indices[4], indices[5]]


def test_the_first_trials_of_a_warm_search_are_the_front_of_its_own_cost(costs: Costs) -> None:
    space = ScheduleSpace(N_BLOCKS)
    found = space.schedule([0, 3] * 6)
    records = [
        replace(trial(n, (kl, 5.0), tuple(schedule)), metrics=metrics_of(schedule) | {"kl": kl})
        for n, (schedule, kl) in enumerate([(found, 0.01), (space.schedule([0, 2] * 6), 0.5)])
    ]
    judge, book = Objectives(costs.function("flops")), Notebook()
    warm = warm_trials(records, space, judge)
    engine = SearchEngine(space, portfolio(space), ShufflingEvaluator(1), judge, book, warm=warm)
    engine.run(Stopping(2))
    n = 1
    assert book.begun[n] == Trial(n, found, "initial design")


def test_a_latency_limit_needs_a_profile_whatever_is_traded(costs: Costs) -> None:
    config = RunConfig.checked(cost="flops", max_latency_ms=9.0, **SMALL)
    space = schedule_space(config, N_BLOCKS, costs)
    assert [limit.cost(HALF) for limit in space.limits] == [PROFILE.predict_ms(HALF)]
    assert not space.contains(space.grid_indices(DENSE))
    with pytest.raises(SearchError, match="without a profile"):
        schedule_space(config, N_BLOCKS, replace(costs, profile=None))
    assert schedule_space(RunConfig.checked(**SMALL), N_BLOCKS, costs).limits == ()


def test_a_study_of_flops_takes_a_profile_that_is_there_and_measures_none(workload: Workload) -> None:
    config = RunConfig.checked(cost="flops", latency_batch=3, **SMALL)
    with StudyStore("sqlite://") as store:
        store.studies.create("one", config.model_dump(), objective_names(config.cost))
        with store.runs.lease("one") as lease:
            study = OpenStudy(store, "one", lease, config, workload, ProgressView(Console(quiet=True)))
            note_costs(study)
            without = study_costs(study)
            assert without.profile is None and without.batch == 3
            facts = store.studies.get("one").facts
            assert facts.timed_input == TimedInput(3, without.length) and facts.latency_profile is None
            # Of this machine, measured for another study.
            shape = {"batch": 3, "length": without.length, "kept": (4, without.length - 1, without.length)}
            profile = replace(PROFILE, shapes=tuple(replace(one, **shape) for one in PROFILE.shapes))
            conditions = profile_conditions(workload.model.skipping)
            fingerprint = conditions.fingerprint(without.batch, without.length)
            store.profiles.keep(fingerprint, asdict(conditions), profile.to_json())
            note_costs(study)
            assert study_costs(study) == replace(without, profile=profile)
            # It keeps it, wherever it goes on.
            kept = store.studies.get("one").facts.latency_profile
            assert kept is not None and LatencyProfile.from_json(kept.to_json()) == profile
            store.profiles.keep(fingerprint, {}, {"broken": True}, replace=True)
            note_costs(study)
            assert study_costs(study) == replace(without, profile=profile)


def test_a_word_on_a_front_is_in_the_unit_of_its_cost() -> None:
    denser = (0.0, 0.2)
    points = front([trial(0, (0.0, 4e9), denser), trial(1, (0.1, 2e9)), trial(2, (1.0, 1.9e9))])
    assert best_note(points, "flops") == "front 3, knee: KL 0.1 at 2 GFLOPs"
    assert (
        best_note(points, "flops", Target("target_sparsity", 0.25))
        == "front 3, at 25 % overall sparsity: KL 0.1 at 2 GFLOPs"
    )
    assert best_note(points[:0], "flops") == "no trial finished"
    assert best_note(front([trial(0, (0.25, 12.345))]), uncertainty=0.05) == "front 1, knee: KL 0.25 at 12.3 ms ± 5%"
    assert best_note(front([trial(0, (0.25, 12.345))])) == "front 1, knee: KL 0.25 at 12.3 ms"


@pytest.mark.parametrize(
    ("cost", "unit", "source"),
    [("latency_ms", "ms", "predicted"), ("flops", "GFLOPs", "counted"), ("kv_bytes", "MiB", "KV cache")],
)
def test_the_table_of_a_front_is_in_the_unit_of_its_cost(cost: CostName, unit: str, source: str) -> None:
    console = Console(width=80)
    with StudyStore("sqlite://") as store, console.capture() as printed:
        store.studies.create("one", RunConfig.checked(cost=cost, **SMALL).model_dump(), objective_names(cost))
        store.trials.append("one", trial(0, (0.25, 12.5 * shown.objective(cost).per_unit)))
        print_front(console, describe_study(store, "one"))
    lines = printed.get().splitlines()
    assert f" KL, nats {unit} ms " in " ".join(lines[2].split()) + " "
    assert f" {source} measured " in " ".join(lines[3].split()) + " "
    assert lines[-2].split() == ["0", "25.0%", "0.2500", "12.5", "-", "0", "50"]
