"""Every other block keeps exactly as many tokens of each row as it has room for, by a linear score of its own."""

from __future__ import annotations

import pytest
import torch

from ftp_core.baselines import Budget
from ftp_core.baselines.mixture_of_depths import LinearRouter, MixtureOfDepths
from ftp_core.errors import ModelError
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import prompt_batch
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples


def test_each_row_keeps_exactly_k_and_those_whose_normed_states_score_highest() -> None:
    config = DistillationConfig(steps=3, batch_size=4, evaluate_every=3, w_sparsity=0.0)
    pruned = MixtureOfDepths(config).fit(SkippingModel(deep_base()), examples(), Budget(0.3, 2, 40), seed=1)
    assert [share > 0 for share in pruned.schedule] == [False, True] * (N_BLOCKS // 2)
    prompts = prompt_batch(examples())
    prefill = pruned.prefill(prompts)
    for row, length in enumerate(prompts.lengths.tolist()):
        assert [int(kept[row].sum()) for kept in prefill.kept] == list(pruned.schedule.kept_counts(length))
    before = []

    def note(_: int, call: BlockCall) -> torch.Tensor:
        before.append(call.hidden)
        return call.run(call.hidden)

    # The first block runs whole, so that the second sees what the dense model's does.
    pruned.model.run(note, prompts.ids, use_cache=False)
    assert isinstance(pruned.router, LinearRouter)
    weight = pruned.router.weight[1]
    for row, length in enumerate(prompts.lengths.tolist()):
        states = before[1][row, :length]
        scores = torch.stack([weight @ state / state.square().mean().add(1e-6).sqrt() for state in states])
        expected = scores.topk(pruned.schedule.kept_counts(length)[1]).indices.sort().values
        assert prefill.kept[1][row].nonzero().flatten().tolist() == expected.tolist()


def test_the_router_learns_and_nothing_else_does() -> None:
    model = SkippingModel(deep_base())
    first = LinearRouter(N_BLOCKS, 32, seed=1)
    config = DistillationConfig(steps=12, batch_size=4, evaluate_every=4, w_sparsity=0.0, lr=0.05)
    pruned = MixtureOfDepths(config).fit(model, examples(), Budget(0.3, 2, 40), seed=1)
    assert isinstance(pruned.router, LinearRouter)
    moved = (pruned.router.weight - first.weight).abs().sum(1) > 0
    assert moved.tolist() == [False, True] * (N_BLOCKS // 2)
    assert pruned.preparation.trained_parameters == N_BLOCKS * 32 and pruned.preparation.tokens > 0


def test_a_router_for_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="made for 6 blocks of width 32, but the model has 6 of width 64"):
        LinearRouter(6, 32).check_model(6, 64)
