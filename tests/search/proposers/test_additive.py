"""The additive proposer: exact about its model, and quick to see which blocks matter."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers import Proposer
from search.proposers.additive import AdditiveProposer, least_sensitive
from search.proposers.evopress import EvoPressProposer
from search.proposers.testing import told_of
from studies import Trial

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


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_what_it_proposes_is_the_best_by_its_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_blocks, n_indices = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    increases = rng.normal(size=(n_blocks, n_indices))
    total = int(rng.integers(0, n_blocks * (n_indices - 1) + 1))
    found = least_sensitive(increases, total)

    def harm(indices: tuple[int, ...]) -> float:
        return float(sum(increases[block, index] for block, index in enumerate(indices)))

    every = (one for one in itertools.product(range(n_indices), repeat=n_blocks) if sum(one) == total)
    assert sum(found) == total and math.isclose(harm(tuple(found)), min(map(harm, every)), abs_tol=1e-12)


def test_it_sees_which_blocks_matter_before_a_local_search_does() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    for seed in range(5):
        own, local = (best_of(one, 60) for one in (AdditiveProposer(space, seed), EvoPressProposer(space, seed)))
        assert own < 0.0025 and own <= local


def ablation(space: ScheduleSpace, block: int) -> Trial:
    [indices] = [indices for indices in space.ablations() if indices[block]]
    return told_of(indices, (kl(indices), 0.0), space.constraint_violation(indices))


def test_ablations_show_which_blocks_matter_before_any_schedule_is_known() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    for seed in range(5):
        told, new = AdditiveProposer(space, seed), AdditiveProposer(space, seed)
        for block in range(N_BLOCKS):
            told.tell(ablation(space, block))
        first = [told.ask(number).grid_indices for number in range(20)]
        assert told.leads and not new.leads
        assert all(space.contains(indices) for indices in first) and len(set(first)) == 20
        assert max(map(kl, first)) < 0.002 < kl(new.ask(0).grid_indices)


def test_neighbours_that_were_ablated_together_share_what_that_did() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    for seed in range(5):
        told, new = AdditiveProposer(space, seed), AdditiveProposer(space, seed)
        for indices in space.ablations(6):
            told.tell(told_of(indices, (kl(indices), 0.0), space.constraint_violation(indices)))
        first = [told.ask(number).grid_indices for number in range(20)]
        # Blocks 2, 5 and 8 harm; six others are in groups without one of them.
        assert np.median([kl(indices) for indices in first]) < 0.002 < kl(new.ask(0).grid_indices)
        # What a single one tells counts more than what its group does.
        told.tell(ablation(space, 3))
        increases = told._sensitivities(random.Random(seed))[:, -1]
        assert increases[3] < increases[2]


def test_without_a_target_first_proposals_are_spread_over_overall_sparsities() -> None:
    space = ScheduleSpace(N_BLOCKS)
    for seed in range(5):
        proposer = AdditiveProposer(space, seed)
        for block in range(N_BLOCKS):
            proposer.tell(ablation(space, block))
        overall = sorted(sum(proposer.ask(number).grid_indices) / (20 * N_BLOCKS) for number in range(20, 28))
        assert overall[0] < 0.2 and overall[-1] > 0.6 and np.diff(overall).max() < 0.2


def test_uniform_schedules_do_not_end_what_ablations_lead_to() -> None:
    space = ScheduleSpace(N_BLOCKS)
    proposer = AdditiveProposer(space, 0)
    for block in range(N_BLOCKS):
        proposer.tell(ablation(space, block))
    for indices in space.initial_design():
        proposer.tell(told_of(indices, (kl(indices), 0.0)))
    for number in range(11):
        proposer.tell(told_of(indices := proposer.ask(number).grid_indices, (kl(indices), 0.0)))
    assert proposer.leads


def test_it_leads_until_its_model_says_more_than_ablations_do() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    proposer, rng = AdditiveProposer(space, 0), random.Random(0)
    for indices in (space.sample(rng) for _ in range(6)):
        assert not proposer.leads
        proposer.tell(told_of(indices, (kl(indices), 0.0)))
    for block in range(N_BLOCKS):
        proposer.tell(ablation(space, block))
    for indices in (space.sample(rng) for _ in range(6)):
        assert proposer.leads
        proposer.tell(told_of(indices, (kl(indices), 0.0)))
    assert not proposer.leads


def test_a_block_of_which_nothing_is_known_may_be_as_bad_as_the_worst_that_is_known() -> None:
    space = ScheduleSpace(N_BLOCKS, TARGET)
    proposer = AdditiveProposer(space, 0)
    harmless = [block for block in range(N_BLOCKS) if block not in CARRIERS][:6]
    for block in (*harmless, CARRIERS[0]):
        proposer.tell(ablation(space, block))
    for number in range(20):
        indices = proposer.ask(number).grid_indices
        assert sum(indices[block] for block in harmless) >= 0.9 * sum(indices)


def test_it_learns_from_what_others_proposed() -> None:
    space, rng = ScheduleSpace(N_BLOCKS, TARGET), random.Random(0)
    proposer = AdditiveProposer(space, 0)
    for _ in range(60):
        indices = space.sample(rng)
        proposer.tell(told_of(indices, (kl(indices), 0.0)))
    skipped = [sum(proposer.ask(number).grid_indices[block] for block in CARRIERS) for number in range(60, 80)]
    # Random schedules have 18 steps of sparsity in these blocks.
    assert np.median(skipped) <= 2
