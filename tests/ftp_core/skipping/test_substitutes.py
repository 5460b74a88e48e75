"""Maps stand in for halves that tokens skip, in every family, wherever a model goes; whole blocks skip as before."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.memory import AllocationTracker, peak_activation_bytes
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import DynamicRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import Substitutes, give_substitutes, substitutes_of
from ftp_core.text.encoding import PromptBatch
from tests.ftp_core.cost.test_flops import counting
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.skipping.test_halves import ABLE, check, rows, same_lengths, schedules
from tests.ftp_core.tiny_models import N_BLOCKS, crossed, fresh_tiny, tiny, with_maps

SCHEDULE = SparsitySchedule.of_halves([0.5, 0.3, 0.0], [0.3, 0.6, 0.5], [True, False, False])
IDS = torch.arange(3, 43).view(2, 20)


@pytest.mark.parametrize(("name", "kind"), crossed(ABLE, ["static", "dynamic", "random"]))
@settings(max_examples=6)
@given(texts=rows | same_lengths, schedule=schedules)
def test_maps_stand_in_as_in_a_masked_full_computation(
    name: str, kind: str, texts: list[tuple[list[int], list[int]]], schedule: SparsitySchedule
) -> None:
    check(with_maps(name), kind, texts, schedule)


@torch.inference_mode()
def test_whole_blocks_and_dense_models_are_what_they_were() -> None:
    prompts = PromptBatch(IDS, torch.tensor([20, 20]))
    for schedule in (SparsitySchedule.uniform(0.5, N_BLOCKS), SparsitySchedule.uniform(0.0, N_BLOCKS)):
        found = [SkippingModel(model).prefill(prompts, schedule, StaticRouter()) for model in (tiny(), with_maps())]
        assert torch.equal(found[0].last_hidden, found[1].last_hidden)
    found = [SkippingModel(model).prefill(prompts, SCHEDULE, StaticRouter()) for model in (tiny(), with_maps())]
    assert not torch.allclose(found[0].last_hidden, found[1].last_hidden, atol=1e-2)


def test_maps_are_given_and_taken_back() -> None:
    model = fresh_tiny()
    blocks = SkippingModel(model).blocks
    give_substitutes(model, maps := Substitutes(N_BLOCKS, 32, 2), blocks)
    assert substitutes_of(model) is maps
    # Its weights are those that were published.
    assert not [name for name in model.state_dict() if "down" in name and "proj" not in name]
    give_substitutes(model, None, blocks)
    assert substitutes_of(model) is None


def test_maps_are_what_they_were_once_read_again() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        before = copy.deepcopy(substitutes_of(with_maps())).to(dtype)
        again = Substitutes.from_bytes(before.block_bytes())
        assert (again.rank, again.fingerprint()) == (before.rank, before.fingerprint())


def test_maps_that_differ_have_other_fingerprints() -> None:
    one, other = Substitutes(2, 8, 2), Substitutes(2, 8, 2)
    assert one.fingerprint() == other.fingerprint()
    other.of(1)[0].bias[3] = 1.0
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("router", [StaticRouter(), random_router(2, window=3)], ids=["static", "dynamic"])
@pytest.mark.parametrize("includes_base", [True, False])
@torch.inference_mode()
def test_pruned_models_are_saved_with_their_maps(
    router: StaticRouter | DynamicRouter, includes_base: bool, tmp_path: Path
) -> None:
    dense = copy.deepcopy(with_maps())
    if not includes_base:
        dense.save_pretrained(tmp_path / "dense")
        again = type(dense).from_pretrained(tmp_path / "dense")
        give_substitutes(again, substitutes_of(dense), SkippingModel(again).blocks)
        dense = again
    pruned = FTPForCausalLM.from_dense(dense, SCHEDULE, router)
    expected = pruned(IDS).logits
    pruned.save_pretrained(tmp_path / "pruned", include_base=includes_base)
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    assert loaded.config.substitute_rank == 2
    torch.testing.assert_close(loaded(IDS).logits, expected)
    assert torch.equal(copy.deepcopy(loaded)(IDS).logits, loaded(IDS).logits)
    give_substitutes(loaded.base, None, SkippingModel(loaded.base).blocks)
    assert not torch.allclose(loaded(IDS).logits, expected, atol=1e-2)


@settings(max_examples=10)
@given(
    shares=st.lists(st.sampled_from([0.0, 0.3, 0.6]), min_size=2 * N_BLOCKS, max_size=2 * N_BLOCKS),
    batch=st.integers(1, 3),
    length=st.integers(2, 50),
    window=st.sampled_from([0, 4]),
)
def test_maps_cost_what_torch_counts(shares: list[float], batch: int, length: int, window: int) -> None:
    model = SkippingModel(with_maps())
    schedule = SparsitySchedule.of_halves(shares[:N_BLOCKS], shares[N_BLOCKS:])
    router = random_router(2, window=window) if window else StaticRouter()
    prompts = PromptBatch(torch.full((batch, length), 5), torch.full((batch,), length))
    with counting() as counter:
        model.next_logits(model.prefill(prompts, schedule, router))
    counted = FlopsCounter(model).count(schedule, batch, length, router=router).total
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("keeps_kv", [False, True])
def test_their_memory_is_foreseen(keeps_kv: bool) -> None:
    model = SkippingModel(with_maps())
    schedule = SparsitySchedule.of_halves([0.5, 0.3, 0.6], [0.3, 0.6, 0.5], keeps_kv)
    prompts = PromptBatch(torch.full((2, 100), 5), torch.tensor([100, 100]))
    with AllocationTracker() as tracker:
        model.next_logits(model.prefill(prompts, schedule, StaticRouter()))
    assert peak_activation_bytes(model, schedule, 2, 100) == pytest.approx(tracker.peak_bytes, rel=0.01)


def test_profiles_of_a_model_with_maps_are_not_those_of_one_without() -> None:
    assert profile_conditions(with_maps()).differences(profile_conditions(tiny()))
