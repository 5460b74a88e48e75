"""Latency predicted from what was measured once on a machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ftp_core.cost.conditions import Conditions, ProfileError, profile_conditions
from ftp_core.cost.shape_profile import RouterKind, ShapeProfile, ShapeTimes
from ftp_core.errors import ScheduleError
from ftp_core.routers import Router
from ftp_core.routers.protocol import scored_once
from ftp_core.schedule import BlockSparsity, SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel

_VERSION = 1
# Beyond these, predictions are not to be relied on.
MAX_CHECK_ERROR = 0.1
MAX_UNCERTAINTY = 0.2
MAX_WAITED = 0.2

# Doubts about a shape: phrase, limit, and the figure that exceeds it.
_REASONS: tuple[tuple[str, float, Callable[[ShapeProfile], float | None]], ...] = (
    ("processes waited for a core during {figure:.0%} of the time {where}", MAX_WAITED, lambda shape: shape.waited),
    ("predictions {where} are uncertain by {figure:.0%}", MAX_UNCERTAINTY, lambda shape: shape.uncertainty),
    ("predictions {where} were off by {figure:.0%} right afterwards", MAX_CHECK_ERROR, lambda shape: shape.check_error),
)


@dataclass(frozen=True)
class LatencyProfile:
    """Milliseconds of prefills and decoded tokens, measured once and interpolated afterwards.

    A prefill takes the sum of its blocks' times, each by its kept tokens, and the time outside them. A dynamic router
    adds its decisions where a block or half of it skips, and listening where the next block skips; a one-pass router
    adds cheaper decisions, and its scores once. Prompts have equal lengths, and the router keeps exactly the kept
    counts of each block.

    Attributes:
        shapes: Measured times of each batch and length; ascending.
        blocks: Kind of each block, as an index.
        kinds: Description of each kind.
        conditions: Hardware, software and model.
    """

    shapes: tuple[ShapeProfile, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    conditions: Conditions

    def __post_init__(self) -> None:
        """Check the shapes, and sort them."""
        if not self.shapes:
            raise ProfileError("A latency profile needs one batch and length at least.")
        for shape in self.shapes:
            shape.check(max(self.blocks, default=0) + 1)
        object.__setattr__(self, "shapes", tuple(sorted(self.shapes, key=lambda shape: (shape.batch, shape.length))))

    @classmethod
    def joined(cls, profiles: Sequence[LatencyProfile]) -> LatencyProfile:
        """One profile of all shapes of several, which were measured under the same conditions."""
        first = profiles[0]
        for other in profiles[1:]:
            first.conditions.check(other.conditions)
        return replace(first, shapes=tuple(shape for profile in profiles for shape in profile.shapes))

    def parts(self) -> list[LatencyProfile]:
        """A profile of each shape alone."""
        return [replace(self, shapes=(shape,)) for shape in self.shapes]

    @property
    def batch(self) -> int:
        """Rows that predictions are for if none are named."""
        return self.shapes[0].batch

    @property
    def length(self) -> int:
        """Tokens in each row that predictions are for if none are named."""
        return self.shapes[0].length

    @property
    def check_error(self) -> float:
        """Relative error of compared predictions, of the worst shape."""
        return max(shape.check_error for shape in self.shapes)

    @property
    def uncertainty(self) -> float:
        """Half a 95 % interval around predictions, as a share of them, of the worst shape."""
        return max(shape.uncertainty for shape in self.shapes)

    @property
    def has_halves(self) -> bool:
        """True if blocks whose halves skip apart, or whose skipped tokens keep their keys, can be predicted, too."""
        return all(shape.halves is not None for shape in self.shapes)

    def doubts(self) -> tuple[str, ...]:
        """Reasons not to rely on this profile, a phrase each that names the worst shape; empty if there are none."""
        found = []
        for phrase, limit, figure_of in _REASONS:
            figures = [(figure, shape) for shape in self.shapes if (figure := figure_of(shape)) is not None]
            doubtful = [(figure, shape) for figure, shape in figures if figure > limit]
            if doubtful:
                figure, worst = max(doubtful, key=lambda one: one[0])
                where, others = f"at {worst.batch} x {worst.length} tokens", len(doubtful) - 1
                where += f" (and less at {others} other shape{'s' if others > 1 else ''})" if others else ""
                found.append(phrase.format(figure=figure, where=where))
        return tuple(found)

    def is_better_than(self, other: LatencyProfile) -> bool:
        """True if it is reliable and the other is not, or if neither is and this one is less uncertain.

        One that has halves is better in any case than one that has none.
        """
        if self.has_halves != other.has_halves:
            return self.has_halves
        return bool(other.doubts()) and (not self.doubts() or self.uncertainty < other.uncertainty)

    def predict_ms(
        self,
        schedule: Sequence[float],
        *,
        batch: int | None = None,
        length: int | None = None,
        router: RouterKind = "static",
    ) -> float:
        """Predicted latency of a prefill under a schedule.

        Args:
            schedule: One sparsity per block, or a schedule with halves.
            batch: Rows; None for the first that was profiled.
            length: Tokens in each row; None for the first that was profiled.
            router: Kind of the router; "dynamic", which was profiled, stands for all that score tokens.

        Raises:
            ProfileError: The batch was not profiled, or the length lies outside what was, or no halves were.
            ScheduleError: The schedule has another number of blocks.
        """
        schedule, times = self._checked(schedule, batch, length)
        return times.prefill_ms(schedule, self.blocks, router)

    def block_ms(
        self,
        index: int,
        sparsity: BlockSparsity,
        *,
        batch: int | None = None,
        length: int | None = None,
        router: RouterKind = "static",
    ) -> float:
        """Predicted time of one block in a prefill, whatever the schedule says of the others.

        Times of all blocks and the time outside them add up to the latency of a schedule; but for what a dynamic router
        listens to, which two neighbouring blocks decide together, and for the scores of a one-pass router: no block is
        charged for either.

        Args:
            index: The block.
            sparsity: Its sparsity under a schedule.
            batch: See `predict_ms`.
            length: See `predict_ms`.
            router: See `predict_ms`.

        Raises:
            ProfileError: See `predict_ms`.
        """
        times = self._shape_times(batch, length)
        return times.of_block(self.blocks[index], sparsity) + times.deciding_ms(sparsity, router)

    def decode_ms(
        self, schedule: Sequence[float], *, batch: int | None = None, length: int | None = None, decoded: int = 0
    ) -> float:
        """Predicted milliseconds of one decoded token of every row, which runs every block.

        Args:
            schedule: Schedule of the prompt.
            batch: See `predict_ms`.
            length: Tokens of the prompt; see `predict_ms`.
            decoded: Tokens decoded before it; half of all that are to be decoded gives their mean.

        Raises:
            ProfileError: See `predict_ms`.
            ScheduleError: See `predict_ms`.
        """
        schedule, times = self._checked(schedule, batch, length)
        # A decoded token takes by the keys that a block holds, not by how many it has seen.
        longest = next(shape for shape in self._of_batch(batch) if shape.length >= times.length)
        held = np.array([entry.n_keys(times.length) for entry in schedule.blocks]) + decoded + 1
        rows = longest.decode_rows(int(held.max()))
        return float(rows[list(self.blocks), held].sum() + longest.decode_fixed_ms)

    def worthwhile(
        self,
        schedule: Sequence[float],
        batch: int | None = None,
        length: int | None = None,
        router: RouterKind = "static",
    ) -> SparsitySchedule:
        """The schedule with 0 for blocks that take as long on their kept tokens as on all.

        Where halves skip apart, each runs whole if this takes no longer.

        Args:
            schedule: One sparsity per block, or a schedule with halves.
            batch: See `predict_ms`.
            length: See `predict_ms`.
            router: Kind of the router; decisions and listening must pay off, too, but not scores that are computed once
                for all blocks.

        Raises:
            ProfileError: See `predict_ms`.
            ScheduleError: See `predict_ms`.
        """
        schedule, times = self._checked(schedule, batch, length)
        kinds, entries = self.blocks, schedule.blocks

        def best(index: int, entry: BlockSparsity) -> BlockSparsity:
            def ms_of(way: BlockSparsity) -> float:
                ms = times.of_block(kinds[index], way) + times.deciding_ms(way, router)
                if router == "dynamic" and not way.is_dense and index > 0:
                    ms += times.listening_ms(kinds[index - 1], entries[index - 1])
                return ms

            # The first of those that take equally long, which skips less.
            return min(_less_skipping(entry), key=ms_of)

        return SparsitySchedule.of_halves(*zip(*map(best, range(len(entries)), entries), strict=True))

    def nearest_shape(self, batch: int, length: int) -> tuple[int, int]:
        """The nearest batch, by ratio, and length that can be predicted."""
        rows = min({shape.batch: None for shape in self.shapes}, key=lambda known: abs(math.log(known / max(1, batch))))
        lengths = [shape.length for shape in self._of_batch(rows)]
        return rows, min(max(length, lengths[0]), lengths[-1])

    def check(self, model: SkippingModel | PreTrainedModel) -> None:
        """Raise `ProfileError` that names the differences, unless a model runs here as the profiled one did."""
        self.conditions.check(profile_conditions(model))

    def to_json(self) -> dict[str, Any]:
        """As plain values, with what those need that show a profile and do not predict with it."""
        return {
            "version": _VERSION,
            "batch": self.batch,
            "length": self.length,
            "doubts": self.doubts(),
            "dense_ms": self.predict_ms(SparsitySchedule.uniform(0.0, len(self.blocks))),
            **asdict(self),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LatencyProfile:
        """Read what `to_json` wrote.

        Raises:
            ProfileError: It is no profile, or another version of the program wrote it.
        """
        version = values.get("version", _VERSION)
        if version != _VERSION:
            raise ProfileError(
                f"The latency profile has version {version}, and this program reads {_VERSION}: use the program that "
                "measured it, or measure another."
            )
        try:
            return cls(
                tuple(ShapeProfile.from_json(_tuples(shape)) for shape in values["shapes"]),
                tuple(values["blocks"]),
                tuple(values["kinds"]),
                Conditions(**values["conditions"]),
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ProfileError(
                f"This is no latency profile ({type(error).__name__}: {error}): expected what `ftp-search profile "
                "--json` writes."
            ) from error

    def _checked(
        self, schedule: Sequence[float], batch: int | None, length: int | None
    ) -> tuple[SparsitySchedule, ShapeTimes]:
        """A schedule, and the times of a shape."""
        schedule, times = SparsitySchedule.of(schedule, len(self.blocks)), self._shape_times(batch, length)
        if schedule.n_blocks != len(self.blocks):
            raise ScheduleError(
                f"The schedule has {schedule.n_blocks} sparsities, but the profiled model has {len(self.blocks)} "
                "blocks: give one each."
            )
        return schedule, times

    def _shape_times(self, batch: int | None, length: int | None) -> ShapeTimes:
        if (batch, length) not in self._times:
            self._times[batch, length] = self._times_of(batch, length)
        return self._times[batch, length]

    @cached_property
    def _times(self) -> dict[tuple[int | None, int | None], ShapeTimes]:
        """Times of shapes that were asked for."""
        return {}

    def _of_batch(self, batch: int | None) -> list[ShapeProfile]:
        wanted = self.batch if batch is None else batch
        return [shape for shape in self.shapes if shape.batch == wanted]

    def _times_of(self, batch: int | None, length: int | None) -> ShapeTimes:
        """Times of a shape, interpolated between profiled lengths."""
        shapes = self._of_batch(batch)
        if not shapes:
            batches = _listed({shape.batch for shape in self.shapes})
            raise ProfileError(
                f"A batch of {batch} was not profiled; these were: {batches}. Profile it with `ftp-search profile "
                f"--batch {batch}`."
            )
        if length is None:
            return shapes[0].times()
        below = [shape for shape in shapes if shape.length <= length]
        above = [shape for shape in shapes if shape.length >= length]
        if not below or not above:
            raise ProfileError(
                f"A length of {length} lies outside what was profiled for a batch of {shapes[0].batch}: "
                f"{_listed({shape.length for shape in shapes})}. Profile it with `ftp-search profile --length "
                f"{length}`."
            )
        if below[-1] is above[0]:
            return above[0].times()
        return below[-1].times_towards(above[0], length)


def router_kind(router: Router) -> RouterKind:
    """The kind whose times those of a router are: any that listens, or scores block by block, is as the dynamic one."""
    if router.kind == "static":
        return "static"
    return "one-pass" if scored_once(router) else "dynamic"


def _less_skipping(entry: BlockSparsity) -> list[BlockSparsity]:
    """A block that skips nothing, then with halves that skip alone where they skip apart, and the block as it is."""
    ways = [BlockSparsity(0.0, 0.0)]
    if not entry.is_whole:
        ways += [BlockSparsity(0.0, entry.mlp), BlockSparsity(entry.attention, 0.0, entry.keeps_kv)]
    return [*ways, entry]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _tuples(value: Any) -> Any:
    """A value of JSON with tuples for its lists."""
    if isinstance(value, Mapping):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
