"""Counts the memory of a step of a distillation before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch._subclasses import FakeTensorMode

from ftp_core.cost.memory import AllocationTracker
from ftp_core.routers import FEATURES, FEATURES_OF_HALVES, DynamicRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch, gated_forward
from ftp_core.training.losses import distillation_loss

_SPARSITY = 0.5
# Blocks of the smaller of two models that are counted.
_FEW = 2
# Activations that a step may keep on a CPU, where routers train side by side, and the share of a GPU's memory.
_PLENTY_BYTES, _PLENTY_SHARE = 256 * 2**20, 0.25
# More numbers than a block keeps of a token for the backward pass, in hidden widths: about 20.
_MOST_NUMBERS = 60


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step of a router's training.

    Attributes:
        n_bytes: Peak bytes of its tensors; see `peak_step_bytes`.
        checkpointing: Whether blocks are computed twice instead of keeping their activations.
    """

    n_bytes: int
    checkpointing: bool

    @classmethod
    def of(
        cls,
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        config: DistillationConfig,
        has_halves: bool = False,
    ) -> StepMemory:
        """The memory of the largest step, and, where the configuration leaves it open, how it is kept small."""
        longest = max(len(one.prompt) for one in examples), max(len(one.continuations[one.answer]) for one in examples)
        n_rows = min(config.batch_size, len(examples))
        if config.gradient_checkpointing is not None:
            checkpointing = config.gradient_checkpointing
            return cls(peak_step_bytes(model, *longest, n_rows, checkpointing, has_halves), checkpointing)
        kept = peak_step_bytes(model, *longest, n_rows, False, has_halves)
        if kept <= _plenty_bytes(model.device):
            return cls(kept, False)
        return cls(peak_step_bytes(model, *longest, n_rows, True, has_halves), True)


def recomputes_blocks(
    model: SkippingModel, examples: Sequence[EncodedExample], config: DistillationConfig, has_halves: bool = False
) -> bool:
    """Returns `StepMemory.checkpointing`, without counting where steps are surely small."""
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    longest = max(len(one.prompt) + len(one.continuations[one.answer]) for one in examples)
    n_numbers = min(config.batch_size, len(examples)) * longest * model.model.config.hidden_size * model.n_blocks
    if _MOST_NUMBERS * n_numbers * model.model.dtype.itemsize <= _plenty_bytes(model.device):
        return False
    return StepMemory.of(model, examples, config, has_halves).checkpointing


def _plenty_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _PLENTY_BYTES
    return int(_PLENTY_SHARE * torch.cuda.get_device_properties(device).total_memory)


def peak_step_bytes(
    model: SkippingModel, prompt: int, completion: int, batch_size: int, checkpointing: bool, has_halves: bool = False
) -> int:
    """Peak bytes of the tensors that a step of a router's training holds at once: forward, loss and backward.

    The model's own blocks run on fake tensors, which need no memory: a few of them, since each further one holds as
    much. Weights, optimizer state and workspaces of kernels are not counted.

    Args:
        model: The model.
        prompt: Tokens of each prompt.
        completion: Tokens of each completion.
        batch_size: Prompts in a batch.
        checkpointing: Whether blocks are computed twice instead of keeping their activations.
        has_halves: Whether halves of blocks skip apart.
    """
    rows = [EncodedExample((0,) * prompt, ((0,) * completion,), 0, has_choices=False)] * batch_size
    batch = TrainingBatch.of(rows, model.device)
    few, some = min(_FEW, model.n_blocks), min(2 * _FEW, model.n_blocks)
    # Any that makes every block, or every half, decide.
    shares = [_SPARSITY] * model.n_blocks
    schedule = SparsitySchedule.of_halves(shares, shares, keeps_kv=has_halves)
    of_few, of_some = (_counted(model, batch, schedule, n_blocks, checkpointing) for n_blocks in (few, some))
    each = (of_some - of_few) // max(1, some - few)
    return of_some + each * (model.n_blocks - some)


def _counted(
    model: SkippingModel, batch: TrainingBatch, schedule: SparsitySchedule, n_blocks: int, checkpointing: bool
) -> int:
    """Peak bytes of a step through the first blocks, as if there were no others."""
    n_tokens, width = int(batch.predicts.sum()), model.model.config.hidden_size
    with torch.random.fork_rng(devices=()):
        features = FEATURES if schedule.is_plain else FEATURES_OF_HALVES
        router = DynamicRouter(features=features).to(model.device).train().requires_grad_(True)
    dense_TD = torch.zeros(n_tokens, width, dtype=model.model.dtype, device=model.device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = replace(batch, ids=torch.zeros_like(batch.ids))
    # On any device it is the tensors that are counted, not what an allocator holds.
    with AllocationTracker("cpu") as tracker:
        hidden_TD, guide, sparsity = gated_forward(
            model, router, batch, schedule, gradient_checkpointing=checkpointing, n_blocks=n_blocks
        )
        loss = guide + sparsity + distillation_loss(model.head, hidden_TD, dense_TD, 1.0)
        loss.backward()
    return tracker.peak_bytes
