"""Memory is predicted as the cache reports it, and as tensors hold it while a prefill runs."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ftp_core.cost.measure import Skipping
from ftp_core.cost.memory import AllocationTracker, kv_bytes, peak_activation_bytes
from ftp_core.cost.timing import timing_batch
from ftp_core.errors import DataError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONFIGS, CONTEXT, N_BLOCKS, crossed, each, fresh_tiny, tiny

schedules = st.lists(st.integers(0, 19), min_size=N_BLOCKS, max_size=N_BLOCKS).map(SparsitySchedule.from_grid_indices)
MIXED = SparsitySchedule([0.3, 0.0, 0.6])
ABLE = [name for name in CONFIGS if family_of(tiny(name).config).halves is not None]
shares = st.lists(st.sampled_from([0.0, 0.25, 0.55, 0.95]), min_size=N_BLOCKS, max_size=N_BLOCKS)
flags = st.lists(st.booleans(), min_size=N_BLOCKS, max_size=N_BLOCKS)
# Those that skip nothing leave the dense model's own cache.
half_schedules = st.builds(SparsitySchedule.of_halves, shares, shares, flags).filter(any)
FLOAT = 4


@pytest.fixture(scope="module")
def medium() -> SkippingModel:
    """Four blocks, 256 wide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    return SkippingModel(LlamaForCausalLM(config))


@pytest.mark.parametrize("name", each(CONFIGS))
@settings(max_examples=3)
@given(
    schedule=schedules.filter(any), batch=st.integers(1, 3), length=st.integers(1, 90), new_tokens=st.integers(0, 30)
)
def test_kv_bytes_are_those_that_the_cache_reports(
    name: str, schedule: SparsitySchedule, batch: int, length: int, new_tokens: int
) -> None:
    pruned, model = FTPForCausalLM.from_dense(tiny(name), schedule), SkippingModel(tiny(name))
    ids = torch.randint(3, 50, (batch, length))
    with torch.no_grad():
        cache = pruned(ids, use_cache=True).past_key_values
        assert kv_bytes(model, schedule, batch, length) == cache.kv_bytes()
        for _ in range(new_tokens):
            pruned(ids[:, :1], past_key_values=cache)
    assert kv_bytes(model, schedule, batch, length, new_tokens) == cache.kv_bytes()


@pytest.mark.parametrize("name", each(ABLE))
@settings(max_examples=3)
@given(schedule=half_schedules, batch=st.integers(1, 3), length=st.integers(1, 90), new_tokens=st.integers(0, 30))
def test_kv_bytes_are_those_of_all_tokens_where_keys_are_kept(
    name: str, schedule: SparsitySchedule, batch: int, length: int, new_tokens: int
) -> None:
    step, ids = Skipping("halves", schedule).step_of(tiny(name)), torch.randint(3, 50, (batch, length))
    with torch.no_grad():
        _, cache = step(ids, None)
        for _ in range(new_tokens):
            step(ids[:, :1], cache)
    assert kv_bytes(SkippingModel(tiny(name)), schedule, batch, length, new_tokens) == cache.kv_bytes()


def test_kv_bytes_of_half_precision_are_half() -> None:
    model = SkippingModel(fresh_tiny().bfloat16())
    prefill = model.prefill(timing_batch([[1, 2]], 2, 40), MIXED, StaticRouter())
    assert kv_bytes(model, MIXED, 2, 40) == prefill.cache.kv_bytes()
    assert kv_bytes(model, MIXED, 2, 40) * 2 == kv_bytes(SkippingModel(tiny()), MIXED, 2, 40)


def measured_peak(model: SkippingModel, schedule: SparsitySchedule, router: Router, batch: int, length: int) -> int:
    prompts = timing_batch([[1, 2, 3]], batch, length)
    with AllocationTracker() as held:
        model.next_logits(model.prefill(prompts, schedule, router))
    return held.peak_bytes


@pytest.mark.parametrize(
    ("name", "variant"), crossed(CONFIGS, [(kind, window) for window in (0, 8) for kind in ("blocks", "halves")])
)
def test_the_predicted_peak_of_a_prefill_is_measured(name: str, variant: tuple[str, int]) -> None:
    kind, window = variant
    # One whose experts run together, as they do unless another test has had it pruned.
    model, draw = SkippingModel(fresh_tiny(name)), random.Random(name)
    schedule = SparsitySchedule.from_grid_indices(draw.choices(range(20), k=N_BLOCKS))
    if kind == "halves" and name in ABLE:
        schedule = SparsitySchedule.of_halves(schedule, schedule[::-1], draw.choices([False, True], k=N_BLOCKS))
    batch, length = draw.randint(1, 3), draw.randint(10, 100)
    router = random_router(1, window) if window else StaticRouter()
    measured = measured_peak(model, schedule, router, batch, length)
    assert peak_activation_bytes(model, schedule, batch, length, window) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "moe" in name or name in ("mixtral", "gemma4_text")])
def test_experts_that_run_one_by_one_take_what_they_take_if_all_tokens_choose_the_same(name: str) -> None:
    dense_model = fresh_tiny(name)
    dense_model.set_experts_implementation("eager")
    model = SkippingModel(dense_model)
    measured = measured_peak(model, MIXED, StaticRouter(), 2, 80)
    assert 0.99 * measured < peak_activation_bytes(model, MIXED, 2, 80) < 2 * measured


@pytest.mark.parametrize("window", [0, 32])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7])
def test_the_predicted_peak_holds_for_larger_models(medium: SkippingModel, sparsity: float, window: int) -> None:
    schedule = SparsitySchedule.uniform(sparsity, medium.n_blocks)
    router = random_router(1, window) if window else StaticRouter()
    measured = measured_peak(medium, schedule, router, 4, 256)
    assert peak_activation_bytes(medium, schedule, 4, 256, window) == pytest.approx(measured, rel=0.01)


def test_a_prefill_that_skips_holds_less(medium: SkippingModel) -> None:
    peaks = [peak_activation_bytes(medium, SparsitySchedule.uniform(s, 4), 4, 256) for s in (0.0, 0.3, 0.6)]
    assert peaks == sorted(peaks, reverse=True)
    assert kv_bytes(medium, SparsitySchedule.uniform(0.0, 4), 4, 256) < peaks[0]


def test_predicting_computes_nothing_and_draws_nothing_at_random() -> None:
    model = SkippingModel(tiny())
    before = torch.random.get_rng_state()
    n_bytes = peak_activation_bytes(model, MIXED, 2, 50, window=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert peak_activation_bytes(model, MIXED, 2, 50, window=4) == n_bytes
    # A model that was predicted for still runs as before.
    assert torch.isfinite(model.next_logits(model.prefill(timing_batch([[1]], 1, 9), MIXED, StaticRouter()))).all()


def test_what_cannot_run_is_refused() -> None:
    model = SkippingModel(tiny())
    with pytest.raises(ScheduleError, match="has 3 blocks"):
        peak_activation_bytes(model, SparsitySchedule([0.5]), 1, 10)
    with pytest.raises(ScheduleError, match="has 3 blocks"):
        kv_bytes(model, SparsitySchedule([0.5]), 1, 10)
    with pytest.raises(DataError, match="tokens long"):
        peak_activation_bytes(model, MIXED, 1, CONTEXT + 1)


def test_the_tracker_counts_what_is_held_at_once() -> None:
    with AllocationTracker() as held:
        first = torch.zeros(100)
        del first
        second = torch.zeros(300)
        third = second + 1
        del second, third
        torch.zeros(10)
    assert held.peak_bytes == 600 * FLOAT


def test_the_tracker_counts_a_storage_once_whoever_looks_at_it() -> None:
    with AllocationTracker() as held:
        whole = torch.zeros(8, 50)
        parts: list[Tensor] = [whole[:2], whole.view(-1), whole.t().detach()]
        whole.add_(1)
        del whole
        # The parts keep all of it.
        torch.zeros(100)
    assert held.peak_bytes == 500 * FLOAT
    assert len(parts) == 3


def test_the_tracker_does_not_count_what_was_there_before() -> None:
    weights = torch.ones(1000)
    with AllocationTracker() as held:
        view = weights.view(10, 100)
        view.mul_(2)
        outside = torch.tensor([1.0, 2.0])
        del weights
    assert held.peak_bytes == outside.nbytes


@pytest.mark.parametrize("inference", [False, True])
def test_the_tracker_sees_what_lives_within_an_operator_made_of_others(inference: bool) -> None:
    left, right = torch.ones(2, 1, 30, 40), torch.ones(1, 5, 40, 20)
    with torch.inference_mode(inference), AllocationTracker() as held:
        product = left @ right
    # Both sides are spread out to [10, ...] before they are multiplied.
    assert held.peak_bytes == product.nbytes + 10 * (30 * 40 + 40 * 20) * FLOAT


def test_the_tracker_sees_what_the_backward_pass_needs() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with AllocationTracker() as inferred, torch.no_grad():
        ((torch.ones(50, 100) @ weight).exp() @ weight).sum()
    with AllocationTracker() as trained:
        ((torch.ones(50, 100) @ weight).exp() @ weight).sum().backward()
    assert trained.peak_bytes >= inferred.peak_bytes + weight.nbytes


def test_the_tracker_forgets_what_dies_after_it_has_ended() -> None:
    with AllocationTracker() as held:
        late = torch.zeros(50)
    del late
    gc.collect()
    with held:
        torch.zeros(20)
    assert held.peak_bytes == 50 * FLOAT
