"""Where skipping would not save time, blocks run whole, and the model says which."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from transformers.cache_utils import DynamicCache

from ftp_core.cost.break_even import BreakEven
from ftp_core.cost.conditions import ProfileError, profile_conditions
from ftp_core.cost.half_times import HalfProfile
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.routers import DynamicRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from tests.ftp_core.cost.made_up_profiles import profile_of, shape_of
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import fresh_tiny

# Keeping half of the tokens takes as long as all, keeping fewer takes less.
SHAPE = shape_of(2, 20, (1, 10, 19, 20), ((1.0, 5.0, 9.0, 5.0),), fixed_ms=1.0, score_ms=0.6)
IDS = torch.randint(3, 50, (2, 20), generator=torch.Generator().manual_seed(0))


def pruned(schedule: list[float], router: DynamicRouter | None = None) -> FTPForCausalLM:
    model = FTPForCausalLM.from_dense(fresh_tiny(), schedule, router)
    model.latency_profile = profile_of(3, SHAPE, conditions=profile_conditions(model.base))
    return model.eval()


@torch.inference_mode()
def test_blocks_that_would_lose_time_run_whole_and_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    model = pruned([0.5, 0.8, 0.05])
    expected = FTPForCausalLM.from_dense(model.base, [0.0, 0.8, 0.0]).eval()(IDS).logits
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert model(IDS).logits.equal(expected)
    assert [record.getMessage() for record in caplog.records] == [
        "Blocks 0, 2 run whole on inputs of 2 x 20 tokens: skipping would not save time there."
    ]
    assert list(model.schedule) == [0.5, 0.8, 0.05]


@torch.inference_mode()
def test_what_a_router_takes_must_be_made_good_too() -> None:
    # Keeping 9 of 20 saves less than the router takes.
    schedule = [0.55, 0.8, 0.8]
    static, dynamic = pruned(schedule), pruned(schedule, DynamicRouter())
    static(IDS), dynamic(IDS)
    assert static(IDS).past_key_values.held() == (9, 4, 4)
    assert dynamic(IDS).past_key_values.held() == (20, 4, 4)


@torch.inference_mode()
def test_where_nothing_pays_the_dense_model_runs_and_goes_on() -> None:
    model = pruned([0.5, 0.05, 0.3])
    first, dense = model(IDS, use_cache=True), model.base(IDS, use_cache=True)
    assert first.logits.equal(dense.logits)
    token = IDS[:, :1]
    behind = model(token, past_key_values=first.past_key_values).logits
    assert behind.equal(model.base(token, past_key_values=dense.past_key_values).logits)
    written, expected = (one.generate(IDS, max_new_tokens=5, do_sample=False) for one in (model, model.base))
    assert written.equal(expected)


@torch.inference_mode()
def test_decoded_tokens_are_routed_by_what_the_prompt_ran_under() -> None:
    schedule = SparsitySchedule([0.5, 0.8, 0.5])
    for seed in range(4):
        router = random_router(seed)
        router.set_thresholds([0.0] * 3, schedule)
        model = pruned(list(schedule), router)
        model.decode_sparsity = 0.9
        tokens = torch.cat([IDS, IDS[:, :6]], 1)
        at_once = model(tokens, prompt_length=20).logits[:, 20:]
        cache, steps = model(IDS, use_cache=True).past_key_values, []
        for column in range(20, 26):
            out = model(tokens[:, column : column + 1], past_key_values=cache)
            cache = out.past_key_values
            steps.append(out.logits)
        assert torch.cat(steps, 1).allclose(at_once, atol=1e-5)


def test_halves_that_would_lose_time_run_whole_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    # Skipping the attention takes longer, and skipping the MLP less.
    slow, quick = ((6.0, 6.0),), ((2.0, 4.5),)
    halves = HalfProfile((1, 19), attention=slow, attention_kept=slow, mlp=quick, both_kept=((3.0, 5.5),))
    break_even = BreakEven(profile_of(3, replace(SHAPE, halves=halves)))
    asked = SparsitySchedule.of_halves([0.5, 0.5, 0.0], [0.5, 0.0, 0.5], True)
    with caplog.at_level(logging.WARNING):
        runs = break_even.schedule(asked, 2, 20, StaticRouter())
    assert runs == SparsitySchedule.of_halves([0.0, 0.0, 0.0], [0.5, 0.0, 0.5])
    assert "Blocks 0 (attention), 1 run whole on inputs of 2 x 20 tokens" in caplog.text
    assert break_even.of_pass(asked, IDS, DynamicCache(), StaticRouter()) == runs


def test_a_profile_of_a_busy_machine_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = FTPForCausalLM.from_dense(fresh_tiny(), [0.5] * 3)
    busy = profile_of(3, replace(SHAPE, check_error=5.0), conditions=profile_conditions(model.base))
    with caplog.at_level(logging.WARNING):
        model.latency_profile = busy
    assert "off by 500%" in caplog.text


@torch.inference_mode()
def test_inputs_of_other_lengths_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    model = pruned([0.5, 0.8, 0.05])
    with caplog.at_level(logging.WARNING):
        for length in range(10, 20):
            model(IDS[:, :length])
    assert len(caplog.records) == 1


def test_a_profile_of_another_machine_is_refused() -> None:
    model = FTPForCausalLM.from_dense(fresh_tiny(), [0.5] * 3)
    elsewhere = replace(profile_conditions(model.base), cpu="abacus")
    with pytest.raises(ProfileError, match="cpu 'abacus'"):
        model.latency_profile = profile_of(3, SHAPE, conditions=elsewhere)
    assert model.latency_profile is None


def test_the_nearest_profiled_shape_decides() -> None:
    shapes = [replace(SHAPE, batch=batch, length=n, kept=(1, 10, 19, n)) for batch in (1, 8) for n in (20, 40)]
    profile = profile_of(3, *shapes)
    assert profile.nearest_shape(1, 30) == (1, 30)
    assert profile.nearest_shape(2, 10) == (1, 20)
    assert profile.nearest_shape(3, 100) == (8, 40)
