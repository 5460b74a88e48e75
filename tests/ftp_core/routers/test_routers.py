"""Routers decide by the formulas of the method, and only from what the prompt shows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import ModelError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import (
    FEATURES,
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RandomRouter,
    RecurrentRouter,
    Router,
    RoutingState,
    ScoringRouter,
    StaticRouter,
    router_from_bytes,
    router_to_bytes,
)
from ftp_core.routers.scoring import token_features
from ftp_core.schedule import SparsitySchedule, kept_count
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, PromptBatch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import tiny

row_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=4)
sparsities = st.integers(1, 19).map(lambda level: level * 0.05)


def state_of(lengths: list[int], seed: int = 0) -> RoutingState:
    state = RoutingState.padded_right(torch.tensor(lengths), max(lengths))
    generator = torch.Generator().manual_seed(seed)
    # Coarse, so that ties occur.
    received = torch.randint(0, 5, state.real.shape, generator=generator).float()
    state.observe(received, state.real)
    return state


@given(lengths=row_lengths, sparsity=sparsities)
def test_static_keeps_the_first_token_then_the_last_ones_backwards(lengths: list[int], sparsity: float) -> None:
    keep = StaticRouter().keep(sparsity, state_of(lengths))
    for row, length in enumerate(lengths):
        priority = [0, *range(length - 1, 0, -1)]
        expected = sorted(priority[: kept_count(sparsity, length)])
        assert keep[row].nonzero().flatten().tolist() == expected


@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_dynamic_keeps_the_highest_scores_and_of_equal_ones_the_earlier(
    lengths: list[int], sparsity: float, seed: int
) -> None:
    router, state = DynamicRouter(), state_of(lengths, seed)
    scores = torch.randint(0, 4, state.real.shape, generator=torch.Generator().manual_seed(seed)).float()
    keep = router.select(scores, sparsity, state)
    for row, length in enumerate(lengths):
        order = sorted(range(length), key=lambda j: (-float(scores[row, j]), j))
        assert keep[row].nonzero().flatten().tolist() == sorted(order[: kept_count(sparsity, length)])


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=4), sparsity=sparsities, seed=st.integers(0, 99))
def test_a_dynamic_router_can_decide_as_the_static_one(lengths: list[int], sparsity: float, seed: int) -> None:
    state = state_of(lengths, seed)
    assert torch.equal(DynamicRouter.static().keep(sparsity, state), StaticRouter().keep(sparsity, state))


@pytest.mark.parametrize(
    "router",
    [DynamicRouter(), DynamicRouter(features=("position", "attention")), LocalRouter(3), OnePassRouter(32, 3)],
    ids=["dynamic", "fewer features", "local", "one-pass"],
)
@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_a_router_that_starts_as_the_static_one_decides_like_it(
    router: ScoringRouter, lengths: list[int], sparsity: float, seed: int
) -> None:
    assert router.start_as_static()
    state = with_hidden(lengths, seed)
    assert torch.equal(router.keep(sparsity, state), StaticRouter().keep(sparsity, state))


def test_a_router_that_starts_as_the_static_one_can_learn_with_every_hidden_unit() -> None:
    torch.manual_seed(0)
    router, state = DynamicRouter(), state_of([30])
    router.start_as_static()
    optimizer = torch.optim.SGD(router.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (router.scores(0.3, state) * torch.randn(1, 30)).sum().backward()
        optimizer.step()
    hidden, out = router.mlp[0], router.mlp[2]
    used = (hidden(token_features(FEATURES, 0.3, state)) > 0).any(1)[0]
    assert int(used.sum()) > 40
    assert bool((out.weight[0, used] != 0).all()) and bool((hidden.weight.grad[used].abs().sum(1) > 0).all())


def test_routers_that_do_not_see_the_position_cannot_start_as_the_static_one() -> None:
    for router in (DynamicRouter(features=("attention",)), RecurrentRouter(), HiddenRouter(8)):
        before = copy.deepcopy(router.state_dict())
        assert not router.start_as_static()
        assert all(torch.equal(tensor, before[name]) for name, tensor in router.state_dict().items())


@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_features_are_their_definitions(lengths: list[int], sparsity: float, seed: int) -> None:
    state = state_of(lengths, seed)
    features = token_features(FEATURES, sparsity, state)
    assert bool(((features >= 0) & (features <= 1)).all())
    for row, length in enumerate(lengths):
        attention = state.attention[row, :length].tolist()
        order = sorted(range(length), key=lambda j: (-attention[j], j))
        for j in range(length):
            expected = [j / max(1, length - 1), attention[j], order.index(j) / length, sparsity]
            assert features[row, j].tolist() == pytest.approx(expected, abs=1e-6)


@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_a_row_is_routed_alike_alone_and_in_a_batch(lengths: list[int], sparsity: float, seed: int) -> None:
    router, batch = random_router(seed), state_of(lengths, seed)
    keep = router.keep(sparsity, batch)
    for row, length in enumerate(lengths):
        alone = RoutingState.padded_right(torch.tensor([length]), length)
        alone.attention = batch.attention[row : row + 1, :length]
        torch.testing.assert_close(router.scores(sparsity, alone)[0], router.scores(sparsity, batch)[row, :length])
        assert int(keep[row].sum()) == int(router.keep(sparsity, alone).sum())


@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_the_newest_token_alone_has_the_features_it_has_among_all(
    lengths: list[int], sparsity: float, seed: int
) -> None:
    for length in lengths:
        state = state_of([length], seed)
        newest = RoutingState.newest(state.real)
        newest.attention = state.attention
        whole = token_features(FEATURES, sparsity, state)[:, -1:]
        torch.testing.assert_close(token_features(FEATURES, sparsity, newest), whole)


def test_attention_of_a_token_that_skipped_a_block_is_the_last_it_received() -> None:
    state = RoutingState.padded_right(torch.tensor([3]), 3)
    state.observe(torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([[True, True, True]]))
    state.observe(torch.tensor([[0.2, 0.0, 0.4]]), torch.tensor([[True, False, True]]))
    assert state.attention.tolist() == [[0.5, 0.25, 1.0]]


def test_a_router_survives_its_file() -> None:
    torch.manual_seed(0)
    router, state = DynamicRouter(window=7), state_of([12])
    loaded = router_from_bytes(router_to_bytes(router))
    assert loaded.window == 7
    assert torch.equal(loaded.scores(0.5, state), router.scores(0.5, state))


@pytest.mark.parametrize("data", [b"", b"not a router", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_bytes_that_are_no_router_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="not a router"):
        router_from_bytes(data)


def test_the_router_is_small() -> None:
    assert sum(parameter.numel() for parameter in DynamicRouter().parameters()) == 4 * 64 + 64 + 64 + 1


def every_trainable_router() -> list[ScoringRouter]:
    torch.manual_seed(0)
    return [
        DynamicRouter(window=5),
        DynamicRouter(features=("position", "block_sparsity")),
        LocalRouter(3, window=5),
        HiddenRouter(32),
        RecurrentRouter(window=5),
        OnePassRouter(32, 3),
    ]


def with_hidden(lengths: list[int], seed: int) -> RoutingState:
    state = state_of(lengths, seed)
    state.hidden = torch.randn(*state.real.shape, 32, generator=torch.Generator().manual_seed(seed))
    return state


# The contract of every router, those of third parties included.
@pytest.mark.parametrize("make", [StaticRouter, RandomRouter, *[lambda r=r: r for r in every_trainable_router()]])
@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_every_router_keeps_exactly_the_kept_count_of_real_tokens(
    make: Callable[[], Router], lengths: list[int], sparsity: float, seed: int
) -> None:
    keep = make().keep(sparsity, with_hidden(lengths, seed))
    for row, length in enumerate(lengths):
        assert int(keep[row].sum()) == kept_count(sparsity, length)
        assert not keep[row, length:].any()


@pytest.mark.parametrize("router", every_trainable_router(), ids=lambda router: router.kind)
def test_every_trainable_router_survives_its_file(router: ScoringRouter) -> None:
    router.trained_for = "somebody"
    router.set_thresholds([0.25, 0.5, 0.75], SparsitySchedule([0.1, 0.2, 0.3]))
    loaded = router_from_bytes(router_to_bytes(router))
    assert type(loaded) is type(router) and loaded.options == router.options
    assert (loaded.trained_for, loaded.thresholds, loaded.threshold_schedule) == (
        "somebody",
        (0.25, 0.5, 0.75),
        SparsitySchedule([0.1, 0.2, 0.3]),
    )
    assert torch.equal(loaded.scores(0.5, with_hidden([12], 1)), router.scores(0.5, with_hidden([12], 1)))


def test_weights_that_are_not_finite_are_refused() -> None:
    router = DynamicRouter()
    router.mlp[2].bias.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"Weight mlp\.2\.bias of the dynamic router is not finite"):
        router_from_bytes(router_to_bytes(router))


@pytest.mark.parametrize("features", [(), ("position", "colour")])
def test_features_that_there_are_not_are_refused(features: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="some of the features position, attention, attention_rank, block_sparsity"):
        DynamicRouter(features=features)


def test_an_ablated_router_does_not_notice_what_it_does_not_see() -> None:
    torch.manual_seed(0)
    router = DynamicRouter(features=("position", "block_sparsity"))
    assert router.window == 0
    assert torch.equal(router.scores(0.3, state_of([20], 1)), router.scores(0.3, state_of([20], 2)))


def test_random_routers_draw_by_block_and_seed_alone() -> None:
    state = state_of([200])
    first = RandomRouter().keep(0.5, state)
    assert torch.equal(first, RandomRouter().keep(0.5, state_of([200], 9)))
    assert not torch.equal(first, RandomRouter(1).keep(0.5, state))
    state.block = 1
    other = RandomRouter().keep(0.5, state)
    # Two independent halves share about a quarter.
    assert 30 <= int((first & other).sum()) <= 70


def test_calibrated_thresholds_meet_the_schedule_on_their_prompts() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.3, 0.0, 0.6])
    lengths = torch.tensor([40, 30, 20, 35])
    prompts = PromptBatch(torch.randint(3, 50, (4, 40)), lengths)
    router = calibrate_thresholds(model, random_router(3, window=4), prompts, schedule)
    assert not router.keeps_budget
    prefill = model.prefill(prompts, schedule, router)
    total = int(lengths.sum())
    for sparsity, keep in zip(schedule, prefill.kept, strict=True):
        assert int(keep.sum()) == pytest.approx((1 - sparsity) * total, abs=1.5)
    counts = prefill.kept[2].sum(1)
    assert len(set((counts / lengths).tolist())) > 1
    with pytest.raises(ModelError, match="calibrated for the schedule"):
        router.check_schedule(SparsitySchedule([0.5, 0.5, 0.5]))
    pruned = FTPForCausalLM.from_dense(tiny(), schedule, router)
    mask = (torch.arange(40) < lengths[:, None]).long()
    with torch.no_grad():
        logits = pruned(prompts.ids, attention_mask=mask).logits[torch.arange(4), lengths - 1]
    torch.testing.assert_close(logits, model.next_logits(prefill), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("router", every_trainable_router(), ids=lambda router: router.kind)
def test_every_trainable_router_learns(router: ScoringRouter) -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.5, 0.3, 0.6])
    examples = [EncodedExample(tuple(range(3 + i, 23 + i)), ((3, 4),), 0, False) for i in range(12)]
    before = copy.deepcopy(router.state_dict())
    config = DistillationConfig(steps=4, batch_size=4, evaluate_every=2)
    result = distill(model, examples, [schedule], config, router=router)
    assert type(result.router) is type(router)
    assert all(torch.equal(tensor, before[name]) for name, tensor in router.state_dict().items())
    assert result.parameters == sum(parameter.numel() for parameter in router.parameters())
    assert result.router.trained_for is not None and result.tokens > 0 and result.peak_bytes > 0
