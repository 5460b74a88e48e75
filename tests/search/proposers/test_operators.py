"""Operators and selection against slow references; the proposer against what proposers promise."""

from __future__ import annotations

import math
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.problem.cost_limit import CostLimit
from search.problem.initial_design import initial_design
from search.problem.space import ScheduleSpace
from search.proposers.genetic import GeneticProposer
from search.proposers.operators import Gene, Individual, Selection, Variation, parent, survivors, switch_levels
from search.proposers.testing import told_of

SELECTIONS: tuple[Selection, ...] = ("nsga2", "nsga3")
LEVELS = [Gene.steps(20, peers="blocks")] * 12


@st.composite
def populations(draw):
    n_objectives = draw(st.integers(1, 4))
    value = st.integers(0, 5).map(float)
    one = st.tuples(st.tuples(*[value] * n_objectives), st.sampled_from([0.0, 0.0, 0.5, 1.5]))
    drawn = draw(st.lists(one, min_size=1, max_size=25))
    return [Individual(index, values, violation) for index, (values, violation) in enumerate(drawn)]


def fronts(individuals):
    """Constrained non-dominated sorting, by definition."""
    fronts, rest = [], list(individuals)
    while rest:
        front = [one for one in rest if not any(is_better(other, one) for other in rest)]
        fronts.append(front)
        rest = [one for one in rest if one not in front]
    return fronts


def is_better(one, other):
    if one.constraint_violation != other.constraint_violation:
        return one.constraint_violation < other.constraint_violation
    return one.values != other.values and all(a <= b for a, b in zip(one.values, other.values, strict=True))


@given(populations(), st.integers(1, 20), st.sampled_from(SELECTIONS))
def test_survivors_fill_front_after_front(individuals, size, selection):
    kept = survivors(individuals, size, selection, random.Random(0))
    assert len({one.genome for one in kept}) == len(kept) == min(size, len(individuals))
    room = size
    for front in fronts(individuals):
        in_front = sum(one in front for one in kept)
        assert in_front == min(room, len(front))
        room -= in_front


@given(populations(), st.integers(1, 20), st.sampled_from(SELECTIONS))
def test_domination_is_as_defined(individuals, size, selection):
    for one, other in combinations(individuals, 2):
        assert one.dominates(other) == is_better(one, other)
        assert other.dominates(one) == is_better(other, one)
    kept = survivors(individuals, size, selection, random.Random(0))
    best = parent(kept, random.Random(1))
    assert best in kept


def test_nsga2_keeps_the_ends_of_a_front_and_thins_out_where_it_is_dense():
    dense = [Individual(index, (0.5 + index / 1000, 0.5 - index / 1000)) for index in range(20)]
    lonely = [Individual(100 + index, (x, 1 - x)) for index, x in enumerate((0.0, 0.2, 0.35, 0.7, 1.0))]
    kept = survivors([*dense, *lonely], 7, "nsga2", random.Random(0))
    assert {one.genome for one in lonely} < {one.genome for one in kept}


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_nsga3_keeps_one_of_each_direction_wherever_the_ideal_point_is(shift):
    rng = random.Random(0)
    corners = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)]
    crowd = []
    for _ in range(40):
        x, y = 0.3 + rng.uniform(-0.02, 0.02), 0.35 + rng.uniform(-0.02, 0.02)
        crowd.append((x, y, 1.0 - x - y))
    individuals = [Individual(i, tuple(v + shift for v in values)) for i, values in enumerate([*crowd, *corners])]
    kept = {one.genome for one in survivors(individuals, 8, "nsga3", random.Random(0))}
    assert set(range(40, 46)) < kept


@pytest.mark.parametrize("selection", SELECTIONS)
def test_one_objective_keeps_the_lowest(selection):
    individuals = [Individual(index, (value,)) for index, value in enumerate((3.0, 1.0, 2.0, 5.0))]
    kept = survivors(individuals, 2, selection, random.Random(0))
    assert [one.genome for one in kept] == [1, 2]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_infinite_values_do_not_spoil_the_others(selection):
    individuals = [Individual(index, (index / 10, 1 - index / 10, 0.0)) for index in range(10)]
    broken = [Individual(20, (math.inf, 0.5, 0.0)), Individual(21, (0.0, -math.inf, math.inf))]
    kept = survivors([*broken, *individuals], 8, selection, random.Random(0))
    assert len(kept) == 8 and 20 not in {one.genome for one in kept}


def test_of_equal_genomes_the_latest_with_the_lowest_constraint_violation_stays():
    early, whole, noisy, late = (
        Individual("a", (1.0, 1.0), 1.5),
        Individual("a", (2.0, 2.0)),
        Individual("a", (2.5, 2.0)),
        Individual("a", (0.0, 0.0), 0.1),
    )
    assert survivors([early, whole, noisy, late], 10, "nsga2", random.Random(0)) == [noisy]


def test_individuals_can_be_sent_to_another_process():
    [one] = survivors([Individual((1, 2), (3.0, 4.0), 0.5)], 3, "nsga2", random.Random(0))
    back = pickle.loads(pickle.dumps(one))
    assert (back.genome, back.values, back.constraint_violation) == (one.genome, one.values, one.constraint_violation)
    assert back.fitness.crowding_dist == one.fitness.crowding_dist


GENES = st.one_of(
    st.tuples(st.floats(-10, 10), st.floats(0.1, 10)).map(lambda g: Gene(g[0], g[0] + g[1], peers=g)),
    st.integers(1, 30).map(lambda n: Gene.steps(n, peers=n)),
    st.integers(1, 5).map(lambda n: Gene.steps(n, nominal=True)),
)
VARIATIONS = st.builds(
    Variation,
    crossover=st.sampled_from(["sbx", "uniform", "one_point", "mixed"]),
    mutation_rate=st.sampled_from([None, 0.0, 0.5, 1.0]),
    switch_rate=st.sampled_from([0.0, 0.5, 1.0]),
)


@given(st.lists(GENES, min_size=1, max_size=8), VARIATIONS, st.integers(0, 1000))
def test_children_are_numbers_that_count(genes, variation, seed):
    rng = random.Random(seed)
    genes = [*genes, genes[0]]
    mother, father = ([gene.sample(rng) for gene in genes] for _ in range(2))
    copies = list(mother), list(father)
    child = variation.child(mother, father, genes, rng)
    assert (mother, father) == copies
    for gene, number in zip(genes, child, strict=True):
        assert gene.low <= number <= gene.high
        assert not gene.on_grid or number == round(number)


@given(st.integers(0, 1000))
def test_level_switches_keep_the_sum_and_stay_among_peers(seed):
    rng = random.Random(seed)
    genes = [Gene.steps(20, peers="a")] * 4 + [Gene(0.0, 1.0, peers="b")] * 3 + [Gene.steps(5)]
    mother = [gene.sample(rng) for gene in genes]
    child = Variation(switch_rate=1.0).child(mother, mother, genes, rng)
    assert sum(child[:4]) == sum(mother[:4])
    assert sum(child[4:7]) == pytest.approx(sum(mother[4:7]))
    assert child[7] == mother[7]


def test_a_level_switch_moves_no_more_than_there_is_and_than_there_is_room_for():
    for seed in range(50):
        child = [1.0, 18.0]
        switch_levels(child, LEVELS[:2], [0, 1], random.Random(seed))
        assert sum(child) == 19 and min(child) >= 0 and max(child) <= 19


def test_names_are_never_blended():
    genes = [Gene.steps(9, nominal=True)] * 20
    for seed in range(20):
        child = Variation(mutation_rate=0.0).child([0.0] * 20, [8.0] * 20, genes, random.Random(seed))
        assert set(child) <= {0.0, 8.0}


def test_one_point_crossover_keeps_a_prefix():
    variation = Variation("one_point", crossover_rate=1.0, mutation_rate=0.0, switch_rate=0.0)
    for seed in range(20):
        child = variation.child([0.0] * 12, [9.0] * 12, LEVELS, random.Random(seed))
        assert child == sorted(child) and child[0] == 0.0 and child[-1] == 9.0


@pytest.mark.parametrize("n", [1, 2])
def test_the_outermost_steps_are_as_likely_as_the_others(n):
    gene = Gene.steps(n + 1)
    rng = random.Random(0)
    counts = np.bincount([round(gene.sample(rng)) for _ in range(3000)], minlength=n + 1)
    assert counts.min() > 0.9 * 3000 / (n + 1)


def breed(seed):
    rng = random.Random(seed)
    variation = Variation()
    mother, father = ([gene.sample(rng) for gene in LEVELS] for _ in range(2))
    for _ in range(50):
        mother, father = variation.child(mother, father, LEVELS, rng), mother
    return mother


def test_children_follow_the_generator_and_leave_the_global_ones_alone():
    rng = random.Random(0)
    crowd = [Individual(index, (rng.random(), rng.random(), rng.random())) for index in range(30)]
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    found = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        kept = survivors(crowd, 10, "nsga3", random.Random(5))
        found.append((breed(3), [one.genome for one in kept]))
        assert (random.random(), np.random.random()) == expected
        random.seed(2)
    assert found[0] == found[1]


def test_threads_do_not_mix_their_generators():
    alone = [breed(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(breed, range(16))) == alone


@pytest.mark.parametrize(
    "wrong", [{"crossover": "two_point"}, {"mutation_rate": 1.5}, {"switch_rate": -0.1}, {"mutation_eta": 0.0}]
)
def test_wrong_variations_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|use one of"):
        Variation(**wrong)


# Skipping in an early block hurts more: the best schedules are those that ascend.
HARM = [8.0 * 0.65**block for block in range(12)]


def objectives(levels):
    kl = sum(harm * (level / 19) ** 2 for harm, level in zip(HARM, levels, strict=True))
    return kl, sum(20.0 - level for level in levels)


def drive(proposer, n, known=()):
    outcomes = []
    for levels in known:
        proposer.tell(told_of(levels, objectives(levels)))
    for number in range(n):
        levels = proposer.ask(number).grid_indices
        outcomes.append(told_of(levels, objectives(levels)))
        proposer.tell(outcomes[-1])
    return outcomes


def hypervolume(outcomes):
    return moocore.hypervolume([outcome.values for outcome in outcomes], ref=[10.0, 245.0])


SPACES = {
    "free": ScheduleSpace(12),
    "target": ScheduleSpace(12, target_sparsity=0.3),
    "dense blocks": ScheduleSpace(12, target_sparsity=0.3, dense_blocks=(0, 1, -1)),
    "latency": ScheduleSpace(
        12, limits=(CostLimit("max_latency_ms", 60.0, lambda schedule: 100 * (1 - schedule.overall), 100.0),)
    ),
    "one block": ScheduleSpace(1),
    "one free block": ScheduleSpace(3, dense_blocks=(0, 1)),
    "no free block": ScheduleSpace(2, dense_blocks=(0, 1)),
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", SPACES)
def test_proposals_lie_inside_the_space(name, selection):
    space = SPACES[name]
    proposer = GeneticProposer(space, 0, population_size=8, selection=selection)
    for number in range(60):
        levels = proposer.ask(number).grid_indices
        assert space.contains(levels)
        proposer.tell(told_of(levels, (float(sum(levels)), -float(levels[0]), float(levels[-1]))))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_proposals_depend_on_the_seed_the_number_and_what_was_told(selection):
    space = SPACES["free"]
    outcomes = drive(GeneticProposer(space, 7, selection=selection), 80)
    assert outcomes == drive(GeneticProposer(space, 7, selection=selection), 80)
    assert outcomes != drive(GeneticProposer(space, 8, selection=selection), 80)
    resumed = GeneticProposer(space, 7, selection=selection)
    for outcome in outcomes[:60]:
        resumed.tell(outcome)
    for number in range(60, 80):
        assert resumed.ask(number).grid_indices == SparsitySchedule.of(outcomes[number].schedule).grid_indices()
        resumed.tell(outcomes[number])


def test_asked_again_it_proposes_something_else():
    proposer = GeneticProposer(SPACES["free"], 0)
    drive(proposer, 100)
    assert len({proposer.ask(100).grid_indices for _ in range(20)}) > 15


def test_it_does_not_propose_what_is_in_its_population():
    proposer = GeneticProposer(SPACES["free"], 0, population_size=500)
    told = {SparsitySchedule.of(outcome.schedule).grid_indices() for outcome in drive(proposer, 300)}
    assert all(proposer.ask(number).grid_indices not in told for number in range(300, 400))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_it_beats_random_search(selection):
    space = SPACES["free"]
    ours, blind = [], []
    for seed in range(5):
        ours.append(hypervolume(drive(GeneticProposer(space, seed, selection=selection), 200, initial_design(space))))
        rng = random.Random(seed)
        blind.append(hypervolume([told_of(levels, objectives(levels)) for levels in map(space.sample, [rng] * 200)]))
    assert min(ours) > max(blind)


def test_it_learns_from_others_and_avoids_what_breaks_constraints():
    space, rng = SPACES["free"], random.Random(0)
    proposer = GeneticProposer(space, 0)
    for _ in range(60):
        levels = space.sample(rng)
        outcome = told_of(levels, objectives(levels))
        # What looks best breaks a constraint.
        proposer.tell(replace(outcome, values=(-1.0, -1.0), constraint_violation=0.5) if levels[0] > 5 else outcome)
    asked = [proposer.ask(number).grid_indices for number in range(100)]
    assert sum(levels[0] > 5 for levels in asked) < 30


def test_what_was_stopped_early_is_worse_than_any_whole_evaluation():
    space, rng = SPACES["free"], random.Random(0)
    proposer = GeneticProposer(space, 0, population_size=10)
    whole = [space.sample(rng) for _ in range(10)]
    for levels in whole:
        proposer.tell(told_of(levels, objectives(levels)))
    before = [proposer.ask(number).grid_indices for number in range(20)]
    for _ in range(30):
        proposer.tell(told_of(space.sample(rng), (0.0, 0.0), fidelity=0.25))
    assert [proposer.ask(number).grid_indices for number in range(20)] == before
