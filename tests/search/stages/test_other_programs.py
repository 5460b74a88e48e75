"""A search lives with whatever other programs put into its study through Optuna, and counts none of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.engine.engine import SearchEngine
from search.engine.portfolio import Portfolio
from search.engine.termination import Stopping
from search.evaluators import Evaluation
from search.problem.initial_design import ablations
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.proposers.catalogue import make_proposers
from search.stages.search_schedules import warm_trials
from search.stages.sql_trial_store import SqlTrialStore
from studies import StudyStore, Trial, front
from studies.records.records import LeftAside
from studies.store.lease import Lease
from tests.search.command import run_process
from tests.search.synthetic import ShufflingEvaluator, judge
from tests.studies.other_programs import interfere, space_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = ScheduleSpace(4)
NAMES = "deap,evopress,additive,tpe,cmaes"


@pytest.fixture
def store() -> Iterator[StudyStore]:
    with StudyStore("sqlite://") as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        yield store


@pytest.fixture
def lease(store: StudyStore) -> Iterator[Lease]:
    with store.runs.lease("one") as lease:
        yield lease


class Listening(Portfolio):
    """Keeps what proposers are told."""

    def __init__(self, deterministic: bool) -> None:
        super().__init__(make_proposers(NAMES, SPACE, 0), 0, by_trial=deterministic)
        self.told: list[Trial] = []

    def learn(self, outcome: Trial) -> None:
        self.told.append(outcome)
        super().learn(outcome)


def search(
    trial_store: SqlTrialStore, n: int, deterministic: bool = False, evaluator: ShufflingEvaluator | None = None
) -> Listening:
    portfolio = Listening(deterministic)
    evaluator = evaluator or ShufflingEvaluator(4)
    options = {"deterministic": deterministic, "fidelities": (0.25, 1.0), "ablations": ablations(SPACE)}
    engine = SearchEngine(SPACE, portfolio, evaluator, judge, trial_store, **options)  # type: ignore[arg-type]
    assert engine.run(Stopping(n, plateau=200)) == n
    return portfolio


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_search_goes_on_as_if_nobody_else_had_been_there(
    store: StudyStore, lease: Lease, deterministic: bool
) -> None:
    search(SqlTrialStore(store, "one", lease, "context"), 30, deterministic)
    own = store.trials.of("one")
    added = interfere(store.storage, "one", SPACE.n_blocks)
    trial_store = SqlTrialStore(store, "one", lease, "context")
    assert trial_store.n_trials == 30
    evaluator = ShufflingEvaluator(4)
    portfolio = search(trial_store, 30, deterministic, evaluator)
    kept = store.trials.of("one")
    assert kept[:30] == own and len(kept) == trial_store.n_trials == 60
    numbers = {one.number for one in kept}
    assert {outcome.number for outcome in portfolio.told} <= numbers
    assert all(set(one.parents) <= numbers for one in kept)
    # What others say of a schedule spares it no evaluation.
    assert len({task.schedule for task in evaluator.evaluated}) == 30
    assert trial_store.front == front(kept) and min(point.values or () for point in front(kept)) >= (0.0, 0.0)
    assert "optuna" not in trial_store.statistics()
    counted = Counter(one.proposer for one in kept)
    assert {name: own.finished for name, own in trial_store.statistics().items() if own.finished} == counted
    assert store.trials.left_aside("one") == added
    assert len(warm_trials(kept, SPACE, Objectives(lambda _: 1.0))) == sum(one.fidelity == 1.0 for one in kept)


class Meddling(ShufflingEvaluator):
    """While it evaluates, another program ends some of the trials that are in flight, and begins others."""

    def __init__(self, study: optuna.Study) -> None:
        super().__init__(3)
        self.taken: list[int] = []
        self._study = study

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        results = super().next_results(timeout_s)
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if len(self.evaluated) % 5 == 0 and running:
            self._study.tell(running[0].number, (-1.0, -1.0))
            self.taken.append(running[0].number)
        self._study.tell(self._study.ask(space_of(SPACE.n_blocks)), (-1.0, -1.0))
        return results


def test_trials_that_others_end_while_they_are_evaluated_are_not_counted(store: StudyStore, lease: Lease) -> None:
    study = optuna.load_study(study_name="one", storage=store.storage, sampler=optuna.samplers.RandomSampler(0))
    trial_store, evaluator = SqlTrialStore(store, "one", lease, "context"), Meddling(study)
    search(trial_store, 40, evaluator=evaluator)
    kept = [one.number for one in store.trials.of("one")]
    assert evaluator.taken and not set(kept) & set(evaluator.taken)
    assert trial_store.n_trials == len(kept) < 40
    assert SqlTrialStore(store, "one", lease, "context").n_trials == len(kept)
    # The results were earned all the same: nobody evaluates them again.
    whole = {task.schedule for task in evaluator.evaluated if task.part == 1}
    taken = {one.params["block_0"] for one in study.get_trials() if one.number in evaluator.taken}
    assert taken and all(
        one is not None for one in trial_store.recall([Trial(0, schedule, "deap") for schedule in whole])
    )


def test_a_trial_of_which_nobody_says_what_its_values_come_from_teaches_nothing(
    store: StudyStore, lease: Lease
) -> None:
    from tests.studies.records import trial

    own: Trial = trial(0, (0.0, 0.0), (0.95, 0.0, 0.0, 0.0))
    store.trials.append("one", own)
    told = search(SqlTrialStore(store, "one", lease, "context"), 20).told
    assert own.number not in {outcome.number for outcome in told}
    assert own.schedule not in [one.schedule for one in store.trials.of("one")[1:]]


SMALL = (
    *("--workers", "1", "--cost", "flops", "--search-items", "8", "--calibration-items", "16", "--test-items", "8"),
    *("--validation-items", "8", "--latency-batch", "1", "--timed-runs", "2", "--measured-points", "2"),
    *("--rounds", "1", "--refine-trials", "6", "--router-trials", "0", "--router-steps", "4", "--export", "none"),
)


@pytest.mark.slow
def test_resume_says_what_it_leaves_aside_and_ends_with_its_own_trials(tmp_path: Path) -> None:
    first = run_process("search", "--name", "mine", "--trials", "12", *SMALL, "--json", cwd=tmp_path)
    assert first.code == 0, first.err
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        added = interfere(store.storage, "mine", 12)
        assert added == LeftAside(14, 2, 3)
        went_on = run_process("resume", "mine", "--trials", "16", cwd=tmp_path)
        assert went_on.code == 0, went_on.err
        assert str(added) in " ".join((went_on.out + went_on.err).split())
        own = store.trials.of("mine")
        # Schedules are searched again if the router of four steps is better than the static one.
        refined = [one for one in own if one.round == 1]
        assert len(own) == 16 + len(refined) and len(refined) in (0, 6) and store.trials.left_aside("mine") == added
    shown = run_process("show", "mine", "--json", cwd=tmp_path).json()
    assert shown["left_aside"] == {"ended": 14, "running": 2, "waiting": 3}
    assert shown["trials"] + shown["pruned_trials"] + shown["failed_trials"] == len(own)
    numbers = {one.number for one in own}
    assert {point["number"] for point in shown["front"]} <= numbers and shown["chosen_trial"] in numbers
    assert str(added) in (tmp_path / "ftp-out/mine/report.html").read_text()
    assert str(added) in (tmp_path / "ftp-out/mine/report.md").read_text()
