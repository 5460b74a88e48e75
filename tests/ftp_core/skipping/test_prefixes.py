"""Schedules that begin alike share work, and nobody can tell from the figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftp_core.errors import ScheduleError
from ftp_core.quality.quality import Quality, QualitySet
from ftp_core.routers import HiddenRouter, LocalRouter, OnePassRouter, RecurrentRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import prefixes
from ftp_core.skipping.prefixes import BlockState, PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS, each, fresh_tiny

# Prompts of several lengths, answers of one token and of more, items with and without choices; three batches.
ITEMS = [
    EncodedExample(tuple(range(1 + i, 8 + 3 * i)), ((9, 8, 7, 6)[: 1 + i % 4], (5, 4 + i)), 0, i % 3 == 0)
    for i in range(5)
]
with torch.random.fork_rng():
    torch.manual_seed(0)
    ROUTERS: dict[str, Router] = {
        "static": StaticRouter(),
        "dynamic": random_router(1, window=3),
        "local": LocalRouter(N_BLOCKS, window=3),
        "recurrent": RecurrentRouter(window=3),
        "hidden": HiddenRouter(32),
        "one-pass": OnePassRouter(32, N_BLOCKS),
    }
ENDLESS = 2**40
# Few levels, so that beginnings are shared; 0 among them, before which no attention is heard.
levels = st.lists(st.sampled_from([0, 6, 14]), min_size=N_BLOCKS, max_size=N_BLOCKS)
schedules = levels.map(SparsitySchedule.from_grid_indices)


@cache
def items_of(family: str, kernel: str | None = None, dtype: torch.dtype = torch.float32) -> QualitySet:
    model = fresh_tiny(family).to(dtype)
    if kernel:
        model.set_attn_implementation(kernel)
    return QualitySet(SkippingModel(model), ITEMS, batch_size=2)


@cache
def plain(items: QualitySet, schedule: SparsitySchedule, router: str, choices: bool) -> Quality:
    return items.evaluate(schedule, ROUTERS[router], choices, intervals=True)


def node_bytes(items: QualitySet, choices: bool = False) -> int:
    return items._state_bytes(choices)


def held_bytes(store: PrefixStore) -> int:
    tensors = [
        tensor
        for node in store._nodes.values()
        for states in node
        for state in states
        if state is not None
        for tensor in (state.hidden, state.attention, state.memory)
        if tensor is not None
    ]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def same_with_reuse(
    items: QualitySet, router: str, sequence: Sequence[SparsitySchedule], n_nodes: float, choices: bool
) -> PrefixStore:
    store = PrefixStore(int(n_nodes * node_bytes(items, choices)))
    for schedule in sequence:
        found = items.evaluate(schedule, ROUTERS[router], choices, intervals=True, prefixes=store)
        assert found == plain(items, schedule, router, choices)
        assert store.n_bytes == held_bytes(store) <= store.max_bytes
    assert store.blocks_run + store.blocks_reused == N_BLOCKS * len(ITEMS) * len(sequence)
    return store


@pytest.mark.parametrize("family", each(CONFIGS))
@settings(max_examples=4)
@given(
    sequence=st.lists(schedules, min_size=2, max_size=4), router=st.sampled_from(list(ROUTERS)), choices=st.booleans()
)
def test_figures_are_bit_identical_with_reuse(
    family: str, sequence: list[SparsitySchedule], router: str, choices: bool
) -> None:
    store = same_with_reuse(items_of(family), router, sequence, 1000, choices)
    repeated = len(sequence) - len(set(sequence))
    assert store.blocks_reused >= repeated * (N_BLOCKS - 1) * len(ITEMS)


@pytest.mark.parametrize("router", list(ROUTERS))
@settings(max_examples=6)
@given(
    sequence=st.lists(schedules, min_size=2, max_size=6),
    choices=st.booleans(),
    n_nodes=st.sampled_from([0, 0.5, 1, 1.3, 2, 3, 5]),
)
def test_figures_are_bit_identical_while_states_are_evicted(
    router: str, sequence: list[SparsitySchedule], choices: bool, n_nodes: float
) -> None:
    same_with_reuse(items_of("llama"), router, sequence, n_nodes, choices)


@pytest.mark.parametrize(("kernel", "dtype"), [("eager", torch.float32), ("sdpa", torch.bfloat16)])
@pytest.mark.parametrize("router", ["static", "dynamic"])
@settings(max_examples=4)
@given(sequence=st.lists(schedules, min_size=2, max_size=6))
def test_figures_are_bit_identical_on_another_kernel_and_in_half_precision(
    router: str, kernel: str, dtype: torch.dtype, sequence: list[SparsitySchedule]
) -> None:
    same_with_reuse(items_of("gpt2", kernel, dtype), router, sequence, 4, choices=True)


@settings(max_examples=10)
@given(sequence=st.lists(schedules, min_size=1, max_size=8))
def test_with_memory_enough_the_longest_beginning_ever_seen_is_known(sequence: list[SparsitySchedule]) -> None:
    items, store = items_of("llama"), PrefixStore(ENDLESS)
    scope, reused = items.scope(ROUTERS["static"]), 0
    for i, schedule in enumerate(sequence):
        expected = 0
        for n in range(1, N_BLOCKS):
            if any(earlier[:n] == schedule[:n] for earlier in sequence[:i]):
                expected = n
        assert store.longest(scope, schedule) == expected
        items.evaluate(schedule, ROUTERS["static"], prefixes=store)
        reused += expected * len(ITEMS)
        assert store.blocks_reused == reused


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gemma3_text", "gpt2"])
@settings(max_examples=6)
@given(
    sequence=st.lists(st.tuples(schedules, st.sampled_from(list(ROUTERS))), min_size=2, max_size=8),
    n_nodes=st.sampled_from([1, 2, 1000]),
)
def test_routers_share_a_store_and_the_blocks_before_any_of_them_has_a_say(
    family: str, sequence: list[tuple[SparsitySchedule, str]], n_nodes: int
) -> None:
    items = items_of(family)
    store = PrefixStore(n_nodes * node_bytes(items))
    for i, (schedule, router) in enumerate(sequence):
        before = store.blocks_reused
        found = items.evaluate(schedule, ROUTERS[router], intervals=True, prefixes=store)
        assert found == plain(items, schedule, router, False)
        # Whether the last dense block was listened to may differ, but of none before it.
        common = [min(leading_zeros(schedule), leading_zeros(earlier)) for earlier, _ in sequence[:i]]
        if n_nodes == 1000 and common:
            assert store.blocks_reused - before >= (max(common) - 1) * len(ITEMS)


def leading_zeros(schedule: SparsitySchedule) -> int:
    return next((index for index, sparsity in enumerate(schedule) if sparsity > 0), len(schedule))


@pytest.mark.parametrize("router", ["dynamic", "local", "recurrent", "hidden", "one-pass"])
def test_dense_beginnings_are_known_whoever_decides_behind_them(router: str) -> None:
    items, store, schedule = items_of("llama"), PrefixStore(ENDLESS), SparsitySchedule([0.0, 0.0, 0.5])
    other = ROUTERS["dynamic"] if ROUTERS[router].window else ROUTERS["static"]
    items.evaluate(schedule, other, prefixes=store)
    assert store.longest(items.scope(ROUTERS[router]), schedule) == 2
    # Nothing of what another router decided is.
    assert store.longest(items.scope(random_router(7, window=3)), SparsitySchedule([0.5, 0.0, 0.0])) == 0


@pytest.fixture
def block_calls() -> tuple[QualitySet, list[int]]:
    """A set, and the indices of the blocks that have really run on it."""
    model, calls = fresh_tiny(), []
    items = QualitySet(SkippingModel(model), ITEMS, batch_size=2)
    for index, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    return items, calls


def test_known_blocks_do_not_run(block_calls: tuple[QualitySet, list[int]]) -> None:
    items, calls = block_calls
    store = PrefixStore(ENDLESS)
    items.evaluate(SparsitySchedule([0.3, 0.5, 0.7]), ROUTERS["static"], choices=True, prefixes=store)
    whole = calls.count(0)
    assert whole == calls.count(1) == calls.count(2) > 0
    calls.clear()
    items.evaluate(SparsitySchedule([0.3, 0.5, 0.2]), ROUTERS["static"], choices=True, prefixes=store)
    assert calls == [2] * whole
    calls.clear()
    items.evaluate(SparsitySchedule([0.3, 0.1, 0.7]), ROUTERS["static"], choices=True, prefixes=store)
    assert (calls.count(0), calls.count(1), calls.count(2)) == (0, whole, whole)


def test_what_an_evaluation_leaves_and_has_in_the_making_stays_within_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: WeakSet[BlockState] = WeakSet()
    peaks: list[int] = []

    class Watched(BlockState):
        def __init__(self, *state: torch.Tensor) -> None:
            super().__init__(*state)
            alive.add(self)
            peaks.append(sum(state.n_bytes for state in alive))

    monkeypatch.setattr(prefixes, "BlockState", Watched)
    items = items_of("llama")
    for n_nodes in (1, 2, 3.5, 5):
        store = PrefixStore(int(n_nodes * node_bytes(items)))
        peaks.clear()
        for a in range(3):
            for b in range(3):
                items.evaluate(SparsitySchedule([0.1 * a, 0.2, 0.3 * b]), ROUTERS["static"], prefixes=store)
        assert (int(n_nodes) - 1) * node_bytes(items) < max(peaks) <= store.max_bytes
        del store
        assert not alive


def test_the_memory_of_a_state_is_known_beforehand() -> None:
    items = items_of("llama")
    for choices in (False, True):
        store = PrefixStore(ENDLESS)
        items.evaluate(SparsitySchedule([0.3, 0.5, 0.7]), ROUTERS["static"], choices, prefixes=store)
        assert len(store) == N_BLOCKS - 1
        assert held_bytes(store) == len(store) * node_bytes(items, choices)


def known(store: PrefixStore, items: QualitySet, *first: float) -> bool:
    probe = SparsitySchedule([*first, *[0.95] * (N_BLOCKS - len(first))])
    return store.longest(items.scope(ROUTERS["static"]), probe) >= len(first)


def test_what_was_not_used_for_longest_goes_first_and_shared_beginnings_stay() -> None:
    items = items_of("llama")
    store = PrefixStore(4 * node_bytes(items))
    for schedule in ([0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.1, 0.3, 0.3]):
        items.evaluate(SparsitySchedule(schedule), ROUTERS["static"], prefixes=store)
    assert [known(store, items, *first) for first in ([0.1], [0.1, 0.3], [0.2])] == [True] * 3
    assert not known(store, items, 0.1, 0.1)
    items.evaluate(SparsitySchedule([0.1, 0.4, 0.4]), ROUTERS["static"], prefixes=store)
    assert [known(store, items, *first) for first in ([0.1], [0.1, 0.3], [0.1, 0.4], [0.2])] == [True] * 4
    assert not known(store, items, 0.2, 0.2)


def test_states_of_other_routers_items_and_continuations_never_mix() -> None:
    items, schedule = items_of("llama"), SparsitySchedule([0.3, 0.5, 0.7])
    others = QualitySet(SkippingModel(fresh_tiny()), ITEMS[:3], batch_size=2)
    store = PrefixStore(ENDLESS)
    for of, router, choices in [
        (items, "static", False),
        (items, "dynamic", False),
        (items, "static", True),
        (others, "static", False),
    ]:
        assert store.longest(of.scope(ROUTERS[router], choices), schedule) == 0
        expected = of.evaluate(schedule, ROUTERS[router], choices)
        for _ in range(2):
            assert of.evaluate(schedule, ROUTERS[router], choices, prefixes=store) == expected
        assert store.longest(of.scope(ROUTERS[router], choices), schedule) == N_BLOCKS - 1


def test_an_evaluation_that_breaks_off_leaves_nothing() -> None:
    model = fresh_tiny()
    items, store = QualitySet(SkippingModel(model), ITEMS, batch_size=2), PrefixStore(ENDLESS)
    schedule, calls = SparsitySchedule([0.3, 0.5, 0.7]), []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("broken")

    hook = model.model.layers[2].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        items.evaluate(schedule, ROUTERS["static"], prefixes=store)
    hook.remove()
    assert (len(store), store.n_bytes, store.blocks_run) == (0, 0, 0)
    assert items.evaluate(schedule, ROUTERS["static"], prefixes=store) == items.evaluate(schedule, ROUTERS["static"])


def test_a_store_that_was_cleared_holds_nothing_and_still_counts() -> None:
    items, store = items_of("llama"), PrefixStore(ENDLESS)
    items.evaluate(SparsitySchedule([0.3, 0.5, 0.7]), ROUTERS["static"], prefixes=store)
    store.clear()
    assert (len(store), store.n_bytes) == (0, 0)
    assert store.blocks_run == N_BLOCKS * len(ITEMS)
    assert not known(store, items, 0.3)


def test_what_a_router_decided_is_forgotten_and_nothing_else() -> None:
    items, store = items_of("llama"), PrefixStore(ENDLESS)
    decided, dense = SparsitySchedule([0.3, 0.5, 0.7]), SparsitySchedule([0.0, 0.0, 0.7])
    for router in ("dynamic", "local"):
        for schedule in (decided, dense):
            items.evaluate(schedule, ROUTERS[router], prefixes=store)
    store.forget(ROUTERS["dynamic"])
    known = {
        router: [store.longest(items.scope(ROUTERS[router]), schedule) for schedule in (decided, dense)]
        for router in ("dynamic", "local")
    }
    assert known == {"dynamic": [0, 2], "local": [2, 2]}
    assert store.n_bytes == held_bytes(store) > 0


def test_a_schedule_of_another_length_is_an_error() -> None:
    with pytest.raises(ScheduleError, match="2 sparsities"):
        items_of("llama").evaluate(SparsitySchedule([0.3, 0.5]), StaticRouter(), prefixes=PrefixStore(ENDLESS))
