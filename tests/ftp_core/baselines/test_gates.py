"""Gates of blocks, or of their halves, that learn under one budget where tokens are skipped."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from ftp_core.baselines import Budget, ScheduledModel
from ftp_core.baselines.d_llm import DLLM, DecisionRouter
from ftp_core.baselines.fitting import prompt_batches
from ftp_core.baselines.gates import closed_shares
from ftp_core.baselines.mixture_of_depths import LinearRouter
from ftp_core.baselines.skipgpt import SkipGPT
from ftp_core.cost.memory import kv_bytes
from ftp_core.errors import ModelError
from ftp_core.routers import GateRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import ContinuationBatch, prompt_batch
from ftp_core.training.distillation import distill
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples
from tests.ftp_core.slow_reference import slow_logits

METHODS = pytest.mark.parametrize("method", [SkipGPT, DLLM])


@cache
def fitted(method: type[SkipGPT | DLLM]) -> ScheduledModel:
    config = DistillationConfig(steps=1, batch_size=4, evaluate_every=1)
    return method(config).fit(SkippingModel(deep_base()), examples(), Budget(0.3, 2, 40), seed=1)


@METHODS
def test_a_threshold_meets_the_budget_over_the_calibration_prompts_while_blocks_differ(
    method: type[SkipGPT | DLLM],
) -> None:
    pruned = fitted(method)
    assert isinstance(pruned.router, GateRouter) and pruned.entries is not None
    found = closed_shares(pruned.model, prompt_batches(pruned.model, examples()), pruned.schedule, pruned.router)
    assert found == pruned.entries(40)
    assert len({share for entry in found for share in (entry.attention, entry.mlp)}) > 3
    saved = 1 - pruned.flops(2, 40) / Budget(0.0, 2, 40).dense_flops(pruned.dense)
    assert saved == pytest.approx(0.3, abs=0.03)
    dense = kv_bytes(pruned.dense, SparsitySchedule.uniform(0.0, N_BLOCKS), 2, 40)
    assert pruned.kv_bytes(2, 40) == dense * sum(entry.n_keys(40) for entry in found) / (N_BLOCKS * 40)
    # Prompts of one length run different numbers of tokens.
    kept = pruned.prefill(prompt_batch([examples()[0], examples()[3]])).kept
    assert any(int(block[0].sum()) != int(block[1].sum()) for block in kept)


@METHODS
@torch.inference_mode()
def test_tokens_skip_and_are_attended_to_as_the_paper_says(method: type[SkipGPT | DLLM]) -> None:
    pruned, example = fitted(method), examples()[2]
    prefill, length = pruned.prefill(prompt_batch([example])), len(example.prompt)
    completion = list(example.continuations[0])
    slow, _ = slow_logits(
        pruned.model.model, list(example.prompt), completion, pruned.schedule, pruned.router, pruned.model.keep_first
    )
    behind = ContinuationBatch(torch.tensor([completion]), torch.zeros(1).long())
    found = pruned.model.logits(pruned.continuation_hidden(prefill, behind))[0]
    torch.testing.assert_close(found, slow[length - 1 : -1], atol=3e-4, rtol=1e-4)
    halves = list(zip(prefill.kept, prefill.kept_mlp, strict=True))
    if method is SkipGPT:
        assert any(not torch.equal(*half) for half in halves)
        assert prefill.cache.held() == (length,) * N_BLOCKS
        return
    assert all(torch.equal(*half) for half in halves) and all(bool(half[0].all()) for half in halves[:2])
    assert all(bool(half[0][:, :2].all()) for half in halves)
    assert prefill.cache.held() == tuple(int(half[0].sum()) for half in halves) != (length,) * N_BLOCKS


def test_the_budget_is_of_all_tokens_together_or_of_each_one() -> None:
    gates_MT = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], requires_grad=True)
    scorer = LinearRouter(2, 4)
    together, each = (GateRouter(scorer, 2, per_token).budget_loss(gates_MT, 0.25) for per_token in (False, True))
    assert together.item() == pytest.approx(0.75 - 0.5)
    assert each.item() == pytest.approx((0.25 + 0.75 + 0.25) / 3)
    [gradient] = torch.autograd.grad(together, gates_MT)
    assert bool((gradient < 0).all())
    [gradient] = torch.autograd.grad(each, gates_MT)
    assert gradient[0].sign().tolist() == [1, -1, -1]


def gates_of_halves() -> tuple[GateRouter, SparsitySchedule]:
    """A router with a gate for each half, and a schedule in which two fifths of them are to be closed."""
    scorer = LinearRouter(N_BLOCKS, 32, halves=True)
    return GateRouter(scorer, 2 * N_BLOCKS, per_token=False), SparsitySchedule.of_halves([0.4] * 6, [0.4] * 6, True)


def test_training_closes_gates_until_the_budget_is_met_and_the_last_router_counts() -> None:
    router, schedule = gates_of_halves()
    config = DistillationConfig(steps=8, batch_size=4, evaluate_every=8, lr=0.2, w_distill=0.0)
    trained = distill(SkippingModel(deep_base()), examples(), schedule, config, router=router)
    missing = trained.curves["sparsity"]
    assert sum(missing[-3:]) < 0.5 * sum(missing[:3])
    # Open gates as they were would have a lower KL.
    assert trained.curves["held_out_kl"][0] < trained.curves["held_out_kl"][1]
    assert isinstance(trained.router, GateRouter) and bool((trained.router.offsets < router.offsets).all())


def test_only_the_budget_closes_a_gate_whose_half_adds_nothing() -> None:
    model, (router, schedule) = SkippingModel(deep_base()), gates_of_halves()
    with torch.no_grad():
        model.blocks[1].self_attn.o_proj.weight.zero_()
        model.blocks[4].mlp.down_proj.weight.zero_()
    hidden_TD, _, budget = gated_forward(model, router.train(), TrainingBatch.of(examples()), schedule)
    [pull] = torch.autograd.grad(hidden_TD.square().sum(), router.offsets, retain_graph=True)
    assert pull.nonzero().flatten().tolist() == [gate for gate in range(12) if gate not in (1, 6 + 4)]
    [pull] = torch.autograd.grad(budget, router.offsets)
    assert bool((pull > 0).all())


def test_routers_for_another_model_are_refused() -> None:
    for scorer in (DecisionRouter(6, 32), LinearRouter(6, 32)):
        with pytest.raises(ModelError, match="made for 6 blocks of width 32, but the model has 6 of width 64"):
            GateRouter(scorer, 6, per_token=True).check_model(6, 64)
