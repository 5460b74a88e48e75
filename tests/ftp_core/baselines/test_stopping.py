"""Prompts that stop at some depth, all tokens at one block or each where it is sure, while their keys go on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ftp_core.baselines import Budget, ScheduledModel, baseline
from ftp_core.baselines.early_exit import ConfidenceRouter, EarlyExit, asking, exit_shares
from ftp_core.baselines.fitting import prompt_batches
from ftp_core.baselines.swiftkv import SwiftKV
from ftp_core.errors import ModelError
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.interception import BlockCall, intercepted
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import ContinuationBatch, EncodedExample, prompt_batch
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples
from tests.ftp_core.tiny_models import fresh_tiny


def slow_logits(base: PreTrainedModel, ids: Sequence[int], runs: Sequence[Sequence[bool]]) -> Tensor:
    """Logits of a text whose tokens keep their state where they do not run a block, but are attended to `[T, V]`.

    Every block computes all tokens, so that the keys and values of those that have stopped are projected from the
    states that they stopped with; what it computes for these is thrown away.
    """

    def run(index: int, call: BlockCall) -> Tensor:
        out = call.run(call.hidden)
        return torch.where(torch.tensor(runs[index])[None, :, None], out, call.hidden)

    with intercepted(base.model.layers, run), torch.no_grad():
        logits: Tensor = base(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def predictions(pruned: ScheduledModel, example: EncodedExample) -> Tensor:
    completion = ContinuationBatch(torch.tensor([example.continuations[0]]), torch.zeros(1).long())
    return pruned.model.logits(pruned.continuation_hidden(pruned.prefill(prompt_batch([example])), completion))[0]


@pytest.mark.parametrize(("share", "n_whole"), [(0.2, 5), (0.45, 3), (0.9, 1)])
def test_behind_a_block_keys_come_from_its_states_and_the_last_token_alone_goes_on(share: float, n_whole: int) -> None:
    base, example = deep_base(), examples()[2]
    pruned = SwiftKV().fit(SkippingModel(base), examples(), Budget(share, 2, 40))
    assert sum(entry.is_dense for entry in pruned.schedule.blocks) == n_whole
    n_prompt, text = len(example.prompt), [*example.prompt, *example.continuations[0]]
    stopped = [False] * (n_prompt - 1) + [True] * (len(text) - n_prompt + 1)
    runs = [[True] * len(text)] * n_whole + [stopped] * (N_BLOCKS - n_whole)
    expected = slow_logits(base, text, runs)[n_prompt - 1 : -1]
    torch.testing.assert_close(predictions(pruned, example), expected, atol=2e-4, rtol=1e-4)
    held = pruned.prefill(prompt_batch([example])).cache.held()
    assert held == (n_prompt,) * N_BLOCKS


def test_at_the_last_block_it_is_the_dense_model_and_counts_as_such() -> None:
    pruned = SwiftKV().fit(SkippingModel(deep_base()), examples(), Budget(0.01, 2, 40))
    assert pruned.sparsity.value == 0 and pruned.schedule == SparsitySchedule.uniform(0.0, N_BLOCKS)
    assert pruned.flops(2, 40) == Budget(0.0, 2, 40).dense_flops(pruned.dense)


@torch.no_grad()
def slow_exits(base: PreTrainedModel, prompt: Sequence[int], threshold: float) -> list[list[bool]]:
    """The tokens that run each block, by states that are compared one by one."""
    runs: list[list[bool]] = []
    before: list[Tensor] = []

    def run(_: int, call: BlockCall) -> Tensor:
        now = call.hidden[0].clone()
        runs.append([])
        for token in range(len(prompt)):
            is_sure = bool(before) and float(cosine_similarity(now[token], before[-1][token], dim=0)) >= threshold
            has_stopped = len(runs) > 1 and not runs[-2][token]
            runs[-1].append(token == len(prompt) - 1 or not (is_sure or has_stopped))
        before.append(now)
        return torch.where(torch.tensor(runs[-1])[None, :, None], call.run(call.hidden), call.hidden)

    with intercepted(base.model.layers, run):
        base(torch.tensor([prompt]), use_cache=False)
    return runs


def test_a_token_stops_for_good_where_its_state_no_longer_turns() -> None:
    base, example = deep_base(), examples()[2]
    pruned = EarlyExit().fit(SkippingModel(base), examples(), Budget(0.3, 2, 40))
    assert isinstance(pruned.router, ConfidenceRouter) and 0 < pruned.router.threshold < 1
    kept = [block[0].tolist() for block in pruned.prefill(prompt_batch([example])).kept]
    assert kept == slow_exits(base, example.prompt, pruned.router.threshold)
    assert all(not now or then for one, other in pairwise(kept) for then, now in zip(one, other, strict=True))
    assert 0 < sum(map(sum, kept)) < N_BLOCKS * len(example.prompt)
    behind = [True] * len(example.continuations[0])
    expected = slow_logits(base, [*example.prompt, *example.continuations[0]], [run + behind for run in kept])
    n_prompt = len(example.prompt)
    torch.testing.assert_close(predictions(pruned, example), expected[n_prompt - 1 : -1], atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_threshold_above_one_never_exits_and_one_below_all_stops_everything_but_the_last_token() -> None:
    model = SkippingModel(deep_base())
    # A block that changes nothing, so that states around it are equal, and rounding may make them more than that.
    for weight in (model.blocks[2].self_attn.o_proj.weight, model.blocks[2].mlp.down_proj.weight):
        weight.zero_()
    prompts = prompt_batch(examples())
    dense = model.prefill(prompts, SparsitySchedule.uniform(0.0, N_BLOCKS), StaticRouter())
    never = model.prefill(prompts, asking([0.0] * N_BLOCKS), ConfidenceRouter(1.0 + 1e-7))
    assert torch.equal(never.last_hidden, dense.last_hidden)
    assert exit_shares(model, [prompts], 1.0 + 1e-7) == [0.0] * N_BLOCKS
    assert exit_shares(model, [prompts], 1.0)[3] > 0
    n_rows, n_tokens = len(prompts.lengths), int(prompts.lengths.sum())
    assert exit_shares(model, [prompts], -1.0) == [0.0] + [1 - n_rows / n_tokens] * (N_BLOCKS - 1)


def test_the_threshold_meets_the_budget_on_the_calibration_prompts() -> None:
    model = SkippingModel(deep_base())
    pruned = EarlyExit().fit(model, examples(), Budget(0.3, 2, 40))
    assert isinstance(pruned.router, ConfidenceRouter)
    shares = exit_shares(model, prompt_batches(model, examples()), pruned.router.threshold)
    assert pruned.sparsity.value == pytest.approx(sum(shares) / N_BLOCKS)
    saved = 1 - pruned.flops(2, 40) / Budget(0.0, 2, 40).dense_flops(model)
    assert saved == pytest.approx(0.3, abs=0.03)


def test_blocks_with_other_parts_beside_attention_and_mlp_are_refused() -> None:
    for name in ("swiftkv", "swiftkv_distilled", "early_exit", "funnel", "blockpruner", "colt5", "skipgpt"):
        with pytest.raises(ModelError, match=f"{name} cannot be applied to gemma4_text models"):
            baseline(name).fit(SkippingModel(fresh_tiny("gemma4_text")), examples(), Budget(0.3))
