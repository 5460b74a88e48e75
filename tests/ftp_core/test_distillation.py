"""The losses are their formulas; training computes what inference computes; only the router learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ftp_core.distillation import DistillationConfig, _Teacher, distill
from ftp_core.encoding import IGNORED, EncodedExample, answer_batch, prompt_batch
from ftp_core.errors import CoreError
from ftp_core.gated import GatedModel, TrainingBatch
from ftp_core.losses import distillation_loss, guide_loss, sparsity_loss, top_k_distillation_loss
from ftp_core.quality import QualitySet
from ftp_core.routers import DynamicRouter, router_to_bytes
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel
from tests.ftp_core.routers import random_router
from tests.ftp_core.test_skipping import tiny
from tests.ftp_core.tiny_models import tiny as tiny_model

tokens = st.lists(st.integers(1, 49), min_size=2, max_size=15).map(tuple)
examples = st.lists(
    st.tuples(tokens, st.lists(st.integers(1, 49), min_size=1, max_size=3).map(tuple)), min_size=1, max_size=4
).map(lambda pairs: [EncodedExample(prompt, (completion,), 0, False) for prompt, completion in pairs])
SOME = [EncodedExample(tuple(range(1 + i, 16 + i)), ((3, 4),), 0, False) for i in range(8)]


def test_guide_loss_is_cross_entropy_with_the_static_decision() -> None:
    scores, static = torch.tensor([[0.0, 2.0, 5.0]]), torch.tensor([[True, False, True]])
    real = torch.tensor([[True, True, False]])
    expected = (-math.log(0.5) - math.log(1 - 1 / (1 + math.exp(-2.0)))) / 2
    assert float(guide_loss(scores, static, real)) == pytest.approx(expected, rel=1e-5)


@given(sparsity=st.floats(0.05, 0.95), share=st.floats(0.01, 0.99))
def test_sparsity_loss_is_one_sided(sparsity: float, share: float) -> None:
    scores = torch.full((2, 5), math.log(share / (1 - share)))
    expected = max(0.0, sparsity - (1 - share)) ** 2
    assert float(sparsity_loss(scores, sparsity, torch.ones(2, 5, dtype=torch.bool))) == pytest.approx(
        expected, abs=1e-5
    )


def test_distillation_loss_is_zero_at_the_teacher_and_scaled_by_the_temperature() -> None:
    teacher, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)
    p = math.exp(0.5) / (1 + math.exp(0.5))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(4 * kl, rel=1e-4)


@given(examples=examples, levels=st.lists(st.integers(0, 19), min_size=3, max_size=3), seed=st.integers(0, 9))
def test_the_gated_computation_of_training_equals_skipping(
    examples: list[EncodedExample], levels: list[int], seed: int
) -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule.from_levels(levels)
    router = random_router(seed, window=3)
    answers = answer_batch(examples)
    with torch.no_grad():
        teacher = model.logits(_Teacher(model, DistillationConfig()).hidden(examples))
        gated, _, _ = GatedModel(model, router).forward(TrainingBatch.of(examples), schedule)
        loss = distillation_loss(gated, teacher, 1.0)
        logits = model.continuation_logits(model.prefill(prompt_batch(examples), schedule, router), answers)
    expected = distillation_loss(logits[answers.ids != IGNORED], teacher, 1.0)
    assert float(loss) == pytest.approx(float(expected), abs=1e-4, rel=1e-3)


def distillation(model: SkippingModel, router: DynamicRouter, schedule: SparsitySchedule) -> torch.Tensor:
    teacher = model.logits(_Teacher(model, DistillationConfig()).hidden(SOME))
    logits, _, _ = GatedModel(model, router).forward(TrainingBatch.of(SOME), schedule)
    return distillation_loss(logits, teacher, 1.0)


def test_a_closed_gate_has_a_gradient() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    router = DynamicRouter()
    distillation(model, router, schedule).backward()
    gradients = [parameter.grad for parameter in router.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients if gradient is not None)


def test_the_gradient_survives_scores_that_drift_up_together() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    router = DynamicRouter()
    with torch.no_grad():
        router.mlp[-1].bias.add_(60.0)  # sigmoid of this is 1 in float32, its gradient 0
    distillation(model, router, schedule).backward()
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in router.parameters() if parameter.grad is not None)


def test_schedules_that_skip_nothing_leave_nothing_to_learn() -> None:
    model = SkippingModel(tiny())
    with pytest.raises(CoreError, match="nothing to decide"):
        distill(model, SOME[:4], [SparsitySchedule.uniform(0.0, 3)], held_out=QualitySet(model, SOME[4:]))


def test_every_batch_of_the_teacher_and_every_step_is_reported() -> None:
    model, taught, steps = SkippingModel(tiny()), [], []
    distill(
        model,
        SOME[:4],
        [SparsitySchedule([0.0, 0.5, 0.5])],
        DistillationConfig(steps=3, batch_size=2),
        held_out=QualitySet(model, SOME[4:]),
        on_step=lambda step, _: steps.append(step),
        on_taught=lambda: taught.append(len(steps)),
    )
    assert (taught, steps) == ([0, 0], [1, 2, 3])


def test_the_best_held_out_router_is_kept_and_the_model_left_alone() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    torch.manual_seed(0)
    config = DistillationConfig(steps=60, batch_size=4, evaluate_every=10, lr=0.02)
    held_out = QualitySet(model, SOME[4:])
    result = distill(model, SOME[:4], [schedule], config, held_out=held_out)
    held = result.curves["held_out_kl"]
    assert held_out.evaluate(schedule, result.router).kl == pytest.approx(min(held), rel=1e-5)
    assert len(result.curves["step"]) == len(result.curves["loss"]) == 60
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


def test_the_same_seed_distils_the_same_router() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    config = DistillationConfig(steps=6, batch_size=4, evaluate_every=3, seed=3)
    one, two = (distill(model, SOME[:4], [schedule], config, held_out=QualitySet(model, SOME[4:])) for _ in range(2))
    assert router_to_bytes(one.router) == router_to_bytes(two.router)
    assert one.curves == two.curves


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    model = SkippingModel(tiny())
    model.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(CoreError, match="loss is nan at step 0"):
        distill(
            model,
            SOME[:4],
            [SparsitySchedule([0.0, 0.5, 0.5])],
            DistillationConfig(steps=2),
            held_out=QualitySet(model, SOME[4:]),
        )


PLAIN = {"steps": 8, "batch_size": 2, "evaluate_every": 2, "seed": 1}
SCHEDULES = [SparsitySchedule([0.0, 0.5, 0.5]), SparsitySchedule([0.3, 0.3, 0.0])]


class StoppedError(Exception):
    pass


def test_a_stopped_training_goes_on_to_the_same_router(tmp_path: Path) -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(**PLAIN)
    whole = distill(model, SOME, SCHEDULES, config)

    def stop(step: int, _: float) -> None:
        if step == 5:
            raise StoppedError

    checkpoint = tmp_path / "training.safetensors"
    with pytest.raises(StoppedError):
        distill(model, SOME, SCHEDULES, config, checkpoint=checkpoint, on_step=stop)
    steps: list[int] = []
    resumed = distill(model, SOME, SCHEDULES, config, checkpoint=checkpoint, on_step=lambda step, _: steps.append(step))
    assert steps == [5, 6, 7, 8]
    assert router_to_bytes(resumed.router) == router_to_bytes(whole.router)
    assert resumed.curves == whole.curves and resumed.tokens == whole.tokens


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model, checkpoint = SkippingModel(tiny()), tmp_path / "training.safetensors"
    distill(model, SOME, SCHEDULES, DistillationConfig(**PLAIN), checkpoint=checkpoint)
    with pytest.raises(CoreError, match="another configuration"):
        distill(model, SOME, SCHEDULES, DistillationConfig(**PLAIN, lr=0.1), checkpoint=checkpoint)
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(CoreError, match="not a checkpoint"):
        distill(model, SOME, SCHEDULES, DistillationConfig(**PLAIN), checkpoint=checkpoint)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral-sliding", "gpt_neox", "gpt2"])
def test_recomputed_blocks_give_the_same_gradients(family: str) -> None:
    model, batch = SkippingModel(tiny_model(family)), TrainingBatch.of(SOME)
    gradients = []
    for checkpointing in (False, True):
        router = random_router(2, window=3)
        logits, guide, sparsity = GatedModel(model, router, gradient_checkpointing=checkpointing).forward(
            batch, SparsitySchedule([0.3, 0.5, 0.5])
        )
        (logits.square().mean() + guide + sparsity).backward()
        gradients.append([parameter.grad for parameter in router.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["qwen2-sliding", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "gpt2"])
def test_training_computes_what_skipping_computes_in_every_family(family: str) -> None:
    model, router = SkippingModel(tiny_model(family)), random_router(1, window=3)
    schedule, answers = SparsitySchedule([0.3, 0.5, 0.6]), answer_batch(SOME)
    with torch.no_grad():
        gated, _, _ = GatedModel(model, router).forward(TrainingBatch.of(SOME), schedule)
        logits = model.continuation_logits(model.prefill(prompt_batch(SOME), schedule, router), answers)
    torch.testing.assert_close(gated, logits[answers.ids != IGNORED], atol=5e-4, rtol=1e-3)


def test_accumulated_batches_make_the_step_of_a_large_one() -> None:
    model = SkippingModel(tiny())
    alike = [EncodedExample(tuple(range(3 + i, 15 + i)), ((3,),), 0, False) for i in range(8)]
    held_out = QualitySet(model, SOME)
    large = DistillationConfig(steps=1, batch_size=8, consider_static=False, lr=0.01)
    small = DistillationConfig(steps=1, batch_size=2, accumulate=4, consider_static=False, lr=0.01)
    one, two = (distill(model, alike, SCHEDULES[:1], config, held_out=held_out) for config in (large, small))
    for name, tensor in one.router.state_dict().items():
        torch.testing.assert_close(two.router.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    assert one.tokens == two.tokens


def test_the_loss_over_the_likeliest_tokens_grows_to_the_whole_one() -> None:
    teacher, student = torch.randn(5, 50) * 3, torch.randn(5, 50)
    whole = float(distillation_loss(student, teacher, 2.0))
    best = (teacher / 2.0).log_softmax(-1).topk(49, dim=-1)
    losses = [
        float(top_k_distillation_loss(student, best.values[:, :k], best.indices[:, :k], 2.0)) for k in (1, 5, 20, 49)
    ]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(whole, rel=1e-3)


def test_a_teacher_of_few_tokens_teaches() -> None:
    config = DistillationConfig(**PLAIN, teacher_top_k=5)
    assert len(distill(SkippingModel(tiny()), SOME, SCHEDULES, config).curves["loss"]) == 8


def test_patience_ends_a_training_that_gets_no_better() -> None:
    # Without a learning rate no router is better than the first, so that the two after it end the training.
    config = DistillationConfig(steps=50, batch_size=2, evaluate_every=1, patience=2, lr=0.0, consider_static=False)
    assert len(distill(SkippingModel(tiny()), SOME, SCHEDULES, config).curves["step"]) == 3


def test_the_inputs_of_a_step_without_a_finite_loss_are_kept(tmp_path: Path) -> None:
    model = SkippingModel(tiny())
    model.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(CoreError, match="failed-step-0.safetensors"):
        distill(model, SOME, SCHEDULES, DistillationConfig(steps=2), checkpoint=tmp_path / "training.safetensors")
    inputs = load_file(tmp_path / "failed-step-0.safetensors")
    assert inputs["ids"].shape == (7, 17) and "router.mlp.0.weight" in inputs
