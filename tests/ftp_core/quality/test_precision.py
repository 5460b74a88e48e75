"""Models in bfloat16 and float16 are judged, pruned and taught as in float32, as far as their own rounding allows."""

from __future__ import annotations

import pytest
import torch

from ftp_core.cost.measure import Skipping, Unchanged, measure
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import DynamicRouter, Router, RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, EncodedExample, answer_batch, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny

DENSE, MIXED = SparsitySchedule.uniform(0.0, N_BLOCKS), SparsitySchedule([0.0, 0.4, 0.6])
EXAMPLES = [
    EncodedExample(tuple(range(2 + i, 12 + 2 * i)), ((5, 6), (7,), (8 + i, 9, 10), (11 + i,)), i % 4, True)
    for i in range(9)
]
HALVES = [torch.bfloat16, torch.float16]
# Of each precision: what its rounding does to figures of these models, whose weights are large.
SHARE = {torch.bfloat16: 0.06, torch.float16: 0.01}
FAMILIES = ["llama", "qwen3", "gemma2", "gpt_neox", "gpt2"]


def both(family: str, dtype: torch.dtype) -> tuple[SkippingModel, SkippingModel]:
    """A model in half precision, and one in float32 with the very same weights."""
    half = fresh_tiny(family).to(dtype)
    return SkippingModel(half), SkippingModel(fresh_tiny(family).to(dtype).float())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_figures_are_those_of_float32_but_for_rounding(family: str, dtype: torch.dtype) -> None:
    half, exact = (QualitySet(model, EXAMPLES, batch_size=4) for model in both(family, dtype))
    router: Router
    for router in (StaticRouter(), DynamicRouter.static(window=3)):
        found = half.evaluate(MIXED, router, choices=True, intervals=True)
        expected = exact.evaluate(MIXED, router, choices=True, intervals=True)
        assert found.kl == pytest.approx(expected.kl, rel=SHARE[dtype])
        assert found.perplexity == pytest.approx(expected.perplexity, rel=SHARE[dtype])
        assert found.kl_interval == pytest.approx(expected.kl_interval, rel=2 * SHARE[dtype])
    assert half.evaluate(DENSE, StaticRouter()).kl == 0.0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_schedule_of_zeros_is_the_dense_model_to_the_bit(family: str, dtype: torch.dtype) -> None:
    dense, ids = fresh_tiny(family).to(dtype), torch.arange(3, 23)[None]
    pruned = FTPForCausalLM.from_dense(dense, DENSE)
    assert torch.equal(pruned(ids).logits, dense(ids).logits)
    new = [model.generate(ids, max_new_tokens=6, do_sample=False) for model in (pruned, dense)]
    assert torch.equal(*new)
    prompts = prompt_batch([EncodedExample(tuple(range(3, 23)), ((1,),), 0, False)])
    skipping = SkippingModel(dense)
    assert torch.equal(
        skipping.next_logits(skipping.prefill(prompts, DENSE, StaticRouter())), dense(prompts.ids).logits[:, -1]
    )


class _Recording(DynamicRouter):
    def keep(self, sparsity: float, state: RoutingState) -> torch.Tensor:
        seen = self.__dict__.setdefault("seen", set())
        seen |= {state.attention.dtype, self.scores(sparsity, state).dtype}
        return super().keep(sparsity, state)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_routers_see_and_score_in_float32(family: str, dtype: torch.dtype) -> None:
    model, router = SkippingModel(fresh_tiny(family).to(dtype)), _Recording(window=3)
    model.prefill(prompt_batch(EXAMPLES), SparsitySchedule([0.3, 0.4, 0.6]), router)
    pruned = FTPForCausalLM.from_dense(model.model, MIXED, router).to(dtype)
    pruned.generate(torch.arange(3, 23)[None], max_new_tokens=3, do_sample=False)
    assert router.seen == {torch.float32}
    assert {weight.dtype for weight in router.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_computes_what_inference_does_in_half_precision(family: str, dtype: torch.dtype) -> None:
    model, router, answers = SkippingModel(fresh_tiny(family).to(dtype)), StaticlyScoring(), answer_batch(EXAMPLES)
    with torch.no_grad():
        gated, _, _ = gated_forward(model, router, TrainingBatch.of(EXAMPLES), MIXED)
        skipped = model.continuation_hidden(model.prefill(prompt_batch(EXAMPLES), MIXED, router), answers)
    expected = skipped[answers.ids != IGNORED]
    assert gated.dtype == expected.dtype == dtype
    error = (gated.float() - expected.float()).norm() / expected.float().norm()
    assert float(error) < {torch.bfloat16: 0.05, torch.float16: 0.006}[dtype]


class StaticlyScoring(DynamicRouter):
    """Decides by position, whatever attention has been rounded to."""

    def __init__(self) -> None:
        super().__init__(window=3)
        self.load_state_dict(DynamicRouter.static(window=3).state_dict())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{}, {"teacher_top_k": 5, "gradient_checkpointing": True}], ids=["plain", "small"])
def test_a_router_learns_from_a_model_in_half_precision(dtype: torch.dtype, options: dict) -> None:
    half, exact = both("llama", dtype)
    config = DistillationConfig(steps=4, batch_size=4, evaluate_every=2, consider_static=False, **options)
    router = random_router(1, window=3)
    found, expected = (
        distill(model, EXAMPLES, MIXED, config, held_out=EXAMPLES[:4], router=router) for model in (half, exact)
    )
    assert {weight.dtype for weight in found.router.parameters()} == {torch.float32}
    # Decisions between near equals may differ, so that only what they lead to is comparable.
    assert found.curves["held_out_kl"][0] == pytest.approx(expected.curves["held_out_kl"][0], rel=0.2)
    assert found.curves["distill"][0] == pytest.approx(expected.curves["distill"][0], rel=0.3)
    assert min(found.curves["held_out_kl"]) <= found.curves["held_out_kl"][0]
    calibrated = calibrate_thresholds(half, found.router, prompt_batch(EXAMPLES), MIXED)
    kept = half.prefill(prompt_batch(EXAMPLES), MIXED, calibrated).kept
    n_tokens = sum(len(example.prompt) for example in EXAMPLES)
    assert [round(1 - int(of.sum()) / n_tokens, 1) for of in kept] == pytest.approx(list(MIXED), abs=0.1)


@pytest.mark.parametrize("dtype", HALVES)
def test_timings_name_the_precision(dtype: torch.dtype) -> None:
    model = SkippingModel(fresh_tiny("llama").to(dtype))
    variants = [Unchanged("dense"), Skipping("skipping", MIXED, random_router(1, window=3))]
    timings = measure(model, torch.arange(3, 23)[None], variants, new_tokens=2, repeats=1)
    assert [timing.dtype for timing in timings] == [str(dtype).removeprefix("torch.")] * 2
