"""Sums the times of blocks of one shape up as its profile."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from ftp_core.cost.half_times import SKIPS, HalfProfile
from ftp_core.cost.samples import BlockSamples, Point, What, undisturbed_median
from ftp_core.cost.shape_profile import ShapeProfile
from ftp_core.cost.stopwatch import COLD, DECODED


def summary(samples: BlockSamples, batch: int, length: int, unsteady: tuple[Point, ...], halves: bool) -> ShapeProfile:
    """The profile of a shape; its errors are yet to be found.

    Args:
        samples: Times of blocks.
        batch: Rows.
        length: Tokens in each row.
        unsteady: See `ShapeProfile`.
        halves: True if blocks whose halves skip apart were timed, too.
    """
    kinds = range(max(samples.kinds) + 1)
    fine, held = samples.covered("prefill"), samples.covered("decode")
    decisions = [undisturbed_median(samples.keep_ms[what]) for what in ("prefill", "dynamic") if samples.keep_ms[what]]
    score_ms = max(0.0, decisions[1] - decisions[0]) if len(decisions) == 2 else 0.0
    # Keys behind the prompt that the timed decoded tokens found on average, their own included.
    behind = (COLD + 1 + DECODED) // 2
    return ShapeProfile(
        batch=batch,
        length=length,
        kept=fine,
        block_ms=tuple(tuple(samples.median("prefill", kind, count) or 0.0 for count in fine) for kind in kinds),
        fixed_ms=undisturbed_median(samples.fixed_ms["prefill"]),
        iqr_ms=tuple(tuple(samples.iqr("prefill", kind, count) for count in fine) for kind in kinds),
        score_ms=score_ms,
        listen_ms=tuple(_listening(samples, kind, fine, score_ms) for kind in kinds),
        held=tuple(count + behind for count in held),
        decode_block_ms=tuple(tuple(samples.median("decode", kind, count) or 0.0 for count in held) for kind in kinds),
        decode_fixed_ms=undisturbed_median(samples.fixed_ms["decode"]),
        unsteady=unsteady,
        halves=_halves(samples, fine[-1]) if halves else None,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _halves(samples: BlockSamples, length: int) -> HalfProfile:
    """Times of blocks whose halves skip apart, at the kept counts at which all that they may skip was timed."""
    counts = sorted(set.intersection(*(samples.timed(what) for what in SKIPS)))
    kinds = range(max(samples.kinds) + 1)
    dense_ms = [samples.median("prefill", kind, length) or 0.0 for kind in kinds]

    def ms(what: What, kind: int, count: int) -> float:
        return dense_ms[kind] * samples.relative(what, kind, count, dense_ms)

    return HalfProfile(
        tuple(counts),
        **{what: tuple(tuple(ms(what, kind, count) for count in counts) for kind in kinds) for what in SKIPS},
    )


def _listening(samples: BlockSamples, kind: int, fine: tuple[int, ...], score_ms: float) -> tuple[float, ...]:
    """Extra time of listening in a kind of block, at each kept count; 0 if no block of this kind had to listen."""
    extras = {}
    for count in fine:
        heard, alone = samples.median("dynamic", kind, count), samples.median("prefill", kind, count)
        if heard is not None and alone is not None:
            extras[count] = heard - (0.0 if count == fine[-1] else score_ms) - alone
    if not extras:
        return (0.0,) * len(fine)
    # Each of the last queries is compared with each key, which takes linear time: a line evens out several points.
    line = np.polyfit(list(extras), list(extras.values()), min(1, len(extras) - 1))
    return tuple(max(0.0, float(ms)) for ms in np.polyval(line, fine))
