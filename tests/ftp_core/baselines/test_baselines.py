"""Every method passes the checks that are shipped for those that others write, on models of two families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ftp_core.baselines import Baseline, Budget, ScheduledModel, baseline, baseline_names, register_baseline
from ftp_core.baselines.colt5 import CoLT5
from ftp_core.baselines.d_llm import DLLM
from ftp_core.baselines.mixture_of_depths import MixtureOfDepths
from ftp_core.baselines.sanity_rows import RandomButLast
from ftp_core.baselines.scored_prompt import ScoredPrompt
from ftp_core.baselines.shortened_prompt import ShortenedPrompt
from ftp_core.baselines.skipgpt import SkipGPT
from ftp_core.baselines.slicegpt import SliceGPT
from ftp_core.baselines.swiftkv_distilled import SwiftKVDistilled
from ftp_core.baselines.testing import (
    CHECKS,
    Subject,
    check_causality,
    check_dense,
    check_rows,
    check_savings,
    check_steps,
)
from ftp_core.cost.measure import Step, Unchanged
from ftp_core.errors import CoreError, DataError, ModelError, ScheduleError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.skipping.skipping_model import Prefill, SkippingModel
from ftp_core.text.encoding import ContinuationBatch, PromptBatch
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.baselines.slow_models import deep_base, examples
from tests.ftp_core.tiny_models import tiny

# Half of a step, in operations of the prefill; a block is a sixth of them here.
STEPS = {"shortgpt": 0.1, "blockpruner": 0.1, "laco": 0.2, "swiftkv": 0.1, "swiftkv_distilled": 0.1, "funnel": 0.07}
OTHERS = ("gpt_neox", pytest.param("gemma2", marks=pytest.mark.slow))
# The program's own settings would train for long, or take large steps in narrow models.
BRIEF = DistillationConfig(steps=2, batch_size=4, evaluate_every=2, w_sparsity=0.0)
QUICK: dict[str, Callable[[], Baseline]] = {
    # From the static router's decisions only large steps lead to others at once.
    "scored_prompt": lambda: ScoredPrompt(replace(BRIEF, lr=0.3)),
    "mixture_of_depths": lambda: MixtureOfDepths(BRIEF),
    "colt5": lambda: CoLT5(BRIEF, rank=3),
    "slicegpt": lambda: SliceGPT(multiple=1),
    "skipgpt": lambda: SkipGPT(BRIEF),
    "d_llm": lambda: DLLM(BRIEF),
    "swiftkv_distilled": lambda: SwiftKVDistilled(BRIEF),
}
# Where it depends on the prompt how many tokens run, operations are known on average.
DEPEND_ON_TEXT = ("early_exit", "skipgpt", "d_llm")
REFUSED = {
    ("llm_pruner", "gpt_neox"): "needs a family with those of Llama",
    ("slicegpt", "gpt_neox"): "needs a family with those of Llama",
    ("slicegpt", "gemma2"): "block 0 of this gemma2 model has others",
}


def deep(family: str = "llama") -> SkippingModel:
    return SkippingModel(deep_base(family))


@cache
def subject(name: str, family: str = "llama") -> Subject:
    return Subject(QUICK.get(name, partial(baseline, name)), deep(family), examples(), STEPS.get(name, 0.03))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", baseline_names())
def test_every_method_passes_the_shipped_checks(name: str, check: Callable[[Subject], None]) -> None:
    check(subject(name))


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("name", baseline_names())
def test_methods_pass_them_on_other_families_or_say_why_they_cannot(name: str, family: str) -> None:
    one = subject(name, family)
    if (name, family) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name, family]):
            one.fitted(0.2)
        return
    for check in (check_dense, check_savings, check_causality, check_rows, check_steps):
        check(one)


@pytest.mark.parametrize("name", [name for name in baseline_names() if name not in DEPEND_ON_TEXT])
def test_operations_are_counted_as_torch_counts_them_and_keys_are_those_in_the_cache(name: str) -> None:
    one = subject(name)
    pruned = one.fitted(0.45)
    step = pruned.step_of(one.model.model)
    # torch counts nothing for its fused attention on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        _, cache = step(torch.randint(3, 50, (2, 40), generator=torch.Generator().manual_seed(0)), None)
    # Rows of which other numbers of tokens skip both halves are filled up.
    fillers = 1e-3 if name == "colt5" else 1e-6
    assert counter.get_total_flops() == pytest.approx(pruned.flops(2, 40), rel=fillers)
    assert cache.kv_bytes() == pruned.kv_bytes(2, 40)


class Broken(ScheduledModel):
    """A shortened prompt that breaks one promise."""

    fault = ""

    def prefill(self, prompts: PromptBatch) -> Prefill:
        if self.fault == "rows":
            longest = int(prompts.lengths.max())
            prompts = PromptBatch(prompts.ids, torch.full_like(prompts.lengths, longest), None)
        return super().prefill(prompts)

    def continuation_hidden(self, prefill: Prefill, continuations: ContinuationBatch) -> Tensor:
        hidden_BCD = super().continuation_hidden(prefill, continuations)
        return hidden_BCD + hidden_BCD.mean(1, keepdim=True) if self.fault == "causality" else hidden_BCD

    def step_of(self, model: PreTrainedModel) -> Step:
        return Unchanged().step_of(model) if self.fault == "steps" else super().step_of(model)

    def flops(self, batch: int, length: int, new_tokens: int = 0) -> float:
        return super().flops(batch, length, new_tokens) / (2 if self.fault == "savings" else 1)


class Careless(ShortenedPrompt):
    """A method that all checks but one are content with."""

    name = "careless"

    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def fit(
        self, model: SkippingModel, calibration: Any, budget: Budget, seed: int = 0, on_step: Any = lambda share: None
    ) -> ScheduledModel:
        share = max(0.05, budget.share) if self._fault == "dense" else budget.share
        pruned = super().fit(model, calibration, Budget(share, budget.batch, budget.length), seed, on_step)
        router = RandomButLast(int(torch.randint(99, ())) if self._fault == "seed" else 0)
        broken = Broken(**{**vars(pruned), "router": router if self._fault == "seed" else pruned.router})
        vars(broken)["fault"] = self._fault
        if self._fault == "weights":
            with torch.no_grad():
                model.model.get_output_embeddings().weight.mul_(1.5)
        if self._fault == "description":
            vars(broken)["name"] = "another"
        return broken


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("description", "the model calls itself 'another'"),
        ("dense", "without anything to save, hidden states are others"),
        ("savings", "of operations were asked for, saved"),
        ("seed", "the same seed makes another model|the global generator of random numbers was used"),
        ("weights", "the dense model has changed"),
        ("causality", "what stands from place 0 on is seen"),
        ("rows", "row 0 alone differs from itself in a batch"),
        ("steps", "step 0 predicts otherwise than the evaluation"),
    ],
)
def test_the_checks_find_a_method_that_breaks_a_promise(fault: str, message: str) -> None:
    check = next(check for check in CHECKS if check.__name__ == f"check_{fault}")
    check(Subject(Careless, deep(), examples()))
    with pytest.raises(AssertionError, match=message):
        check(Subject(partial(Careless, fault), deep(), examples()))


def test_others_register_their_own_under_a_name_that_is_free() -> None:
    register_baseline("careless", Careless)
    assert isinstance(baseline("careless"), Careless) and "careless" in baseline_names()
    for name, match in (("shortgpt", "A method of the program"), ("a b", "cannot be called")):
        with pytest.raises(CoreError, match=match):
            register_baseline(name, Careless)
    register_baseline("other", Careless)
    with pytest.raises(CoreError, match="calls itself 'careless'"):
        baseline("other")
    with pytest.raises(CoreError, match=r"No method is called 'nobody': expected one of shortened_prompt, "):
        baseline("nobody")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_what_cannot_be_saved_is_refused(share: float) -> None:
    with pytest.raises(ScheduleError, match=r"must be in \[0, 1\)"):
        Budget(share)


def test_a_pruned_model_is_evaluated_as_its_schedule_and_router_are_item_by_item() -> None:
    one, items = subject("shortened_prompt"), QualitySet(deep(), examples(), 2)
    pruned = baseline("shortened_prompt").fit(items.model, examples(), Budget(0.2, 2, 40))
    expected = items.evaluate(pruned.schedule, StaticRouter(), choices=True, intervals=True, items=True)
    calls: list[None] = []
    assert items.evaluate_pruned(pruned, True, True, lambda: calls.append(None), True) == expected
    assert len(calls) == items.n_batches and expected.kl > 0
    other = SkippingModel(tiny("qwen3"))
    with pytest.raises(ModelError, match="answers of another model"):
        items.evaluate_pruned(baseline("shortened_prompt").fit(other, examples(), Budget(0.2)))
    with pytest.raises(ModelError, match="from another model than the one to be measured"):
        one.fitted(0.2).step_of(other.model)


def test_methods_that_look_at_examples_need_some() -> None:
    with pytest.raises(DataError, match="at least one"):
        baseline("shortgpt").fit(deep(), [], Budget(0.2))
