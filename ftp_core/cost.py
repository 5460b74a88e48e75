"""What a schedule costs: FLOPs counted, latency predicted from a profile, latency measured."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ftp_core.encoding import PromptBatch
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule, kept_count
from ftp_core.skipping_model import SkippingModel

_PROFILE_SHARES = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.95)


def prefill_flops(model: SkippingModel, schedule: SparsitySchedule, batch: int, length: int) -> float:
    """Floating-point operations of one prefill: two per multiply-add, matrix products only, as torch's counter does.

    Attention is counted over the full k x k square, which is what the counter counts, although a causal kernel may
    compute half of it. The head runs on the last token of each row.

    Args:
        model: The model.
        schedule: One sparsity per block.
        batch: Rows.
        length: Tokens in each row.
    """
    model.check(schedule)
    config = model.model.config
    n_heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    total = 0.0
    for block, kept in zip(model.blocks, schedule.kept_counts(length), strict=True):
        matrices = sum(p.numel() for p in block.parameters() if p.ndim == 2)
        total += 2.0 * kept * matrices + 4.0 * kept * kept * n_heads * head_width
    head = 2.0 * config.hidden_size * config.vocab_size
    return float(batch * (total + head))


@dataclass(frozen=True)
class LatencyProfile:
    """Milliseconds that a prefill takes, as measured once on this machine and interpolated afterwards.

    Attributes:
        batch: Rows of the profiled input.
        length: Tokens in each row.
        threads: torch threads that it was measured with.
        kept: Kept counts that were measured, ascending; the last is `length`, which runs without gathering.
        block_ms: Time of one block at each of them.
        fixed_ms: Time of everything outside the blocks.
    """

    batch: int
    length: int
    threads: int
    kept: tuple[int, ...]
    block_ms: tuple[float, ...]
    fixed_ms: float

    def predict_ms(self, schedule: SparsitySchedule) -> float:
        """Predicted latency of a prefill under a schedule, linear between measured kept counts."""
        counts = schedule.kept_counts(self.length)
        return float(np.interp(counts, self.kept, self.block_ms).sum() + self.fixed_ms)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LatencyProfile:
        """Read what `to_json` wrote."""
        return cls(**{**values, "kept": tuple(values["kept"]), "block_ms": tuple(values["block_ms"])})


@dataclass(frozen=True)
class Latency:
    """Repeated timings of one variant.

    Attributes:
        median_ms: Median.
        low_ms: First quartile.
        high_ms: Third quartile.
        repeats: How many.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int


def timing_batch(prompts: Sequence[Sequence[int]], batch: int, length: int) -> PromptBatch:
    """A rectangular batch of real tokens: prompts laid end to end, over again if need be, and cut into rows."""
    stream = [token for prompt in prompts for token in prompt]
    stream *= -(-batch * length // len(stream))
    ids = torch.tensor(stream[: batch * length]).view(batch, length)
    return PromptBatch(ids, torch.full((batch,), length))


def _interleaved_ms(
    runs: Sequence[Callable[[], object]], repeats: int, on_round: Callable[[], None]
) -> list[list[float]]:
    """Times of each run in milliseconds; the runs take turns, so that drift of the machine hits all alike."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, own in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            own.append((time.perf_counter() - started) * 1000)
        on_round()
    return times


def measure_latency(
    model: SkippingModel,
    prompts: PromptBatch,
    variants: Sequence[tuple[SparsitySchedule, Router]],
    repeats: int = 15,
    on_round: Callable[[], None] = lambda: None,
) -> list[Latency]:
    """Time a prefill, the next token's logits included, under each variant; variants take turns.

    Args:
        model: The model.
        prompts: What to prefill.
        variants: Schedules with their routers.
        repeats: Rounds, after one warm-up.
        on_round: Called after each round.
    """

    def run(schedule: SparsitySchedule, router: Router) -> Callable[[], object]:
        return lambda: model.next_logits(model.prefill(prompts, schedule, router))

    latencies = []
    for times in _interleaved_ms([run(*variant) for variant in variants], repeats, on_round):
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        latencies.append(Latency(median, low, high, len(times)))
    return latencies


def profile_latency(
    model: SkippingModel, prompts: PromptBatch, repeats: int = 7, on_round: Callable[[], None] = lambda: None
) -> LatencyProfile:
    """Measure uniform schedules with the static router and split each time into blocks and the rest.

    Args:
        model: The model.
        prompts: A rectangular batch, from `timing_batch`.
        repeats: Rounds, after one warm-up.
        on_round: Called after each round.
    """
    batch, length = prompts.ids.shape
    # Ascending kept counts. One token less than all is the first point that gathers; the step to the last one, which
    # does not, is the price of gathering and scattering.
    shares = [*sorted(_PROFILE_SHARES, reverse=True), 1 / length, 0.0]
    variants = [(SparsitySchedule.uniform(share, model.n_blocks), StaticRouter()) for share in shares]
    prefills = measure_latency(model, prompts, variants, repeats, on_round)
    [outside] = _interleaved_ms([lambda: _outside_blocks(model, prompts)], repeats, lambda: None)
    fixed_ms = statistics.median(outside)
    return LatencyProfile(
        batch=batch,
        length=length,
        threads=torch.get_num_threads(),
        kept=tuple(kept_count(share, length) for share in shares),
        block_ms=tuple(max(0.0, prefill.median_ms - fixed_ms) / model.n_blocks for prefill in prefills),
        fixed_ms=fixed_ms,
    )


def profile_conditions(model_fingerprint: str, prompts: PromptBatch) -> dict[str, Any]:
    """What a latency profile holds for: another machine, program, model or input needs another one.

    Args:
        model_fingerprint: Of the model.
        prompts: What is timed.
    """
    batch, length = prompts.ids.shape
    return {
        "model": model_fingerprint,
        "batch": batch,
        "length": length,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


@torch.inference_mode()
def _outside_blocks(model: SkippingModel, prompts: PromptBatch) -> None:
    model.logits(model.run(lambda _, call: call.hidden, prompts.ids, use_cache=False)[:, -1])
