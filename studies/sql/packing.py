"""Packs the numbers of a trial into bytes: parameters with their distributions, objective and intermediate values."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

# Of one parameter: the id of its distribution, and its value.
PARAM_BYTES = 4 + 8
_STEP_BYTES = 8 + 8


@cache
def _layout(code: str, n: int) -> struct.Struct:
    return struct.Struct(f"<{n}{code}{n}d")


@cache
def _floats(n: int) -> struct.Struct:
    return struct.Struct(f"<{n}d")


def pack_params(distributions: Sequence[int], values: Sequence[float]) -> bytes:
    """Ids of distributions as int32, then as many internal values as float64, little-endian."""
    return _layout("i", len(values)).pack(*distributions, *values)


def split_params(packed: bytes) -> tuple[bytes, tuple[float, ...]]:
    """The ids as the bytes that they are, which trials of one space share, and the values."""
    n = len(packed) // PARAM_BYTES
    return packed[: 4 * n], _floats(n).unpack_from(packed, 4 * n)


def unpack_ids(ids: bytes) -> tuple[int, ...]:
    """The ids that `split_params` gave."""
    return struct.unpack(f"<{len(ids) // 4}i", ids)


def pack_floats(values: Iterable[float]) -> bytes:
    """Float64, little-endian."""
    values = tuple(values)
    return _floats(len(values)).pack(*values)


def unpack_floats(packed: bytes) -> tuple[float, ...]:
    """Inverse of `pack_floats`."""
    return _floats(len(packed) // 8).unpack(packed)


def pack_steps(values: Mapping[int, float]) -> bytes | None:
    """Steps as int64, then as many values as float64, little-endian; None if there are none."""
    return _layout("q", len(values)).pack(*values, *values.values()) if values else None


def unpack_steps(packed: bytes | None) -> dict[int, float]:
    """Inverse of `pack_steps`."""
    if packed is None:
        return {}
    n = len(packed) // _STEP_BYTES
    numbers = _layout("q", n).unpack(packed)
    return dict(zip(numbers[:n], numbers[n:], strict=True))
