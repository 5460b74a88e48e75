"""The memory of a training step is counted before it is made, as a real step takes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ftp_core.cost.memory import AllocationTracker
from ftp_core.routers import FEATURES, FEATURES_OF_HALVES, DynamicRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training import memory
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from ftp_core.training.losses import distillation_loss
from ftp_core.training.memory import StepMemory, peak_step_bytes, recomputes_blocks
from tests.ftp_core.tiny_models import tiny


@pytest.mark.parametrize("has_halves", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_was_counted(checkpointing: bool, has_halves: bool) -> None:
    model, n, prompt, completion = SkippingModel(tiny()), 4, 40, 6
    batch = TrainingBatch.of([EncodedExample((3,) * prompt, ((4,) * completion,), 0, has_choices=False)] * n)
    router = DynamicRouter(features=FEATURES_OF_HALVES if has_halves else FEATURES).train().requires_grad_(True)
    dense_TD = torch.zeros(n * completion, model.model.config.hidden_size)
    with AllocationTracker() as tracker:
        shares = [0.5] * model.n_blocks
        schedule = SparsitySchedule.of_halves(shares, shares, has_halves)
        hidden_TD, guide, sparsity = gated_forward(model, router, batch, schedule, gradient_checkpointing=checkpointing)
        (guide + sparsity + distillation_loss(model.head, hidden_TD, dense_TD, 1.0)).backward()
    counted = peak_step_bytes(model, prompt, completion, n, checkpointing, has_halves)
    assert counted == pytest.approx(tracker.peak_bytes, rel=0.02)


def test_more_prompts_longer_ones_and_no_checkpoints_take_more() -> None:
    model = SkippingModel(tiny())
    few = peak_step_bytes(model, 20, 4, 2, True)
    assert few < peak_step_bytes(model, 20, 4, 4, True) and few < peak_step_bytes(model, 40, 4, 2, True)
    assert few < peak_step_bytes(model, 20, 4, 2, False) < peak_step_bytes(model, 20, 4, 2, False, has_halves=True)


def test_blocks_are_computed_twice_where_a_step_would_hold_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = SkippingModel(tiny()), EncodedExample((3,) * 40, ((4,) * 6,), 0, has_choices=False)
    examples, config = [example] * 4, DistillationConfig(batch_size=4)
    kept, twice = (peak_step_bytes(model, 40, 6, 4, checkpointing) for checkpointing in (False, True))
    assert StepMemory.of(model, examples, config) == StepMemory(kept, False)
    monkeypatch.setattr(memory, "_PLENTY_BYTES", kept - 1)
    assert StepMemory.of(model, examples, config) == StepMemory(twice, True)
    # Who says how it shall be gets it so.
    assert StepMemory.of(model, examples, replace(config, gradient_checkpointing=False)) == StepMemory(kept, False)


def test_what_is_decided_without_counting_is_what_counting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = SkippingModel(tiny()), EncodedExample((3,) * 40, ((4,) * 6,), 0, has_choices=False)
    examples, config = [example] * 4, DistillationConfig(batch_size=4)
    kept = peak_step_bytes(model, 40, 6, 4, False)
    for plenty in (kept - 1, kept, 100 * kept):
        monkeypatch.setattr(memory, "_PLENTY_BYTES", plenty)
        assert recomputes_blocks(model, examples, config) == (plenty < kept)
    assert recomputes_blocks(model, examples, replace(config, gradient_checkpointing=True))
