"""End-to-end speed of generation: a prompt and then new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationSpeed:
    """The time that a schedule with a router takes until so many new tokens are known.

    The dense model and the others took turns, and were timed in the same runs after 1, 16, 64, ... new tokens.

    """

    variant: str  # see `Measurement.variant`; "dense" is the model without any wrapper
    trial: int | None  # number of the trial whose schedule it is; None for dense and uniform
    router: int | None  # number of the study's router that decided (`RouterRun.number`); None for the static router
    batch: int  # rows
    length: int  # tokens of each row's prompt
    new_tokens: int  # per row, decoded greedily with a cache; the first comes with the prefill, so 1 is a prefill alone
    latency_ms: float  # median of the timed runs
    latency_low_ms: float  # first quartile of the timed runs
    latency_high_ms: float  # third quartile of the timed runs
    repeats: int  # timed runs
    speedup: float | None = None  # times as fast as the dense model; None for the dense model itself
    speedup_low: float | None = None  # lower end of its 95 % interval
    speedup_high: float | None = None  # upper end of it

    @property
    def interval(self) -> str:
        """The interval of the speed-up as text, or that there is none."""
        if self.speedup_low is None or self.speedup_high is None:
            return f"(interval unknown: {self.repeats} turns are too few for one)"
        return f"[{self.speedup_low:.2f}, {self.speedup_high:.2f}]"

    @property
    def differs(self) -> bool | None:
        """True if its speed differs from the dense model's beyond the clock's noise; None if unknown."""
        if self.speedup_low is None or self.speedup_high is None:
            return None
        return not self.speedup_low <= 1 <= self.speedup_high

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and tokens of each one's prompt."""
        return self.batch, self.length


def end_to_end(speeds: Sequence[GenerationSpeed], trial: int | None, router: int | None) -> list[GenerationSpeed]:
    """The speeds of a trial with a router beyond the prefill, with prompts of the length that costs are of.

    Args:
        speeds: All speeds of its study.
        trial: Number of the trial.
        router: Number of the router; None for the static one.
    """
    own = [one for one in speeds if (one.trial, one.router) == (trial, router) and one.speedup]
    return [one for one in own if one.shape == own[0].shape and one.new_tokens > 1]


def in_words(speeds: Sequence[GenerationSpeed]) -> str:
    """Speed-ups over the dense model: "1.24 times [1.22, 1.26] with 16 new tokens, 1.12 times [1.10, 1.13] with 64"."""
    words = [
        f"{one.speedup:.2f} times {one.interval} with {one.new_tokens}{'' if place else ' new tokens'}"
        + (" (no difference is shown)" if one.differs is False else "")
        for place, one in enumerate(one for one in speeds if one.speedup)
    ]
    return ", ".join(words)
