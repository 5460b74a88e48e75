"""Latency profiles of models that nobody has."""

from __future__ import annotations

from typing import Any

from ftp_core.cost.conditions import Conditions
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.shape_profile import ShapeProfile

CONDITIONS = Conditions(
    cpu="a processor",
    cores=2,
    cpu_capability="AVX512",
    threads=2,
    gpu="none",
    torch="2.13.0",
    transformers="5.23.0",
    program="0.1.0",
    model="0123",
    dtype="float32",
    kernel="sdpa",
)


def shape_of(
    batch: int, length: int, kept: tuple[int, ...], block_ms: tuple[tuple[float, ...], ...], **facts: Any
) -> ShapeProfile:
    """Times of a shape, in which all that is not given takes no time."""
    zeros = tuple((0.0,) * len(kept) for _ in block_ms)
    held, of_decoding = (length,), tuple((0.0,) for _ in block_ms)
    free = {"fixed_ms": 0.0, "iqr_ms": zeros, "score_ms": 0.0, "listen_ms": zeros, "decode_fixed_ms": 0.0}
    return ShapeProfile(
        batch, length, kept, block_ms, **{**free, "held": held, "decode_block_ms": of_decoding, **facts}
    )


def profile_of(n_blocks: int, *shapes: ShapeProfile, conditions: Conditions = CONDITIONS) -> LatencyProfile:
    """A profile of a model with so many blocks, which are all alike."""
    return LatencyProfile(shapes, (0,) * n_blocks, ("all",), conditions)
