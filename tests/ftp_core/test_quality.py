"""Quality figures are what they say: KL and accuracy agree with plain transformers, and nothing bad is hidden."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaForCausalLM

from ftp_core.encoding import EncodedExample
from ftp_core.quality import QualitySet, _divergence, wilson_interval
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel
from tests.ftp_core.test_skipping import tiny

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


def test_tokens_that_both_models_rule_out_add_nothing_to_the_divergence() -> None:
    dense = torch.tensor([[0.5, 0.5, 0.0]]).log()
    pruned = torch.tensor([[0.25, 0.75, 0.0]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert float(_divergence(pruned, dense)) == pytest.approx(expected)


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
