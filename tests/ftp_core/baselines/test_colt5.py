"""Routed tokens run the heavy halves, and low-rank maps stand in for them for all others."""

from __future__ import annotations

import torch

from ftp_core.baselines import Budget
from ftp_core.baselines.colt5 import CoLT5
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import substitutes_of
from ftp_core.text.encoding import ContinuationBatch, prompt_batch
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples
from tests.ftp_core.slow_reference import slow_logits

BRIEF = DistillationConfig(steps=3, batch_size=4, evaluate_every=3, w_sparsity=0.0)


@torch.inference_mode()
def test_each_half_keeps_exactly_k_and_the_others_take_the_light_path() -> None:
    model, example = SkippingModel(deep_base()), examples()[2]
    pruned = CoLT5(BRIEF, rank=3).fit(model, examples(), Budget(0.4, 2, 40), seed=1)
    prompts = prompt_batch([example])
    prefill = pruned.prefill(prompts)
    for kept in (prefill.kept, prefill.kept_mlp):
        assert [int(block.sum()) for block in kept] == list(pruned.schedule.kept_counts(len(example.prompt)))
    assert any(not torch.equal(*halves) for halves in zip(prefill.kept, prefill.kept_mlp, strict=True))
    completion = list(example.continuations[0])
    slow, _ = slow_logits(pruned.model.model, list(example.prompt), completion, pruned.schedule, pruned.router)
    behind = ContinuationBatch(torch.tensor([completion]), torch.zeros(1).long())
    found = pruned.model.logits(pruned.continuation_hidden(prefill, behind))[0]
    torch.testing.assert_close(found, slow[len(example.prompt) - 1 : -1], atol=3e-4, rtol=1e-4)


def test_the_light_path_belongs_to_the_pruned_model_alone_and_is_counted() -> None:
    model = SkippingModel(deep_base())
    pruned = CoLT5(BRIEF, rank=3).fit(model, examples(), Budget(0.4, 2, 40))
    maps = substitutes_of(pruned.model.model)
    assert maps is not None and substitutes_of(model.model) is None
    n_maps, n_router = sum(one.numel() for one in maps.parameters()), 2 * N_BLOCKS * 32
    assert pruned.preparation.trained_parameters == n_maps + n_router
    dense = sum(parameter.numel() for parameter in model.model.parameters())
    assert pruned.n_parameters == dense + n_maps + n_router
