"""Times single blocks within a forward pass of the real model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ftp_core.cost.conditions import ProfileError
from ftp_core.routers import DynamicRouter, Router, RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.interception import BlockCall, BlockHandler
from ftp_core.skipping.prefixes import Passage
from ftp_core.skipping.skipping import DecodePass
from ftp_core.skipping.skipping_model import Prefill, SkippingModel
from ftp_core.text.encoding import PromptBatch

# Tokens that are decoded, and how many of them come first and are slower than all behind them, as what they need has
# not been used while the prompt ran.
DECODED, COLD = 8, 3


class Timeline(Protocol):
    """Marks moments of a computation, and says afterwards how far apart they were."""

    def mark(self) -> Any:
        """Now, where the computation stands."""

    def settle(self) -> None:
        """Wait until everything that was asked for has been computed."""

    def ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks, once settled."""


class WallTimeline:
    """Of a processor, which has computed everything when the program goes on.

    Args:
        timer: Seconds since any moment.
    """

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer

    def mark(self) -> float:
        """See `Timeline.mark`."""
        return self._timer()

    def settle(self) -> None:
        """See `Timeline.settle`: nothing is under way."""

    def ms(self, begin: float, end: float) -> float:
        """See `Timeline.ms`."""
        return (end - begin) * 1000


class CudaTimeline:
    """Of a GPU, which computes behind the program's back: its own events say when it came to each mark.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        """See `Timeline.mark`."""
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event

    def settle(self) -> None:
        """See `Timeline.settle`."""
        torch.cuda.synchronize(self._device)

    def ms(self, begin: Any, end: Any) -> float:
        """See `Timeline.ms`."""
        return float(begin.elapsed_time(end))


def timeline_of(device: torch.device) -> Timeline:
    """The timeline for computations on a device."""
    if device.type not in ("cpu", "cuda"):
        raise ProfileError(f"Latency cannot be profiled on a {device.type!r} device: put the model on a CPU or a GPU.")
    return CudaTimeline(device) if device.type == "cuda" else WallTimeline()


@dataclass(frozen=True)
class PassTimes:
    """Times of one forward pass.

    Attributes:
        whole_ms: From the inputs to the next token's logits.
        block_ms: Of each block, the router's decision included.
        keep_ms: Of each block, the router's decision alone; None where none was asked for.
    """

    whole_ms: float
    block_ms: tuple[float, ...]
    keep_ms: tuple[float | None, ...] = ()

    @property
    def fixed_ms(self) -> float:
        """Everything outside the blocks."""
        return self.whole_ms - sum(self.block_ms)


class Passes(Protocol):
    """Forward passes of inputs of one shape, timed."""

    def prefill(self, schedule: SparsitySchedule, dynamic: bool) -> PassTimes:
        """A prefill, with a dynamic router or the static one."""

    def decode(self) -> list[PassTimes]:
        """`DECODED` tokens, one after the other, behind the last prefill."""

    def whole_ms(self, schedule: SparsitySchedule, dynamic: bool) -> float:
        """Milliseconds of a prefill in which no block is looked at."""


@dataclass
class _Spans:
    """Marks around what happened in one pass."""

    timeline: Timeline
    begin: Any = None
    end: Any = None
    blocks: list[tuple[Any, Any]] = field(default_factory=list)
    keeps: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def around(self, handler: BlockHandler) -> BlockHandler:
        """The handler, with each block between two marks."""

        def handle(index: int, call: BlockCall) -> Tensor:
            begin = self.timeline.mark()
            hidden = handler(index, call)
            self.blocks.append((begin, self.timeline.mark()))
            return hidden

        return handle

    def times(self) -> PassTimes:
        """The times between all marks."""
        self.timeline.settle()
        return PassTimes(
            whole_ms=self.timeline.ms(self.begin, self.end),
            block_ms=tuple(self.timeline.ms(*span) for span in self.blocks),
            keep_ms=tuple(
                self.timeline.ms(*self.keeps[index]) if index in self.keeps else None
                for index in range(len(self.blocks))
            ),
        )


@dataclass
class _TimedPassage(Passage):
    """A passage through all blocks that marks when each begins and ends."""

    spans: _Spans | None = None

    def through(self, handler: BlockHandler, routing: RoutingState | None = None) -> BlockHandler:
        """See `Passage.through`."""
        assert self.spans is not None
        return self.spans.around(handler)


class _TimedRouter:
    """Another router that marks when each decision begins and ends."""

    def __init__(self, router: Router, spans: _Spans) -> None:
        self._router = router
        self._spans = spans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)

    def keep(self, sparsity: float, state: RoutingState) -> Tensor:
        """See `Router.keep`."""
        begin = self._spans.timeline.mark()
        kept = self._router.keep(sparsity, state)
        self._spans.keeps[state.block] = (begin, self._spans.timeline.mark())
        return kept


class TimedPasses:
    """Forward passes of a real model; see `Passes`.

    Args:
        model: The model.
        batch: Rows.
        length: Tokens in each row.
        timeline: Tells the time; None for the one of the model's device.
    """

    def __init__(self, model: SkippingModel, batch: int, length: int, timeline: Timeline | None = None) -> None:
        self._model = model
        self._timeline = timeline_of(model.device) if timeline is None else timeline
        # Which tokens they are does not matter to the time, nor does what a router has learnt.
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.model.config.vocab_size, (batch, length), generator=draw)
        self._prompts = PromptBatch(ids, torch.full((batch,), length)).to(model.device)
        dynamic = DynamicRouter().eval().requires_grad_(False).to(model.device)
        self._routers: dict[bool, Router] = {False: StaticRouter(), True: dynamic}
        self._prefill: Prefill | None = None

    def prefill(self, schedule: SparsitySchedule, dynamic: bool) -> PassTimes:
        """See `Passes.prefill`."""
        spans = _Spans(self._timeline)
        # A Protocol does not see what `__getattr__` hands on.
        router: Any = _TimedRouter(self._routers[dynamic], spans)
        self._start()
        spans.begin = self._timeline.mark()
        prefill = self._model.prefill(self._prompts, schedule, router, _TimedPassage(spans=spans))
        self._model.next_logits(prefill)
        spans.end = self._timeline.mark()
        self._prefill = prefill
        return spans.times()

    def whole_ms(self, schedule: SparsitySchedule, dynamic: bool) -> float:
        """See `Passes.whole_ms`."""
        self._start()
        begin = self._timeline.mark()
        prefill = self._model.prefill(self._prompts, schedule, self._routers[dynamic])
        self._model.next_logits(prefill)
        end = self._timeline.mark()
        self._timeline.settle()
        return self._timeline.ms(begin, end)

    @torch.inference_mode()
    def decode(self) -> list[PassTimes]:
        """See `Passes.decode`."""
        assert self._prefill is not None, "prefill comes before decode"
        model, cache = self._model, self._prefill.cache
        ids, times = self._prompts.ids[:, :1], []
        real = torch.ones_like(ids, dtype=torch.bool)
        for _ in range(DECODED):
            spans = _Spans(self._timeline)
            columns = torch.full_like(ids, cache.seen)
            handler = DecodePass(model.model, model.family, cache, real, columns)
            # Where positions are rows of a table there are none behind the context; any other takes as long.
            positions = columns.clamp(max=model.context - 1)
            self._timeline.settle()
            spans.begin = self._timeline.mark()
            hidden = model.run(
                spans.around(handler), ids, position_ids=positions, past_key_values=cache, use_cache=True
            )
            model.logits(hidden[:, -1])
            spans.end = self._timeline.mark()
            cache.advance(real)
            times.append(spans.times())
        return times

    def _start(self) -> None:
        # The last pass's keys and values are let go of beforehand, not while time is taken.
        self._prefill = None
        self._timeline.settle()
