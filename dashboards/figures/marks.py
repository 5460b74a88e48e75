"""Parts that figures of measurements share: whiskers, hover labels, and the conditions that numbers hold under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.analysis.intervals import accuracy_interval, kl_interval, latency_quartiles
from dashboards.analysis.records import VARIANT_TITLES, measured_cost
from dashboards.figures.appearance import LogScale, percentages, plain_text
from studies import Measurement
from studies.analysis.prefill_speed import prefill_speedup
from studies.records.halves import per_block
from studies.records.objectives import COSTS, DEFAULT_COST, objective

Range = tuple[float, float, float]


def all_have_accuracy(measurements: Sequence[Measurement]) -> bool:
    """Tells whether the data has choices, so that accuracy can be drawn."""
    return all(m.accuracy is not None for m in measurements)


def accuracy_range(m: Measurement) -> Range:
    """Lower end, value and upper end of an accuracy; all the same where the interval is not known."""
    accuracy = m.accuracy or 0.0
    low, high = accuracy_interval(m) or (accuracy, accuracy)
    return low, accuracy, high


def kl_range(m: Measurement) -> Range:
    """Lower end, value and upper end of a KL; all the same where the interval is not known."""
    low, high = kl_interval(m) or (m.kl, m.kl)
    return low, m.kl, high


def kl_scale(measurements: Sequence[Measurement], others: Sequence[Range] = ()) -> LogScale | None:
    """The logarithmic axis of KL, which ends with its whiskers; None where a linear one serves better.

    Args:
        measurements: Measurements that are drawn.
        others: Ranges of what is drawn beside them.
    """
    ranges = [*map(kl_range, measurements), *others]
    return LogScale.of([kl for _, kl, _ in ranges], [end for low, _, high in ranges for end in (low, high)])


def shown_range(ends: Range, scale: LogScale | None) -> Range:
    """A range as it is drawn: what a logarithmic scale cannot show has no whiskers, and those of others end with it."""
    if scale is None:
        return ends
    low, middle, high = ends
    if middle < scale.floor:
        return scale.rail, scale.rail, scale.rail
    return max(low, scale.floor), middle, high


def latency_range(m: Measurement) -> Range:
    """First quartile, median and third quartile of what was timed."""
    low, high = latency_quartiles(m)
    return low, m.latency_ms, high


def error_bars(ranges: Sequence[Range]) -> dict[str, Any]:
    """Error bars from (low, middle, high)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - middle) for _, middle, high in ranges],
        "arrayminus": [max(0.0, middle - low) for low, middle, _ in ranges],
        "thickness": 1,
        "width": 3,
    }


def span(values: Sequence[int]) -> str:
    """The least and the most of some counts."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def conditions(measurements: Sequence[Measurement], whiskers: Sequence[str], is_timed: bool) -> str:
    """The prefill and the number of items that a figure is of: without them, none of its numbers means anything."""
    shapes = dict.fromkeys(f"batch {m.batch} × {m.length} tokens" for m in measurements)
    runs = f", median of {span([m.repeats for m in measurements])} runs" if is_timed else ""
    said = f"; whiskers: {', '.join(whiskers)}" if whiskers else ""
    items = span([m.n_items for m in measurements])
    return f"Prefill of {' and '.join(shapes)}{runs}<br>n = {items} test items{said}"


def hover(m: Measurement, titles: Mapping[str, str] = VARIANT_TITLES) -> str:
    """Everything about a measurement, for a hover label, under the title of its variant."""
    trial = "" if m.trial is None else f", trial {m.trial}"
    low, accuracy, high = accuracy_range(m)
    counted = [(objective(name), measured_cost(m, name)) for name in COSTS if name != DEFAULT_COST]
    kl, faster = kl_interval(m), prefill_speedup(m)
    lines = [
        f"<b>{plain_text(titles.get(m.variant, m.variant))}</b>{trial}",
        *([] if m.accuracy is None else [f"accuracy {accuracy:.1%} [{low:.1%}, {high:.1%}]"]),
        f"KL {m.kl:.4g}{'' if kl is None else f' [{kl[0]:.4g}, {kl[1]:.4g}]'} nats per token, "
        f"perplexity {m.perplexity:.4g}, n = {m.n_items}",
        f"latency {m.latency_ms:.1f} ms [{m.latency_low_ms:.1f}, {m.latency_high_ms:.1f}], "
        f"batch {m.batch} × {m.length} tokens",
        str(faster),
        ", ".join(f"{one.title} {one.text(value)}" for one, value in counted if value is not None),
        f"overall sparsity {m.overall_sparsity:.1%}; % skipped by block:",
        percentages(per_block(m.schedule)),
    ]
    return "<br>".join(lines)


def made_from(parents: Sequence[int]) -> str:
    """A line of a hover label on the trials that one was made from; nothing where there are none."""
    return f"<br>made from {' and '.join(f'trial {number}' for number in parents)}" if parents else ""
