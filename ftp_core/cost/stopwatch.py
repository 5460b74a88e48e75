"""Times single blocks within a forward pass of the real model.

Shapes: B rows, L tokens of a row, D hidden width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ftp_core.cost.conditions import ProfileError
from ftp_core.routers import DynamicRouter, OnePassRouter, Router, RoutingState, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.decoding import DecodePass
from ftp_core.skipping.dispatch import execution_device
from ftp_core.skipping.interception import BlockCall, BlockHandler
from ftp_core.skipping.prefixes import Passage
from ftp_core.skipping.skipping_model import Prefill, SkippingModel
from ftp_core.text.encoding import PromptBatch

# Tokens that are decoded, and the first ones of them, which are slower since their code and data are not cached yet.
DECODED, COLD = 8, 3
# Sparsity at which decisions are timed by themselves, and how often, the first time aside.
_DECIDED, _DECISIONS = 0.5, 7


class Timeline:
    """Clock that marks moments of a computation, here on the CPU, and measures the time between them afterwards.

    Args:
        timer: Reads seconds.
    """

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer

    def mark(self) -> Any:
        """A mark of the present moment of the computation."""
        return self._timer()

    def settle(self) -> None:
        """Wait until the computation is done; on the CPU it is."""

    def ms(self, begin: Any, end: Any) -> float:
        """Milliseconds between two marks, once settled."""
        return float(end - begin) * 1000


class CudaTimeline(Timeline):
    """Timeline of a GPU, by its own events."""

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
    return CudaTimeline(device) if device.type == "cuda" else Timeline()


@dataclass(frozen=True)
class PassTimes:
    """Times of one forward pass."""

    whole_ms: float  # time from the inputs to the next token's logits
    block_ms: tuple[float, ...]  # time of each block, the router's decision included
    keep_ms: tuple[float | None, ...] = ()  # time of the router's decisions alone; None where there were none

    @property
    def fixed_ms(self) -> float:
        """Time outside the blocks."""
        return self.whole_ms - sum(self.block_ms)


@dataclass
class _Spans:
    """Marks around the blocks and decisions of one pass."""

    timeline: Timeline
    begin: Any = None
    end: Any = None
    blocks: list[tuple[Any, Any]] = field(default_factory=list)
    keeps: dict[int, list[tuple[Any, Any]]] = field(default_factory=dict)

    def around(self, handler: BlockHandler) -> BlockHandler:
        """The handler, with each block between two marks."""

        def handle(index: int, call: BlockCall) -> Tensor:
            begin = self.timeline.mark()
            hidden_BLD = handler(index, call)
            self.blocks.append((begin, self.timeline.mark()))
            return hidden_BLD

        return handle

    def times(self) -> PassTimes:
        """The times between the marks."""
        self.timeline.settle()
        return PassTimes(
            whole_ms=self.timeline.ms(self.begin, self.end),
            block_ms=tuple(self.timeline.ms(*span) for span in self.blocks),
            keep_ms=tuple(
                sum(self.timeline.ms(*span) for span in self.keeps[index]) if index in self.keeps else None
                for index in range(len(self.blocks))
            ),
        )


@dataclass(kw_only=True)
class _TimedPassage(Passage):
    """A passage through all blocks that marks when each begins and ends."""

    spans: _Spans

    def through(self, handler: BlockHandler, routing: RoutingState | None = None) -> BlockHandler:
        """See `Passage.through`."""
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
        self._spans.keeps.setdefault(state.block, []).append((begin, self._spans.timeline.mark()))
        return kept


class TimedPasses:
    """Timed forward passes of inputs of one shape.

    Args:
        model: The model.
        batch: Rows.
        length: Tokens in each row.
        timeline: Clock; None for that of the model's device.
    """

    def __init__(self, model: SkippingModel, batch: int, length: int, timeline: Timeline | None = None) -> None:
        if timeline is None and len({str(execution_device(block)) for block in model.blocks}) > 1:
            raise ProfileError(
                "Latency cannot be profiled where the blocks of a model are on several devices, each with a clock of "
                "its own: search by another cost (--cost flops), or give a model that one device holds."
            )
        self._model = model
        self._timeline = timeline_of(model.device) if timeline is None else timeline
        # Times do not depend on the tokens, nor on a router's weights.
        draw = torch.Generator().manual_seed(0)
        ids_BL = torch.randint(0, model.model.config.vocab_size, (batch, length), generator=draw)
        self._prompts = PromptBatch(ids_BL, torch.full((batch,), length)).to(model.device)
        dynamic = DynamicRouter().eval().requires_grad_(False).to(model.device)
        self._routers: dict[bool, Router] = {False: StaticRouter(), True: dynamic}
        self._prefill: Prefill | None = None

    def prefill(self, schedule: SparsitySchedule, dynamic: bool) -> PassTimes:
        """A prefill, with a dynamic router or the static one."""
        spans = _Spans(self._timeline)
        # A Protocol does not see attributes of `__getattr__`.
        router: Any = _TimedRouter(self._routers[dynamic], spans)
        self._start()
        spans.begin = self._timeline.mark()
        prefill = self._model.prefill(self._prompts, schedule, router, _TimedPassage(spans=spans))
        self._model.next_logits(prefill)
        spans.end = self._timeline.mark()
        self._prefill = prefill
        return spans.times()

    def whole_ms(self, schedule: SparsitySchedule, dynamic: bool) -> float:
        """Milliseconds of a prefill in which no block is timed."""
        self._start()
        begin = self._timeline.mark()
        prefill = self._model.prefill(self._prompts, schedule, self._routers[dynamic])
        self._model.next_logits(prefill)
        end = self._timeline.mark()
        self._timeline.settle()
        return self._timeline.ms(begin, end)

    @torch.inference_mode()
    def decode(self) -> list[PassTimes]:
        """`DECODED` tokens, one after the other, behind the last prefill."""
        assert self._prefill is not None, "prefill comes before decode"
        model, cache = self._model, self._prefill.cache
        ids_B1, times = self._prompts.ids[:, :1], []
        real_B1 = torch.ones_like(ids_B1, dtype=torch.bool)
        for _ in range(DECODED):
            spans = _Spans(self._timeline)
            columns_B1 = torch.full_like(ids_B1, cache.seen)
            handler = DecodePass(model.model, model.family, cache, real_B1, columns_B1)
            # A table of positions ends with the context; any other position takes as long.
            positions_B1 = columns_B1.clamp(max=model.context - 1)
            self._timeline.settle()
            spans.begin = self._timeline.mark()
            hidden_B1D = model.run(
                spans.around(handler), ids_B1, position_ids=positions_B1, past_key_values=cache, use_cache=True
            )
            model.logits(hidden_B1D[:, -1])
            spans.end = self._timeline.mark()
            cache.advance(real_B1)
            times.append(spans.times())
        return times

    @torch.inference_mode()
    def one_pass_ms(self) -> tuple[float, float]:
        """Extra time of a one-pass router's decision, beside the static router's, and time of its scores."""
        model, static = self._model, self._routers[False]
        config = model.model.config
        router = OnePassRouter(config.hidden_size, model.n_blocks, model.family.halves is not None)
        router = router.eval().requires_grad_(False).to(model.device)
        shape = *self._prompts.ids.shape, config.hidden_size
        hidden_BLD = torch.zeros(shape, dtype=model.model.dtype, device=model.device)
        decided: list[list[float]] = []
        for _ in range(1 + _DECISIONS):
            state = RoutingState.padded_right(self._prompts.lengths, shape[1], model.keep_first)
            state.hidden = hidden_BLD
            marks = []
            # What all routers read of the prompts is known before.
            static.keep(_DECIDED, state)
            self._timeline.settle()
            for one in (static, router, router):
                marks.append(self._timeline.mark())
                one.keep(_DECIDED, state)
            marks.append(self._timeline.mark())
            self._timeline.settle()
            decided.append([self._timeline.ms(*span) for span in pairwise(marks)])
        static_ms, first_ms, later_ms = (statistics.median(times) for times in zip(*decided[1:], strict=True))
        return max(0.0, later_ms - static_ms), max(0.0, first_ms - later_ms)

    def _start(self) -> None:
        # The last pass's keys and values are freed beforehand, not while time is taken.
        self._prefill = None
        self._timeline.settle()
