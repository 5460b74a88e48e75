"""Tokens of little attention leave for good."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ftp_core.baselines import Budget
from ftp_core.baselines.monotone import Monotone, MonotoneRouter
from ftp_core.errors import ModelError, ScheduleError
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import ContinuationBatch, prompt_batch
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples
from tests.ftp_core.slow_reference import slow_logits


@pytest.mark.parametrize("window", [1, 4])
def test_no_token_comes_back_and_each_block_keeps_exactly_its_count(window: int) -> None:
    pruned = Monotone(window).fit(SkippingModel(deep_base()), examples(), Budget(0.4, 2, 40))
    prompts = prompt_batch(examples())
    kept = pruned.prefill(prompts).kept
    for before, after in pairwise(kept):
        assert not (after & ~before).any()
    for row, length in enumerate(prompts.lengths.tolist()):
        assert [int(block[row].sum()) for block in kept] == list(pruned.schedule.kept_counts(length))
        assert all(block[row, length - 1] for block in kept)
    assert len(set(pruned.schedule)) == N_BLOCKS and pruned.schedule[0] == 0


def test_those_stay_that_the_last_token_attends_to_most() -> None:
    base, example = deep_base(), examples()[1]
    schedule = SparsitySchedule([0.0, 0.5, 0.5, 0.75, 0.75, 0.75])
    model, router = SkippingModel(base), MonotoneRouter(schedule)
    kept = model.prefill(prompt_batch([example]), schedule, router).kept
    base.set_attn_implementation("eager")
    ids = torch.tensor([example.prompt])
    first = base(ids, output_attentions=True).attentions[0][0].mean(0)[-1]
    n_kept = -(-len(example.prompt) // 2)
    others = first[:-1].topk(n_kept - 1).indices.tolist()
    assert sorted([*others, len(example.prompt) - 1]) == kept[1][0].nonzero().flatten().tolist()


@torch.inference_mode()
def test_predictions_are_those_of_a_full_computation_in_which_dropped_tokens_are_masked() -> None:
    base, example = deep_base(), examples()[2]
    pruned = Monotone().fit(SkippingModel(base), examples(), Budget(0.4, 2, 40))
    completion = list(example.continuations[0])
    slow, kept = slow_logits(base, list(example.prompt), completion, pruned.schedule, pruned.router)
    prefill = pruned.prefill(prompt_batch([example]))
    found = pruned.continuation_hidden(prefill, ContinuationBatch(torch.tensor([completion]), torch.zeros(1).long()))
    logits = pruned.model.logits(found)[0]
    torch.testing.assert_close(logits, slow[len(example.prompt) - 1 : -1], atol=2e-4, rtol=1e-4)
    for one, other in zip(prefill.kept, kept, strict=True):
        assert torch.equal(one[0], other[: len(example.prompt)])


def test_schedules_under_which_tokens_would_return_are_refused() -> None:
    for schedule in (SparsitySchedule([0.2, 0.1]), SparsitySchedule.of_halves([0.1, 0.2], [0.1, 0.3])):
        with pytest.raises(ScheduleError, match="would come back"):
            MonotoneRouter(schedule)
    with pytest.raises(ModelError, match="at least 1"):
        Monotone(0)
