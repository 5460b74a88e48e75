"""The formula that stands for a deep model, against what was measured of one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from tests.search.deep_objective import (
    BAND,
    COMES_BACK,
    LEVELS,
    LONG_RUN,
    N_BANDS,
    STAYS_AWAY,
    DeepObjective,
    measured,
)

TRUTH = DeepObjective(30)
SPARSITIES = st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.35, 0.6, 0.95]), min_size=30, max_size=30)


def costs_run_by_run(objective: DeepObjective, sparsities: list[float]) -> np.ndarray:
    """Of each band of tokens, each run of blocks that they skip."""
    n_blocks, costs = objective.n_blocks, np.zeros(objective.n_blocks)
    for band in range(N_BANDS):
        skips = [sparsity > BAND * (band + 0.5) for sparsity in sparsities]
        first = 0
        while first < n_blocks:
            if not skips[first]:
                first += 1
                continue
            last = first
            while last + 1 < n_blocks and skips[last + 1]:
                last += 1
            length = (last - first + 1) * 30 / n_blocks
            back = 1 - (1 - COMES_BACK) * min(1.0, max(0.0, (length - 1) / (LONG_RUN - 1)))
            gone = STAYS_AWAY ** ((n_blocks - 1 - last) * 30 / n_blocks)
            ratio = back * (1 - gone) + objective._to_the_end[band, first] * gone
            costs[first : last + 1] += objective._block[band, first : last + 1] * ratio
            first = last + 1
    return costs


@given(SPARSITIES)
def test_costs_are_those_of_each_run_of_blocks_that_a_band_of_tokens_skips(sparsities: list[float]) -> None:
    assert TRUTH.block_costs(sparsities) == pytest.approx(costs_run_by_run(TRUTH, sparsities), abs=1e-9)


def test_kl_of_single_blocks_is_what_was_measured() -> None:
    known = measured()
    for block in range(1, 20):
        for place, level in enumerate(LEVELS[1:], 1):
            found = TRUTH.block_costs([level * (other == block) for other in range(30)]).sum()
            assert found == pytest.approx(known.mean(known.singles[block, place]), rel=0.15)


@pytest.mark.parametrize("kind", ["both", "mlp"])
def test_kl_of_single_blocks_that_keep_keys_and_values_is_what_was_measured(kind: str) -> None:
    known, nothing = measured(kind), [0.0] * 30
    for block in range(8, 29):
        sparsities = [0.4 * (other == block) for other in range(30)]
        attention = sparsities if kind == "both" else nothing
        found = TRUTH(SparsitySchedule.of_halves(attention, sparsities, keeps_kv=True))
        assert found == pytest.approx(known.mean(known.singles[block, LEVELS.index(0.4)]), rel=0.2, abs=2e-3)


def test_kl_of_whole_schedules_that_keep_keys_and_values_is_near_to_what_was_measured() -> None:
    known = measured("both")
    errors = [
        np.log(TRUTH(SparsitySchedule.of_halves(sparsities, sparsities, keeps_kv=True)) / known.mean(kl))
        for _, sparsities, kl in known.others
    ]
    assert len(errors) > 10
    assert np.std(errors) < 0.25 and abs(np.mean(errors)) < 0.1


@given(SPARSITIES, SPARSITIES)
def test_skipping_less_than_whole_blocks_costs_what_its_parts_do(attention: list[float], mlp: list[float]) -> None:
    # What skips the first block costs more.
    attention, mlp = [0.0, *attention[1:]], [0.0, *mlp[1:]]
    whole = TRUTH.block_costs(SparsitySchedule.of_halves(attention, attention, keeps_kv=True))
    halves = TRUTH.block_costs(SparsitySchedule.of_halves(attention, mlp, keeps_kv=True))
    same = np.array([one == other for one, other in zip(attention, mlp, strict=True)])
    assert halves[same] == pytest.approx(whole[same])
    dropped = TRUTH.block_costs(SparsitySchedule.of_halves(attention, mlp, keeps_kv=False))
    assert (dropped[~same] >= 0).all() and (halves >= 0).all()


@pytest.mark.parametrize("group", ["pair", "run", "whole"])
def test_kl_of_other_schedules_is_near_to_what_was_measured(group: str) -> None:
    known = measured()
    errors = [np.log(TRUTH(sparsities) / known.mean(kl)) for found, sparsities, kl in known.others if found == group]
    assert len(errors) > 30
    assert np.std(errors) < 0.2 and abs(np.mean(errors)) < 0.05


@pytest.mark.parametrize("n_blocks", [30, 48, 80])
def test_other_depths_lose_as_much_by_uniform_schedules(n_blocks: int) -> None:
    objective = DeepObjective(n_blocks)
    assert objective([0.0] * n_blocks) == 0.0
    for sparsity in (0.1, 0.25, 0.5, MAX_SPARSITY):
        assert objective([sparsity] * n_blocks) == pytest.approx(TRUTH([sparsity] * 30), rel=0.1)


def test_search_sets_differ_as_those_of_so_many_items_do() -> None:
    known = measured()
    rng, n_items = np.random.default_rng(0), len(known.n_tokens)
    draws = [DeepObjective(30, draw) for draw in range(40)]
    for _, sparsities, kl in [one for one in known.others if one[0] == "whole"][::5]:
        items = rng.integers(n_items, size=(200, n_items))
        spread = np.std(np.log((kl * known.n_tokens)[items].sum(1) / known.n_tokens[items].sum(1)))
        assert 0.4 * spread < np.std(np.log([draw(sparsities) for draw in draws])) < 2.5 * spread
