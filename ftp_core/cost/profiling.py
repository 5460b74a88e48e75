"""Measures a latency profile.

Every pass mixes kept counts: each block of it keeps another share of the tokens, drawn anew, and is timed by itself. So
whatever slows the machine down for a while hits all kept counts alike, and blocks are timed as schedules will run
them, behind blocks that kept more or fewer tokens.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np

from ftp_core.checks import check_lengths
from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.contention import Contention
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.shape_profile import ShapeProfile
from ftp_core.cost.stopwatch import COLD, DECODED, Passes, PassTimes, TimedPasses, Timeline
from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, SparsitySchedule, kept_count
from ftp_core.skipping_model import SkippingModel

_SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
# What grows with the kept tokens on a line is measured at fewer of them: listening, and decoding.
_COARSE_SHARES = (0.95, 0.6, 0.3)
_ROUNDS = 3
_EXTRA_ROUNDS = 2
_MOST_REPETITIONS = 3
# Largest standard error of a point, as a share of what a model of such blocks takes.
_STEADY = 0.02
_CHECKED, _CHECK_ROUNDS = 6, 3
# Of a normal distribution: standard error of its median, in standard deviations / sqrt(n); interquartile range.
_MEDIAN_ERROR, _NORMAL_IQR = math.sqrt(math.pi / 2), 1.349

OnPass = Callable[[int, str], None]


def profile_latency(
    model: SkippingModel,
    shapes: Sequence[tuple[int, int]],
    on_pass: OnPass = lambda passes, note: None,
    timeline: Timeline | None = None,
) -> LatencyProfile:
    """Measure prefills and decoding of a model, with the static and with a dynamic router.

    Args:
        model: The model, on the device and in the precision that it is to be measured in.
        shapes: Batches and lengths, each a pair.
        on_pass: Called after each pass with 1, or with 0 if `count_passes` did not count it, and with a word on what is
            being done.
        timeline: Tells the time; None for the one of the model's device.

    Raises:
        DataError: A length is more than the model reads.
    """
    check_lengths([length for _, length in shapes], model.context)
    blocks, kinds = block_kinds(model)
    measured = []
    for batch, length in sorted(set(shapes)):
        passes = TimedPasses(model, batch, length, timeline)
        measured.append(profile_shape(passes, blocks, batch, length, on_pass))
    return LatencyProfile(tuple(measured), blocks, kinds, profile_conditions(model))


def count_passes(shapes: Sequence[tuple[int, int]]) -> int:
    """How many passes `profile_latency` makes if nothing has to be repeated."""
    total = 0
    for _, length in set(shapes):
        total += _ROUNDS * (len(_points(_SHARES, length)) + len(_points(_COARSE_SHARES, length)))
        total += _CHECKED * _CHECK_ROUNDS
    return total


def block_kinds(model: SkippingModel) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which blocks take the same time on the same tokens: the kind of each, and what each kind is called.

    Blocks of the same shape and sliding window do, all but the first one, which finds the caches as the embedding left
    them.
    """
    members: dict[tuple[object, ...], list[int]] = {}
    windows = model.family.windows(model.model)
    for index, block in enumerate(model.blocks):
        shapes = tuple(tuple(parameter.shape) for parameter in block.parameters())
        members.setdefault((index == 0, windows[index], shapes), []).append(index)
    kinds = {index: kind for kind, indices in enumerate(members.values()) for index in indices}
    names = tuple(
        _ranges(indices) + ("" if window is None else f", window {window}")
        for (_, window, _), indices in members.items()
    )
    return tuple(kinds[index] for index in range(model.n_blocks)), names


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words, such as `0, 2-5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _points(shares: Sequence[float], length: int) -> dict[int, float]:
    """Sparsities to measure, by the kept counts that they stand for, ascending.

    One token less than all is the first point that gathers; what it takes more than all is the price of that.
    """
    sparsities = [*shares, *([1.5 / length] if length > 1 else []), 0.0]
    points = {kept_count(sparsity, length): sparsity for sparsity in sparsities if sparsity <= max(shares)}
    return dict(sorted(points.items()))


@dataclass
class _Point:
    """Times of one kind of pass at one kept count: of each kind of block, every one that was taken."""

    ms: list[list[float]]

    def __add__(self, other: _Point) -> _Point:
        return _Point([one + more for one, more in zip(self.ms, other.ms, strict=True)])

    def error(self, n_of_kind: Sequence[int]) -> float:
        """Standard error of the medians, as a share: of a model whose blocks all take what they take here."""
        total, variance = 0.0, 0.0
        for times, n in zip(self.ms, n_of_kind, strict=True):
            if not times:
                continue
            total += n * statistics.median(times)
            deviation = _iqr(times) / _NORMAL_IQR
            variance += (n * _MEDIAN_ERROR * deviation) ** 2 / len(times)
        return math.sqrt(variance) / total if total > 0 else 0.0


@dataclass
class _Record:
    """All times of one shape.

    Attributes:
        kinds: Kind of each block.
        points: By what was timed ("prefill", "dynamic", "decode") and the blocks' kept count.
        fixed: By what was timed, what each pass took outside its blocks.
        keep: Decisions of the static router and of the dynamic one.
    """

    kinds: Sequence[int]
    points: dict[tuple[str, int], _Point] = field(default_factory=dict)
    fixed: dict[str, list[float]] = field(default_factory=dict)
    keep: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, counts: Sequence[int], times: PassTimes, of: Sequence[bool] | None = None) -> None:
        """Take in a pass, or those of its blocks for which `of` is True."""
        for index, (kind, count, ms) in enumerate(zip(self.kinds, counts, times.block_ms, strict=True)):
            if of is None or of[index]:
                point = self.points.setdefault((what, count), _Point([[] for _ in range(max(self.kinds) + 1)]))
                point.ms[kind].append(ms)
        self.fixed.setdefault(what, []).append(times.fixed_ms)
        self.keep.setdefault(what, []).extend(ms for ms in times.keep_ms if ms is not None)

    def unsteady(self) -> tuple[tuple[str, int], ...]:
        """What has too large an error."""
        n_of_kind = [self.kinds.count(kind) for kind in range(max(self.kinds) + 1)]
        return tuple(sorted(key for key, point in self.points.items() if point.error(n_of_kind) > _STEADY))

    def repeat(self, again: _Record, which: Sequence[tuple[str, int]]) -> None:
        """Take over points that were measured again: the steadier of old and new times, or both together.

        If the machine was busy for a while, the times from then are worse than none; if it is always a little restless,
        more of them help.
        """
        n_of_kind = [self.kinds.count(kind) for kind in range(max(self.kinds) + 1)]
        for key in which:
            if key in again.points:
                old, new = self.points[key], again.points[key]
                self.points[key] = min((old, new, old + new), key=lambda point: point.error(n_of_kind))

    def median(self, what: str, kind: int, count: int) -> float:
        """Of a kind of block."""
        return statistics.median(self.points[what, count].ms[kind])


def profile_shape(
    passes: Passes, kinds: Sequence[int], batch: int, length: int, on_pass: OnPass = lambda passes, note: None
) -> ShapeProfile:
    """Measure inputs of one shape.

    Args:
        passes: Times passes of such inputs.
        kinds: Kind of each block, counted from 0.
        batch: Rows.
        length: Tokens in each row.
        on_pass: See `profile_latency`.
    """
    fine, coarse = _points(_SHARES, length), _points(_COARSE_SHARES, length)
    contention, rng = Contention(), random.Random(0)
    _warm_up(passes, len(kinds))
    record = _Record(kinds)
    _measure(passes, record, fine, coarse, _ROUNDS, rng, partial(on_pass, 1, ""))
    for _ in range(_MOST_REPETITIONS):
        unsteady = record.unsteady()
        if not unsteady:
            break
        again, note = _Record(kinds), f"{len(unsteady)} times vary: once more"
        prefills = {count: fine[count] for what, count in unsteady if what == "prefill"}
        others = coarse if any(what != "prefill" for what, _ in unsteady) else {}
        _measure(passes, again, prefills, others, _EXTRA_ROUNDS, rng, partial(on_pass, 0, note))
        record.repeat(again, unsteady)
    shape = _summary(record, batch, length, tuple(fine), tuple(coarse))
    error = _check(passes, LatencyProfile((shape,), tuple(kinds)), len(kinds), rng, partial(on_pass, 1, "checking"))
    return replace(shape, check_error=error, waited=contention.share())


def _warm_up(passes: Passes, n_blocks: int) -> None:
    for dynamic in (False, True):
        for sparsity in (0.0, 0.5):
            passes.prefill(SparsitySchedule.uniform(sparsity, n_blocks), dynamic)
    passes.decode()


def _measure(
    passes: Passes,
    record: _Record,
    prefills: Mapping[int, float],
    others: Mapping[int, float],
    rounds: int,
    rng: random.Random,
    on_pass: Callable[[], None],
) -> None:
    """Take times into a record.

    Args:
        passes: Times a pass.
        record: Takes it.
        prefills: Points of prefills with the static router.
        others: Points of prefills with a dynamic router, each of which decodes some tokens.
        rounds: How often each block is timed at each point.
        rng: Mixes points.
        on_pass: Called after each pass.
    """
    for _ in range(rounds):
        mixed = [(counts, False) for counts in _mixed(list(prefills), len(record.kinds), rng)]
        mixed += [(counts, True) for counts in _mixed(list(others), len(record.kinds), rng)]
        rng.shuffle(mixed)
        for counts, dynamic in mixed:
            points = others if dynamic else prefills
            times = passes.prefill(SparsitySchedule([points[count] for count in counts]), dynamic)
            if dynamic:
                skips = [points[count] > 0 for count in counts]
                record.add("dynamic", counts, times, [*skips[1:], False])
                for token in passes.decode()[COLD:]:
                    record.add("decode", counts, token)
            else:
                record.add("prefill", counts, times)
            on_pass()


def _mixed(counts: Sequence[int], n_blocks: int, rng: random.Random) -> list[tuple[int, ...]]:
    """As many passes as there are counts, in which each block has each of them once."""
    return list(zip(*(rng.sample(counts, len(counts)) for _ in range(n_blocks)), strict=True))


def _summary(record: _Record, batch: int, length: int, fine: tuple[int, ...], coarse: tuple[int, ...]) -> ShapeProfile:
    """What all times say."""
    kinds = range(max(record.kinds) + 1)
    block_ms = tuple(tuple(record.median("prefill", kind, count) for count in fine) for kind in kinds)
    decisions = [statistics.median(record.keep[what]) for what in ("prefill", "dynamic") if record.keep.get(what)]
    score_ms = max(0.0, decisions[1] - decisions[0]) if len(decisions) == 2 else 0.0
    # The decoded tokens that were timed found on average so many keys beside those of the prompt, their own included.
    behind = (COLD + 1 + DECODED) // 2
    return ShapeProfile(
        batch=batch,
        length=length,
        kept=fine,
        block_ms=block_ms,
        fixed_ms=statistics.median(record.fixed["prefill"]),
        iqr_ms=tuple(tuple(_iqr(record.points["prefill", count].ms[kind]) for count in fine) for kind in kinds),
        score_ms=score_ms,
        listen_ms=tuple(_listening(record, kind, fine, coarse, score_ms) for kind in kinds),
        held=tuple(count + behind for count in coarse),
        decode_block_ms=tuple(tuple(record.median("decode", kind, count) for count in coarse) for kind in kinds),
        decode_fixed_ms=statistics.median(record.fixed["decode"]),
        unsteady=record.unsteady(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _listening(
    record: _Record, kind: int, fine: tuple[int, ...], coarse: tuple[int, ...], score_ms: float
) -> tuple[float, ...]:
    """What listening adds to a kind of block, at each kept count; 0 if no block of this kind had to listen."""
    extras = {}
    for count in coarse:
        point = record.points.get(("dynamic", count))
        if point is not None and point.ms[kind]:
            decided = 0.0 if count == coarse[-1] else score_ms
            extras[count] = record.median("dynamic", kind, count) - decided - record.median("prefill", kind, count)
    if not extras:
        return (0.0,) * len(fine)
    # Each of the last queries is compared with each key: that is a line, and through several points it is less shaky.
    line = np.polyfit(list(extras), list(extras.values()), min(1, len(extras) - 1))
    return tuple(max(0.0, float(ms)) for ms in np.polyval(line, fine))


def _check(
    passes: Passes, profile: LatencyProfile, n_blocks: int, rng: random.Random, on_pass: Callable[[], None]
) -> float:
    """Median relative error of predictions for schedules that were not profiled, half of them of a dynamic router."""
    compared = []
    for number in range(_CHECKED):
        top = rng.randint(1, round(MAX_SPARSITY / DEFAULT_STEP))
        schedule = SparsitySchedule.from_levels([rng.randint(0, top) for _ in range(n_blocks)])
        compared.append((schedule, number % 2 == 1))
    measured: list[list[float]] = [[] for _ in compared]
    # They take turns, so that drift hits all alike.
    for _ in range(_CHECK_ROUNDS):
        for (schedule, dynamic), times in zip(compared, measured, strict=True):
            times.append(passes.whole_ms(schedule, dynamic))
            on_pass()
    errors = []
    for (schedule, dynamic), times in zip(compared, measured, strict=True):
        predicted = profile.predict_ms(schedule, router="dynamic" if dynamic else "static")
        errors.append(abs(predicted / statistics.median(times) - 1))
    return statistics.median(errors)


def _iqr(times: Sequence[float]) -> float:
    """Interquartile range."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low
