"""Training computes halves as skipping does, and its gradients say what each half's decisions change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftp_core.errors import ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    FEATURES,
    FEATURES_OF_HALVES,
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RandomRouter,
    RecurrentRouter,
    RoutingState,
    ScoringRouter,
    StaticRouter,
)
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.attention import AttentionGate
from ftp_core.skipping.families import family_of
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, EncodedExample, PromptBatch, answer_batch, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from ftp_core.training.gated_blocks import gated_halves
from ftp_core.training.losses import guide_loss, sparsity_loss
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.slow_reference import slow_logits
from tests.ftp_core.tiny_models import (
    CONFIGS,
    N_BLOCKS,
    VOCABULARY,
    crossed,
    each,
    fresh_tiny,
    tiny,
    with_maps,
    with_projections,
)

ABLE = [name for name in CONFIGS if family_of(tiny(name).config).halves is not None]
shares = st.lists(st.sampled_from([0.0, 0.0, 0.3, 0.55, 0.8, 0.95]), min_size=N_BLOCKS, max_size=N_BLOCKS)
flags = st.lists(st.booleans(), min_size=N_BLOCKS, max_size=N_BLOCKS)
schedules = st.builds(SparsitySchedule.of_halves, shares, shares, flags)
words = st.integers(3, VOCABULARY - 1)
examples = st.lists(
    st.tuples(
        st.lists(words, min_size=1, max_size=20).map(tuple), st.lists(words, min_size=1, max_size=4).map(tuple)
    ).map(lambda pair: EncodedExample(pair[0], (pair[1],), 0, False)),
    min_size=1,
    max_size=3,
)
SOME = [EncodedExample(tuple(range(3 + i, 18 + i)), ((3, 4),), 0, False) for i in range(8)]
SCHEDULE = SparsitySchedule.of_halves([0.5, 0.3, 0.0], [0.3, 0.6, 0.5], [True, False, False])

GIVEN = {"nothing": tiny, "maps": with_maps, "projections": with_projections}


def drawn(router: ScoringRouter, seed: int = 0) -> ScoringRouter:
    """The router with every weight drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=generator)
    return router


def for_halves(seed: int = 0, window: int = 3) -> DynamicRouter:
    router = drawn(DynamicRouter(window, FEATURES_OF_HALVES), seed)
    assert isinstance(router, DynamicRouter)
    return router


@pytest.mark.parametrize(("name", "given"), crossed(ABLE, ["nothing", "maps", "projections"]))
@settings(max_examples=5)
@given(examples=examples, schedule=schedules, seed=st.integers(0, 9))
def test_gated_halves_equal_a_masked_full_computation_in_every_family(
    name: str, given: str, examples: list[EncodedExample], schedule: SparsitySchedule, seed: int
) -> None:
    model, router = SkippingModel(GIVEN[given](name)), for_halves(seed)
    with torch.no_grad():
        gated, _, _ = gated_forward(model, router, TrainingBatch.of(examples), schedule)
        found = model.logits(gated).split([len(one.continuations[0]) for one in examples])
    for example, logits in zip(examples, found, strict=True):
        prompt, completion = list(example.prompt), list(example.continuations[0])
        expected, _ = slow_logits(model.model, prompt, completion, schedule, router)
        torch.testing.assert_close(logits, expected[len(prompt) - 1 : -1], atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "router",
    [
        drawn(LocalRouter(3, 3, True)),
        drawn(HiddenRouter(32, True)),
        drawn(RecurrentRouter(3, True)),
        drawn(OnePassRouter(32, 3, True)),
        random_router(1),
    ],
    ids=lambda router: router.kind,
)
def test_every_router_trains_on_what_it_will_decide(router: ScoringRouter) -> None:
    model, answers = SkippingModel(tiny()), answer_batch(SOME)
    with torch.no_grad():
        gated, _, _ = gated_forward(model, router, TrainingBatch.of(SOME), SCHEDULE)
        logits = model.continuation_logits(model.prefill(prompt_batch(SOME), SCHEDULE, router), answers)
    torch.testing.assert_close(model.logits(gated), logits[answers.ids != IGNORED], atol=5e-4, rtol=1e-3)


def test_a_block_that_skips_as_a_whole_is_computed_as_under_a_schedule_of_blocks() -> None:
    model, router, batch = SkippingModel(tiny()), random_router(1, window=3), TrainingBatch.of(SOME)
    mixed = SparsitySchedule.of_halves([0.5, 0.3, 0.3], [0.5, 0.3, 0.0])
    plain = SparsitySchedule([0.5, 0.3, 0.3])
    found = [gated_forward(model, router, batch, one, n_blocks=2)[0] for one in (mixed, plain)]
    assert torch.equal(*found)


class Recording(DynamicRouter):
    """Writes down which half it scored."""

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        scores = super().scores(sparsity, state)
        self.__dict__.setdefault("recorded", []).append((state.block, state.half, sparsity, scores.detach()))
        return scores


def test_losses_are_means_over_what_is_decided() -> None:
    model, batch, router = SkippingModel(tiny()), TrainingBatch.of(SOME), Recording(3, FEATURES_OF_HALVES)
    schedule = SparsitySchedule.of_halves([0.5, 0.3, 0.0], [0.5, 0.6, 0.5], [False, True, False])
    _, guide, sparsity = gated_forward(model, router, batch, schedule)
    decided = router.__dict__["recorded"]
    asked = [(0, "block", 0.5), (1, "attention", 0.3), (1, "mlp", 0.6), (2, "mlp", 0.5)]
    assert [one[:3] for one in decided] == asked
    state = RoutingState.padded_right(batch.prompt_lengths, batch.ids.shape[1])
    guides = [guide_loss(scores, StaticRouter().keep(s, state), state.real) for _, _, s, scores in decided]
    sparsities = [sparsity_loss(scores, s, state.real) for _, _, s, scores in decided]
    torch.testing.assert_close(guide, torch.stack(guides).mean())
    torch.testing.assert_close(sparsity, torch.stack(sparsities).mean())


def block_call(model: SkippingModel, index: int, hidden: Tensor) -> BlockCall:
    """A call of a block, as the model makes it."""
    calls: dict[int, BlockCall] = {}

    def take(index: int, call: BlockCall) -> Tensor:
        calls[index] = call
        return call.hidden

    with torch.no_grad():
        model.run(take, torch.zeros(hidden.shape[:2], dtype=torch.long), use_cache=False)
    return calls[index]


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "gpt_neox", "stablelm-parallel", "granite"])
def test_a_gates_gradient_is_what_the_half_of_its_token_adds(name: str) -> None:
    model, draw = SkippingModel(fresh_tiny(name).double()), torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 2, 7, 32, generator=draw, dtype=torch.float64)
    attention, mlp = torch.randint(0, 2, (2, 2, 7), generator=draw).double()
    call, open_keys = block_call(model, 0, hidden), torch.ones(2, 7)

    def out(attention: Tensor, mlp: Tensor) -> Tensor:
        keys = AttentionGate(open_keys, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))
        return (gated_halves(model, 0, call, hidden, keys, attention, mlp) * weight).sum()

    gates = attention.requires_grad_(), mlp.requires_grad_()
    of_attention, of_mlp = torch.autograd.grad(out(*gates), gates)
    assert bool(of_attention.all()) and bool(of_mlp.all())
    for place in range(0, 14, 3):
        row, column = divmod(place, 7)

        def at(gate: Tensor, value: float, row: int = row, column: int = column) -> Tensor:
            changed = gate.detach().clone()
            changed[row, column] = value
            return changed

        # The MLP is not linear in what the attention adds: a step from where the gate is. Norms compute in float32.
        here = float(attention[row, column].detach())
        step = out(at(attention, here + 0.005), mlp) - out(at(attention, here - 0.005), mlp)
        torch.testing.assert_close(of_attention[row, column], step.detach() / 0.01, atol=1e-2, rtol=1e-2)
        whole = out(attention, at(mlp, 1.0)) - out(attention, at(mlp, 0.0))
        torch.testing.assert_close(of_mlp[row, column], whole.detach())


@pytest.mark.parametrize("name", ["llama", "gemma2", "stablelm", "gpt_neox", "gpt2", "mixtral"])
def test_recomputed_halves_give_the_same_gradients(name: str) -> None:
    model, batch = SkippingModel(tiny(name)), TrainingBatch.of(SOME)
    gradients = []
    for checkpointing in (False, True):
        router = for_halves(2)
        hidden, guide, sparsity = gated_forward(model, router, batch, SCHEDULE, gradient_checkpointing=checkpointing)
        (model.logits(hidden).square().mean() + guide + sparsity).backward()
        gradients.append([parameter.grad for parameter in router.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert bool(one.any())
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", each(ABLE))
def test_every_family_trains_halves_in_bfloat16(name: str) -> None:
    model, router = SkippingModel(tiny(name)), for_halves(1)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, guide, sparsity = gated_forward(model, router, TrainingBatch.of(SOME), SCHEDULE)
    (hidden.float().square().mean() + guide + sparsity).backward()
    gradients = [parameter.grad for parameter in router.parameters()]
    assert all(one is not None and bool(one.isfinite().all() and one.any()) for one in gradients)


@pytest.mark.parametrize(
    "given",
    [
        None,
        LocalRouter(3, 3, True),
        HiddenRouter(32, True),
        RecurrentRouter(3, True),
        OnePassRouter(32, 3, True),
        DynamicRouter(3),
    ],
)
def test_routers_are_distilled_for_halves(given: ScoringRouter | None) -> None:
    model, plain = SkippingModel(tiny()), SparsitySchedule([0.0, 0.5, 0.3])
    config = DistillationConfig(steps=4, batch_size=4, evaluate_every=2, lr=0.05)
    held_out = QualitySet(model, SOME[6:])
    result = distill(model, SOME[:6], [SCHEDULE, plain], config, router=given, held_out=held_out)
    assert all(math.isfinite(loss) for loss in result.curves["loss"]) and min(result.curves["distill"]) > 0
    kls = [held_out.evaluate(schedule, result.router).kl for schedule in (SCHEDULE, plain)]
    assert sum(kls) / 2 == pytest.approx(min(result.curves["held_out_kl"]), rel=1e-5)
    expected = FEATURES_OF_HALVES if given is None else getattr(given, "features", FEATURES)
    assert result.router.features == expected


def test_the_static_decisions_are_considered_for_halves_too() -> None:
    model, config = SkippingModel(tiny()), DistillationConfig(steps=2, batch_size=4, lr=0.0)
    held_out, given = QualitySet(model, SOME[6:]), for_halves(1)
    result = distill(model, SOME[:6], SCHEDULE, config, router=given, held_out=held_out)
    static = held_out.evaluate(SCHEDULE, StaticRouter()).kl
    assert result.curves["held_out_kl"][0] == pytest.approx(static, rel=1e-5)
    assert isinstance(result.router, DynamicRouter) and result.router.features == FEATURES_OF_HALVES


def test_blocks_with_other_parts_are_refused() -> None:
    model = SkippingModel(tiny("gemma4_text"))
    with pytest.raises(ModelError, match="skip as a whole only"):
        gated_forward(model, for_halves(), TrainingBatch.of(SOME), SCHEDULE)


@pytest.mark.parametrize("make", [lambda: for_halves(3), lambda: random_router(3, window=4)], ids=["halves", "blocks"])
def test_calibrated_thresholds_meet_the_schedule_in_every_half(make: Any) -> None:
    model, lengths = SkippingModel(tiny()), torch.tensor([40, 30, 20, 35])
    schedule = SparsitySchedule.of_halves([0.3, 0.0, 0.6], [0.3, 0.5, 0.2], [False, False, True])
    prompts = PromptBatch(torch.randint(3, 50, (4, 40), generator=torch.Generator().manual_seed(0)), lengths)
    router = calibrate_thresholds(model, make(), prompts, schedule)
    assert router.thresholds is not None and len(router.thresholds) == 6
    # Decided as a whole.
    assert router.thresholds[0] == router.thresholds[3]
    router.check_model(3, 32)
    seen: list[tuple[int, str, Tensor]] = []

    class Watching(RandomRouter):
        keeps_budget = False

        def keep(self, sparsity: float, state: RoutingState) -> Tensor:
            kept = router.keep(sparsity, state)
            seen.append((state.block, state.half, kept))
            return kept

    watching = Watching()
    watching.window = router.window
    model.prefill(prompts, schedule, watching)
    expected = {(0, "block"): 0.3, (1, "mlp"): 0.5, (2, "attention"): 0.6, (2, "mlp"): 0.2}
    assert [one[:2] for one in seen] == list(expected)
    for (_, _, kept), sparsity in zip(seen, expected.values(), strict=True):
        assert int(kept.sum()) == pytest.approx((1 - sparsity) * 125, abs=1.5)
