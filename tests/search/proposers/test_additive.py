"""The additive proposer: exact about its model, and quick to see which blocks matter."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from ftp_core.schedule import SparsitySchedule
from search.problem.initial_design import ablations, initial_design
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers import Proposer
from search.proposers.additive import AdditiveProposer
from search.proposers.evopress import EvoPressProposer
from search.proposers.testing import told_of
from studies import Trial
from tests.search.deep_objective import DeepObjective

N_BLOCKS, TARGET = 12, 0.3
# These must not skip, as the blocks that carry a prompt's facts on; skipping in the others is nearly free.
CARRIERS = (2, 5, 8)


def kl(indices: GridIndices) -> float:
    harm = sum((4.0 if block in CARRIERS else 0.05) * index / 19 for block, index in enumerate(indices))
    return 0.001 * math.exp(2 * min(harm, 4.0))


def best_of(proposer: Proposer, trials: int) -> float:
    best = math.inf
    for number in range(trials):
        indices = proposer.ask(number).grid_indices
        proposer.tell(told_of(indices, (kl(indices), 0.0)))
        best = min(best, kl(indices))
    return best


def test_it_sees_which_blocks_matter_before_a_local_search_does() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    for seed in range(5):
        own, local = (best_of(one, 60) for one in (AdditiveProposer(space, seed), EvoPressProposer(space, seed)))
        assert own < 0.0025 and own <= local


def ablation(space: ScheduleSpace, block: int) -> Trial:
    [indices] = [indices for indices in ablations(space) if indices[block]]
    return told_of(indices, (kl(indices), 0.0), space.constraint_violation(indices))


def test_ablations_show_which_blocks_matter_before_any_schedule_is_known() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    for seed in range(5):
        told, new = AdditiveProposer(space, seed), AdditiveProposer(space, seed)
        for block in range(N_BLOCKS):
            told.tell(ablation(space, block))
        first = [told.ask(number).grid_indices for number in range(20)]
        assert told.leads and not new.leads
        assert all(space.contains(indices) for indices in first) and len(set(first)) > 5
        assert np.median(list(map(kl, first))) < 0.0015 < 0.004 < kl(initial_design(space)[0])


def test_before_anything_is_known_it_skips_in_late_blocks() -> None:
    for target in (0.1, 0.3):
        space = ScheduleSpace(30, target)
        proposer = AdditiveProposer(space, 0)
        for number in range(10):
            indices = proposer.ask(number).grid_indices
            assert sum(indices[:2]) < 0.2 * sum(indices[2:])


def test_neighbours_that_were_ablated_together_share_what_that_did() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    for seed in range(5):
        told = AdditiveProposer(space, seed)
        for indices in ablations(space, 6):
            told.tell(told_of(indices, (kl(indices), 0.0), space.constraint_violation(indices)))
        first = [told.ask(number).grid_indices for number in range(20)]
        # Blocks 2, 5 and 8 harm; six others are in groups without one of them.
        assert np.median([kl(indices) for indices in first]) < 0.0015 < 0.004 < kl(initial_design(space)[0])


@pytest.mark.parametrize("target", [0.15, 0.4])
def test_what_is_known_of_one_target_is_solved_for_another(target: float) -> None:
    searched, space, truth = ScheduleSpace(30, 0.25), ScheduleSpace(30, target), DeepObjective(30)
    for draw in range(2):
        whole, part, proposer = DeepObjective(30, draw), DeepObjective(30, draw, 0.25), AdditiveProposer(space, draw)
        for fidelity, deep, known in ((0.25, part, ablations(searched)), (1.0, whole, initial_design(searched))):
            for indices in known:
                proposer.tell(told_of(indices, (deep(searched.schedule(indices)), 0.0), fidelity=fidelity))
        solutions = proposer.solutions(4)
        kls = [truth(space.schedule(one)) for one in solutions]
        shortened = truth(SparsitySchedule.uniform(target, 30))
        assert all(map(space.contains, solutions)) and min(kls) < 0.95 * shortened and max(kls) < 1.5 * shortened
        for place, one in enumerate(solutions):
            for other in solutions[:place]:
                assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) >= 0.1 * target * 600


def test_without_a_target_first_proposals_are_spread_over_overall_sparsities() -> None:
    space = ScheduleSpace(N_BLOCKS)
    for seed in range(5):
        proposer = AdditiveProposer(space, seed)
        for block in range(N_BLOCKS):
            proposer.tell(ablation(space, block))
        overall = sorted(sum(proposer.ask(number).grid_indices) / (20 * N_BLOCKS) for number in range(20, 28))
        assert overall[0] < 0.2 and overall[-1] > 0.6 and np.diff(overall).max() < 0.2


def test_it_leads_from_ablations_on_and_at_a_target_until_eight_in_a_row_were_no_better() -> None:
    for improves in (5, 0):
        space = ScheduleSpace(N_BLOCKS, TARGET)
        proposer, rng = AdditiveProposer(space, 0), random.Random(0)
        for indices in (space.sample(rng) for _ in range(6)):
            assert not proposer.leads
            proposer.tell(told_of(indices, (1.0, 0.0)))
        for block in range(N_BLOCKS):
            proposer.tell(ablation(space, block))
        for number in range(8 + improves):
            assert proposer.leads
            value = 0.5**number if number < improves else 2.0
            proposer.tell(replace(told_of(proposer.ask(number).grid_indices, (value, 0.0)), proposer="additive"))
        assert not proposer.leads


def test_where_its_own_proposals_fail_it_stays_ever_closer_to_the_best() -> None:
    # Ablations call every block harmless, but what they promise together is ruined, as early blocks of real models are.
    space, plateau = ScheduleSpace(30, TARGET), (0,) * 15 + (12,) * 15
    for seed in range(3):
        proposer = AdditiveProposer(space, seed)
        for indices in ablations(space):
            proposer.tell(told_of(indices, (0.001, 0.0), space.constraint_violation(indices)))
        proposer.tell(told_of(plateau, (0.1, 0.0)))

        def asked(number: int, value: float, proposer: AdditiveProposer = proposer) -> int:
            indices = proposer.ask(number).grid_indices
            proposer.tell(replace(told_of(indices, (value, 0.0)), proposer="additive"))
            return sum(abs(index - best) for index, best in zip(indices, plateau, strict=True))

        failed = [asked(number, 5.0) for number in range(8)]
        assert failed[0] > 90
        assert all(way <= 360 / 2 ** min(number, 5) for number, way in enumerate(failed))
        # Better ones, which are the next best, let it go further again.
        succeeded = [asked(8 + number, 0.05 / (1 + number)) for number in range(6)]
        assert max(succeeded) > 2 * failed[-1]


def test_it_learns_from_what_others_proposed() -> None:
    space, rng = ScheduleSpace(N_BLOCKS, TARGET), random.Random(0)
    proposer = AdditiveProposer(space, 0)
    for _ in range(60):
        indices = space.sample(rng)
        proposer.tell(told_of(indices, (kl(indices), 0.0)))
    skipped = [sum(proposer.ask(number).grid_indices[block] for block in CARRIERS) for number in range(60, 80)]
    # Random schedules have 18 steps of sparsity in these blocks.
    assert np.median(skipped) <= 3
