"""Routers decide by the formulas of the method, and only from what the prompt shows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import ModelError
from ftp_core.routing import DynamicRouter, RoutingState, StaticRouter
from ftp_core.schedule import kept_count
from tests.ftp_core.routers import random_router

row_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=4)
sparsities = st.integers(1, 19).map(lambda level: level * 0.05)


def state_of(lengths: list[int], seed: int = 0) -> RoutingState:
    state = RoutingState.start(torch.tensor(lengths), max(lengths))
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


@given(lengths=row_lengths, sparsity=sparsities, seed=st.integers(0, 99))
def test_features_are_their_definitions(lengths: list[int], sparsity: float, seed: int) -> None:
    state = state_of(lengths, seed)
    features = DynamicRouter().features(sparsity, state)
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
        alone = RoutingState(
            batch.real[row : row + 1, :length], batch.lengths[row : row + 1], batch.attention[row : row + 1, :length]
        )
        torch.testing.assert_close(router.scores(sparsity, alone)[0], router.scores(sparsity, batch)[row, :length])
        assert int(keep[row].sum()) == int(router.keep(sparsity, alone).sum())


def test_attention_of_a_token_that_skipped_a_block_is_the_last_it_received() -> None:
    state = RoutingState.start(torch.tensor([3]), 3)
    state.observe(torch.tensor([[0.5, 0.25, 1.0]]), torch.tensor([[True, True, True]]))
    state.observe(torch.tensor([[0.2, 0.0, 0.4]]), torch.tensor([[True, False, True]]))
    assert state.attention.tolist() == [[0.5, 0.25, 1.0]]


def test_a_router_survives_its_file() -> None:
    torch.manual_seed(0)
    router, state = DynamicRouter(window=7), state_of([12])
    loaded = DynamicRouter.from_bytes(router.to_bytes())
    assert loaded.window == 7
    assert torch.equal(loaded.scores(0.5, state), router.scores(0.5, state))


@pytest.mark.parametrize("data", [b"", b"not a router", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_bytes_that_are_no_router_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="not a dynamic router"):
        DynamicRouter.from_bytes(data)


def test_the_router_is_small() -> None:
    assert sum(parameter.numel() for parameter in DynamicRouter().parameters()) == 4 * 64 + 64 + 64 + 1
