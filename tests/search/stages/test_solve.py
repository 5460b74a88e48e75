"""A study is solved for other targets from what it knows; what that evaluates disturbs no search."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ftp_core.quality.quality import QualitySet
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.text.encoding import EncodedExample
from search.cli.solve import print_solved
from search.cli.tables import in_short
from search.config.run_config import RunConfig
from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.errors import ConfigError
from search.evaluators.local import LocalEvaluator
from search.inputs.data import Workload, load_workload, search_set
from search.pipeline.resume_settings import check_changes, check_solve
from search.problem.initial_design import ablations, uniform_design
from search.problem.objectives import OBJECTIVES, Objectives
from search.progress.progress_view import ProgressView
from search.proposers.catalogue import make_proposers
from search.stages.fresh_items import fresh_batches
from search.stages.open_study import OpenStudy, StoredRouter
from search.stages.search_schedules import schedule_space
from search.stages.solve import Solved, solve
from search.stages.sql_trial_store import SqlTrialStore
from search.stages.study_costs import note_costs, study_costs
from search.stages.workers import search_context, share_of_ablations
from studies import StudyStore, TrialState, front
from studies.records.target import Target
from studies.records.trial import SOLVED
from tests.studies.records import trial

SMALL: dict[str, Any] = {
    **{"calibration_items": 16, "validation_items": 4, "test_items": 4, "search_items": 8, "workers": 1},
    **{"cost": "flops", "trials": 24, "sampler": "additive", "latency_length": (48,)},
}


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture(scope="module")
def store() -> Iterator[StudyStore]:
    """One database, so that what one study has evaluated is known to the next."""
    with StudyStore("sqlite://") as made:
        yield made


@pytest.fixture
def study_of(workload: Workload, store: StudyStore) -> Iterator[Callable[..., OpenStudy]]:
    """Makes a study that was searched: by the engine, with everything evaluated in this process."""
    leases = []

    def make(n: int = 24, **changes: Any) -> OpenStudy:
        name, config = f"study-{len(store.studies.summaries())}", RunConfig.checked(**{**SMALL, **changes})
        store.studies.create(name, config.model_dump(), OBJECTIVES)
        leases.append(store.runs.lease(name))
        study = OpenStudy(store, name, leases[-1].__enter__(), config, workload, ProgressView(Console(quiet=True)))
        note_costs(study)
        if n:
            go_on(study, n)
        return study

    yield make
    for lease in leases:
        lease.__exit__(None, None, None)


def go_on(study: OpenStudy, n: int) -> float:
    """Searches until a study has so many trials; gives how many evaluations that took."""
    costs, config = study_costs(study), study.config
    space = schedule_space(config, 12, costs)
    trials = SqlTrialStore(study.store, study.name, study.lease, search_context(study, StoredRouter()), costs=costs.of)
    engine = SearchEngine(
        space,
        Portfolio(make_proposers(config.sampler, space, 0), 0, trials.statistics()),
        evaluator(study, StaticRouter(), []),
        Objectives(costs.function("flops"), config.min_accuracy),
        trials,
        ablations=ablations(space),
        ablation_fidelity=share_of_ablations(study),
        design=uniform_design(space),
    )
    return engine.run(Stopping(n - trials.evaluations, None, None))


def evaluator(study: OpenStudy, router: Router, batches: Sequence[Sequence[EncodedExample]]) -> LocalEvaluator:
    share = share_of_ablations(study)
    return LocalEvaluator(
        study.workload.model.skipping,
        search_set(study.config, study.workload),
        router=router,
        choices=study.config.min_accuracy is not None,
        fresh=batches,
        ablation_fidelity=share,
    )


def kind_of(solved: Solved, kind: str) -> list[SparsitySchedule]:
    return [one.schedule for one in solved.solutions if one.kind == kind]


@pytest.mark.parametrize(
    "target", [Target("target_sparsity", 0.4), Target("target_flops_saved", 0.3)], ids=lambda target: target.kind
)
def test_a_study_without_target_is_solved_for_one_and_beats_the_shortened_prompt(
    study_of: Callable[..., OpenStudy], target: Target
) -> None:
    study = study_of()
    before = study.trials()
    solved = solve(study, target, 3, evaluator)
    costs = study_costs(study)
    dense = costs.dense("flops")
    for one in solved.solutions:
        saved = 1 - costs.function("flops")(one.schedule) / dense
        assert one.flops_saved == pytest.approx(saved)
        assert one.schedule.overall == pytest.approx(0.4, abs=0.025) if target.sparsity else saved >= 0.3
        assert one.kl_interval[0] <= one.kl <= one.kl_interval[1]
    [shortened] = [one for one in solved.solutions if one.kind == "shortened prompt"]
    assert len(set(shortened.schedule)) <= 2 and max(shortened.schedule) - min(shortened.schedule) < 0.051
    assert len(kind_of(solved, "solved")) == 3 and len({one.schedule for one in solved.solutions}) == len(
        solved.solutions
    )
    assert solved.best.kind != "shortened prompt" and solved.best.kl < 0.5 * shortened.kl
    assert solved.best.share == pytest.approx(solved.best.kl / shortened.kl)
    # What they are compared by is the KL on items that the search did not see.
    [batch] = fresh_batches(study.config, study.workload)
    truth = QualitySet(study.workload.model.skipping, batch).evaluate(solved.best.schedule, StaticRouter())
    assert solved.best.kl == pytest.approx(truth.kl, rel=1e-4) and solved.are_fresh and solved.n_items == len(batch)
    new = study.trials()[len(before) :]
    assert {one.proposer for one in new} == {SOLVED} and all(one.is_comparable for one in new)
    assert {tuple(one.schedule) for one in new} <= {tuple(one.schedule) for one in solved.solutions}
    assert json.loads(json.dumps(solved.to_json()))["solutions"][0]["kl"] == solved.best.kl


def test_solving_again_evaluates_nothing(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of()
    first = solve(study, Target("target_sparsity", 0.4), 2, evaluator)
    n = study.store.trials.n_begun(study.name)
    tasks = []

    def watched(study: OpenStudy, router: Router, batches: Sequence[Sequence[EncodedExample]]) -> LocalEvaluator:
        made = evaluator(study, router, batches)
        submit = made.submit
        made.submit = lambda task: (tasks.append(task), submit(task))  # type: ignore[assignment, func-returns-value]
        return made

    again = solve(study, Target("target_sparsity", 0.4), 2, watched)
    # Proposals learn from the trials of the first time; those that they repeat are known.
    known = {one.schedule for one in first.solutions}
    new = [one for one in again.solutions if one.schedule not in known]
    assert len(tasks) == 2 * len(new) and study.store.trials.n_begun(study.name) == n + len(new)
    assert again.best.kl <= first.best.kl and kind_of(again, "known")


def test_a_search_with_a_target_keeps_its_front_and_its_budget(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(target_sparsity=0.25)
    before, spent = front(study.trials()), study.store.trials.spent(study.name, 0)
    solved = solve(study, Target("target_sparsity", 0.4), 2, evaluator)
    assert all(one.schedule.overall == pytest.approx(0.4) for one in solved.solutions)
    assert [one.number for one in front(study.trials())] == [one.number for one in before]
    assert study.store.trials.spent(study.name, 0) == spent
    record = study.store.studies.get(study.name)
    check_changes(record, study.trials(), study.config, {"trials": 24})
    assert record.state == study.store.studies.get(study.name).state
    # The search goes on as far as it was to, and learns from them.
    n_before = len(study.trials())
    assert go_on(study, 27) == pytest.approx(27 - spent)
    own = [one for one in study.trials()[n_before:] if one.state is TrialState.FINISHED]
    assert own and all(one.overall_sparsity == pytest.approx(0.25) for one in own)


def test_where_no_item_is_fresh_the_search_set_is_compared_on(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(confirm=0)
    solved = solve(study, Target("target_sparsity", 0.3), 1, evaluator)
    assert not solved.are_fresh and solved.n_items == 8
    for one in solved.solutions:
        assert one.kl == pytest.approx(one.search_kl, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("settings", [{"granularity": "half"}, {"granularity": "half", "kv": "keep"}, {"kv": "keep"}])
def test_halves_are_solved_for_beside_a_prompt_that_is_truly_shorter(
    study_of: Callable[..., OpenStudy], settings: dict[str, Any]
) -> None:
    study = study_of(**settings, trials=40, n=40)
    n = len(study.trials())
    solved = solve(study, Target("target_flops_saved", 0.2), 2, evaluator)
    [shortened] = [one for one in solved.solutions if one.kind == "shortened prompt"]
    assert shortened.schedule.is_plain and max(shortened.schedule) - min(shortened.schedule) < 0.051
    assert (shortened.trial is None) == (settings.get("kv") == "keep")
    genes = schedule_space(study.config, 12, study_costs(study)).genes
    assert all(genes.express(one.schedule) for one in study.trials()[n:])
    assert all(0.2 <= one.flops_saved < 0.26 for one in solved.solutions if one.kind != "known")
    assert solved.best.kind != "shortened prompt"


def test_a_study_that_demands_accuracy_judges_by_it(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(min_accuracy=0.99)
    solve(study, Target("target_sparsity", 0.6), 1, evaluator)
    [*_, last] = study.trials()
    assert last.proposer == SOLVED and (last.constraint_violation > 0) == (last.metrics["accuracy"] < 0.99)


def test_a_target_out_of_reach_says_what_can_be_reached(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(dense_blocks=(0, 1, 2, 3, 4, 5))
    with pytest.raises(ConfigError, match=r"target sparsity of 0\.6 cannot be reached: with 6 of 12 .*at most 0\.48"):
        solve(study, Target("target_sparsity", 0.6), 1, evaluator)
    with pytest.raises(ConfigError, match=r"A target of 0\.9 of the FLOPs saved cannot be reached: .*at most 0\.\d"):
        solve(study, Target("target_flops_saved", 0.9), 1, evaluator)


def test_what_cannot_be_solved_is_refused_before_anything_is_loaded(study_of: Callable[..., OpenStudy]) -> None:
    study = study_of(n=0)
    record = study.store.studies.get(study.name)

    def refused(message: str, n: int = 4, **asked: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            check_solve(record, study.trials(), asked, n, "sqlite:///here.db")

    refused(
        f"Study {study.name!r} has no target: give one of --target-sparsity, --target-flops-saved, --target-speedup"
    )
    refused("--target-sparsity and --target-speedup are all given", target_sparsity=0.2, target_speedup=2.0)
    refused(r"--target-flops-saved is 1\.5: expected", target_flops_saved=1.5)
    refused("--best is 0", n=0, target_sparsity=0.2)
    refused("has evaluated 0 schedules that skip something, but at least 5 .*ftp-search resume", target_sparsity=0.2)
    for number in range(5):
        one = trial(number, (0.1, 1.0), (0.05 * (number + 1),) * 12)
        study.store.trials.append(study.name, replace(one, metrics={"kl": 0.1}))
    refused("has no latency profile, as it trades KL against flops", target_speedup=1.2)
    config, target = check_solve(record, study.trials(), {"target_sparsity": 0.4}, 1, "sqlite:///here.db")
    assert (config, target) == (study.config, Target("target_sparsity", 0.4))
    own = replace(record, config={**record.config, "target_flops_saved": 0.2})
    assert check_solve(own, study.trials(), {}, 1, "sqlite://")[1] == Target("target_flops_saved", 0.2)


def test_the_table_says_schedules_in_short(study_of: Callable[..., OpenStudy]) -> None:
    plain = SparsitySchedule([0, 0, 0.6, 0.6, 0.25])
    assert in_short(plain) == "2-3: 60, 4: 25"
    assert in_short(SparsitySchedule.of_halves([0, 0.5, 0.5], [0, 0, 0.3], [True, True, False])) == (
        "attention 1: 50+, 2: 50; MLP 2: 30"
    )
    assert in_short(SparsitySchedule.uniform(0.0, 3)) == "none"
    study = study_of()
    solved = solve(study, Target("target_sparsity", 0.4), 1, evaluator)
    console = Console(width=200, record=True, file=StringIO())
    print_solved(console, solved)
    text = console.export_text()
    assert (
        f"{study.name} at 40 % overall sparsity: KL on 8 fresh items" in text and "shortened prompt: 0-11: 40" in text
    )
    assert f"{solved.best.kl:.4f} [" in text
    # Where nothing is better than a shorter prompt, that is said.
    [shortened] = [one for one in solved.solutions if one.kind == "shortened prompt"]
    others = [one for one in solved.solutions if one is not shortened]
    advice = "No schedule is better than the shortened prompt"
    for solutions, is_said in (((shortened, *others), True), ((*others, shortened), False)):
        console = Console(file=StringIO(), width=200)
        print_solved(console, replace(solved, solutions=solutions))
        assert (advice in console.file.getvalue()) == is_said
