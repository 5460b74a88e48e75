"""Latency predicted from what was measured once on a machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ftp_core.encoding import PromptBatch
from ftp_core.schedule import SparsitySchedule


@dataclass(frozen=True)
class LatencyProfile:
    """Milliseconds that a prefill takes, as measured once on this machine and interpolated afterwards.

    Attributes:
        batch: Rows of the profiled input.
        length: Tokens in each row.
        threads: torch threads that it was measured with.
        kept: Kept counts that were measured, ascending; the last is `length`, which runs without gathering.
        block_ms: Time of one block at each of them.
        fixed_ms: Time of everything outside the blocks.
    """

    batch: int
    length: int
    threads: int
    kept: tuple[int, ...]
    block_ms: tuple[float, ...]
    fixed_ms: float

    def predict_ms(self, schedule: SparsitySchedule) -> float:
        """Predicted latency of a prefill under a schedule, linear between measured kept counts."""
        counts = schedule.kept_counts(self.length)
        return float(np.interp(counts, self.kept, self.block_ms).sum() + self.fixed_ms)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LatencyProfile:
        """Read what `to_json` wrote."""
        return cls(**{**values, "kept": tuple(values["kept"]), "block_ms": tuple(values["block_ms"])})


def profile_conditions(model_fingerprint: str, prompts: PromptBatch) -> dict[str, Any]:
    """What a latency profile holds for: another machine, program, model or input needs another one.

    Args:
        model_fingerprint: Of the model.
        prompts: What is timed.
    """
    batch, length = prompts.ids.shape
    return {
        "model": model_fingerprint,
        "batch": batch,
        "length": length,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
