"""What Optuna's tools and users see of a study."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from optuna_dashboard import wsgi

import studies
from studies import StudyExistsError, StudyNotFoundError, StudyStorage, StudyStore, copy_study, open_optuna
from tests.studies.records import trial

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def storage(database_url: str) -> Iterator[StudyStorage]:
    storage = StudyStorage(database_url)
    yield storage
    storage.close()


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -1, 1)
    n = trial.suggest_int("n", 1, 100, log=True)
    kind = trial.suggest_categorical("kind", ["a", None, 3])
    for step in range(3):
        trial.report(abs(x) / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x * x + n / 100 + (kind == "a")


@pytest.mark.parametrize(
    "sampler",
    [
        lambda: optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True),
        lambda: optuna.samplers.NSGAIISampler(seed=0, population_size=5),
        lambda: optuna.samplers.RandomSampler(seed=0),
    ],
    ids=["tpe", "nsga2", "random"],
)
def test_samplers_and_pruners_find_what_they_find_in_memory(
    storage: StudyStorage, sampler: Callable[[], optuna.samplers.BaseSampler]
) -> None:
    found = []
    for place in (storage, optuna.storages.InMemoryStorage()):
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
        study = optuna.create_study(storage=place, sampler=sampler(), pruner=pruner)
        study.optimize(objective, n_trials=25)
        found.append([(t.state, t.params, t.values, t.intermediate_values) for t in study.trials])
    assert found[0] == found[1]


def test_threads_share_a_storage(storage: StudyStorage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=40, n_jobs=4)
    assert [t.number for t in study.trials] == list(range(40))
    assert all(len(t.params) == 3 for t in study.trials)


def test_another_process_sees_the_parameters_of_a_running_trial(storage: StudyStorage, database_url: str) -> None:
    study = optuna.create_study(storage=storage, study_name="one")
    space = {f"p{i}": FloatDistribution(0, 1) for i in range(4)}
    study.ask(space)
    trial = study.ask(space)
    other = optuna.load_study(study_name="one", storage=StudyStorage(database_url))
    waited = threading.Event()
    for _ in range(100):
        seen = other.get_trials(states=(TrialState.RUNNING,))[1].params
        if len(seen) == 4:
            break
        waited.wait(0.1)
    assert seen == trial.params


def _get(application: Any, path: str) -> Any:
    status: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    body = b"".join(application(environment, lambda line, *_: status.append(line)))
    assert status == ["200 OK"]
    return json.loads(body)


def test_the_dashboard_shows_a_study_of_schedules(database_url: str) -> None:
    with StudyStore(database_url) as store:
        store.studies.create("one", {"model": "demo"}, ("kl", "latency_ms"))
        for number, level in enumerate((0.0, 0.25, 0.5)):
            store.trials.append("one", trial(number, (level, 10 - level), (level, 0.5)))
        application = wsgi(store.storage)
        [summary] = _get(application, "/api/studies")["study_summaries"]
        assert summary["study_name"] == "one"
        detail = _get(application, f"/api/studies/{summary['study_id']}")
        assert [t["values"] for t in detail["trials"]] == [[0.0, 10.0], [0.25, 9.75], [0.5, 9.5]]
        assert {p["name"] for p in detail["trials"][0]["params"]} == {"block_0", "block_1"}
        assert detail["objective_names"] == ["kl", "latency_ms"]
        study = optuna.load_study(study_name="one", storage=store.storage)
        assert study.metric_names == ["kl", "latency_ms"]
        store.storage.set_study_system_attr(study._study_id, "study:metric_names", ["mine", "yours"])
        assert study.metric_names == ["mine", "yours"]
        assert len(optuna.visualization.plot_pareto_front(study).data) > 0
        assert [t.number for t in study.best_trials] == [0, 1, 2]


def test_a_study_goes_to_optuna_and_back(storage: StudyStorage, tmp_path: Path) -> None:
    study = optuna.create_study(storage=storage, study_name="one", directions=["minimize", "maximize"])
    study.set_user_attr("note", {"a": [1, None]})
    distributions = {"x": FloatDistribution(0.1, 10, log=True), "c": CategoricalDistribution(["a", None, 2.5])}
    for number in range(5):
        study.add_trial(
            optuna.trial.create_trial(
                params={"x": 0.1 + number, "c": ("a", None, 2.5)[number % 3]},
                distributions=distributions,
                values=[number, float("inf")],
                user_attrs={"n": number},
                intermediate_values={1: 0.5, 2: float("-inf")},
            )
        )
    study.enqueue_trial({"x": 5.0})
    theirs = open_optuna(f"sqlite:///{tmp_path / 'optuna.db'}")
    assert copy_study(storage, theirs, "one") == 6
    with pytest.raises(StudyExistsError):
        copy_study(storage, theirs, "one")
    before = study.trials
    optuna.delete_study(study_name="one", storage=storage)
    with pytest.raises(StudyNotFoundError, match="there are none"):
        copy_study(storage, theirs, "one")
    assert copy_study(theirs, storage, "one") == 6
    back = optuna.load_study(study_name="one", storage=storage)
    assert back.user_attrs == {"note": {"a": [1, None]}}
    assert back.directions == study.directions
    for one, other in zip(before, back.trials, strict=True):
        one._trial_id = other._trial_id
        assert one == other


def test_a_copy_that_fails_leaves_nothing_behind(storage: StudyStorage, tmp_path: Path) -> None:
    study = optuna.create_study(storage=storage, study_name="one")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    theirs = open_optuna(f"sqlite:///{tmp_path / 'optuna.db'}")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_study(storage, theirs, "one", interrupted)
    assert theirs.get_all_studies() == []


def test_a_loaded_study_answers_what_people_ask(database_url: str) -> None:
    with StudyStore(database_url) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        for number, (level, kl, latency) in enumerate([(0.0, 0.0, 10.0), (0.4, 0.1, 4.0), (0.8, 2.0, 2.0)]):
            store.trials.append("one", trial(number, (kl, latency), (level, level)))
        store.trials.append("one", trial(3, None, (0.5, 0.5)))
    study = studies.load("one", database_url)
    frame = study.trials()
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame["kl"][:3]) == [0.0, 0.1, 2.0] and frame["kl"].isna()[3]
    assert list(frame["block_1"]) == [0.0, 0.4, 0.8, 0.5] and frame["error"][3] == "broken"
    assert list(study.front().index) == [0, 1, 2]
    assert (study.best().number, study.best(target_sparsity=0.75).number) == (1, 2)
    with StudyStore(database_url) as store:
        # What was selected by what was measured is the best, but where another sparsity is asked for.
        store.studies.choose_trial("one", 0)
    assert (study.best().number, study.best(target_sparsity=0.75).number) == (0, 2)
    # Two boxes beside (3, 11): 3 x 1 for the dense model, and what the others add to it.
    assert study.hypervolume(reference=(3.0, 11.0)) == pytest.approx(3 * 1 + 2.9 * 6 + 1 * 2)
    assert study.router() is None
    with pytest.raises(StudyNotFoundError):
        studies.load("two", database_url)
