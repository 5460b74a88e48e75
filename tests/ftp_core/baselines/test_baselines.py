"""Every method passes the checks that are shipped for those that others write, on models of two families."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ftp_core.baselines import Budget, baseline, baseline_names, register_baseline
from ftp_core.baselines.mixture_of_depths import MixtureOfDepths
from ftp_core.baselines.shortened_prompt import ShortenedPrompt
from ftp_core.baselines.testing import CHECKS, Subject
from ftp_core.errors import CoreError, DataError, ModelError, ScheduleError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.baselines.slow_models import deep_base, examples
from tests.ftp_core.tiny_models import tiny

# Half of a step, in operations of the prefill; a block is a sixth of them here.
STEPS = {"shortgpt": 0.1, "blockpruner": 0.1, "laco": 0.2, "swiftkv": 0.1}
OTHERS = ("gpt_neox", "gemma2")
# The program's own settings would train for long.
BRIEF = DistillationConfig(steps=2, batch_size=4, evaluate_every=2, w_sparsity=0.0)
QUICK = {"mixture_of_depths": lambda: MixtureOfDepths(BRIEF)}
# Where it depends on the prompt how many tokens run, operations are known on average.
DEPEND_ON_TEXT = ("early_exit",)
REFUSED = {("llm_pruner", "gpt_neox"): "needs a family with those of Llama"}


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
    for check in CHECKS:
        check(one)


@pytest.mark.parametrize("name", [name for name in baseline_names() if name not in DEPEND_ON_TEXT])
def test_operations_are_counted_as_torch_counts_them_and_keys_are_those_in_the_cache(name: str) -> None:
    one = subject(name)
    pruned = one.fitted(0.45)
    step = pruned.step_of(one.model.model)
    # torch counts nothing for its fused attention on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        _, cache = step(torch.randint(3, 50, (2, 40), generator=torch.Generator().manual_seed(0)), None)
    assert counter.get_total_flops() == pytest.approx(pruned.flops(2, 40), rel=1e-6)
    assert cache.kv_bytes() == pruned.kv_bytes(2, 40)


class Careless(ShortenedPrompt):
    """A method that every check but one is content with."""

    name = "careless"

    def fit(self, model: SkippingModel, *rest: Any, **options: Any) -> Any:
        pruned = super().fit(model, *rest, **options)
        with torch.no_grad():
            model.model.get_output_embeddings().weight.mul_(1.5)
        return pruned


def test_the_checks_find_a_method_that_changes_the_dense_model() -> None:
    with pytest.raises(AssertionError, match="the dense model has changed"):
        CHECKS[4](Subject(Careless, deep(), examples()))


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
