"""FLOPs are those that torch counts, in every part of every family, in prefill and decoding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Skipping
from ftp_core.cost.timing import timing_batch
from ftp_core.errors import ModelError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import (
    FEATURES_OF_HALVES,
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RecurrentRouter,
    Router,
    ScoringRouter,
    StaticRouter,
)
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.families import Family, family_of, register_family
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS, crossed, each, fresh_tiny, tiny

schedules = st.lists(st.integers(0, 19), min_size=N_BLOCKS, max_size=N_BLOCKS).map(SparsitySchedule.from_grid_indices)
MIXED = SparsitySchedule([0.3, 0.0, 0.6])
# Without kept keys: torch loses sight of its modules where a call ends at the cache.
HALVES = SparsitySchedule.of_halves([0.3, 0.0, 0.6], [0.5, 0.4, 0.7])
ABLE = [name for name in CONFIGS if family_of(tiny(name).config).halves is not None]
shares = st.lists(st.integers(0, 19).map(lambda index: 0.05 * index), min_size=N_BLOCKS, max_size=N_BLOCKS)
flags = st.lists(st.booleans(), min_size=N_BLOCKS, max_size=N_BLOCKS)
half_schedules = st.builds(SparsitySchedule.of_halves, shares, shares, flags)
_THIRD_PARTY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@cache
def countable(name: str) -> PreTrainedModel:
    """A tiny model without the kernel that runs all experts at once, which torch does not count."""
    model = fresh_tiny(name)
    model.set_experts_implementation("eager")
    return model


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    # torch counts nothing for its fused attention on the CPU; the plain one is made of products that it does count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        yield counter


def counted_prefill(
    model: SkippingModel, schedule: SparsitySchedule, router: Router, batch: int, length: int
) -> FlopCounterMode:
    with counting() as counter:
        model.next_logits(model.prefill(timing_batch([[1, 2, 3]], batch, length), schedule, router))
    return counter


MLPS = ("mlp", "block_sparse_moe", "feed_forward", "experts", "router", "per_layer_input_gate", "per_layer_projection")


def counted_within(counter: FlopCounterMode, *children: str) -> tuple[int, int]:
    """What torch counted in modules with one of these names: products with weights, and those of two activations."""
    weights = activations = 0
    for module, counts in counter.get_flop_counts().items():
        *parents, name = module.split(".")
        # What a parent among them has counted holds what its children did.
        if name in children and not set(parents) & set(children):
            activations += counts.get(torch.ops.aten.bmm, 0)
            weights += sum(counts.values()) - counts.get(torch.ops.aten.bmm, 0)
    return weights, activations


@pytest.mark.parametrize("name", each(CONFIGS))
@settings(max_examples=3)
@given(schedule=schedules, batch=st.integers(1, 3), length=st.integers(1, 70), window=st.sampled_from([0, 0, 4, 32]))
def test_a_prefill_costs_what_torch_counts(
    name: str, schedule: SparsitySchedule, batch: int, length: int, window: int
) -> None:
    model = SkippingModel(countable(name))
    router = random_router(1, window) if window else StaticRouter()
    counter = counted_prefill(model, schedule, router, batch, length)
    found = FlopsCounter(model).count(schedule, batch, length, router=router)
    assert found.total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", each(ABLE))
@settings(max_examples=3)
@given(
    schedule=half_schedules, batch=st.integers(1, 3), length=st.integers(1, 70), window=st.sampled_from([0, 0, 4, 32])
)
def test_halves_that_skip_apart_cost_what_torch_counts(
    name: str, schedule: SparsitySchedule, batch: int, length: int, window: int
) -> None:
    model = SkippingModel(countable(name))
    # It decides as the static router does, so that the tokens of one half are among those of the other.
    router = DynamicRouter.static(window).eval() if window else StaticRouter()
    counter = counted_prefill(model, schedule, router, batch, length)
    found = FlopsCounter(model).count(schedule, batch, length, router=router)
    assert found.total == pytest.approx(counter.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize(("name", "kind"), crossed(CONFIGS, ["blocks", "halves"]))
def test_a_router_that_reads_hidden_states_costs_what_torch_counts(name: str, kind: str) -> None:
    has_halves = kind == "halves" and name in ABLE
    schedule = HALVES if has_halves else MIXED
    model = SkippingModel(countable(name))
    router = HiddenRouter(model.model.config.hidden_size, has_halves).eval()
    counter = counted_prefill(model, schedule, router, 2, 50)
    found = FlopsCounter(model).count(schedule, 2, 50, router=router)
    assert found.router == counted_within(counter, "Sequential")[0] > 0
    assert found.total == pytest.approx(counter.get_total_flops(), rel=0.01)


SCORING: Mapping[str, Callable[[int], ScoringRouter]] = {
    "dynamic": lambda width: DynamicRouter(4),
    "dynamic of halves": lambda width: DynamicRouter(4, FEATURES_OF_HALVES),
    "dynamic by position": lambda width: DynamicRouter(features=("position",)),
    "local": lambda width: LocalRouter(N_BLOCKS, 4, halves=True),
    "hidden": lambda width: HiddenRouter(width),
    "hidden of halves": lambda width: HiddenRouter(width, halves=True),
    "one-pass": lambda width: OnePassRouter(width, N_BLOCKS),
    "one-pass of halves": lambda width: OnePassRouter(width, N_BLOCKS, halves=True),
    "recurrent of halves": lambda width: RecurrentRouter(4, halves=True),
}


@pytest.mark.parametrize("kind", SCORING)
def test_every_router_costs_what_torch_counts_beyond_the_static_one(kind: str) -> None:
    model = SkippingModel(tiny())
    router = SCORING[kind](model.model.config.hidden_size).eval()
    routed, static = (counted_prefill(model, HALVES, one, 2, 50).get_total_flops() for one in (router, StaticRouter()))
    assert FlopsCounter(model).count(HALVES, 2, 50, router=router).router == routed - static > 0


@pytest.mark.parametrize(
    ("name", "variant"), crossed(CONFIGS, [(kind, window) for window in (0, 4, 64) for kind in ("blocks", "halves")])
)
def test_every_part_costs_what_torch_counts_in_its_modules(name: str, variant: tuple[str, int]) -> None:
    kind, window = variant
    schedule = HALVES if kind == "halves" and name in ABLE else MIXED
    model = SkippingModel(countable(name))
    router = random_router(1, window) if window else StaticRouter()
    counter = counted_prefill(model, schedule, router, 2, 50)
    found = FlopsCounter(model).count(schedule, 2, 50, router=router)
    weights, products = counted_within(counter, "self_attn", "attn", "attention")
    scored, _ = counted_within(counter, "Sequential")
    assert found.mlp == sum(counted_within(counter, *MLPS))
    assert found.projections == weights
    assert found.head == counted_within(counter, "Linear", "per_layer_model_projection")[0]
    # A router listens within the attention modules, and scores outside.
    assert found.attention + found.router == products + scored
    assert (found.router > scored) if window else (found.router == scored == 0)


@pytest.mark.parametrize(("name", "kind"), crossed(CONFIGS, ["blocks", "halves"]))
def test_decoding_costs_what_torch_counts_also_where_windows_let_go_of_keys(name: str, kind: str) -> None:
    draw, model = random.Random(name), SkippingModel(countable(name))
    # As many as windows take to let go of keys.
    new_tokens = 24 if any(model.family.windows(model.model)) else 6
    schedule = SparsitySchedule.from_grid_indices(draw.choices(range(1, 20), k=N_BLOCKS))
    if kind == "halves" and name in ABLE:
        schedule = SparsitySchedule.of_halves(schedule, schedule[::-1], draw.choices([False, True], k=N_BLOCKS))
    batch, length = draw.randint(1, 2), draw.randint(1, 60)
    step, ids = Skipping("pruned", schedule).step_of(countable(name)), torch.randint(3, 50, (batch, length))
    with counting() as counter:
        _, cache = step(ids, None)
        for _ in range(new_tokens):
            step(ids[:, :1], cache)
    found = FlopsCounter(model).count(schedule, batch, length, new_tokens)
    assert found.total == pytest.approx(counter.get_total_flops(), rel=0.01)
    # torch follows modules by their hooks, which a call that ends at its keys leaves open.
    if not any(schedule.keeps_kv):
        assert found.attention == counted_within(counter, "self_attn", "attn", "attention")[1]


def test_generate_decodes_one_token_less_than_it_writes() -> None:
    pruned, model = FTPForCausalLM.from_dense(tiny(), MIXED), SkippingModel(tiny())
    with counting() as counter:
        pruned.generate(torch.randint(3, 50, (2, 30)), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert FlopsCounter(model).count(MIXED, 2, 30, 5).total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_skipping_costs_less_and_the_router_is_charged_for() -> None:
    model = SkippingModel(tiny())
    counter, dense = FlopsCounter(model), SparsitySchedule.uniform(0.0, N_BLOCKS)
    assert counter.count(MIXED, 2, 50).total < counter.count(dense, 2, 50).total
    assert counter.count(dense, 2, 50, router=DynamicRouter(32)).router == 0
    few, many = (counter.count(MIXED, 2, 50, router=DynamicRouter(window)).router for window in (4, 32))
    assert many > few > 0


@pytest.mark.parametrize("name", each(CONFIGS))
@settings(max_examples=10)
@given(schedule=schedules | half_schedules, length=st.integers(1, 70), new_tokens=st.integers(0, 20))
def test_blocks_add_up_to_the_model(name: str, schedule: SparsitySchedule, length: int, new_tokens: int) -> None:
    counter = FlopsCounter(SkippingModel(countable(name)))
    whole = counter.count(schedule, 2, length, new_tokens)
    parts = [counter.of_block(index, entry, 2, length, new_tokens) for index, entry in enumerate(schedule.blocks)]
    assert sum(part.total for part in parts) + whole.head == pytest.approx(whole.total, rel=1e-12)


shares = st.integers(0, 19).map(lambda index: round(0.05 * index, 2))


@given(attention=shares, mlp=shares, length=st.integers(1, 70), index=st.integers(0, N_BLOCKS - 1))
def test_halves_of_a_block_take_what_they_take_where_both_skip_alike(
    attention: float, mlp: float, length: int, index: int
) -> None:
    counter = FlopsCounter(SkippingModel(countable("gemma2")))
    router = HiddenRouter(tiny("gemma2").config.hidden_size, halves=True)
    found, of_attention, of_mlp = (
        counter.of_block(index, BlockSparsity(*skipped), 2, length, 3, router=router)
        for skipped in ((attention, mlp), (attention, attention), (mlp, mlp))
    )
    assert (found.projections, found.attention) == (of_attention.projections, of_attention.attention)
    assert found.mlp == of_mlp.mlp
    if attention != mlp:
        # Each half that skips has a decision of its own.
        assert found.router == of_attention.router + of_mlp.router


def third_party(model_type: str, **options: object) -> SkippingModel:
    """A tiny random model of a type that this package does not know."""
    register_family(model_type, Family())
    config = AutoConfig.for_model(model_type, **_THIRD_PARTY, **options)
    return SkippingModel(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("model_type", ["starcoder2", "seed_oss"])
def test_a_family_that_was_registered_by_others_is_counted_alike(model_type: str) -> None:
    model = third_party(model_type)
    counter = counted_prefill(model, MIXED, StaticRouter(), 2, 50)
    found = FlopsCounter(model).count(MIXED, 2, 50)
    assert found.total == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found.mlp == sum(counted_within(counter, "mlp"))


def test_weights_of_an_unknown_shape_are_refused() -> None:
    model = third_party("starcoder2")
    model.blocks[1].mlp.kernel = nn.Parameter(torch.zeros(4, 3, 2))
    with pytest.raises(ModelError, match=r"mlp.kernel has shape \(4, 3, 2\)"):
        FlopsCounter(model)


def test_schedules_of_another_length_are_refused() -> None:
    counter = FlopsCounter(SkippingModel(tiny()))
    with pytest.raises(ScheduleError, match="has 3 blocks"):
        counter.count(SparsitySchedule([0.5]), 1, 10)
