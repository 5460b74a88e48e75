"""Latency profiles of this machine that nobody measured."""

from __future__ import annotations

from typing import Any

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.profiling import block_kinds
from ftp_core.cost.shape_profile import ShapeProfile
from search.inputs.data import Workload


def made_up(workload: Workload, shapes: list[tuple[int, int]], **facts: Any) -> LatencyProfile:
    """A profile of this machine that nobody measured."""
    model = workload.model.skipping
    blocks, kinds = block_kinds(model)
    parts = []
    for batch, length in shapes:
        kept = (1, length - 1, length)
        times = ((0.1, 1.0, 0.9),) * len(kinds)
        parts.append(
            ShapeProfile(
                batch,
                length,
                kept,
                times,
                fixed_ms=2.0,
                iqr_ms=times,
                score_ms=0.0,
                listen_ms=times,
                held=kept,
                decode_block_ms=times,
                decode_fixed_ms=0.0,
                measured_at="2026-01-01T00:00:00+00:00",
                **facts,
            )
        )
    return LatencyProfile(tuple(parts), blocks, kinds, profile_conditions(model))
