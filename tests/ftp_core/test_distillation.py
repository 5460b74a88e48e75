"""The losses are their formulas; training computes what inference computes; only the router learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.distillation import (
    DistillationConfig,
    _GatedModel,
    _teacher_hidden,
    _TrainingBatch,
    distill,
    distillation_loss,
    guide_loss,
    sparsity_loss,
)
from ftp_core.encoding import IGNORED, EncodedExample, answer_batch, prompt_batch
from ftp_core.errors import CoreError
from ftp_core.quality import QualitySet
from ftp_core.routing import DynamicRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import SkippingModel
from tests.ftp_core.routers import random_router
from tests.ftp_core.test_skipping import tiny

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
        teacher = model.logits(_teacher_hidden(model, examples))
        _, _, loss = _GatedModel(model, router).losses(_TrainingBatch.of(examples), teacher, schedule, 1.0)
        logits = model.continuation_logits(model.prefill(prompt_batch(examples), schedule, router), answers)
    expected = distillation_loss(logits[answers.ids != IGNORED], teacher, 1.0)
    assert float(loss) == pytest.approx(float(expected), abs=1e-4, rel=1e-3)


def test_a_closed_gate_has_a_gradient() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    router = DynamicRouter()
    teacher = model.logits(_teacher_hidden(model, SOME))
    _, _, loss = _GatedModel(model, router).losses(_TrainingBatch.of(SOME), teacher, schedule, 1.0)
    loss.backward()
    gradients = [parameter.grad for parameter in router.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients if gradient is not None)


def test_the_gradient_survives_scores_that_drift_up_together() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    router = DynamicRouter()
    with torch.no_grad():
        router.mlp[-1].bias.add_(60.0)  # sigmoid of this is 1 in float32, its gradient 0
    teacher = model.logits(_teacher_hidden(model, SOME))
    _, _, loss = _GatedModel(model, router).losses(_TrainingBatch.of(SOME), teacher, schedule, 1.0)
    loss.backward()
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in router.parameters() if parameter.grad is not None)


def test_schedules_that_skip_nothing_leave_nothing_to_learn() -> None:
    model = SkippingModel(tiny())
    with pytest.raises(CoreError, match="nothing to decide"):
        distill(model, SOME[:4], QualitySet(model, SOME[4:]), [SparsitySchedule.uniform(0.0, 3)])


def test_every_batch_of_the_teacher_and_every_step_is_reported() -> None:
    model, taught, steps = SkippingModel(tiny()), [], []
    distill(
        model,
        SOME[:4],
        QualitySet(model, SOME[4:]),
        [SparsitySchedule([0.0, 0.5, 0.5])],
        DistillationConfig(steps=3, batch_size=2),
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
    result = distill(model, SOME[:4], held_out, [schedule], config)
    held = result.curves["held_out_kl"]
    assert held_out.evaluate(schedule, result.router).kl == pytest.approx(min(held), rel=1e-5)
    assert len(result.curves["step"]) == len(result.curves["loss"]) == 60
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


def test_the_same_seed_distils_the_same_router() -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.5])
    config = DistillationConfig(steps=6, batch_size=4, evaluate_every=3, seed=3)
    one, two = (distill(model, SOME[:4], QualitySet(model, SOME[4:]), [schedule], config) for _ in range(2))
    assert one.router.to_bytes() == two.router.to_bytes()
    assert one.curves == two.curves


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    model = SkippingModel(tiny())
    model.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(CoreError, match="loss is nan at step 0"):
        distill(
            model,
            SOME[:4],
            QualitySet(model, SOME[4:]),
            [SparsitySchedule([0.0, 0.5, 0.5])],
            DistillationConfig(steps=2),
        )
