"""Routers may be told which half of a block they decide; those of the paper need not be."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import ModelError
from ftp_core.routers import (
    FEATURES,
    FEATURES_OF_HALVES,
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RandomRouter,
    RecurrentRouter,
    RoutingState,
    ScoringRouter,
    StaticRouter,
    router_from_bytes,
    router_to_bytes,
)
from ftp_core.routers.scoring import token_features
from ftp_core.routers.state import Half
from ftp_core.schedule import SparsitySchedule, kept_count
from tests.ftp_core.routers.test_routers import row_lengths, sparsities, with_hidden

HALVES: tuple[Half, ...] = get_args(Half)
SCHEDULE = SparsitySchedule.of_halves([0.1, 0.2, 0.3], [0.4, 0.5, 0.3], [True, False, False])


def routers(halves: bool) -> list[ScoringRouter]:
    torch.manual_seed(0)
    return [
        DynamicRouter(5, FEATURES_OF_HALVES if halves else FEATURES),
        LocalRouter(3, 5, halves),
        HiddenRouter(32, halves),
        RecurrentRouter(5, halves),
        OnePassRouter(32, 3, halves),
    ]


def state_of(half: Half, lengths: list[int] | None = None, seed: int = 0) -> RoutingState:
    state = with_hidden([12, 9] if lengths is None else lengths, seed)
    state.half = half
    return state


@pytest.mark.parametrize(("half", "value"), [("attention", 0.0), ("block", 0.5), ("mlp", 1.0)])
def test_the_half_is_one_more_feature(half: Half, value: float) -> None:
    features = token_features(FEATURES_OF_HALVES, 0.3, state_of(half))
    assert torch.equal(features[..., :-1], token_features(FEATURES, 0.3, state_of("block")))
    assert torch.equal(features[..., -1], torch.full((2, 12), value))


@pytest.mark.parametrize("router", routers(True), ids=lambda router: router.kind)
def test_a_router_for_halves_scores_each_half_otherwise(router: ScoringRouter) -> None:
    scores = [router.scores(0.3, state_of(half)) for half in HALVES]
    assert not any(torch.equal(one, other) for one, other in zip(scores, [*scores[1:], scores[0]], strict=True))


@pytest.mark.parametrize("router", routers(False), ids=lambda router: router.kind)
def test_a_router_for_blocks_scores_both_halves_alike(router: ScoringRouter) -> None:
    scores = [router.scores(0.3, state_of(half)) for half in HALVES]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("place", range(5))
@given(lengths=row_lengths, sparsity=sparsities, half=st.sampled_from(HALVES), seed=st.integers(0, 99))
def test_every_router_keeps_exactly_the_kept_count_in_every_half(
    halves: bool, place: int, lengths: list[int], sparsity: float, half: Half, seed: int
) -> None:
    keep = routers(halves)[place].keep(sparsity, state_of(half, lengths, seed))
    assert keep.sum(1).tolist() == [kept_count(sparsity, length) for length in lengths]


@pytest.mark.parametrize("router", [routers(True)[place] for place in (0, 1, 4)], ids=lambda router: router.kind)
@given(lengths=row_lengths, sparsity=sparsities, half=st.sampled_from(HALVES), seed=st.integers(0, 99))
def test_a_router_that_starts_as_the_static_one_decides_like_it_in_every_half(
    router: ScoringRouter, lengths: list[int], sparsity: float, half: Half, seed: int
) -> None:
    assert router.start_as_static()
    state = state_of(half, lengths, seed)
    assert torch.equal(router.keep(sparsity, state), StaticRouter().keep(sparsity, state))
    static = DynamicRouter.static(5, FEATURES_OF_HALVES)
    assert torch.equal(static.keep(sparsity, state), StaticRouter().keep(sparsity, state))


@pytest.mark.parametrize("router", routers(True), ids=lambda router: router.kind)
def test_routers_and_thresholds_for_halves_survive_their_file(router: ScoringRouter) -> None:
    thresholds = (0.1, 0.2, 0.3, 0.4, 0.5, 0.3)
    router.set_thresholds(thresholds, SCHEDULE)
    loaded = router_from_bytes(router_to_bytes(router))
    assert type(loaded) is type(router) and loaded.options == router.options
    assert (loaded.thresholds, loaded.threshold_schedule) == (thresholds, SCHEDULE)
    for half in HALVES:
        assert torch.equal(loaded.keep(0.3, state_of(half)), router.keep(0.3, state_of(half)))


@pytest.mark.parametrize("router", routers(False), ids=lambda router: router.kind)
def test_files_of_routers_for_blocks_do_not_speak_of_halves(router: ScoringRouter) -> None:
    router.set_thresholds([0.1, 0.2, 0.3], [0.5, 0.5, 0.0])
    data = router_to_bytes(router)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    said: dict[str, Any] = json.loads(header["__metadata__"]["router"])
    assert "half" not in json.dumps(said) and said["threshold_schedule"] == [0.5, 0.5, 0.0]


def test_each_half_has_a_threshold_of_its_own() -> None:
    router, scores = DynamicRouter(), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    router.set_thresholds([9.0, 0.5, 9.0, 9.0, 1.5, 9.0], SCHEDULE)
    state = RoutingState.padded_right(torch.tensor([4]), 4)
    state.block = 1
    for half, n_kept in (("block", 3), ("attention", 3), ("mlp", 2)):
        state.half = half
        assert int(router.select(scores, 0.5, state).sum()) == n_kept


def test_thresholds_that_are_not_those_of_the_models_halves_are_refused() -> None:
    router = DynamicRouter()
    router.set_thresholds([0.0] * 3, SCHEDULE)
    with pytest.raises(ModelError, match="has 3 thresholds, but the model has 3 blocks, and its schedule tells halves"):
        router.check_model(3, 32)
    router.set_thresholds([0.0] * 6, SCHEDULE)
    router.check_model(3, 32)
    router.check_schedule(SCHEDULE)
    with pytest.raises(ModelError, match="calibrated for the schedule"):
        router.check_schedule(SparsitySchedule(SCHEDULE.attention))


def test_random_routers_draw_for_each_half_apart() -> None:
    states = {half: state_of(half, [200]) for half in HALVES}
    keeps = {half: RandomRouter().keep(0.5, state) for half, state in states.items()}
    assert torch.equal(keeps["block"], keeps["attention"])
    # Two independent halves share about a quarter.
    assert 30 <= int((keeps["attention"] & keeps["mlp"]).sum()) <= 70
