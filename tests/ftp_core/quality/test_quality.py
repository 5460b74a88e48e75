"""Quality figures are what they say: KL and accuracy agree with plain transformers, and nothing bad is hidden."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ftp_core.errors import DataError, ModelError, ScheduleError
from ftp_core.loading.identity import model_identity
from ftp_core.quality.intervals import bootstrap_interval, wilson_interval
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import HiddenRouter, LocalRouter, OnePassRouter, Router, RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.skipping.test_skipping import tiny

DENSE = SparsitySchedule.uniform(0.0, 3)
PLAIN = [EncodedExample(tuple(range(1, 8 + i)), ((9, 8, 7 - i),), 0, False) for i in range(3)]
CHOICES = [
    EncodedExample(tuple(range(2 + i, 12 + 2 * i)), ((5, 6), (7,), (8 + i, 9, 10), (11 + i,)), i % 4, True)
    for i in range(9)
]


@torch.no_grad()
def log_likelihood(model: LlamaForCausalLM, prompt: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    """Of one continuation, by the plain model on one row."""
    ids = torch.tensor([prompt + continuation])
    log_probs = model(ids).logits[0].log_softmax(-1)
    return sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation))


def test_the_dense_model_differs_from_itself_by_nothing() -> None:
    quality = QualitySet(SkippingModel(tiny()), PLAIN + CHOICES).evaluate(DENSE, StaticRouter(), choices=True)
    assert quality.kl == 0.0


def test_accuracy_is_that_of_the_likeliest_choice_among_the_items_that_have_some() -> None:
    model = tiny()
    quality = QualitySet(SkippingModel(model), PLAIN + CHOICES, batch_size=5).evaluate(
        DENSE, StaticRouter(), choices=True
    )
    right = 0
    for item in CHOICES:
        totals = [log_likelihood(model, item.prompt, choice) for choice in item.continuations]
        right += totals.index(max(totals)) == item.answer
    assert (quality.n_items, quality.n_choice_items) == (12, 9)
    assert quality.accuracy == pytest.approx(right / 9)
    assert quality.accuracy_interval == wilson_interval(right, 9)


def test_perplexity_is_that_of_the_plain_model() -> None:
    model = tiny()
    quality = QualitySet(SkippingModel(model), PLAIN).evaluate(DENSE, StaticRouter())
    total = sum(log_likelihood(model, item.prompt, item.continuations[0]) for item in PLAIN)
    assert quality.n_tokens == 9 and quality.accuracy is None and quality.n_choice_items == 0
    assert quality.perplexity == pytest.approx(math.exp(-total / 9), rel=1e-4)


def test_figures_that_are_not_numbers_are_not_hidden() -> None:
    model = tiny()
    examples = QualitySet(SkippingModel(model), PLAIN)
    model.model.layers[1].mlp.down_proj.weight.data.fill_(math.nan)
    quality = examples.evaluate(SparsitySchedule.uniform(0.5, 3), StaticRouter())
    assert math.isnan(quality.kl) and math.isnan(quality.perplexity)


def test_wilson_interval_has_width_at_the_ends() -> None:
    assert wilson_interval(0, 20)[0] == 0.0 and wilson_interval(0, 20)[1] > 0.1
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


HALF = SparsitySchedule.uniform(0.5, 3)
# Lengths in characters that turn some decisions round.
LENGTHS = [replace(item, choice_lengths=(1, 9, 4, 2 + i)) for i, item in enumerate(CHOICES)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_normalised_accuracy_is_that_of_the_highest_likelihood_per_character(batch_size: int) -> None:
    model = tiny()
    quality = QualitySet(SkippingModel(model), PLAIN + LENGTHS, batch_size).evaluate(
        DENSE, StaticRouter(), choices=True
    )
    plain, normalised = [], []
    for item in LENGTHS:
        totals = [log_likelihood(model, item.prompt, choice) for choice in item.continuations]
        shares = [total / length for total, length in zip(totals, item.choice_lengths, strict=True)]
        plain.append(totals.index(max(totals)) == item.answer)
        normalised.append(shares.index(max(shares)) == item.answer)
    assert plain != normalised
    assert quality.accuracy == pytest.approx(sum(plain) / 9)
    assert quality.accuracy_norm == pytest.approx(sum(normalised) / 9)
    assert quality.accuracy_norm_interval == wilson_interval(sum(normalised), 9)


def test_without_characters_a_choice_is_as_long_as_its_tokens() -> None:
    model = SkippingModel(tiny())
    counted = [replace(item, choice_lengths=tuple(map(len, item.continuations))) for item in CHOICES]
    one, two = (QualitySet(model, items).evaluate(DENSE, StaticRouter(), choices=True) for items in (CHOICES, counted))
    assert one == two


class Watched(StaticRouter):
    """Decides as the static router, and writes down what it saw and decided."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], list[list[bool]]]] = []

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        keep = super().keep(sparsity, state)
        self.seen.append((state.row_lengths, keep.tolist()))
        return keep


def test_choices_have_no_say_in_the_routing_of_their_prompt() -> None:
    model, (item, *_) = SkippingModel(tiny()), CHOICES
    right = item.continuations[item.answer]
    seen, kls = [], []
    for others in [((7,),), ((11, 12, 13, 14, 15, 16), (3,), (9, 9)), ((9,), right)]:
        examples = QualitySet(model, [replace(item, continuations=(right, *others), answer=0)])
        router = Watched()
        kls.append(examples.evaluate(HALF, router, choices=True).kl)
        seen.append(router.seen)
    # Once per block: all choices continue one pass of the prompt, and nothing but the prompt is there to be seen.
    assert len(seen[0]) == 3
    assert all(lengths == (len(item.prompt),) for lengths, _ in seen[0])
    assert seen[0] == seen[1] == seen[2]
    assert kls[0] == kls[1] == kls[2] > 0


def test_a_choice_is_as_likely_among_others_as_alone() -> None:
    # A learned router listens to attention, so that choices would show if they were in the pass of the prompt.
    model, router = SkippingModel(tiny()), random_router(2, window=3)
    for item in CHOICES:
        likelihoods = [
            -math.log(
                QualitySet(model, [EncodedExample(item.prompt, (ids,), 0, False)]).evaluate(HALF, router).perplexity
            )
            * len(ids)
            for ids in item.continuations
        ]
        quality = QualitySet(model, [item]).evaluate(HALF, router, choices=True)
        assert quality.accuracy == (likelihoods.index(max(likelihoods)) == item.answer)


@pytest.mark.parametrize("numbers_at_once", [1, 50, 170])
def test_figures_do_not_depend_on_how_many_logits_are_computed_at_a_time(
    numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, router = SkippingModel(tiny()), random_router(1, window=3)
    expected = QualitySet(model, PLAIN + LENGTHS).evaluate(HALF, router, choices=True, intervals=True)
    monkeypatch.setattr("ftp_core.skipping.head._NUMBERS_AT_ONCE", numbers_at_once)
    found = QualitySet(model, PLAIN + LENGTHS).evaluate(HALF, router, choices=True, intervals=True)
    assert found.kl == pytest.approx(expected.kl, rel=1e-4) and expected.kl > 0
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    assert found.kl_interval == pytest.approx(expected.kl_interval, rel=1e-4)
    assert (found.accuracy, found.accuracy_norm) == (expected.accuracy, expected.accuracy_norm)


def sums_and_counts(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(1, 9, (n,), generator=generator)
    return torch.rand(n, generator=generator) * counts, counts


def test_a_bootstrap_interval_holds_the_mean_is_repeatable_and_narrows_with_examples() -> None:
    widths = []
    for n in (20, 80, 320, 1280):
        sums, counts = sums_and_counts(n)
        low, high = bootstrap_interval(sums, counts)
        assert low < float(sums.sum() / counts.sum()) < high
        assert bootstrap_interval(sums, counts) == (low, high) != bootstrap_interval(sums, counts, seed=1)
        widths.append(high - low)
    # Four times the examples, about half the width.
    assert [wide / narrow for wide, narrow in pairwise(widths)] == pytest.approx([2.0] * 3, rel=0.35)


def test_a_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        # Skewed, as KL is; one token each, so that the true mean is 1.
        sums = torch.empty(100).exponential_(generator=generator)
        low, high = bootstrap_interval(sums, torch.ones(100), resamples=300)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_examples_have_a_bootstrap_interval_without_width() -> None:
    assert bootstrap_interval(torch.full((30,), 3.0), torch.full((30,), 4)) == (0.75, 0.75)


@pytest.mark.parametrize("at_once", [1, 50 * 7, 50 * 1000])
def test_a_bootstrap_interval_is_the_same_however_many_resamples_are_drawn_at_a_time(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums, counts = sums_and_counts(50)
    expected = bootstrap_interval(sums, counts)
    monkeypatch.setattr("ftp_core.quality.intervals._DRAWN_AT_ONCE", at_once)
    sizes: list[int] = []
    draw = torch.randint
    monkeypatch.setattr(
        torch, "randint", lambda high, size, **kwargs: sizes.append(math.prod(size)) or draw(high, size, **kwargs)
    )
    assert bootstrap_interval(sums, counts) == expected
    assert max(sizes) <= max(50, at_once) and sum(sizes) == 50 * 1000


def test_intervals_of_kl_and_perplexity_are_those_of_their_tokens_drawn_by_example() -> None:
    model, router = SkippingModel(tiny()), StaticRouter()
    items = [EncodedExample(tuple(range(1 + i, 12 + i)), ((9, 8, 7 + i)[: 1 + i % 3],), 0, False) for i in range(12)]
    quality = QualitySet(model, items, batch_size=12).evaluate(HALF, router, intervals=True)
    alone = [QualitySet(model, [item]).evaluate(HALF, router) for item in items]
    counts = torch.tensor([one.n_tokens for one in alone])
    kls = torch.tensor([one.kl * one.n_tokens for one in alone])
    nlls = torch.tensor([math.log(one.perplexity) * one.n_tokens for one in alone])
    assert quality.kl_interval == pytest.approx(bootstrap_interval(kls, counts), rel=1e-3)
    assert quality.perplexity_interval == pytest.approx(
        tuple(math.exp(end) for end in bootstrap_interval(nlls, counts)), rel=1e-3
    )
    assert quality.kl_interval is not None and quality.perplexity_interval is not None
    assert quality.kl_interval[0] < quality.kl < quality.kl_interval[1]
    assert quality.perplexity_interval[0] < quality.perplexity < quality.perplexity_interval[1]


def test_intervals_are_drawn_only_if_asked_for() -> None:
    quality = QualitySet(SkippingModel(tiny()), PLAIN).evaluate(HALF, StaticRouter())
    assert quality.kl_interval is None and quality.perplexity_interval is None


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_items_have_their_own_figures_in_the_order_in_which_they_were_given(batch_size: int) -> None:
    model, router = SkippingModel(tiny()), random_router(2, window=3)
    # Neither sorted by length nor all with choices, so that batches turn them round and mix them.
    mixed = [*CHOICES[4:], PLAIN[2], *CHOICES[:4], PLAIN[0], PLAIN[1]]
    found = QualitySet(model, mixed, batch_size).per_item(HALF, router)
    for item, example in zip(found, mixed, strict=True):
        alone = QualitySet(model, [example]).evaluate(HALF, router, choices=True)
        assert item.kl == pytest.approx(alone.kl, rel=1e-3)
        if example.has_choices:
            assert item.choice is not None and item.right == (item.choice == example.answer) == alone.accuracy
        else:
            assert (item.choice, item.right) == (None, None)


def test_the_items_make_up_the_whole() -> None:
    model = SkippingModel(tiny())
    examples = QualitySet(model, PLAIN + CHOICES, batch_size=5)
    whole, items = examples.evaluate(HALF, StaticRouter(), choices=True), examples.per_item(HALF, StaticRouter())
    assert examples.evaluate(HALF, StaticRouter(), choices=True, items=True).items == tuple(items) and not whole.items
    n_tokens = [len(example.continuations[example.answer]) for example in PLAIN + CHOICES]
    assert sum(item.kl * n for item, n in zip(items, n_tokens, strict=True)) / sum(n_tokens) == pytest.approx(whole.kl)
    right = [item.right for item in items if item.right is not None]
    assert whole.accuracy == pytest.approx(sum(right) / len(right))
    assert [item.kl for item in examples.per_item(DENSE, StaticRouter())] == [0.0] * 12
    # What is shared with other schedules changes nothing, nor does it what choices are not asked for.
    store = PrefixStore(2**24)
    for _ in range(2):
        alone = examples.per_item(HALF, StaticRouter(), choices=False, prefixes=store)
        assert alone == [replace(item, choice=None, right=None) for item in items]


def test_items_without_their_choices_have_the_same_kl_also_where_work_is_shared() -> None:
    examples = QualitySet(SkippingModel(tiny()), PLAIN + CHOICES, batch_size=5)
    whole, store, router = examples.per_item(HALF, StaticRouter()), PrefixStore(2**30), StaticRouter()
    for _ in range(2):
        found = examples.per_item(HALF, router, choices=False, prefixes=store)
        assert [item.kl for item in found] == [item.kl for item in whole]
        assert {(item.choice, item.right) for item in found} == {(None, None)}
    assert store.blocks_reused > 0


def test_figures_are_the_same_if_schedules_share_their_work() -> None:
    model, router, store = SkippingModel(tiny()), random_router(1, window=3), PrefixStore(2**30)
    examples = QualitySet(model, PLAIN + CHOICES, batch_size=5)
    schedules = [SparsitySchedule(values) for values in ([0.5, 0.5, 0.5], [0.5, 0.5, 0.2], [0.5, 0.1, 0.2])]
    for schedule in schedules:
        expected = examples.evaluate(schedule, router, choices=True, intervals=True)
        assert examples.evaluate(schedule, router, choices=True, intervals=True, prefixes=store) == expected
    assert (store.blocks_run, store.blocks_reused) == (12 * (3 + 1 + 2), 12 * (0 + 2 + 1))


def test_a_set_is_named_by_its_examples() -> None:
    model = SkippingModel(tiny())
    assert QualitySet(model, PLAIN).fingerprint == QualitySet(model, PLAIN, batch_size=1).fingerprint
    assert QualitySet(model, PLAIN).fingerprint != QualitySet(model, PLAIN[:2]).fingerprint


def test_a_set_without_examples_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one example"):
        QualitySet(SkippingModel(tiny()), [])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([*PLAIN, EncodedExample((1, 50), ((2,),), 0, False)], "Example 4 has the token 50, but the model knows 50"),
        ([EncodedExample((1,), ((2,), (3, 99)), 0, True)], "Example 1 has the token 99"),
        ([EncodedExample((1,) * 120, ((2,) * 9,), 0, False)], "Example 1 is 129 tokens long, but the model reads 128"),
        (["a story"], "Example 1 is of type str, but must be an EncodedExample"),
    ],
)
def test_examples_that_the_model_cannot_read_are_errors_before_anything_is_computed(
    examples: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SkippingModel(tiny())
    monkeypatch.setattr(model, "prefill", None)
    with pytest.raises(DataError, match=message):
        QualitySet(model, examples)


def test_a_set_needs_a_model_that_skips_and_a_batch_with_prompts() -> None:
    with pytest.raises(ModelError, match=r"A LlamaForCausalLM was given .* make one with ftp_core.SkippingModel"):
        QualitySet(tiny(), PLAIN)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch_size is 0, but must be at least 1"):
        QualitySet(SkippingModel(tiny()), PLAIN, batch_size=0)


def test_a_set_knows_its_model_wherever_that_was_loaded_and_no_other() -> None:
    model = SkippingModel(tiny())
    examples = QualitySet(model, PLAIN)
    assert examples.model is model and examples.model_identity == model_identity(model.model)
    for same in (model, SkippingModel(model.model), SkippingModel(tiny())):
        examples.check_model(same)
    scaled = tiny()
    scaled.lm_head.weight.data.mul_(2)
    for other in (tiny("qwen3"), scaled):
        with pytest.raises(
            ModelError, match=f"{examples.model_identity}. than this one .{model_identity(other)}.: make a QualitySet"
        ):
            examples.check_model(SkippingModel(other))


def router_of_another_model() -> Router:
    router = random_router(1)
    router.trained_for = "another"
    return router


def router_with_thresholds() -> Router:
    router = random_router(1)
    router.set_thresholds([0.0, 0.0, 0.0], SparsitySchedule([0.1, 0.1, 0.1]))
    return router


@pytest.mark.parametrize(
    ("schedule", "router", "error", "message"),
    [
        ([0.1, 0.1], StaticRouter(), ScheduleError, "2 sparsities, but the model has 3 blocks"),
        ([0.1, 0.96, 0.1], StaticRouter(), ScheduleError, "Sparsity 0.96 of block 1 is outside"),
        ([0.1, "half", 0.1], StaticRouter(), ScheduleError, "Sparsity 'half' of block 1 is not a number"),
        ("0.1", StaticRouter(), ScheduleError, "one sparsity per block, but '0.1' was given"),
        (HALF, router_of_another_model(), ModelError, "trained for another model .identity another. than the one"),
        (HALF, LocalRouter(2), ModelError, "2 blocks, but the model has 3"),
        (HALF, HiddenRouter(16), ModelError, "width 16, but"),
        (HALF, OnePassRouter(32, 2), ModelError, "2 blocks and states of width 32, but"),
        (HALF, router_with_thresholds(), ModelError, "calibrated for the schedule 0.10 0.10 0.10"),
    ],
)
def test_schedules_and_routers_of_other_models_are_refused(
    schedule: Any, router: Router, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        QualitySet(SkippingModel(tiny()), PLAIN).evaluate(schedule, router)


def test_a_router_that_was_trained_for_the_model_is_taken_and_so_is_a_plain_list() -> None:
    model, router = tiny(), random_router(1)
    examples = QualitySet(SkippingModel(model), PLAIN)
    expected = examples.evaluate(HALF, router)
    router.trained_for = model_identity(model)
    assert examples.evaluate(list(HALF), router, prefixes=PrefixStore(2**20)) == expected
