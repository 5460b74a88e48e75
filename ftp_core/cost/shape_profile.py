"""Times of inputs of one batch size and length, measured and interpolated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ftp_core.cost.conditions import ProfileError
from ftp_core.cost.half_times import Floats, HalfProfile, HalfTimes, PerKind
from ftp_core.schedule import BlockSparsity, SparsitySchedule, kept_count

RouterKind = Literal["static", "dynamic", "one-pass"]


@dataclass(frozen=True)
class ShapeTimes:
    """Times of one shape at every kept count, measured or interpolated."""

    length: int  # tokens in each row, L
    fixed_ms: float  # time outside the blocks
    score_ms: float  # extra time of a dynamic router's decision in a block that skips
    block_ms: Floats  # time of each kind of block, by kept count `[kinds, L + 1]`
    listen_ms: Floats  # extra time of listening to its attention `[kinds, L + 1]`
    halves: HalfTimes | None = None  # times of blocks whose halves skip apart; None if they were not measured
    choice_ms: float = 0.0  # extra time of a one-pass router's decision
    once_ms: float = 0.0  # time in which it scores a prompt

    @cached_property
    def block_rows(self) -> list[list[float]]:
        """`block_ms` as Python's numbers, which are quicker to look up one by one."""
        rows: list[list[float]] = self.block_ms.tolist()
        return rows

    @cached_property
    def listen_rows(self) -> list[list[float]]:
        """`listen_ms` likewise."""
        rows: list[list[float]] = self.listen_ms.tolist()
        return rows

    def of_block(self, kind: int, sparsity: BlockSparsity) -> float:
        """Time of a block of a kind with the static router.

        Raises:
            ProfileError: Its halves skip apart, and such blocks were not measured.
        """
        kept = kept_count(sparsity.attention, self.length)
        if sparsity.is_whole:
            return self.block_rows[kind][kept]
        if self.halves is None:
            raise ProfileError(
                "The latency profile has no times of blocks whose halves skip apart, or whose skipped tokens keep "
                "their keys: measure another with `ftp-search profile --remeasure`."
            )
        return self.halves.block_ms(kind, sparsity, kept, kept_count(sparsity.mlp, self.length))

    def deciding_ms(self, sparsity: BlockSparsity, router: RouterKind) -> float:
        """Extra time of a router's decisions in a block, beside the static router's."""
        return {"static": 0.0, "dynamic": self.score_ms, "one-pass": self.choice_ms}[router] * sparsity.n_decisions

    def listening_ms(self, kind: int, sparsity: BlockSparsity) -> float:
        """Extra time of listening to the attention of a block of a kind."""
        return self.listen_rows[kind][sparsity.n_keys(self.length)]

    def prefill_ms(self, schedule: SparsitySchedule, kinds: Sequence[int], router: RouterKind) -> float:
        """Predicted latency of a prefill with a kind of router, by the kind of each block."""
        entries = schedule.blocks
        total = self.fixed_ms + sum(self.of_block(kind, entry) for kind, entry in zip(kinds, entries, strict=True))
        if router == "static" or all(entry.is_dense for entry in entries):
            return total
        total += sum(self.deciding_ms(entry, router) for entry in entries)
        if router == "one-pass":
            total += self.once_ms
        else:
            heard = zip(kinds, entries, entries[1:], strict=False)
            total += sum(self.listening_ms(kind, entry) for kind, entry, behind in heard if not behind.is_dense)
        return total


@dataclass(frozen=True)
class ShapeProfile:
    """Milliseconds measured for inputs of one batch size and length.

    Attributes:
        batch: Rows.
        length: Tokens in each row.
        kept: Kept counts that were measured, ascending; the last is `length`, which runs without gathering.
        block_ms: Median time of each kind of block at each kept count, with the static router.
        fixed_ms: Time outside the blocks.
        iqr_ms: Interquartile ranges of the times behind `block_ms`.
        score_ms: Extra time of a dynamic router's decision in a block that skips.
        listen_ms: Extra time of listening to the attention of each kind of block at each kept count.
        held: Keys that blocks held when decoding was measured, ascending.
        decode_block_ms: Time of each kind of block for one decoded token of every row at each count of held keys.
        decode_fixed_ms: Time of a decoded token outside the blocks.
        unsteady: Points that kept varying until time was up: "prefill", "dynamic" or "decode", and the kept count.
        waited: Share of the time during which some process of the machine waited for a core; None if unknown.
        check_error: Median relative error of predictions for schedules that were not profiled.
        uncertainty: Half a 95 % interval around predictions, as a share of them: the larger of what follows from
            varying times and from `check_error`. A later change of the machine's pace is not in it.
        seconds: Duration of the measurement.
        measured_at: Time of the measurement in ISO 8601.
        halves: Times of blocks whose halves skip apart; None if they were not measured.
        choice_ms: Extra time of a one-pass router's decision in a block that skips; None if it was not measured, and
            taken to be `score_ms`.
        once_ms: Time in which a one-pass router scores the prompts, once per pass; likewise.
    """

    batch: int
    length: int
    kept: tuple[int, ...]
    block_ms: PerKind
    fixed_ms: float
    iqr_ms: PerKind
    score_ms: float
    listen_ms: PerKind
    held: tuple[int, ...]
    decode_block_ms: PerKind
    decode_fixed_ms: float
    unsteady: tuple[tuple[str, int], ...] = ()
    waited: float | None = None
    check_error: float = 0.0
    uncertainty: float = 0.0
    seconds: float = 0.0
    measured_at: str = ""
    halves: HalfProfile | None = None
    choice_ms: float | None = None
    once_ms: float | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShapeProfile:
        """Make one of its fields as plain values, with tuples for lists."""
        halves = values.get("halves")
        return cls(**{**values, "halves": None if halves is None else HalfProfile(**halves)})

    def check(self, n_kinds: int) -> None:
        """Raise `ProfileError` unless these are times of so many kinds of blocks."""
        where = f"The latency profile of {self.batch} x {self.length} tokens"
        if not self.kept or self.kept[0] < 1 or self.kept[-1] != self.length or not _ascends(self.kept):
            raise ProfileError(f"{where} has the kept counts {self.kept}, but they must ascend to the length.")
        if not self.held or not _ascends(self.held):
            raise ProfileError(f"{where} has the counts of held keys {self.held}, but they must ascend.")
        tables: dict[str, tuple[PerKind, tuple[int, ...]]] = {
            "block_ms": (self.block_ms, self.kept),
            "listen_ms": (self.listen_ms, self.kept),
            "decode_block_ms": (self.decode_block_ms, self.held),
        }
        if self.halves is not None:
            if not _ascends(self.halves.kept) or not all(0 < kept < self.length for kept in self.halves.kept):
                raise ProfileError(
                    f"{where} has the kept counts {self.halves.kept} of halves, but they must ascend, below the length."
                )
            tables |= self.halves.tables
        for name, (rows, counts) in tables.items():
            if len(rows) < n_kinds or any(len(row) != len(counts) for row in rows):
                raise ProfileError(
                    f"{where} has {name} for {len(rows)} kinds of blocks, but must have them for {n_kinds}, each at "
                    f"{len(counts)} counts."
                )
        times = [self.fixed_ms, self.score_ms, self.decode_fixed_ms, self._known_choice_ms, self._known_once_ms]
        times += [ms for rows, _ in tables.values() for row in rows for ms in row]
        wrong = [ms for ms in times if not isinstance(ms, int | float) or not math.isfinite(ms) or ms < 0]
        if wrong:
            raise ProfileError(f"{where} has the time {wrong[0]!r}, but times are finite and at least 0.")

    @property
    def _known_choice_ms(self) -> float:
        return self.score_ms if self.choice_ms is None else self.choice_ms

    @property
    def _known_once_ms(self) -> float:
        return self.score_ms if self.once_ms is None else self.once_ms

    def times(self) -> ShapeTimes:
        """Times at every kept count."""
        return self._at(self.length)

    def times_towards(self, longer: ShapeProfile, length: int) -> ShapeTimes:
        """Times of a length between this one and a longer one, both at the same share of kept tokens.

        A block's time is about a L + b L^2, so that its time per token is interpolated on a line.
        """
        low, high = self._at(length), longer._at(length)
        share = (length - self.length) / (longer.length - self.length)

        def between(one: Any, other: Any) -> Any:
            return (1 - share) * one + share * other

        def between_per_token(one: Any, other: Any) -> Any:
            return between(one / self.length, other / longer.length) * length

        return ShapeTimes(
            length,
            between(low.fixed_ms, high.fixed_ms),
            between_per_token(low.score_ms, high.score_ms),
            between_per_token(low.block_ms, high.block_ms),
            between_per_token(low.listen_ms, high.listen_ms),
            low.halves.mixed(high.halves, between_per_token) if low.halves and high.halves else None,
            between_per_token(low.choice_ms, high.choice_ms),
            between_per_token(low.once_ms, high.once_ms),
        )

    def decode_rows(self, most: int) -> Floats:
        """Time of each kind of block for a decoded token, by the keys that it holds `[kinds, most + 1]`.

        Beyond the measured range it grows as over its upper half.
        """
        held = np.arange(most + 1)
        beyond = np.maximum(held - self.held[-1], 0)
        middle = len(self.held) // 2 if len(self.held) > 2 else 0
        rows = []
        for ms in self.decode_block_ms:
            width = self.held[-1] - self.held[middle]
            slope = max(0.0, (ms[-1] - ms[middle]) / width) if width else 0.0
            rows.append(np.interp(held, self.held, ms) + slope * beyond)
        return np.stack(rows)

    def _at(self, length: int) -> ShapeTimes:
        """These times, by the kept counts of a row of another length."""
        shares = np.arange(length + 1) / length
        block_ms, listen_ms = (
            np.stack([self._curve(row, shares) for row in rows]) for rows in (self.block_ms, self.listen_ms)
        )
        halves = None
        if self.halves is not None:
            halves = self.halves.times(self.length, shares, [row[-1] for row in self.block_ms])
        own = self._known_choice_ms, self._known_once_ms
        return ShapeTimes(length, self.fixed_ms, self.score_ms, block_ms, listen_ms, halves, *own)

    def _curve(self, row: tuple[float, ...], shares: Floats) -> Floats:
        """Times of a block that keeps some shares of the tokens."""
        # Keeping all is not part of the curve: it needs no gathering and scattering.
        if len(self.kept) == 1:
            return np.full(len(shares), row[-1])
        gathered = np.interp(shares * self.length, self.kept[:-1], row[:-1])
        return np.where(shares == 1.0, row[-1], gathered)


def _ascends(counts: tuple[int, ...]) -> bool:
    return all(one < other for one, other in pairwise(counts))
