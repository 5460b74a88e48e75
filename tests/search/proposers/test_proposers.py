"""One suite for every proposer: proposals lie inside the space, follow the seed, and get better with results."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
import warnings

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.errors import ConfigError
from search.problem.initial_design import initial_design
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices, Values
from search.proposers import Proposer
from search.proposers.catalogue import PORTFOLIO, PROPOSERS, make_proposers
from search.proposers.memory import TrialMemory
from search.proposers.testing import CHECKS, N_BLOCKS, SPACES, drive, objectives, told_of

BLIND = {"qmc", "random", "grid"}
BREEDERS = {"deap", "evopress", "nsga2", "nsga3"}
LEARNERS = [name for name in PROPOSERS if name not in BLIND]


def make(name: str, space: ScheduleSpace, seed: int = 0) -> Proposer:
    return PROPOSERS[name](space, seed)


def length(name: str, n: int) -> int:
    """Trials to run: some take their time, but work from the eleventh trial on, and Gaussian processes most of all."""
    return min(n, {"gp": 12, "tpe": 30}.get(name, n))


def samples(space: ScheduleSpace, n: int, seed: int = 0) -> list[GridIndices]:
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(n)]


def worth(space: ScheduleSpace, proposals: list[GridIndices]) -> float:
    """Hypervolume, or the best quality at a target."""
    if space.target_sparsity is not None:
        return -min(objectives(indices)[0] for indices in proposals)
    return float(moocore.hypervolume([objectives(indices) for indices in proposals], ref=[16.0, 120.0]))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", PROPOSERS)
def test_every_proposer_passes_the_checks_of_proposers(name, check, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(PROPOSERS[name], length(name, inspect.signature(check).parameters["n"].default))
    # Libraries' notes to their developers are none of the user's business.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["free", "dense, target"])
@pytest.mark.parametrize("name", PROPOSERS)
def test_only_breeders_name_parents(name, kind):
    space = SPACES[kind]
    proposer, n_parents = make(name, space), []
    for number in range(length(name, 90)):
        proposal = proposer.ask(number)
        n_parents.append(len(proposal.parents))
        proposer.tell(told_of(proposal.grid_indices, objectives(proposal.grid_indices)))
    assert n_parents[0] == 0
    if name in BREEDERS:
        assert set(n_parents[30:]) <= {0, 1, 2} and sum(map(bool, n_parents[30:])) >= 45
        assert max(n_parents) == (1 if name == "evopress" else 2)
    else:
        assert not any(n_parents)


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_what_optuna_breeds_is_made_of_its_parents(name):
    """Nine in ten are children of a crossover, whose indices are their parents' but for one mutation in six blocks."""
    proposer, space = make(name, SPACES["free"]), SPACES["free"]
    for indices in samples(space, 64):
        proposer.tell(told_of(indices, objectives(indices)))
    bred = [proposal for number in range(64, 164) if (proposal := proposer.ask(number)).parents]
    assert len(bred) >= 80 and {len(one.parents) for one in bred} <= {1, 2}
    inherited = [
        index in {parent[block] for parent in one.parents}
        for one in bred
        for block, index in enumerate(one.grid_indices)
    ]
    assert sum(inherited) > 0.75 * len(inherited)


RESUMED = """
import json, sys
from search.proposers.testing import told_of
from search.proposers.catalogue import PROPOSERS
from search.problem.space import ScheduleSpace
answers = {}
for name, told in json.load(sys.stdin).items():
    answers[name] = []
    for target in (None, 0.3):
        proposer = PROPOSERS[name](ScheduleSpace(6, target), 5)
        for indices, values, violation in told[str(target)]:
            proposer.tell(told_of(tuple(indices), tuple(values), violation))
        proposals = [proposer.ask(len(told[str(target)])) for _ in range(2)]
        answers[name].append([[one.grid_indices, one.parents] for one in proposals])
print(json.dumps(answers))
"""


def test_resumed_in_another_process_every_proposer_goes_on_as_if_never_stopped():
    told: dict[str, dict[str, list[tuple[GridIndices, Values, float]]]] = {}
    expected = {}
    for name in PROPOSERS:
        told[name], expected[name] = {}, []
        for target in (None, 0.3):
            proposer = make(name, ScheduleSpace(N_BLOCKS, target), 5)
            proposals = drive(proposer, length(name, 75), lambda indices: max(0.0, indices[-1] - 15.0))
            told[name][str(target)] = [
                (indices, objectives(indices), max(0.0, indices[-1] - 15.0)) for indices in proposals
            ]
            asked = [proposer.ask(len(proposals)) for _ in range(2)]
            expected[name].append([[list(one.grid_indices), list(map(list, one.parents))] for one in asked])
    done = subprocess.run(
        [sys.executable, "-c", RESUMED],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("target", [None, 0.3])
@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_from_results_of_others(name, target):
    space = ScheduleSpace(N_BLOCKS, target)
    proposer = make(name, space)

    def early(indices: GridIndices) -> float:
        return sum(indices[:3]) / max(1, sum(indices))

    others = samples(space, 120)
    for indices in others:
        proposer.tell(told_of(indices, (early(indices), 2 * early(indices))))
    asked = [proposer.ask(120 + number).grid_indices for number in range(4 if name == "gp" else 40)]
    assert np.mean([early(indices) for indices in asked]) < 0.9 * np.mean([early(indices) for indices in others])


@pytest.mark.parametrize("target", [None, 0.3])
@pytest.mark.parametrize("name", ["deap", "evopress", "tpe", "nsga2"])
def test_it_beats_random_search(name, target):
    space, n = ScheduleSpace(N_BLOCKS, target), 80 if name == "tpe" else 200

    def run(seed: int) -> float:
        proposer = make(name, space, seed)
        for indices in initial_design(space):
            proposer.tell(told_of(indices, objectives(indices)))
        return worth(space, initial_design(space) + drive(proposer, n))

    blind = [worth(space, initial_design(space) + samples(space, n, seed)) for seed in range(3)]
    assert sorted(map(run, range(3)))[1] > sorted(blind)[1]


@pytest.mark.parametrize("name", ["deap", "evopress", "tpe", "nsga2"])
def test_what_breaks_constraints_is_avoided(name):
    space = ScheduleSpace(N_BLOCKS, 0.3)

    def broken(indices: GridIndices) -> float:
        return max(0.0, (indices[-1] - 9) / 10)

    # The last block is where skipping hurts least: without the constraint it would skip most.
    shares = []
    for violation in (broken, lambda _: 0.0):
        late = drive(make(name, space), 100, violation)[50:]
        shares.append(np.mean([broken(indices) > 0 for indices in late]))
    assert shares[0] < 0.6 * shares[1]


@pytest.mark.parametrize("name", ["deap", "evopress", "tpe", "nsga2", "cmaes"])
def test_schedules_that_were_stopped_early_are_worse_than_whole_ones_whatever_their_values(name):
    space = ScheduleSpace(N_BLOCKS, 0.3)
    proposer = make(name, space)
    others = samples(space, 160)
    for indices in others:
        # Stopped early are those that skip early, and what they showed by then was excellent.
        stopped = sum(indices[:3]) > 18
        proposer.tell(told_of(indices, (0.0, 0.0) if stopped else (1.0, 1.0), fidelity=0.25 if stopped else 1.0))
    asked = [proposer.ask(160 + number).grid_indices for number in range(40)]
    assert np.mean([sum(indices[:3]) > 18 for indices in asked]) < 0.8 * np.mean([sum(s[:3]) > 18 for s in others])


def test_cmaes_closes_in_on_an_optimum():
    proposer = make("cmaes", SPACES["free"])
    distances = []
    for number in range(160):
        indices = proposer.ask(number).grid_indices
        distances.append(sum((ours - best) ** 2 for ours, best in zip(indices, (2, 5, 8, 11, 14, 17), strict=True)))
        proposer.tell(told_of(indices, (float(distances[-1]),)))
    assert np.mean(distances[-40:]) < np.mean(distances[:40]) / 5


@pytest.mark.parametrize("name", ["qmc", "random"])
def test_what_needs_no_results_takes_no_notice_of_them(name):
    space = SPACES["free"]
    told, untold = make(name, space), make(name, space)
    assert drive(told, 20)[10:] == [untold.ask(number).grid_indices for number in range(10, 20)]


def test_quasi_random_levels_are_balanced_in_every_block():
    proposals = np.array(drive(make("qmc", SPACES["free"], 3), 64))
    assert ((proposals < 10).sum(0) == 32).all()


def test_a_grid_visits_every_point_once_then_goes_on_at_random():
    space = ScheduleSpace(3, step=0.3, max_sparsity=0.9)
    proposals = drive(make("grid", space), 70, step=0.3)
    assert len(set(proposals[:64])) == 64
    assert all(space.contains(indices) for indices in proposals[64:])


def test_a_grid_skips_points_that_others_visited():
    space = ScheduleSpace(3, step=0.3, max_sparsity=0.9)
    proposer = make("grid", space)
    others = set(drive(make("grid", space, 1), 40, step=0.3))
    for indices in others:
        proposer.tell(told_of(indices, objectives(indices), step=0.3))
    assert {proposer.ask(number).grid_indices for number in range(20)}.isdisjoint(others)


def test_a_grid_over_too_many_blocks_says_what_to_do():
    with pytest.raises(ConfigError, match="16384 points.*at most 13 blocks.*another proposer"):
        make("grid", ScheduleSpace(14))


def test_evopress_fills_every_overall_sparsity_band():
    space = SPACES["free"]
    totals = [sum(indices) for indices in drive(make("evopress", space), 200)]
    counts, _ = np.histogram(totals, bins=8, range=(0, 6 * 19 + 1))
    assert counts.min() >= 10


def test_evopress_children_at_a_target_differ_from_the_best_by_three_switches_at_most():
    space = ScheduleSpace(N_BLOCKS, 0.3)
    proposer = make("evopress", space)
    best = (0, 2, 4, 8, 10, 12)
    for indices in [*samples(space, 20), best]:
        proposer.tell(told_of(indices, (float(indices != best), 1.0)))
    for number in range(50):
        changes = [abs(ours - theirs) for ours, theirs in zip(proposer.ask(number).grid_indices, best, strict=True)]
        assert 1 <= sum(change > 0 for change in changes) <= 6
        assert 2 <= sum(changes) <= 2 * 3 * 3


def test_the_portfolio_is_a_set_of_proposers_and_lists_may_name_it():
    space = SPACES["free"]
    assert tuple(proposer.name for proposer in make_proposers("portfolio", space, 0)) == PORTFOLIO
    named = make_proposers("qmc, tpe,portfolio,qmc", space, 0)
    assert [proposer.name for proposer in named] == ["qmc", "tpe", "deap", "evopress", "additive", "cmaes"]
    assert all(make(name, space).name == name for name in PROPOSERS)


@pytest.mark.parametrize("names", ["best", "tpe,best", ""])
def test_unknown_proposers_are_refused_with_the_names_that_there_are(names):
    with pytest.raises(ConfigError, match="expected one of portfolio, deap, evopress, additive, tpe, .*grid"):
        make_proposers(names, SPACES["free"], 0)


def test_names_are_listed_without_loading_what_is_behind_them():
    script = "import sys, search.proposers.catalogue; print(sorted({'optuna', 'deap'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OUTCOMES = st.builds(
    lambda values, violation: told_of((0,), values, violation),
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)),
    st.sampled_from([0.0, 0.0, 0.0, 1.0]),
)


@given(st.lists(OUTCOMES, max_size=60), st.integers(24, 40))
@settings(max_examples=60, deadline=None)
def test_a_memory_of_outcomes_is_bounded_and_keeps_the_front_and_the_latest_in_order(told, most):
    memory = TrialMemory(most)
    for outcome in told:
        memory.add(outcome)
        assert len(memory) <= most
    kept = list(memory)
    assert kept[-1:] == told[-1:]
    rest = iter(told)
    assert all(any(one is other for other in rest) for one in kept)
    # Integers up to 9 in two dimensions: a front of at most ten points, which always fits.
    legal = [outcome.values for outcome in told if outcome.total_violation == 0]
    front = {a for a in legal if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in legal)}
    assert front <= {outcome.values for outcome in kept if outcome.total_violation == 0}
