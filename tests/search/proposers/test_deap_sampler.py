"""Optuna's own suites for samplers, and what ours promises beside them."""

from __future__ import annotations

import math
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import moocore
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

from search import DEAPSampler
from studies import StudyStorage

optuna.logging.set_verbosity(optuna.logging.ERROR)


class TestOptunasSuites(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture(params=["default", "bred early", "nsga3"])
    def sampler(self, request):
        """Also one that breeds from the second trial on: with the default, most of these tests see random trials."""
        settings = {"default": {}, "bred early": {"population_size": 2}, "nsga3": {"selection": "nsga3"}}[request.param]
        return lambda: DEAPSampler(seed=0, **settings)


SPACE = {
    "x": FloatDistribution(-1.0, 1.0),
    "rate": FloatDistribution(1e-6, 1.0, log=True),
    "share": FloatDistribution(0.0, 0.95, step=0.05),
    "n": IntDistribution(1, 100, log=True),
    "even": IntDistribution(0, 20, step=2),
    "kind": CategoricalDistribution(["a", None, 2.5]),
}


def mixed(trial: optuna.Trial) -> tuple[float, float]:
    x = trial.suggest_float("x", -1.0, 1.0)
    rate = trial.suggest_float("rate", 1e-6, 1.0, log=True)
    share = trial.suggest_float("share", 0.0, 0.95, step=0.05)
    n = trial.suggest_int("n", 1, 100, log=True)
    even = trial.suggest_int("even", 0, 20, step=2)
    kind = trial.suggest_categorical("kind", ["a", None, 2.5])
    cost = x**2 + (math.log10(rate) + 3) ** 2 + (even - 10) ** 2 / 50 + (kind != "a")
    return cost + share, n * (1 - share)


def run(sampler: DEAPSampler, n_trials: int, storage=None, directions=("minimize", "minimize"), objective=mixed):
    study = optuna.create_study(directions=directions, sampler=sampler, storage=storage)
    study.optimize(objective, n_trials=n_trials)
    return study


def test_every_kind_of_parameter_is_varied_within_its_distribution():
    study = run(DEAPSampler(population_size=10, seed=0), 80)
    for name, distribution in SPACE.items():
        values = [trial.params[name] for trial in study.trials]
        assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
        assert len(set(values)) > 2
        assert study.trials[-1].distributions[name] == distribution


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def storage(database_url: str) -> Iterator[StudyStorage]:
    storage = StudyStorage(database_url)
    yield storage
    storage.close()


@pytest.mark.parametrize("selection", ["nsga2", "nsga3"])
def test_the_same_seed_finds_the_same_in_every_storage(selection, storage: StudyStorage):
    found = []
    for place in (None, storage):
        random.seed(len(found))
        study = run(DEAPSampler(population_size=10, seed=3, selection=selection), 60, place)
        found.append([(trial.params, trial.values) for trial in study.trials])
    assert found[0] == found[1]
    other = run(DEAPSampler(population_size=10, seed=4, selection=selection), 60)
    assert [trial.params for trial in other.trials] != [params for params, _ in found[0]]


def zdt1(trial: optuna.Trial) -> tuple[float, float]:
    """Zitzler, Deb and Thiele (2000), with 10 variables."""
    xs = [trial.suggest_float(f"x{index}", 0.0, 1.0) for index in range(10)]
    g = 1 + 9 * sum(xs[1:]) / 9
    return xs[0], g * (1 - math.sqrt(xs[0] / g))


def hypervolume(study: optuna.Study, reference=(1.1, 7.0)) -> float:
    return float(moocore.hypervolume([trial.values for trial in study.trials], ref=reference))


@pytest.mark.parametrize(
    "settings", [{}, {"selection": "nsga3"}, {"crossover": "sbx"}, {"crossover": "uniform"}], ids=str
)
def test_it_beats_random_search(settings):
    ours, blind = (
        [hypervolume(run(make(seed), 300, objective=zdt1)) for seed in range(3)]
        for make in (lambda seed: DEAPSampler(seed=seed, **settings), RandomSampler)
    )
    assert min(ours) > 1.1 * max(blind)


def test_it_beats_optunas_nsga2_at_equal_trials():
    ours, theirs = (
        sorted(hypervolume(run(make(seed), 250, objective=zdt1)) for seed in range(3))[1]
        for make in (lambda seed: DEAPSampler(seed=seed), lambda seed: optuna.samplers.NSGAIISampler(seed=seed))
    )
    assert ours > theirs


def test_one_objective_is_searched_as_well():
    def sphere(trial: optuna.Trial) -> float:
        return sum((trial.suggest_float(f"x{index}", -5.0, 5.0) - 1) ** 2 for index in range(5))

    def best(sampler):
        study = optuna.create_study(sampler=sampler)
        study.optimize(sphere, n_trials=200)
        return study.best_value

    assert max(best(DEAPSampler(seed=seed)) for seed in range(3)) < min(best(RandomSampler(seed)) for seed in range(3))


def test_directions_are_respected():
    study = run(
        DEAPSampler(population_size=20, seed=0),
        200,
        directions=("maximize", "minimize"),
        objective=lambda trial: (trial.suggest_int("up", 0, 1000), trial.suggest_int("down", 0, 1000)),
    )
    late = study.trials[-50:]
    assert sum(trial.params["up"] for trial in late) / 50 > 800
    assert sum(trial.params["down"] for trial in late) / 50 < 200


def limit(trial: optuna.trial.FrozenTrial) -> tuple[float]:
    return (0.5 - trial.params["x0"],)


def test_constraints_win_over_values():
    def own(trial: optuna.Trial) -> tuple[float, float]:
        values = zdt1(trial)
        trial.set_constraint("limit", limit(trial)[0])
        return values

    for constraints_func, objective in ((limit, zdt1), (None, own)):
        study = run(DEAPSampler(20, 0, constraints_func=constraints_func), 200, objective=objective)
        assert all(len(trial.constraints) == 1 for trial in study.trials)
        legal = [all(value <= 0 for value in trial.constraints.values()) for trial in study.trials]
        assert sum(legal[:30]) < 25 and sum(legal[-50:]) > 40


def test_conditional_parameters_are_drawn_at_random_and_the_others_bred():
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return x + trial.suggest_float("only_a", 0.0, 1.0)
        return x + 2 + trial.suggest_float("only_b", 0.0, 1.0)

    sampler = DEAPSampler(population_size=10, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=200)
    assert set(sampler.infer_relative_search_space(study, study.trials[-1])) == {"x", "kind"}
    late = study.trials[-50:]
    assert sum(trial.params["kind"] == "a" for trial in late) > 30
    assert sum(trial.params["x"] for trial in late) / 50 < 0.3


def test_level_switches_keep_the_mean_of_parameters_with_equal_distributions():
    study = optuna.create_study(sampler=DEAPSampler(population_size=2, seed=0, switch_rate=1.0))
    distributions = {
        **{f"block_{index}": FloatDistribution(0.0, 0.95, step=0.05) for index in range(6)},
        "other": FloatDistribution(0.0, 0.9, step=0.05),
    }
    first = {**{f"block_{index}": 0.25 for index in range(6)}, "other": 0.5}
    study.add_trial(optuna.create_trial(params=first, distributions=distributions, value=0.0))
    seen = set()
    for _ in range(30):
        params = study.ask(distributions).params
        blocks = [params[f"block_{index}"] for index in range(6)]
        assert sum(blocks) == pytest.approx(6 * 0.25)
        assert params["other"] == 0.5
        seen.add(tuple(blocks))
    assert len(seen) > 20


def test_failed_and_pruned_trials_are_no_parents():
    study = optuna.create_study(sampler=DEAPSampler(population_size=2, seed=0, mutation_rate=0.0))
    space = {"x": IntDistribution(0, 10**6)}
    study.tell(study.ask(space), 1.0)
    [known] = [trial.params["x"] for trial in study.trials]
    for state in (TrialState.FAIL, TrialState.PRUNED):
        study.tell(study.ask({"x": IntDistribution(0, 5)}), state=state)
    assert study.ask(space).params["x"] == known


def test_results_count_in_whatever_order_they_are_told():
    space = {"x": IntDistribution(0, 10**6)}
    one = optuna.create_study(sampler=DEAPSampler(population_size=6, seed=0, mutation_rate=0.0))
    asked = [one.ask(space) for _ in range(20)]
    for trial in reversed(asked):
        one.tell(trial, float(trial.params["x"]))
        one.sampler.sample_relative(one, one.trials[0], space)
    kept = {dict(individual.genome)["x"] for individual in one.sampler._population(one).members}
    assert kept == set(sorted(trial.params["x"] for trial in asked)[:6])


def test_a_pickled_sampler_goes_on_as_seeded():
    study = run(DEAPSampler(population_size=10, seed=0), 30)
    found, pickled = [], pickle.dumps(study.sampler)
    for _ in range(2):
        study.sampler = sampler = pickle.loads(pickled)
        found.append(sampler.sample_relative(study, study.trials[-1], SPACE))
    assert found[0] == found[1]
    study.sampler.reseed_rng()
    assert study.sampler.sample_relative(study, study.trials[-1], SPACE) != found[0]


def test_copies_of_a_sampler_without_seed_do_not_repeat_each_other():
    study = run(DEAPSampler(population_size=10), 30)
    copies = [pickle.loads(pickle.dumps(study.sampler)) for _ in range(2)]
    one, other = (copy.sample_relative(study, study.trials[-1], SPACE) for copy in copies)
    assert one != other


def test_one_sampler_serves_one_study_after_another():
    sampler = DEAPSampler(population_size=4, seed=0)
    run(sampler, 20)
    study = run(sampler, 20, objective=zdt1)
    assert len(study.trials[-1].params) == 10


def test_threads_share_a_sampler_and_a_storage(storage: StudyStorage):
    study = optuna.create_study(
        storage=storage, directions=["minimize"] * 2, sampler=DEAPSampler(population_size=10, seed=0)
    )
    study.optimize(mixed, n_trials=80, n_jobs=4)
    assert [trial.number for trial in study.trials] == list(range(80))
    assert all(trial.state == TrialState.COMPLETE and len(trial.params) == 6 for trial in study.trials)


def work(database_url: str, seed: int) -> list[int]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = StudyStorage(database_url)
    study = optuna.load_study(study_name="shared", storage=storage, sampler=DEAPSampler(population_size=20, seed=seed))
    numbers: list[int] = []
    study.optimize(zdt1, n_trials=40, callbacks=[lambda study, trial: numbers.append(trial.number)])
    storage.close()
    return numbers


def test_processes_share_a_study(storage: StudyStorage, database_url: str):
    study = optuna.create_study(storage=storage, study_name="shared", directions=["minimize"] * 2)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        one, other = processes.map(work, [database_url] * 2, range(2))
    assert sorted(one + other) == list(range(80))
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_samplers_that_share_a_study_have_the_same_population(storage: StudyStorage, database_url: str):
    optuna.create_study(storage=storage, study_name="shared", directions=["minimize"] * 2)
    places = storage, StudyStorage(database_url)
    workers = [
        optuna.load_study(study_name="shared", storage=place, sampler=DEAPSampler(population_size=10, seed=seed))
        for seed, place in enumerate(places)
    ]
    for turn in range(60):
        workers[turn % 2].optimize(zdt1, n_trials=1)
    for worker in workers:
        worker.ask({"x0": FloatDistribution(0.0, 1.0)})
    one, other = (
        {individual.genome for individual in worker.sampler._population(worker).members} for worker in workers
    )
    # They were told in different portions, which may decide otherwise about the crowded.
    assert len(one & other) > 5
    places[1].close()


def test_infinite_values_are_survived():
    study = run(
        DEAPSampler(population_size=6, seed=0),
        60,
        objective=lambda trial: (trial.suggest_float("x", 0, 1), math.inf if trial.number % 3 else 1.0),
    )
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


@pytest.mark.parametrize("wrong", [{"population_size": 1}, {"selection": "spea2"}, {"crossover": "none"}], ids=str)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|use one of"):
        DEAPSampler(**wrong)


def test_it_works_inside_optunas_wrappers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.PartialFixedSampler({"kind": "a"}, DEAPSampler(population_size=6, seed=0))
    assert {trial.params["kind"] for trial in run(sampler, 40).trials} == {"a"}


def test_importing_search_loads_neither_optuna_nor_deap():
    code = "import search, sys; assert not {'optuna', 'deap'} & set(sys.modules); search.DEAPSampler()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_search_has_nothing_else_to_offer():
    import search

    with pytest.raises(AttributeError, match="'NoSampler'"):
        search.NoSampler  # noqa: B018
