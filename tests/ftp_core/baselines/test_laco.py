"""Blocks become one where final states stay similar."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from ftp_core.baselines import Budget
from ftp_core.baselines.fitting import Effort, flops_of_blocks, text_batches
from ftp_core.baselines.laco import LaCo, StateSimilarity, collapsed
from ftp_core.errors import ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples, texts
from tests.ftp_core.tiny_models import fresh_tiny


def with_twins() -> SkippingModel:
    """A model whose blocks 3 to 5 change next to nothing, so that merging them costs next to nothing."""
    base = deep_base()
    with torch.no_grad():
        for block in base.model.layers[3:]:
            for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.mul_(1e-3)
    return SkippingModel(base)


def similarity(model: SkippingModel) -> StateSimilarity:
    return StateSimilarity(model, text_batches(model, examples()), Effort(model))


def test_a_threshold_of_one_changes_nothing_and_one_below_all_similarities_merges_what_it_can() -> None:
    model = SkippingModel(deep_base())
    states = similarity(model)
    assert LaCo().merges_above(1.0, states, 3, N_BLOCKS) == []
    # Blocks 3, 4 and 5 become one, then 1, 2 and what these have become.
    assert LaCo().merges_above(-1.1, states, 3, N_BLOCKS) == [(3, 4, 5), (1, 2, 3)]
    assert LaCo(interval=1).merges_above(-1.1, states, 2, 2) == [(4, 5), (3, 4)]


@torch.no_grad()
def test_a_merged_block_is_the_first_one_and_what_the_others_differ_by() -> None:
    model = SkippingModel(deep_base())
    found = collapsed(model, [(3, 4, 5), (1, 2, 3)])
    expected = deep_base()
    weights = [dict(block.named_parameters()) for block in expected.model.layers]
    for first, second, third in ((3, 4, 5), (1, 2, 3)):
        for name, weight in weights[first].items():
            weight.copy_(weights[second][name] + weights[third][name] - weight)
    expected.model.layers = expected.model.layers[:2]
    ids = torch.arange(5, 24)[None]
    torch.testing.assert_close(
        found.model(ids, use_cache=False).logits, expected(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4
    )
    # All others are the dense model's own, in memory, too.
    assert found.blocks[0].self_attn.q_proj.weight is model.blocks[0].self_attn.q_proj.weight


@torch.no_grad()
def test_similarity_is_that_of_the_final_states_of_all_tokens() -> None:
    model = SkippingModel(deep_base())
    other, found = collapsed(model, [(3, 4, 5)]), []
    for text in texts(examples()):
        ids = torch.tensor([text])
        states = [one.model.model(ids, use_cache=False).last_hidden_state for one in (model, other)]
        found.append(cosine_similarity(*states, dim=-1).flatten())
    assert similarity(model).of([(3, 4, 5)]) == pytest.approx(float(torch.cat(found).mean()), abs=1e-5)
    assert similarity(model).of([]) == 1.0


def test_the_budget_finds_the_merges_that_change_least() -> None:
    model = with_twins()
    pruned = LaCo().fit(model, examples(), Budget(1 / 3, 2, 40))
    assert pruned.sparsity.value == pytest.approx(2 / N_BLOCKS)
    assert pruned.heads is not None
    assert [own.query > 0 for own in pruned.heads] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(("share", "n_removed"), [(0.1, 0), (0.33, 2), (0.5, 3), (0.65, 4)])
def test_so_many_blocks_become_one_as_meet_the_budget_best(share: float, n_removed: int) -> None:
    pruned = LaCo().fit(SkippingModel(deep_base()), examples(2), Budget(share, 2, 40))
    assert pruned.sparsity.value == pytest.approx(n_removed / N_BLOCKS)


@torch.no_grad()
def with_opposites() -> SkippingModel:
    """A model whose blocks 1 to 5 change next to nothing together: 3 and 4 undo each other, the others are idle."""
    base = deep_base()
    for block in base.model.layers[2:]:
        block.load_state_dict(base.model.layers[1].state_dict())
    for index, factor in ((1, 0.0), (2, 0.0), (3, 1.0), (4, -1.0), (5, 0.0)):
        block = base.model.layers[index]
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            weight.mul_(factor)
    return SkippingModel(base)


def test_as_many_blocks_become_one_as_change_least_where_several_numbers_meet_the_budget() -> None:
    model, budget, steps = with_opposites(), Budget(0.65, 2, 40), list[float]()
    three, five, either = (
        LaCo(n_merged).fit(model, examples(), budget, 0, steps.append) for n_merged in ([3], [5], [3, 4, 5])
    )
    # Four blocks are gone in each: two merges of three, or one of five.
    assert three.flops(2, 40) == five.flops(2, 40) == either.flops(2, 40)
    kl = [QualitySet(model, examples()).evaluate_pruned(pruned).kl for pruned in (three, five, either)]
    assert kl[2] == kl[1] < 0.5 * kl[0]
    assert steps == sorted(steps[:9]) + sorted(steps[9:18]) + sorted(steps[18:]) and steps[-1] == 1.0


def test_merges_that_save_less_than_the_nearest_are_no_choice() -> None:
    # 2.5 blocks are asked for: merges of three remove 2 of them, one of four removes 3.
    model = SkippingModel(deep_base())
    of_block, dense = flops_of_blocks(model, Budget(0.0, 2, 40))[0], Budget(0.0, 2, 40).dense_flops(model)
    for wanted, n_removed in ((2.55, 3), (2.45, 2)):
        pruned = LaCo().fit(model, examples(2), Budget(wanted * of_block / dense, 2, 40))
        assert pruned.sparsity.value == pytest.approx(n_removed / N_BLOCKS)


def test_blocks_of_several_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"block 2 of this qwen3_moe model has others than block 0"):
        LaCo().fit(SkippingModel(fresh_tiny("qwen3_moe")), examples(), Budget(0.3))
    with pytest.raises(ModelError, match="at least 2"):
        LaCo(n_merged=[1])
