"""The losses are their formulas; training computes what inference computes; only the router learns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ftp_core.errors import CoreError, DataError, ModelError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RecurrentRouter,
    RoutingState,
    ScoringRouter,
    StaticRouter,
    router_to_bytes,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, EncodedExample, answer_batch, prompt_batch
from ftp_core.training.distillation import Distillation, distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from ftp_core.training.losses import distillation_loss, guide_loss, sparsity_loss, top_k_distillation_loss
from ftp_core.training.teacher import Teacher
from tests.ftp_core.made_up_heads import identity_head
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.skipping.test_skipping import tiny
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny
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
    head = identity_head(2)
    assert float(distillation_loss(head, teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)
    p = math.exp(0.5) / (1 + math.exp(0.5))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(distillation_loss(head, student, teacher, 2.0)) == pytest.approx(4 * kl, rel=1e-4)


@given(examples=examples, levels=st.lists(st.integers(0, 19), min_size=3, max_size=3), seed=st.integers(0, 9))
def test_the_gated_computation_of_training_equals_skipping(
    examples: list[EncodedExample], levels: list[int], seed: int
) -> None:
    model, schedule = SkippingModel(tiny()), SparsitySchedule.from_grid_indices(levels)
    router = random_router(seed, window=3)
    answers = answer_batch(examples)
    with torch.no_grad():
        teacher = Teacher(model, DistillationConfig()).hidden(examples)
        gated, _, _ = gated_forward(model, router, TrainingBatch.of(examples), schedule)
        loss = distillation_loss(model.head, gated, teacher, 1.0)
        hidden = model.continuation_hidden(model.prefill(prompt_batch(examples), schedule, router), answers)
    expected = distillation_loss(model.head, hidden[answers.ids != IGNORED], teacher, 1.0)
    assert float(loss) == pytest.approx(float(expected), abs=1e-4, rel=1e-3)


def distillation(model: SkippingModel, router: DynamicRouter, schedule: SparsitySchedule) -> torch.Tensor:
    teacher = Teacher(model, DistillationConfig()).hidden(SOME)
    hidden, _, _ = gated_forward(model, router, TrainingBatch.of(SOME), schedule)
    return distillation_loss(model.head, hidden, teacher, 1.0)


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


@pytest.mark.parametrize("as_set", [True, False])
def test_the_share_of_batches_that_are_done_grows_with_each_and_ends_at_one(tmp_path: Path, as_set: bool) -> None:
    model, schedules = SkippingModel(tiny()), [SparsitySchedule([0.0, 0.5, 0.5]), SparsitySchedule([0.5, 0.0, 0.5])]
    held_out = QualitySet(model, SOME[4:]) if as_set else SOME[4:]
    config = DistillationConfig(steps=6, batch_size=2, accumulate=3, evaluate_every=4)

    def shares(**options: Any) -> list[float]:
        seen: list[float] = []
        path = tmp_path / f"{as_set}.safetensors"
        distill(
            model, SOME[:4], schedules, config, held_out=held_out, checkpoint=path, on_progress=seen.append, **options
        )
        assert seen == sorted(seen) and seen[-1] == 1.0
        return seen

    def stop(step: int, _: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shares(on_step=stop)
    # Two batches of the teacher, one of the held-out set unless its answers are known, 18 of steps, and three
    # evaluations of a batch for each schedule.
    n_dense = 2 + (not as_set)
    n_all = n_dense + 6 * 3 + 3 * 2
    # The first four steps and two evaluations were kept.
    n_kept = 4 * 3 + 2 * 2
    resumed = [*range(1, n_dense + 1), *range(n_dense + n_kept, n_all + 1), n_all]
    assert shares() == pytest.approx([n / n_all for n in resumed])
    (tmp_path / f"{as_set}.safetensors").unlink()
    assert shares() == pytest.approx([n / n_all for n in [*range(1, n_all + 1), n_all]])
    # A known KL of the static router saves an evaluation.
    (tmp_path / f"{as_set}.safetensors").unlink()
    known = [*range(1, n_dense + 1), *range(n_dense + 2, n_all + 1), n_all]
    assert shares(static_kl=0.1) == pytest.approx([n / n_all for n in known])


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


def test_what_evaluations_have_in_common_is_computed_once_and_changes_nothing() -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(**PLAIN)
    schedules, held_out = [SparsitySchedule([0.0, 0.0, 0.5]), SCHEDULES[0]], QualitySet(model, SOME[6:])
    plain = distill(model, SOME[:6], schedules, config, held_out=held_out)
    static_kl = sum(held_out.evaluate(schedule, StaticRouter()).kl for schedule in schedules) / 2
    assert plain.curves["held_out_kl"][0] == pytest.approx(static_kl, rel=1e-6)
    store = PrefixStore(2**30)
    shared = distill(
        model, SOME[:6], schedules, config, held_out=held_out, static_kl=plain.curves["held_out_kl"][0], prefixes=store
    )
    assert router_to_bytes(shared.router) == router_to_bytes(plain.router)
    assert shared.curves == plain.curves
    # The static decisions are not evaluated again, and of the other four evaluations all but the first find the blocks
    # before one that skips: two of three under the first schedule, one under the second.
    assert store.blocks_run == 2 * (3 + 3) + 3 * 2 * (1 + 2)
    assert store.blocks_reused == 3 * 2 * (2 + 1)
    # What is left is what any other router can go on from: nothing has been skipped there.
    assert len(store) == 3


def test_a_known_figure_of_the_static_decisions_is_what_routers_have_to_beat() -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(**PLAIN)
    found = distill(model, SOME[:6], SCHEDULES, config, held_out=SOME[6:], static_kl=0.0)
    # Nothing is below zero, so that the static decisions stay.
    assert found.curves["held_out_kl"][0] == 0.0 < min(found.curves["held_out_kl"][1:])
    state = RoutingState.padded_right(torch.tensor([20]), 20)
    assert torch.equal(found.router.keep(0.5, state), StaticRouter().keep(0.5, state))


@pytest.mark.parametrize("start", ["static", "random"])
def test_a_fresh_router_decides_as_the_static_one_before_it_learns_unless_it_starts_at_random(start: str) -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(**PLAIN | {"steps": 1}, lr=0.0, start=start)
    router = distill(model, SOME, SCHEDULES, dataclasses.replace(config, consider_static=False)).router
    state = RoutingState.padded_right(torch.tensor([20]), 20)
    assert torch.equal(router.keep(0.5, state), StaticRouter().keep(0.5, state)) == (start == "static")


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
        schedule = SparsitySchedule([0.3, 0.5, 0.5])
        hidden, guide, sparsity = gated_forward(model, router, batch, schedule, gradient_checkpointing=checkpointing)
        (model.logits(hidden).square().mean() + guide + sparsity).backward()
        gradients.append([parameter.grad for parameter in router.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["qwen2-sliding", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "gpt2"])
def test_training_computes_what_skipping_computes_in_every_family(family: str) -> None:
    model, router = SkippingModel(tiny_model(family)), random_router(1, window=3)
    schedule, answers = SparsitySchedule([0.3, 0.5, 0.6]), answer_batch(SOME)
    with torch.no_grad():
        gated, _, _ = gated_forward(model, router, TrainingBatch.of(SOME), schedule)
        logits = model.continuation_logits(model.prefill(prompt_batch(SOME), schedule, router), answers)
    torch.testing.assert_close(model.logits(gated), logits[answers.ids != IGNORED], atol=5e-4, rtol=1e-3)


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
    head = identity_head(50)
    whole = float(distillation_loss(head, student, teacher, 2.0))
    best = (teacher / 2.0).log_softmax(-1).topk(49, dim=-1)
    losses = [
        float(top_k_distillation_loss(head, student, best.values[:, :k], best.indices[:, :k], 2.0))
        for k in (1, 5, 20, 49)
    ]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(whole, rel=1e-3)


def test_a_teacher_of_few_tokens_teaches() -> None:
    config = DistillationConfig(**PLAIN, teacher_top_k=5)
    assert len(distill(SkippingModel(tiny()), SOME, SCHEDULES, config).curves["loss"]) == 8


def test_patience_ends_a_training_that_gets_no_better() -> None:
    # Without a learning rate no router is better than the one that was given, so that two more end the training.
    config = DistillationConfig(steps=50, batch_size=2, evaluate_every=1, patience=2, lr=0.0, consider_static=False)
    assert len(distill(SkippingModel(tiny()), SOME, SCHEDULES, config).curves["step"]) == 2


@pytest.mark.parametrize(("above", "steps"), [(0.0, 5), (1e6, 8), (None, 8)])
def test_a_training_that_is_hopeless_by_half_of_its_steps_is_given_up(above: float | None, steps: int) -> None:
    # The given router counts at step 0, evaluations follow at steps 5 and 8.
    config = DistillationConfig(steps=8, batch_size=2, evaluate_every=5, lr=0.0, consider_static=False)
    assert len(distill(SkippingModel(tiny()), SOME, SCHEDULES, config, give_up_above=above).curves["step"]) == steps


@pytest.mark.parametrize("folder", [".", "not/there/yet"])
def test_the_inputs_of_a_step_without_a_finite_loss_are_kept(tmp_path: Path, folder: str) -> None:
    model, checkpoint = SkippingModel(tiny()), tmp_path / folder / "training.safetensors"
    model.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(CoreError, match="loss is nan at step 0.*failed-step-0.safetensors"):
        distill(model, SOME, SCHEDULES, DistillationConfig(steps=2), checkpoint=checkpoint)
    inputs = load_file(checkpoint.parent / "failed-step-0.safetensors")
    assert inputs["ids"].shape == (7, 17) and "router.mlp.0.weight" in inputs


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training as on a GPU: the model in bfloat16, its weights in float32."""
    monkeypatch.setattr("ftp_core.training.distillation._precision", lambda device, autocast: torch.autocast("cpu"))


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "gpt2"])
def test_every_family_trains_in_bfloat16(family: str, checkpointing: bool) -> None:
    model, router = SkippingModel(tiny_model(family)), random_router(1, window=3)
    config = DistillationConfig(steps=2, batch_size=4, gradient_checkpointing=checkpointing, lr=0.1)
    result = distill(model, SOME, SCHEDULES, config, router=router, held_out=SOME[:2])
    assert all(math.isfinite(loss) for loss in result.curves["loss"])
    assert min(result.curves["distill"]) > 0


def first_gradient(
    model: SkippingModel, router: ScoringRouter, schedule: SparsitySchedule, autocast: bool
) -> torch.Tensor:
    router.zero_grad()
    teacher, batch = Teacher(model, DistillationConfig()), TrainingBatch.of(SOME)
    lesson = teacher.lesson(SOME)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden, _, _ = gated_forward(model, router, batch, schedule)
        loss = teacher.loss(hidden, lesson)
    assert loss.dtype == torch.float32
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in router.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_gradients_in_bfloat16_point_where_those_in_float32_do(family: str) -> None:
    # One block skips, so that no decision hangs on what bfloat16 has rounded before it.
    model, schedule = SkippingModel(tiny_model(family)), SparsitySchedule([0.5, 0.0, 0.0])
    exact, rounded = (first_gradient(model, random_router(3, window=3), schedule, on) for on in (False, True))
    assert float(torch.cosine_similarity(exact, rounded, dim=0)) > 0.95
    assert float(rounded.norm() / exact.norm()) == pytest.approx(1.0, abs=0.2)


class Recording(DynamicRouter):
    """Writes down its scores and what they were made of."""

    def scores(self, sparsity: float, state: RoutingState) -> torch.Tensor:
        scores = super().scores(sparsity, state)
        self.__dict__.setdefault("recorded", []).append((state.attention.clone(), scores.detach().clone()))
        return scores


def test_in_bfloat16_a_router_scores_in_float32_as_inference_does() -> None:
    model, schedule = SkippingModel(tiny_model("llama")), SparsitySchedule([0.5, 0.5, 0.5])
    router, prompt_length = Recording(window=8), 100
    router.load_state_dict(random_router(1).state_dict())
    example = EncodedExample(tuple(1 + i * i % 48 for i in range(prompt_length)), ((3, 4),), 0, False)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        gated_forward(model, router, TrainingBatch.of([example]), schedule)
    training = router.__dict__.pop("recorded")
    model.prefill(prompt_batch([example]), schedule, router)
    inference = router.__dict__.pop("recorded")
    # Before the first block nothing is rounded yet: training decides exactly as inference does.
    torch.testing.assert_close(training[0][1][:, :prompt_length], inference[0][1], atol=1e-5, rtol=1e-5)
    for attention, scores in training:
        assert (attention.dtype, scores.dtype) == (torch.float32, torch.float32)
    # Attention received is a fine feature, too: no two of the kept tokens have heard the same.
    received = training[1][0][0, :prompt_length]
    assert len(set(received[received > 0].tolist())) == int((received > 0).sum()) >= 40
    assert all(len(set(scores[0, :prompt_length].tolist())) > 90 for _, scores in training)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(
    "router",
    [LocalRouter(3, window=3), HiddenRouter(32), RecurrentRouter(window=3), OnePassRouter(32, 3)],
    ids=lambda router: router.kind,
)
def test_every_router_trains_in_bfloat16(router: ScoringRouter) -> None:
    config = DistillationConfig(steps=2, batch_size=4, lr=0.1)
    result = distill(SkippingModel(tiny()), SOME, SCHEDULES, config, router=router, held_out=SOME[:2])
    assert all(math.isfinite(loss) for loss in result.curves["loss"])


@pytest.mark.parametrize(
    ("field", "values", "allowed"),
    [
        ("steps", [0, -1, 2.0, True, "8"], "an integer of at least 1"),
        ("batch_size", [0, -8, None], "an integer of at least 1"),
        ("accumulate", [0], "an integer of at least 1"),
        ("window", [0], "an integer of at least 1"),
        ("evaluate_every", [0], "an integer of at least 1"),
        ("teacher_top_k", [0, 1.5], "an integer of at least 1, or None"),
        ("patience", [0], "an integer of at least 1, or None"),
        ("lr", [math.nan, math.inf, -0.1, None], "a finite number of at least 0"),
        ("w_guide", [-1.0, math.nan], "a finite number of at least 0"),
        ("start", ["none", None], "'static' or 'random'"),
        ("w_sparsity", [-1.0, math.inf], "a finite number of at least 0"),
        ("w_distill", [-1.0], "a finite number of at least 0"),
        ("temperature", [0.0, -1.0, math.nan], "a finite number above 0"),
        ("max_grad_norm", [0.0, math.inf], "a finite number above 0"),
        ("guide_share", [-0.1, 1.1, math.nan], r"a number in \[0, 1\]"),
        ("seed", [0.5, None], "an integer"),
    ],
)
def test_a_value_that_trains_nothing_is_refused_by_its_name(field: str, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(CoreError, match=f"^{field} of a distillation is {value!r}, but must be {allowed}\\.$"):
            DistillationConfig(**{field: value})


def test_values_at_the_ends_of_their_ranges_are_accepted() -> None:
    small = {"steps": 1, "batch_size": 1, "accumulate": 1, "window": 1, "evaluate_every": 1, "patience": 1}
    DistillationConfig(**small, teacher_top_k=1, lr=0, w_guide=0, w_sparsity=0.0, w_distill=0, guide_share=0, seed=-1)
    DistillationConfig(guide_share=1, teacher_top_k=None, patience=None, temperature=1e-3)


def changed_weights() -> DynamicRouter:
    router = random_router(1, window=4)
    with torch.no_grad():
        router.mlp[-1].bias.add_(0.5)
    return router


@pytest.mark.parametrize(
    "change",
    [
        {"router": random_router(1, window=5)},
        {"router": changed_weights()},
        {"router": DynamicRouter(4, ("position", "block_sparsity"))},
        {"router": LocalRouter(3, window=4)},
        {"router": None},
        {"held_out": SOME[5:]},
        {"held_out": SOME[6:] + SOME[6:7]},
        {"data": SOME[1:6]},
        {"schedules": SCHEDULES[:1]},
        {"schedules": [[0.0, 0.5, 0.5], [0.3, 0.3000001, 0.0]]},
    ],
)
def test_a_checkpoint_is_refused_by_a_run_that_would_come_out_otherwise(tmp_path: Path, change: dict[str, Any]) -> None:
    model, checkpoint = SkippingModel(tiny()), tmp_path / "training.safetensors"
    run: dict[str, Any] = {
        "data": SOME[:6],
        "schedules": SCHEDULES,
        "router": random_router(1, window=4),
        "held_out": SOME[6:],
        "config": DistillationConfig(steps=2, batch_size=2, evaluate_every=1, consider_static=False),
        "checkpoint": checkpoint,
    }
    finished = distill(model, **run)
    again = distill(model, **run)
    assert router_to_bytes(again.router) == router_to_bytes(finished.router)
    with pytest.raises(CoreError, match="held-out set, schedule or initial router"):
        distill(model, **{**run, **change})


def test_where_the_static_decisions_win_they_come_back_as_a_router_of_the_given_window(tmp_path: Path) -> None:
    model, schedule, given = SkippingModel(tiny()), SCHEDULES[0], random_router(1, window=5)
    # Without a learning rate nothing is better than the start, and this start is worse than the static decisions.
    config = DistillationConfig(steps=4, batch_size=2, evaluate_every=2, lr=0.0)
    held_out, checkpoint = QualitySet(model, SOME[4:]), tmp_path / "training.safetensors"

    def run(path: Path | None, last: int) -> Distillation:
        def stop(step: int, _: float) -> None:
            if step == last:
                raise StoppedError

        return distill(
            model, SOME[:4], [schedule], config, router=given, held_out=held_out, checkpoint=path, on_step=stop
        )

    whole = run(None, 5)
    held = whole.curves["held_out_kl"]
    assert held.index(min(held)) == 0 and held[0] < held[1]
    assert whole.router.window == 5
    assert held_out.evaluate(schedule, whole.router).kl == pytest.approx(held[0], rel=1e-6)
    with pytest.raises(StoppedError):
        run(checkpoint, 3)
    resumed = run(checkpoint, 5)
    assert router_to_bytes(resumed.router) == router_to_bytes(whole.router)
    assert resumed.curves == whole.curves


def test_a_given_router_is_left_as_it_is() -> None:
    router = random_router(1, window=4)
    router.set_thresholds([0.0, 0.0, 0.0], SCHEDULES[0])
    before = router_to_bytes(router)
    distill(SkippingModel(tiny()), SOME, SCHEDULES, DistillationConfig(**PLAIN), router=router)
    assert router_to_bytes(router) == before


def test_a_router_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match="made for 7 blocks"):
        distill(SkippingModel(tiny()), SOME, SCHEDULES, DistillationConfig(**PLAIN), router=LocalRouter(7))


@pytest.mark.parametrize("wrapped", [False, True], ids=["transformers", "FTPForCausalLM"])
def test_a_users_own_model_is_distilled_for_and_left_as_it_was(wrapped: bool) -> None:
    config = DistillationConfig(**PLAIN)
    expected = distill(SkippingModel(fresh_tiny("gemma2")), SOME, SCHEDULES, config)
    dense = fresh_tiny("gemma2").train()
    # The user has a part of it in evaluation mode, and trains another part.
    dense.model.layers[1].eval()
    for name, parameter in dense.named_parameters():
        parameter.requires_grad_("mlp" in name)
    model = FTPForCausalLM.from_dense(dense, SCHEDULES[0]) if wrapped else dense
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = distill(model, SOME, SCHEDULES, config)
    assert router_to_bytes(result.router) == router_to_bytes(expected.router)
    assert result.curves == expected.curves
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == gradients
    assert set(gradients.values()) == {True, False}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_users_own_model_is_left_as_it_was_when_training_fails() -> None:
    dense = fresh_tiny().train()

    def stop(step: int, _: float) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        distill(dense, SOME, SCHEDULES, DistillationConfig(**PLAIN), on_step=stop)
    assert all(module.training for module in dense.modules())
    assert all(parameter.requires_grad for parameter in dense.parameters())


@pytest.mark.parametrize("one", [SCHEDULES[0], [0.0, 0.5, 0.5], (0, 0.5, 0.5), [[0.0, 0.5, 0.5]], [(0, 0.5, 0.5)]])
def test_schedules_are_any_sequences_of_floats_or_one_of_them(one: Sequence[Any]) -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(**PLAIN)
    expected = distill(model, SOME, [SCHEDULES[0]], config)
    assert router_to_bytes(distill(model, SOME, one, config).router) == router_to_bytes(expected.router)


@pytest.mark.parametrize(
    ("schedules", "says"),
    [
        ([], "no schedule"),
        ([0.5, 0.5], "has 2 sparsities, but the model has 3 blocks"),
        ([SCHEDULES[0], [0.5, 0.5, 1.5]], "Sparsity 1.5 of block 2"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(schedules: list[Any], says: str) -> None:
    with pytest.raises((CoreError, ScheduleError), match=says):
        distill(SkippingModel(tiny()), SOME, schedules)


def test_a_held_out_set_may_be_plain_examples() -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(**PLAIN)
    one = distill(model, SOME[:6], SCHEDULES, config, held_out=QualitySet(model, SOME[6:]))
    two = distill(model, SOME[:6], SCHEDULES, config, held_out=SOME[6:])
    assert router_to_bytes(one.router) == router_to_bytes(two.router) and one.curves == two.curves


def test_a_held_out_set_of_another_model_is_refused() -> None:
    model, other = (SkippingModel(fresh_tiny(name)) for name in ("llama", "qwen3"))
    with pytest.raises(ModelError, match="another model"):
        distill(model, SOME[:4], [0.5] * N_BLOCKS, held_out=QualitySet(other, SOME[4:]))


def test_examples_that_the_model_cannot_read_are_refused() -> None:
    with pytest.raises(DataError, match="has the token 999"):
        distill(SkippingModel(tiny()), [EncodedExample((1, 999), ((2,),), 0, False), *SOME], [0.5] * N_BLOCKS)


def test_what_is_no_model_and_no_encoded_example_is_refused() -> None:
    model = SkippingModel(tiny())
    with pytest.raises(CoreError, match="model to distil a router for is a str"):
        distill("demo", SOME, SCHEDULES)
    with pytest.raises(CoreError, match=r"Example 2 is of type str.*ftp_core\.encode"):
        distill(model, [SOME[0], "a text"], SCHEDULES)
    with pytest.raises(CoreError, match="Example 1 is of type dict"):
        distill(model, SOME, SCHEDULES, held_out=[{}])
    for empty in ({"data": []}, {"data": SOME, "held_out": []}):
        with pytest.raises(CoreError, match="no example in"):
            distill(model, schedules=SCHEDULES, **empty)


def test_the_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_along_a_cosine() -> None:
    config = DistillationConfig(steps=20, lr=0.5)
    falling = [0.25 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    assert [config.lr_at(step) for step in range(20)] == pytest.approx([falling[0] / 2, *falling[1:]])


def test_what_a_training_took_is_reported() -> None:
    config = DistillationConfig(steps=3, batch_size=4, accumulate=2)
    result = distill(SkippingModel(tiny()), SOME[:4], SCHEDULES, config, held_out=SOME[4:])
    assert result.tokens == 3 * 2 * sum(len(one.prompt) + 2 for one in SOME[:4])
    assert result.parameters == 4 * 64 + 64 + 64 + 1
    assert result.seconds > 0 and result.peak_bytes > 2**20
