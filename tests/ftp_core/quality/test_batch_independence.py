"""No figure of a row depends on the rows that it shares a batch with, in any family."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from ftp_core.model.causal_lm import FTPForCausalLM
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import RandomRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, prompt_batch
from ftp_core.training.calibration import calibrate_thresholds
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from ftp_core.training.teacher import Teacher
from tests.ftp_core.made_up_routers import random_router
from tests.ftp_core.tiny_models import CONFIGS, LENGTH_DEPENDENT, N_BLOCKS, crossed, each, tiny

FAMILIES = [*CONFIGS, *LENGTH_DEPENDENT]
ROUTERS = ["static", "random", "budget", "threshold"]
DENSE = SparsitySchedule.uniform(0.0, N_BLOCKS)
MIXED = SparsitySchedule([0.3, 0.0, 0.6])
_GENERATOR = torch.Generator().manual_seed(5)


def _ids(length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 50, (length,), generator=_GENERATOR).tolist())


# Around the windows of 5 to 7 and what caches hold beyond them, and on both sides of 16 tokens.
LENGTHS = [(23, 3), (24, 3), (1, 2), (12, 5), (13, 4), (40, 1), (7, 1), (15, 2), (31, 6)]
PLAIN = [EncodedExample(_ids(prompt), (_ids(rest),), 0, False) for prompt, rest in LENGTHS]
# Choices of one item on both sides of 16 tokens.
CHOICES = [
    EncodedExample(_ids(n), (_ids(1), _ids(6), _ids(3)), n % 3, True, choice_lengths=(2, 9, 5))
    for n in (22, 14, 13, 30, 5)
]
EXAMPLES = [*PLAIN[:5], *CHOICES, *PLAIN[5:]]


@cache
def double(name: str) -> PreTrainedModel:
    model = copy.deepcopy(tiny(name)).double()
    # The kernel that runs all experts at once does not know this precision.
    model.set_experts_implementation("eager")
    return model


def router_of(kind: str, model: SkippingModel, schedule: SparsitySchedule) -> Router:
    if kind == "static":
        return StaticRouter()
    if kind == "random":
        return RandomRouter(3)
    router = random_router(1, window=3)
    if kind == "budget":
        return router
    return calibrate_thresholds(model, router, prompt_batch(EXAMPLES), schedule)


@torch.no_grad()
def alone(pruned: FTPForCausalLM, prompt: tuple[int, ...], continuation: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities that predict a continuation `[C, V]`, from one row that ends before its last token."""
    ids = torch.tensor([[*prompt, *continuation[:-1]]])
    logits = pruned(ids, prompt_length=len(prompt), use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.float().log_softmax(-1)


@cache
def dense_alone(name: str) -> list[torch.Tensor]:
    """Log-probabilities of the dense model for every example's answer, each `[C, V]`."""
    dense = FTPForCausalLM.from_dense(double(name), DENSE)
    return [alone(dense, one.prompt, one.continuations[one.answer]) for one in EXAMPLES]


def likelihood(log_probs_CV: torch.Tensor, continuation: tuple[int, ...]) -> float:
    return float(log_probs_CV.gather(-1, torch.tensor(continuation)[:, None]).sum())


def tolerance(name: str) -> float:
    # Gemma's and Cohere's own code and YaRN's scales round to float32, whatever the weights are.
    return 1e-5 if name.startswith(("gemma", "cohere")) or name.endswith("yarn") else 1e-6


@pytest.mark.parametrize(("name", "kind"), crossed(FAMILIES, ROUTERS))
def test_figures_are_those_of_each_row_alone(name: str, kind: str) -> None:
    model = double(name)
    skipping = SkippingModel(model)
    router = router_of(kind, skipping, MIXED)
    pruned = FTPForCausalLM.from_dense(model, MIXED, router)
    kl = nll = 0.0
    for one, expected in zip(EXAMPLES, dense_alone(name), strict=True):
        answer = one.continuations[one.answer]
        found = alone(pruned, one.prompt, answer)
        kl += float((expected.exp() * (expected - found)).sum())
        nll -= likelihood(found, answer)
    n_tokens = sum(len(one.continuations[one.answer]) for one in EXAMPLES)
    right, right_norm = [], []
    for one in CHOICES:
        totals = [likelihood(alone(pruned, one.prompt, choice), choice) for choice in one.continuations]
        shares = [total / length for total, length in zip(totals, one.choice_lengths, strict=True)]
        right.append(totals.index(max(totals)) == one.answer)
        right_norm.append(shares.index(max(shares)) == one.answer)
    order = torch.randperm(len(EXAMPLES), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = [EXAMPLES[place] for place in order]
    for batch_size, examples in ((2, shuffled), (7, EXAMPLES)):
        quality = QualitySet(skipping, examples, batch_size).evaluate(MIXED, router, choices=True)
        assert quality.kl == pytest.approx(kl / n_tokens, rel=tolerance(name))
        assert quality.perplexity == pytest.approx(math.exp(nll / n_tokens), rel=tolerance(name))
        assert quality.accuracy == pytest.approx(sum(right) / len(right))
        assert quality.accuracy_norm == pytest.approx(sum(right_norm) / len(right_norm))


@pytest.mark.parametrize("name", each(FAMILIES))
def test_perplexity_of_the_dense_schedule_is_that_of_transformers(name: str) -> None:
    model = double(name)
    nll, n_tokens = 0.0, 0
    with torch.no_grad():
        for one in PLAIN:
            ids = torch.tensor([[*one.prompt, *one.continuations[0]]])
            logits = model(ids[:, :-1]).logits[0, len(one.prompt) - 1 :].float()
            nll += float(torch.nn.functional.cross_entropy(logits, ids[0, len(one.prompt) :], reduction="sum"))
            n_tokens += len(one.continuations[0])
    for batch_size in (1, 7):
        found = QualitySet(SkippingModel(model), PLAIN, batch_size).evaluate(DENSE, StaticRouter())
        assert found.perplexity == pytest.approx(math.exp(nll / n_tokens), rel=tolerance(name))


@pytest.mark.parametrize("name", each(FAMILIES))
def test_a_teacher_and_its_pupil_take_each_row_as_if_it_were_alone(name: str) -> None:
    model = SkippingModel(double(name))
    teacher, router = Teacher(model, DistillationConfig()), random_router(1, window=3)
    examples = [*PLAIN, *CHOICES]
    hidden = [teacher.hidden([one]) for one in examples]
    torch.testing.assert_close(teacher.hidden(examples), torch.cat(hidden), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        alone = [gated_forward(model, router, TrainingBatch.of([one]), MIXED)[0] for one in examples]
        together = gated_forward(model, router, TrainingBatch.of(examples), MIXED)[0]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", each(FAMILIES))
def test_a_pupil_that_keeps_all_says_what_its_teacher_says(name: str) -> None:
    model = SkippingModel(double(name))
    examples = [*PLAIN, *CHOICES]
    with torch.no_grad():
        hidden = gated_forward(model, random_router(), TrainingBatch.of(examples), DENSE)[0]
    expected = Teacher(model, DistillationConfig()).hidden(examples)
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
