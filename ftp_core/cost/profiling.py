"""Measures a latency profile within a number of seconds.

Every pass mixes kept counts: each of its blocks keeps another share of the tokens, drawn anew, and is timed by itself.
So a temporary slowdown affects all kept counts alike, and blocks are timed as schedules will run them, behind blocks
that kept more or fewer tokens. In passes that time halves, each block skips something else, too, so that a deep model
has timed everything once after a pass or two.

First come a few kept counts without which nothing can be predicted, however long they take; then all others; then the
least certain ones, again and again, until all are certain enough or time is up. The profile says how uncertain its
predictions are.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ftp_core.checks import check_lengths
from ftp_core.cost.conditions import ProfileError, profile_conditions
from ftp_core.cost.contention import Contention
from ftp_core.cost.half_times import SKIPS
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.samples import BlockSamples, Point, What, undisturbed_median
from ftp_core.cost.shape_profile import ShapeProfile, ShapeTimes
from ftp_core.cost.stopwatch import COLD, DECODED, TimedPasses, Timeline
from ftp_core.cost.summary import summary
from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, BlockSparsity, SparsitySchedule, kept_count
from ftp_core.skipping.skipping_model import SkippingModel

DEFAULT_SECONDS = 60.0

_SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
_FEWEST_SHARES = (0.95, 0.5)
# Listening and decoding are linear in the kept tokens, and need fewer kept counts.
_COARSE_SHARES = (0.95, 0.6, 0.3)
# The ends of the line.
_FEWEST_COARSE_SHARES = (0.95, 0.0)
# Times of blocks whose halves skip apart are about linear in the kept tokens, too.
_HALF_SHARES, _FEWEST_HALF_SHARES = (0.95, 0.6, 0.3), (0.95,)
# Routers and blocks of the passes that warm up, and the share of the time after which no more of them are made.
_HALF, _WHOLE = BlockSparsity(0.5, 0.5), BlockSparsity(0.0, 0.0)
_WARMING, _WARMING_SHARE = ((True, _HALF), (False, _HALF), (False, _WHOLE), (True, _WHOLE)), 0.1
_WARMING_HALVES = ((False, BlockSparsity(0.6, 0.3, keeps_kv=True)),)
# Rounds in which each block is timed at each kept count, if there is time, and at those that keep varying.
_ROUNDS, _MOST_ROUNDS = 3, 12
# Largest standard error of a point, as a share of the time of a model of such blocks. Listening and decoding may vary
# more: they are a small part of predictions, or differ little.
_STEADY = 0.02
_LENIENCY: Mapping[What, float] = {"prefill": 1.0, "dynamic": 0.5, "decode": 0.5, **dict.fromkeys(SKIPS, 1.0)}
# Probability, for a point, that all of its times were disturbed.
_ALL_DISTURBED = 0.005
# Schedules that predictions are compared with, the fewest of them, their rounds, and the share of the time for them.
_CHECKED, _FEWEST_CHECKED, _CHECK_ROUNDS, _CHECK_SHARE = 6, 2, 3, 0.2
# Those of them, beyond these, whose halves skip apart.
_CHECKED_HALVES, _FEWEST_CHECKED_HALVES = 3, 1
# Of a normal distribution: standard deviation by median distance from the median; half a 95 % interval by standard
# deviation.
_BY_MEDIAN_DISTANCE, _HALF_INTERVAL = 1.4826, 1.96

OnPass = Callable[[float, str], None]


def profile_latency(
    model: SkippingModel,
    shapes: Sequence[tuple[int, int]],
    on_pass: OnPass = lambda done, note: None,
    timeline: Timeline | None = None,
    seconds: float = DEFAULT_SECONDS,
    halves: bool = True,
) -> LatencyProfile:
    """Measure prefills and decoding of a model, with the static and a dynamic router, and what a one-pass router adds.

    Args:
        model: The model, on the device and in the precision that it is to be measured in.
        shapes: Pairs of batch and length.
        on_pass: Called after each pass with the number of shapes that are done, fractions included, and a note on the
            current work.
        timeline: Clock; None for that of the model's device.
        seconds: Most seconds that each shape takes, unless its fewest passes take longer.
        halves: False to leave out blocks whose halves skip apart, or whose skipped tokens keep their keys; they are
            left out in any case where the model's blocks cannot skip so.

    Raises:
        DataError: A length is beyond the model's context.
        ProfileError: `seconds` is not above 0.
    """
    check_lengths([length for _, length in shapes], model.context)
    blocks, kinds = block_kinds(model)
    measured: list[ShapeProfile] = []
    for batch, length in sorted(set(shapes)):
        passes = TimedPasses(model, batch, length, timeline)
        on_own = partial(lambda n_before, done, note: on_pass(n_before + done, note), len(measured))
        with_halves = halves and model.family.halves is not None
        measured.append(profile_shape(passes, blocks, batch, length, on_own, seconds, halves=with_halves))
    return LatencyProfile(tuple(measured), blocks, kinds, profile_conditions(model))


def block_kinds(model: SkippingModel) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The kind of each block, and the name of each kind.

    Blocks of a kind take the same time on the same tokens: they have the same shape and sliding window. The first block
    is a kind of its own, as it finds the caches as the embedding left them.
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
    """Sparsities to measure, by kept count, ascending; one token less than all shows the price of gathering."""
    sparsities = [*shares, *([1.5 / length] if length > 1 else []), 0.0]
    points = {kept_count(sparsity, length): sparsity for sparsity in sparsities if sparsity <= max(shares)}
    return dict(sorted(points.items()))


def profile_shape(
    passes: TimedPasses,
    kinds: Sequence[int],
    batch: int,
    length: int,
    on_pass: OnPass = lambda done, note: None,
    seconds: float = DEFAULT_SECONDS,
    timer: Callable[[], float] = time.monotonic,
    halves: bool = False,
) -> ShapeProfile:
    """Measure inputs of one shape; see `profile_latency`. `on_pass` is told the share of the work that is done."""
    if not seconds > 0:
        raise ProfileError(f"{seconds:g} seconds are no time to profile latency in: give more than 0.")
    contention, session = Contention(), _Session(passes, kinds, length, on_pass, seconds, timer, halves)
    session.warm_up()
    session.cover()
    session.refine()
    shape = summary(session.samples, batch, length, session.uncertain(), halves)
    error = session.check(shape.times())
    varying = session.samples.prediction_error()
    uncertainty = _HALF_INTERVAL * max(varying if math.isfinite(varying) else 0.0, _BY_MEDIAN_DISTANCE * error)
    choice_ms, once_ms = passes.one_pass_ms()
    shape = replace(shape, choice_ms=choice_ms, once_ms=once_ms)
    return replace(shape, check_error=error, uncertainty=uncertainty, seconds=session.spent, waited=contention.share())


@dataclass
class _Session:
    """The measurement of one shape; see `profile_shape`."""

    passes: TimedPasses
    kinds: Sequence[int]
    length: int
    on_pass: OnPass
    seconds: float
    timer: Callable[[], float]
    halves: bool

    def __post_init__(self) -> None:
        self.samples = BlockSamples(self.kinds)
        self._fine, self._coarse = _points(_SHARES, self.length), _points(_COARSE_SHARES, self.length)
        self._fewest = set(_points(_FEWEST_SHARES, self.length))
        self._fewest_coarse = {kept_count(share, self.length) for share in _FEWEST_COARSE_SHARES}
        # Blocks of one pass are at several of these points.
        self._half_points: dict[Point, BlockSparsity] = {
            (what, count): entry_of(share)
            for what, entry_of in SKIPS.items()
            for count, share in _points(_HALF_SHARES, self.length).items()
            if self.halves and count < self.length
        }
        self._fewest_halves = {
            point for point in self._half_points if point[1] in _points(_FEWEST_HALF_SHARES, self.length)
        }
        self._n_checked = _CHECKED + _CHECKED_HALVES * self.halves
        self._fewest_checked = _FEWEST_CHECKED + _FEWEST_CHECKED_HALVES * self.halves
        self._rng = random.Random(0)
        self._began = self.timer()
        self._n_passes = 0
        # Passes to come: those that are made however long they take, and all passes if nothing varies.
        self._warming = _WARMING + (_WARMING_HALVES if self.halves else ())
        self._due = len(self._warming) + len(self._fewest) + len(self._fewest_coarse) + self._fewest_checked
        self._due += self._passes_at(len(self._fewest_halves))
        self._foreseen = len(self._warming) + _ROUNDS * (len(self._fine) + len(self._coarse))
        self._foreseen += _ROUNDS * self._passes_at(len(self._half_points)) + self._n_checked * _CHECK_ROUNDS
        self._done, self._note = 0.0, ""

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self.timer() - self._began

    def warm_up(self) -> None:
        """Let caches and allocators see everything once, unless that takes long."""
        for dynamic, entry in self._warming:
            if self._n_passes and self.spent > _WARMING_SHARE * self.seconds:
                self._due -= 1
                self._foreseen -= 1
                continue
            schedule = SparsitySchedule.of_halves(*zip(*([entry] * len(self.kinds)), strict=True))
            self.passes.prefill(schedule, dynamic)
            if dynamic and not entry.is_dense:
                self.passes.decode()
            self._passed("warming up", due=True)

    def cover(self) -> None:
        """Time each block once at each kept count: a few of them in any case, the others while there is time."""
        for due in (True, False):
            prefills = [count for count in self._fine if (count in self._fewest) == due]
            others = [count for count in self._coarse if (count in self._fewest_coarse) == due]
            halves = [point for point in self._half_points if (point in self._fewest_halves) == due]
            if not self._round(prefills, others, halves, "covering kept counts", due):
                break

    def refine(self) -> None:
        """Time the least certain points again, until all are certain enough or time is up."""
        while needs := self._needs():
            worst = max(needs.values())
            # Those that are nearly as bad go along, so that a temporary slowdown affects many alike.
            chosen = {point for point, need in needs.items() if need >= worst / 2}
            prefills = [count for what, count in sorted(chosen) if what == "prefill"]
            others = sorted({count for what, count in chosen if what in ("dynamic", "decode")})
            halves = sorted(point for point in chosen if point in self._half_points)
            n_points = len(self._fine) + 2 * len(self._coarse) + len(self._half_points)
            if not self._round(prefills, others, halves, f"{len(needs)} of {n_points} times are not certain yet"):
                break

    def uncertain(self) -> tuple[Point, ...]:
        """The points that are not certain enough."""
        errors = self.samples.errors()
        return tuple(sorted(point for point, error in errors.items() if _LENIENCY[point[0]] * error > _STEADY))

    def check(self, predicted: ShapeTimes) -> float:
        """Median relative error of predictions for schedules that were not profiled, half with a dynamic router.

        The larger of the medians over schedules with and without halves that skip apart.
        """
        n_blocks, compared = len(self.kinds), []

        def drawn(top: int) -> list[float]:
            return [DEFAULT_STEP * self._rng.randint(0, top) for _ in range(n_blocks)]

        for number in range(_CHECKED):
            top = self._rng.randint(1, round(MAX_SPARSITY / DEFAULT_STEP))
            compared.append((SparsitySchedule(drawn(top)), number % 2 == 1))
        for number in range(self._n_checked - _CHECKED):
            top = self._rng.randint(1, round(MAX_SPARSITY / DEFAULT_STEP))
            keeps_kv = [self._rng.random() < 0.5 for _ in range(n_blocks)]
            halves = SparsitySchedule.of_halves(drawn(top), drawn(top), keeps_kv), number % 2 == 1
            # Among the others, so that there is one however little time there is.
            compared.insert(3 * number + _FEWEST_CHECKED, halves)
        measured: list[list[float]] = [[] for _ in compared]
        self._foreseen = self._n_checked * _CHECK_ROUNDS
        # They take turns, so that drift affects all alike.
        for number in range(self._n_checked * _CHECK_ROUNDS):
            if number >= self._fewest_checked and not self._has_time():
                break
            schedule, dynamic = compared[number % self._n_checked]
            measured[number % self._n_checked].append(self.passes.whole_ms(schedule, dynamic))
            self._passed("comparing predictions", due=number < self._fewest_checked)
        self.on_pass(1.0, self._note)
        errors: dict[bool, list[float]] = {}
        for (schedule, dynamic), times in zip(compared, measured, strict=True):
            if times:
                predicted_ms = predicted.prefill_ms(schedule, self.kinds, "dynamic" if dynamic else "static")
                error = abs(predicted_ms / undisturbed_median(times) - 1)
                errors.setdefault(schedule.is_plain, []).append(error)
        return max(map(statistics.median, errors.values()))

    def _needs(self) -> dict[Point, float]:
        """The need for more times of each point that is not certain enough."""
        needs = {}
        for (what, count), error in self.samples.errors().items():
            # All tokens that are decoded behind a prompt are disturbed together.
            together = DECODED - COLD if what == "decode" else 1
            rounds = self.samples.rounds("prefill", count)
            if what in ("dynamic", "decode"):
                # Listening is timed only where the next block happens to skip: passes count by decoding.
                rounds = self.samples.rounds("decode", count) // (DECODED - COLD)
            fewest = self.samples.fewest(what, count)
            if what in SKIPS:
                # Times of one pass are disturbed together, and kinds of blocks stand for each other.
                fewest = rounds = self.samples.mixed_passes[what, count]
            too_few = rounds < _ROUNDS or fewest < self._enough(what) * together
            need = math.inf if too_few else _LENIENCY[what] * error
            if need > _STEADY and rounds < _MOST_ROUNDS:
                needs[what, count] = need
        return needs

    def _enough(self, what: What) -> int:
        """The number of times with which hardly any point has only disturbed ones."""
        share = self.samples.disturbed(what)
        return math.ceil(math.log(_ALL_DISTURBED) / math.log(share)) if share > 0 else 1

    def _round(
        self,
        prefills: Sequence[int],
        others: Sequence[int],
        halves: Sequence[Point],
        note: str,
        due: bool = False,
    ) -> bool:
        """Time each block once at some kept counts; False if time was up before, unless the times are due.

        The static router runs with `prefills`, a dynamic one with `others`, and decodes some tokens behind each. Each
        of `halves` is timed in one block at least.
        """
        mixed: list[Sequence[Point]] = [[("prefill", count) for count in counts] for counts in self._mixed(prefills)]
        mixed += [[("dynamic", count) for count in counts] for counts in self._mixed(others)]
        mixed += self._spread(halves)
        self._rng.shuffle(mixed)
        for points in mixed:
            if not due and not self._has_time(self._check_s):
                return False
            self._time(points)
            self._passed(note, due)
        return True

    def _time(self, points: Sequence[Point]) -> None:
        """Time a pass with each block at one of the points: all "prefill", all "dynamic", or all of halves."""
        if points[0] in self._half_points:
            entries = [self._half_points[point] for point in points]
            schedule = SparsitySchedule.of_halves(*zip(*entries, strict=True))
            self.samples.add_mixed(points, self.passes.prefill(schedule, dynamic=False))
            return
        what, counts = points[0][0], [count for _, count in points]
        shares = self._coarse if what == "dynamic" else self._fine
        times = self.passes.prefill(SparsitySchedule([shares[count] for count in counts]), what == "dynamic")
        if what == "dynamic":
            skips = [shares[count] > 0 for count in counts]
            self.samples.add("dynamic", counts, times, [*skips[1:], False])
            for token in self.passes.decode()[COLD:]:
                self.samples.add("decode", counts, token)
        else:
            self.samples.add("prefill", counts, times)

    def _spread(self, points: Sequence[Point]) -> Iterable[Sequence[Point]]:
        """Passes of which each block is at one of the points, and some block at each."""
        drawn = self._rng.sample(points, len(points))
        stream = itertools.cycle(drawn)
        return [list(itertools.islice(stream, len(self.kinds))) for _ in range(self._passes_at(len(points)))]

    def _passes_at(self, n_points: int) -> int:
        """Passes in which some block is at each of so many points."""
        return math.ceil(n_points / len(self.kinds))

    def _mixed(self, counts: Sequence[int]) -> Iterable[tuple[int, ...]]:
        """As many passes as there are counts, in which each block has each of them once."""
        return zip(*(self._rng.sample(counts, len(counts)) for _ in self.kinds), strict=True)

    def _has_time(self, reserved_s: float = 0.0) -> bool:
        """True if there is time for another pass and some reserved seconds."""
        return self.spent + self._pass_s + reserved_s <= self.seconds

    @property
    def _check_s(self) -> float:
        """Seconds reserved for comparing predictions."""
        whole = min(self._n_checked * _CHECK_ROUNDS * self._pass_s, _CHECK_SHARE * self.seconds)
        return max(self._fewest_checked * self._pass_s, whole)

    @property
    def _pass_s(self) -> float:
        """Average seconds of a pass."""
        return self.spent / max(1, self._n_passes)

    def _passed(self, note: str, due: bool) -> None:
        self._n_passes += 1
        self._due -= due
        self._foreseen -= 1
        # Beyond the foreseen passes times vary, and only the end of the time is known.
        passes = self._foreseen if self._foreseen > 0 else math.inf
        left = max(self._due * self._pass_s, min(passes * self._pass_s, self.seconds - self.spent))
        # It never falls when passes turn out to take longer.
        self._done = max(self._done, self.spent / max(1e-9, self.spent + left))
        self._note = note
        self.on_pass(min(0.99, self._done), note)
