"""Heads and channels go with all their weights, the least important ones first."""

from __future__ import annotations

import pytest
import torch

from ftp_core.baselines import Budget
from ftp_core.baselines.fitting import Effort
from ftp_core.baselines.llm_pruner import Importance, LLMPruner, importances, prunable_blocks
from ftp_core.errors import ModelError
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.baselines.slow_models import deep_base, examples, slow_nll, texts
from tests.ftp_core.tiny_models import fresh_tiny

HEAD, GROUPS, QUERIES = 8, 2, 4


def slow_importances(index: int) -> tuple[list[float], list[float]]:
    """Sums of |w dL/dw| over the weights of each structure, gradients by backward, weights one slice at a time."""
    base = deep_base()
    (slow_nll(base, examples()) / sum(len(text) - 1 for text in texts(examples()))).backward()
    attention, mlp = base.model.layers[index].self_attn, base.model.layers[index].mlp
    salience = {
        name: (layer.weight * layer.weight.grad).abs().detach()
        for half in (attention, mlp)
        for name, layer in half.named_children()
        if isinstance(layer, torch.nn.Linear)
    }
    groups = []
    for group in range(GROUPS):
        keys = slice(group * HEAD, (group + 1) * HEAD)
        queries = slice(group * HEAD * QUERIES // GROUPS, (group + 1) * HEAD * QUERIES // GROUPS)
        of = (salience["q_proj"][queries], salience["k_proj"][keys], salience["v_proj"][keys])
        groups.append(float(sum(part.sum() for part in (*of, salience["o_proj"][:, queries]))))
    channels = [
        float(salience["gate_proj"][row].sum() + salience["up_proj"][row].sum() + salience["down_proj"][:, row].sum())
        for row in range(len(salience["gate_proj"]))
    ]
    return groups, channels


def test_importance_is_the_first_order_change_of_the_loss_summed_over_all_weights_of_a_structure() -> None:
    model = SkippingModel(deep_base())
    found = importances(model, examples(), [2], Effort(model))[2]
    groups, channels = slow_importances(2)
    torch.testing.assert_close(found.groups, torch.tensor(groups), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.channels, torch.tensor(channels), rtol=1e-3, atol=1e-6)
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert all(weight.grad is None for weight in model.model.parameters())


def test_the_least_important_ones_go_and_one_of_each_stays() -> None:
    importance = Importance(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([4.0, 1.0, 3.0, 2.0]))
    assert [kept.tolist() for kept in importance.kept(0.0, 0.0)] == [[0, 1, 2], [0, 1, 2, 3]]
    assert [kept.tolist() for kept in importance.kept(0.5, 0.25)] == [[0], [0, 2, 3]]
    assert [kept.tolist() for kept in importance.kept(0.99, 0.99)] == [[0], [0]]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@torch.inference_mode()
def test_a_narrower_model_is_the_dense_one_whose_removed_structures_add_nothing(family: str) -> None:
    base = deep_base(family)
    pruned = LLMPruner().fit(SkippingModel(base), examples(), Budget(0.4, 2, 40))
    masked, found = deep_base(family), importances(pruned.dense, examples(), range(1, 5), Effort(pruned.dense))
    ratios = (0.5, 1 - pruned.model.blocks[2].mlp.down_proj.in_features / 48)
    for index, importance in found.items():
        groups, channels = (set(kept.tolist()) for kept in importance.kept(*ratios))
        assert len(groups) == 1 and 1 < len(channels) < 48
        attention, mlp = masked.model.layers[index].self_attn, masked.model.layers[index].mlp
        for column in range(48):
            if column not in channels:
                mlp.down_proj.weight[:, column] = 0
        for group in {0, 1} - groups:
            attention.o_proj.weight[:, group * 16 : (group + 1) * 16] = 0
    ids = torch.arange(5, 24)[None]
    logits = pruned.step_of(base)(ids, None)[0]
    torch.testing.assert_close(logits, masked(ids).logits[:, -1], atol=1e-4, rtol=1e-4)
    assert pruned.sparsity.value == pytest.approx(1 - pruned.n_parameters / sum(p.numel() for p in base.parameters()))


def test_first_and_last_blocks_stay_as_they_are_where_there_are_enough() -> None:
    assert list(prunable_blocks(32)) == list(range(4, 30))
    assert list(prunable_blocks(6)) == [1, 2, 3, 4]
    assert list(prunable_blocks(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "needs a family with those of Llama"),
        ("phi3", "this phi3 model have"),
        ("olmo2", "of all heads at once"),
        ("qwen3_moe", "needs a family with those of Llama"),
    ],
)
def test_families_whose_heads_or_channels_are_no_rows_of_their_own_are_refused(family: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        LLMPruner().fit(SkippingModel(fresh_tiny(family)), examples(), Budget(0.3))
