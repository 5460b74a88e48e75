"""Groups of adjacent tokens run blocks as one, and come out of them as tokens of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ftp_core.baselines import Budget
from ftp_core.baselines.funnel import Funnel, GroupEndsRouter, Groups, PooledModel, pooled_model
from ftp_core.errors import ModelError
from ftp_core.routers import RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.interception import BlockCall, intercepted
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import ContinuationBatch, EncodedExample, prompt_batch
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples


def groups_of(n: int, width: int, n_first: int = 1) -> list[list[int]]:
    """Positions of a prompt's tokens, group by group."""
    middle = list(range(n_first, n - 1))
    pairs = [middle[start : start + width] for start in range(0, len(middle), width)]
    return [*([token] for token in range(min(n_first, n - 1))), *pairs, [n - 1]]


@torch.no_grad()
def slow_logits(pruned: PooledModel, example: EncodedExample, width: int) -> Tensor:
    """Logits of a completion's tokens; groups are formed, run and told apart one by one.

    Pooled blocks compute all tokens at their own places, where a mask leaves the groups' ends alone to be seen.
    """
    base, groups = pruned.dense.model, groups_of(len(example.prompt), width, max(1, pruned.dense.keep_first))
    text = [*example.prompt, *example.continuations[0]]
    ends = [group[-1] for group in groups]
    behind = list(range(len(example.prompt), len(text)))
    own, pooled = [Tensor()], [Tensor()]

    def run(index: int, call: BlockCall) -> Tensor:
        if index not in pruned.pooled:
            return call.run(call.hidden)
        hidden = call.hidden.clone()
        if index == pruned.pooled.start:
            own[0] = call.hidden
            for group in groups:
                hidden[0, group[-1]] = call.hidden[0, group].mean(0)
            pooled[0] = hidden
        seen = torch.zeros(len(text), len(text), dtype=torch.bool)
        seen[:, ends + behind] = True
        mask = seen.tril() | torch.eye(len(text), dtype=torch.bool)
        out = call.run(hidden, attention_mask=mask[None, None])
        runs = torch.zeros(len(text), 1, dtype=torch.bool)
        runs[ends + behind] = True
        out = torch.where(runs, out, hidden)
        if index == pruned.pooled.stop - 1:
            gained = out - pooled[0]
            for group in groups:
                if len(group) > 1:
                    out[0, group] = own[0][0, group] + gained[0, group[-1]]
        return out

    with intercepted(pruned.dense.blocks, run):
        logits: Tensor = base(torch.tensor([text]), use_cache=False).logits[0, len(example.prompt) - 1 : -1]
    return logits


@pytest.mark.parametrize(("pooled", "width", "keep_first"), [(range(2, 5), 2, 0), (range(1, 6), 3, 4)])
def test_groups_run_as_their_mean_where_their_last_token_stands(pooled: range, width: int, keep_first: int) -> None:
    pruned = pooled_model(SkippingModel(deep_base(), keep_first), pooled, width)
    for example in examples()[1:3]:
        completion = ContinuationBatch(torch.tensor([example.continuations[0]]), torch.zeros(1).long())
        prefill = pruned.prefill(prompt_batch([example]))
        found = pruned.model.logits(pruned.continuation_hidden(prefill, completion))[0]
        torch.testing.assert_close(found, slow_logits(pruned, example, width), atol=2e-4, rtol=1e-4)
        n_tokens = len(example.prompt)
        n_groups = len(groups_of(n_tokens, width, max(1, keep_first)))
        assert prefill.cache.held() == tuple(n_groups if index in pooled else n_tokens for index in range(N_BLOCKS))


def test_groups_of_one_token_are_the_dense_model_bit_for_bit() -> None:
    model, prompts = SkippingModel(deep_base()), prompt_batch(examples())
    dense = model.prefill(prompts, SparsitySchedule.uniform(0.0, N_BLOCKS), StaticRouter())
    pruned = pooled_model(model, range(1, 5), 1)
    assert torch.equal(pruned.prefill(prompts).last_hidden, dense.last_hidden)
    assert pruned.flops(2, 40) == Budget(0.0, 2, 40).dense_flops(model)


def test_equal_neighbours_are_not_changed_by_pooling_and_gain_what_their_group_does() -> None:
    state = RoutingState.padded_right(torch.tensor([6, 4]), 6)
    groups = Groups(GroupEndsRouter(2).keep(0.5, state), state.real)
    equal = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(0)).expand(2, 6, 5)
    assert torch.equal(groups.pooled(equal), equal)
    gained = torch.tensor([[10.0, 0.0, 20.0, 0.0, 30.0, 40.0], [10.0, 0.0, 20.0, 30.0, 0.0, 0.0]])[..., None]
    expected = torch.tensor([[10.0, 20.0, 20.0, 30.0, 30.0, 40.0], [10.0, 20.0, 20.0, 30.0, 0.0, 0.0]])[..., None]
    torch.testing.assert_close(groups.restored(equal, equal, equal + gained), equal + expected)


@pytest.mark.parametrize("keep_first", [0, 3])
def test_groups_of_prompts_of_any_length_are_counted(keep_first: int) -> None:
    for length in range(1, 12):
        for width in (1, 2, 3):
            state = RoutingState.padded_right(torch.tensor([length]), 12, keep_first)
            router, expected = GroupEndsRouter(width), groups_of(length, width, max(1, keep_first))
            assert router.keep(0.5, state)[0].nonzero().flatten().tolist() == [group[-1] for group in expected]
            assert router.n_kept(length, keep_first) == len(expected)


def test_the_budget_says_where_pooling_begins_and_the_last_blocks_run_all_tokens() -> None:
    model = SkippingModel(deep_base())
    for share, pooled in ((0.01, range(5, 5)), (0.25, range(2, 5)), (0.9, range(0, 5))):
        found = Funnel(n_decoder=1).fit(model, examples(), Budget(share, 2, 40))
        assert found.pooled == pooled and found.sparsity.value == len(pooled) / N_BLOCKS
    with pytest.raises(ModelError, match="give a width from 1 to 20"):
        Funnel(width=0)
