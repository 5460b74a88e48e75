"""Protected tokens at the beginning of prompts are kept by every router, within what the schedule lets a block keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftp_core.errors import CoreError, ModelError, ScheduleError
from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import (
    DynamicRouter,
    HiddenRouter,
    LocalRouter,
    OnePassRouter,
    RandomRouter,
    RecurrentRouter,
    Router,
    RoutingState,
    ScoringRouter,
    StaticRouter,
)
from ftp_core.schedule import SparsitySchedule, kept_count
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, EncodedExample, PromptBatch, answer_batch, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.model.test_causal_lm import MIXED, TOLERANCE, padded
from tests.ftp_core.slow_reference import slow_decoded_logits, slow_logits
from tests.ftp_core.tiny_models import N_BLOCKS, fresh_tiny, tiny

row_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=4)
sparsities = st.integers(1, 19).map(lambda level: level * 0.05)
numbers = st.integers(0, 35)
SOME = [EncodedExample(tuple(range(1 + i, 16 + i)), ((3, 4),), 0, False) for i in range(8)]


def state_of(lengths: Sequence[int], keep_first: int, seed: int = 0, left: bool = False) -> RoutingState:
    width, generator = max(lengths), torch.Generator().manual_seed(seed)
    columns = torch.arange(width)
    if left:
        state = RoutingState.start(columns >= width - torch.tensor(lengths)[:, None], keep_first)
    else:
        state = RoutingState.padded_right(torch.tensor(lengths), width, keep_first)
    state.observe(torch.randint(0, 5, state.real.shape, generator=generator).float(), state.real)
    state.hidden = torch.randn(*state.real.shape, 32, generator=generator)
    return state


def protected_places(length: int, sparsity: float, keep_first: int) -> list[int]:
    return list(range(length))[:keep_first][: kept_count(sparsity, length) - 1]


def statically_kept(length: int, sparsity: float, keep_first: int) -> list[int]:
    """One token after the other, in the order of their priority."""
    first = protected_places(length, sparsity, keep_first) or [0]
    priority = [*first, *(place for place in range(length - 1, -1, -1) if place not in first)]
    return sorted(priority[: kept_count(sparsity, length)])


def places(kept: Tensor, state: RoutingState, row: int) -> list[int]:
    """Positions of a row's kept tokens among its real ones."""
    assert not (kept[row] & ~state.real[row]).any()
    return state.positions[row][kept[row]].tolist()


class SlowStatic(StaticRouter):
    """The static router as sets of places; it knows by itself what to protect."""

    def __init__(self, keep_first: int) -> None:
        self._keep_first = keep_first

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        kept = torch.zeros_like(state.real)
        for row, length in enumerate(state.lengths.tolist()):
            own = torch.tensor(statically_kept(length, sparsity, self._keep_first))
            kept[row] = torch.isin(state.positions[row], own) & state.real[row]
        return kept


@given(lengths=row_lengths, sparsity=sparsities, keep_first=numbers, left=st.booleans())
def test_the_static_router_keeps_the_protected_tokens_then_the_last_ones_backwards(
    lengths: list[int], sparsity: float, keep_first: int, left: bool
) -> None:
    state = state_of(lengths, keep_first, left=left)
    kept = StaticRouter().keep(sparsity, state)
    for row, length in enumerate(lengths):
        assert places(kept, state, row) == statically_kept(length, sparsity, keep_first)


@given(lengths=row_lengths, sparsity=sparsities, keep_first=numbers, left=st.booleans(), seed=st.integers(0, 99))
def test_scored_tokens_are_kept_behind_the_protected_ones(
    lengths: list[int], sparsity: float, keep_first: int, left: bool, seed: int
) -> None:
    state = state_of(lengths, keep_first, seed, left)
    scores = torch.randint(0, 4, state.real.shape, generator=torch.Generator().manual_seed(seed)).float()
    kept = DynamicRouter().select(scores, sparsity, state)
    for row, length in enumerate(lengths):
        own = scores[row][state.real[row]].tolist()
        first = protected_places(length, sparsity, keep_first)
        others = sorted(range(len(first), length), key=lambda place: (-own[place], place))
        chosen = others[: kept_count(sparsity, length) - len(first)]
        assert places(kept, state, row) == sorted([*first, *chosen])
        # What decoded tokens are compared with is of those that were chosen by their scores.
        assert state.line is not None and float(state.line[row]) == min(own[place] for place in chosen)


@given(lengths=row_lengths, sparsity=sparsities, keep_first=numbers, left=st.booleans(), seed=st.integers(0, 99))
def test_thresholds_decide_on_what_is_not_protected(
    lengths: list[int], sparsity: float, keep_first: int, left: bool, seed: int
) -> None:
    state = state_of(lengths, keep_first, seed, left)
    scores = torch.randint(0, 4, state.real.shape, generator=torch.Generator().manual_seed(seed)).float()
    router = DynamicRouter()
    router.set_thresholds([2.0], SparsitySchedule([sparsity]))
    kept = router.select(scores, sparsity, state)
    for row, length in enumerate(lengths):
        own = scores[row][state.real[row]].tolist()
        above = [place for place in range(length) if own[place] > 2.0] or [own.index(max(own))]
        assert places(kept, state, row) == sorted({*above, *protected_places(length, sparsity, keep_first)})


def every_trainable_router() -> list[ScoringRouter]:
    torch.manual_seed(0)
    reading: list[ScoringRouter] = [HiddenRouter(32), OnePassRouter(32, 3)]
    return [DynamicRouter(window=5), LocalRouter(3, window=5), *reading, RecurrentRouter(window=5)]


@pytest.mark.parametrize("make", [StaticRouter, RandomRouter, *[lambda r=r: r for r in every_trainable_router()]])
@given(lengths=row_lengths, sparsity=sparsities, keep_first=numbers, left=st.booleans(), seed=st.integers(0, 99))
def test_every_router_keeps_what_is_protected_and_exactly_the_kept_count(
    make: Callable[[], Router], lengths: list[int], sparsity: float, keep_first: int, left: bool, seed: int
) -> None:
    state = state_of(lengths, keep_first, seed, left)
    kept = make().keep(sparsity, state)
    for row, length in enumerate(lengths):
        own = places(kept, state, row)
        assert len(own) == kept_count(sparsity, length)
        assert set(protected_places(length, sparsity, keep_first)) <= set(own)


prompts = st.lists(st.lists(st.integers(3, 49), min_size=1, max_size=16), min_size=1, max_size=3)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3_text", "gpt2"])
@settings(max_examples=20)
@given(
    rows=prompts,
    levels=st.lists(st.integers(0, 19), min_size=N_BLOCKS, max_size=N_BLOCKS),
    keep_first=st.integers(0, 12),
    side=st.sampled_from(["left", "right"]),
)
def test_a_pruned_model_computes_what_a_masked_full_computation_with_protected_tokens_does(
    name: str, rows: list[list[int]], levels: list[int], keep_first: int, side: str
) -> None:
    schedule = SparsitySchedule.from_grid_indices(levels)
    pruned = FTPForCausalLM.from_dense(tiny(name), schedule, keep_first=keep_first)
    batch = padded(rows, side)
    with torch.no_grad():
        logits = pruned(**batch).logits
    for row, ids in enumerate(rows):
        expected, _ = slow_logits(tiny(name), ids, [], schedule, SlowStatic(keep_first))
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(logits[row][real], expected, **TOLERANCE)


@pytest.mark.parametrize("keep_first", [1, 4, 9, 40])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3_text", "gpt2"])
def test_generation_with_a_cache_equals_recomputation_where_tokens_are_protected(name: str, keep_first: int) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(name), MIXED, keep_first=keep_first)
    rows = [list(range(3, 20)), [5, 9, 13, 17, 21], [7]]
    batch = padded(rows, "left")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    written = pruned.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)[:, -6:]
    for ids, new in zip(rows, written.tolist(), strict=True):
        expected, _ = slow_decoded_logits(tiny(name), [*ids, *new], len(ids), MIXED, SlowStatic(keep_first), 0.0)
        chosen = expected[:-1].gather(1, torch.tensor(new)[:, None])[:, 0]
        # Of two that are equally likely, either may be written.
        torch.testing.assert_close(chosen, _likeliest_but_padding(expected[:-1]), **TOLERANCE)


def _likeliest_but_padding(logits: Tensor) -> Tensor:
    # `min_new_tokens` rules out the token that ends a text.
    return logits.index_fill(1, torch.tensor([2]), -torch.inf).amax(1)


@pytest.mark.parametrize("router", [StaticRouter(), random_router(2, window=4)], ids=lambda router: router.kind)
@pytest.mark.parametrize("decode_sparsity", [0.0, 0.5])
def test_routed_generation_with_a_cache_equals_generation_without_one(router: Router, decode_sparsity: float) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED, router, decode_sparsity=decode_sparsity, keep_first=4)
    batch = padded([list(range(3, 20)), [5, 9, 13, 17, 21]], "left")
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": batch["attention_mask"]}
    cached = pruned.generate(batch["input_ids"], **options)
    assert torch.equal(cached, pruned.generate(batch["input_ids"], **options, use_cache=False))


@pytest.mark.parametrize("include_base", [True, False])
@pytest.mark.parametrize("router", [StaticRouter(), random_router(2, window=4)], ids=lambda router: router.kind)
def test_what_is_protected_is_saved_with_the_model(tmp_path: Path, router: Router, include_base: bool) -> None:
    dense = fresh_tiny()
    dense.save_pretrained(tmp_path / "dense")
    dense = type(dense).from_pretrained(tmp_path / "dense")
    pruned = FTPForCausalLM.from_dense(dense, MIXED, router, keep_first=5).eval()
    pruned.save_pretrained(tmp_path / "pruned", include_base=include_base)
    loaded = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    other = FTPForCausalLM.from_pretrained(tmp_path / "pruned", keep_first=9)
    assert (loaded.keep_first, other.keep_first) == (5, 9)
    batch = padded([list(range(3, 23)), list(range(9, 21))], "left")
    with torch.no_grad():
        before, after, with_more = (one(**batch).logits[:, -1] for one in (pruned, loaded, other))
        assert torch.equal(before, after) and not torch.equal(before, with_more)
        pruned.keep_first = 9
        assert torch.equal(pruned(**batch).logits[:, -1], with_more)
        pruned.keep_first = 5
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(pruned.generate(**batch, **options), loaded.generate(**batch, **options))


def test_a_model_that_was_saved_before_tokens_could_be_protected_protects_none(tmp_path: Path) -> None:
    FTPForCausalLM.from_dense(fresh_tiny(), MIXED).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["keep_first"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert FTPForCausalLM.from_pretrained(tmp_path).keep_first == 0


@pytest.mark.parametrize("keep_first", [-1, 1.0, True, "system", None])
def test_what_is_no_number_of_tokens_is_refused(tmp_path: Path, keep_first: Any) -> None:
    pruned = FTPForCausalLM.from_dense(tiny(), MIXED)
    attempts: list[Callable[[], Any]] = [
        lambda: SkippingModel(tiny(), keep_first),
        lambda: SkippingModel(tiny()).protecting(keep_first),
        lambda: FTPForCausalLM.from_dense(tiny(), MIXED, keep_first=keep_first),
        lambda: setattr(pruned, "keep_first", keep_first),
    ]
    for attempt in attempts:
        with pytest.raises(ScheduleError, match="must be a whole number from 0"):
            attempt()
    assert pruned.keep_first == pruned.config.keep_first == 0


def test_another_number_of_protected_tokens_leaves_the_model_as_it_was() -> None:
    model = SkippingModel(tiny())
    other = model.protecting(6)
    assert (model.keep_first, other.keep_first) == (0, 6) and other.model is model.model
    prompts, schedule = prompt_batch(SOME), SparsitySchedule([0.5, 0.0, 0.8])
    for one, keep_first in ((model, 0), (other, 6)):
        kept = one.prefill(prompts, schedule, StaticRouter()).kept
        for sparsity, own in zip(schedule, kept, strict=True):
            assert own[0].nonzero().flatten().tolist() == statically_kept(15, sparsity, keep_first)


def test_figures_are_of_what_their_model_protects() -> None:
    model = SkippingModel(tiny())
    schedule = [0.5, 0.5, 0.5]
    plain, protecting = QualitySet(model, SOME), QualitySet(model.protecting(6), SOME)
    assert plain.evaluate(schedule, StaticRouter()) != protecting.evaluate(schedule, StaticRouter())
    assert protecting.evaluate(schedule, StaticRouter()) == plain.evaluate(schedule, SlowStatic(6))
    with pytest.raises(ModelError, match="protects the first 6 tokens of prompts, but this one 0"):
        distill(model, SOME, schedule, DistillationConfig(steps=1), held_out=protecting)


@given(
    levels=st.lists(st.integers(0, 19), min_size=3, max_size=3), keep_first=st.integers(0, 20), seed=st.integers(0, 9)
)
@settings(max_examples=30)
def test_training_computes_what_skipping_with_protected_tokens_does(
    levels: list[int], keep_first: int, seed: int
) -> None:
    model, schedule = SkippingModel(tiny(), keep_first), SparsitySchedule.from_grid_indices(levels)
    router, answers = random_router(seed, window=3), answer_batch(SOME)
    with torch.no_grad():
        gated, _, _ = gated_forward(model, router, TrainingBatch.of(SOME), schedule)
        logits = model.continuation_logits(model.prefill(prompt_batch(SOME), schedule, router), answers)
    torch.testing.assert_close(model.logits(gated), logits[answers.ids != IGNORED], atol=1e-4, rtol=1e-3)


class _ScoresPositions(DynamicRouter):
    """Its scores are parameters, one for each position."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.by_position = torch.nn.Parameter(torch.randn(n_tokens, generator=torch.Generator().manual_seed(3)))

    def scores(self, sparsity: float, state: RoutingState) -> Tensor:
        return self.by_position[None].expand(state.real.shape[0], -1)


def test_a_router_learns_nothing_of_what_is_protected() -> None:
    sparsity, n_first = 0.4, 6
    examples = [EncodedExample(tuple(range(1, 21)), ((3,),), 0, False)]
    router = _ScoresPositions(21)
    model = SkippingModel(tiny(), keep_first=n_first)
    batch = TrainingBatch.of(examples)
    hidden, guide, sparsity_loss = gated_forward(model, router, batch, SparsitySchedule([0.0, sparsity, 0.0]))
    z = router.by_position.detach()[:20].double()
    p, static = z.sigmoid(), set(statically_kept(20, sparsity, n_first))
    terms = [-torch.log(p[j] if j in static else 1 - p[j]) for j in range(n_first, 20)]
    assert float(guide.detach()) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)
    skipped = float((1 - p[n_first:]).sum()) / 20
    assert float(sparsity_loss.detach()) == pytest.approx(max(0.0, sparsity - skipped) ** 2, rel=1e-4, abs=1e-9)
    (hidden.square().sum() + guide + sparsity_loss).backward()
    gradient = router.by_position.grad
    assert gradient is not None and bool(gradient.isfinite().all())
    assert not gradient[:n_first].any() and bool((gradient[n_first:20] != 0).all())


@pytest.mark.parametrize("router", every_trainable_router(), ids=lambda router: router.kind)
def test_every_trainable_router_learns_where_tokens_are_protected(router: ScoringRouter) -> None:
    model, schedule = SkippingModel(tiny(), keep_first=5), SparsitySchedule([0.5, 0.3, 0.9])
    found = distill(model, SOME, schedule, DistillationConfig(steps=2, batch_size=4, evaluate_every=1), router=router)
    prefill = model.prefill(prompt_batch(SOME), schedule, found.router)
    for sparsity, kept in zip(schedule, prefill.kept, strict=True):
        for row in kept:
            assert set(protected_places(15, sparsity, 5)) <= set(row.nonzero().flatten().tolist())
            assert int(row.sum()) == kept_count(sparsity, 15)


def test_a_pruned_model_is_distilled_for_with_what_it_protects() -> None:
    config = DistillationConfig(steps=1, batch_size=4)
    pruned = FTPForCausalLM.from_dense(fresh_tiny(), MIXED, keep_first=5)
    found = distill(pruned, SOME, MIXED, config)
    same = distill(SkippingModel(tiny(), keep_first=5), SOME, MIXED, config)
    other = distill(SkippingModel(tiny()), SOME, MIXED, config)
    assert found.curves == same.curves != other.curves


def test_a_training_does_not_go_on_with_other_protected_tokens(tmp_path: Path) -> None:
    config, checkpoint = DistillationConfig(steps=1, batch_size=4), tmp_path / "training.safetensors"
    distill(SkippingModel(tiny()), SOME, MIXED, config, checkpoint=checkpoint)
    with pytest.raises(CoreError):
        distill(SkippingModel(tiny(), keep_first=5), SOME, MIXED, config, checkpoint=checkpoint)


@pytest.mark.parametrize("keep_first", [0, 3, 10, 30])
def test_calibrated_thresholds_meet_the_schedule_with_protected_tokens(keep_first: int) -> None:
    model, schedule = SkippingModel(tiny(), keep_first), SparsitySchedule([0.3, 0.0, 0.6])
    lengths = torch.tensor([40, 30, 20, 35])
    prompts = PromptBatch(torch.randint(3, 50, (4, 40), generator=torch.Generator().manual_seed(0)), lengths)
    router = calibrate_thresholds(model, random_router(3, window=4), prompts, schedule)
    prefill = model.prefill(prompts, schedule, router)
    for sparsity, kept in zip(schedule, prefill.kept, strict=True):
        assert int(kept.sum()) == pytest.approx((1 - sparsity) * int(lengths.sum()), abs=1.5)
        for row, length in zip(kept, lengths.tolist(), strict=True):
            n_first = length if sparsity == 0 else len(protected_places(length, sparsity, keep_first))
            assert bool(row[:n_first].all())
