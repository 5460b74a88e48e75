"""The table of results: what was measured on test items, a row each, and how it compares with the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dashboards.analysis.intervals import accuracy_interval, kl_interval, latency_quartiles, perplexity_interval
from dashboards.analysis.records import ReportData
from dashboards.analysis.speed_tones import prefill_tone
from dashboards.analysis.tables import UNKNOWN, Cell, Column, Row, Table, Tone, bracketed, kl_text, perplexity_text
from dashboards.figures.appearance import VARIANT_COLOURS
from studies import Measurement
from studies.analysis.clock import check_clock
from studies.analysis.prefill_speed import PrefillSpeedup, prefill_speedup
from studies.analysis.retention import Retention

_MIB = 2.0**20


@dataclass(frozen=True)
class Result:
    """A measurement with what it comes to against the dense model."""

    measurement: Measurement  # on test items
    selected: bool  # True for the point that was selected
    router: str  # in words
    flops_saved: float | None  # share of the dense model's arithmetic; None where that was not measured
    retention: Retention | None  # None where it is not known or says nothing
    origin: str  # the trial whose schedule it is, and where that comes from; empty where it is of no trial
    speed_up: PrefillSpeedup
    tone: Tone  # of the speed-up


def results(data: ReportData) -> list[Result]:
    """A result for each measurement on test items, in the order of the table."""
    dense, selected = data.measured("dense"), data.selected
    clock = check_clock(data.measurements, "test")
    return [
        Result(
            measurement=m,
            selected=m is selected,
            router=data.router_name(m),
            flops_saved=None if dense is None else 1 - m.flops / dense.flops,
            retention=data.retention(m),
            origin=data.origin(m),
            speed_up=prefill_speedup(m),
            tone=prefill_tone(m, dense, clock),
        )
        for m in data.results
    ]


def results_table(data: ReportData) -> Table:
    """The results as a table."""
    found = results(data)
    rows = tuple(
        Row(
            tuple(_cells(one)), VARIANT_COLOURS.get(one.measurement.variant, VARIANT_COLOURS["candidate"]), one.selected
        )
        for one in found
    )
    return Table(_COLUMNS, rows, _reading(data) if found else "")


def plain_result(one: Result) -> dict[str, Any]:
    """A result as numbers, one name each, for JSON and CSV."""
    m = one.measurement
    kept = one.retention
    low, high = (None, None) if kept is None or kept.interval is None else kept.interval
    figures = asdict(m)
    schedule = figures.pop("schedule")
    for name in ("speedup", "speedup_low", "speedup_high"):
        del figures[name]
    first = {name: figures.pop(name) for name in ("variant", "trial", "router")}
    return {
        **first,
        "origin": one.origin,
        "decided_by": one.router,
        "selected": one.selected,
        "overall_sparsity": m.overall_sparsity,
        "flops_saved": one.flops_saved,
        "retention": None if kept is None else kept.share,
        "retention_low": low,
        "retention_high": high,
        "retention_method": None if kept is None else kept.method,
        "speed_up": one.speed_up.ratio,
        "speed_up_low": one.speed_up.low,
        "speed_up_high": one.speed_up.high,
        **figures,
        "schedule": schedule,
    }


_COLUMNS = (
    Column("variant"),
    Column("overall sparsity"),
    Column("FLOPs saved"),
    Column("accuracy", "95% interval"),
    Column("n"),
    Column("retention", "95% interval"),
    Column("KL, nats per token", "95% interval"),
    Column("perplexity", "95% interval"),
    Column("latency, ms", "quartiles"),
    Column("prefill speed-up", "95% interval"),
    Column("KV cache, MiB"),
    Column("peak memory, MiB"),
)


def _cells(one: Result) -> list[Cell]:
    m = one.measurement
    return [
        Cell(f"{m.variant} (selected)" if one.selected else m.variant, _origin(one)),
        Cell(f"{m.overall_sparsity:.1%}"),
        UNKNOWN if one.flops_saved is None else Cell(f"{one.flops_saved:.1%}"),
        UNKNOWN if m.accuracy is None else Cell(f"{m.accuracy:.1%}", bracketed(accuracy_interval(m), ".1%")),
        Cell(str(m.n_choice_items or m.n_items)),
        UNKNOWN if one.retention is None else Cell(f"{one.retention.share:.1%}", one.retention.interval_text),
        Cell(kl_text(m.kl), bracketed(kl_interval(m), ".4f" if m.kl < 0.05 else ".3f")),
        _perplexity(m),
        Cell(f"{m.latency_ms:.1f}", bracketed(latency_quartiles(m), ".1f")),
        Cell(f"{one.speed_up.ratio:.2f}×", one.speed_up.interval, one.tone),
        _mebibytes(m.kv_bytes),
        _mebibytes(m.peak_bytes),
    ]


def _origin(one: Result) -> str:
    """The trial whose schedule it is, and the router."""
    parts = [one.origin] if one.origin else []
    return ", ".join(parts if one.measurement.variant == "dense" else [*parts, one.router])


def _perplexity(m: Measurement) -> Cell:
    ends = perplexity_interval(m)
    return Cell(perplexity_text(m.perplexity), f"[{', '.join(map(perplexity_text, ends))}]" if ends else "")


def _mebibytes(size: int | None) -> Cell:
    return UNKNOWN if size is None else Cell(f"{size / _MIB:.2f}")


def _reading(data: ReportData) -> str:
    shown = data.results
    shapes = " and ".join(dict.fromkeys(f"{m.batch} × {m.length} tokens" for m in shown))
    repeats = " or ".join(str(count) for count in dict.fromkeys(m.repeats for m in shown))
    parts = [
        f"Every number is of test items, which neither search nor training nor selection saw: {_items(shown)}.",
        f"Latency is the median of {repeats} timed prefills of {shapes}, with quartiles; FLOPs, the KV cache and the "
        "peak memory of the prefill's activations are counted for the same input.",
        "The speed-up of the prefill is the median over turns of the dense model's time by the row's in the same turn, "
        "with a distribution-free interval. The dense model is timed twice in every turn: what it comes to against "
        "itself is 1 on a quiet machine.",
    ]
    clock = check_clock(data.measurements, "test")
    if clock is not None and clock.sentence:
        parts.append(clock.sentence)
    if any(m.accuracy is not None for m in shown):
        parts.append(
            "Accuracy has a Wilson interval"
            + ("" if data.chance is None else f"; guessing would have {data.chance:.1%} right")
            + "."
        )
        parts.append(
            data.only_guesses
            or "Retention is accuracy as a share of the dense model's. Its interval is of the selected row made item "
            "by item, as far as single items are known, and of others from both Wilson intervals as if the two were "
            "independent (MOVER), so it is wider than it had to be."
        )
    elif shown:
        parts.append("Retention is the dense model's perplexity by the row's, as the data has no choices.")
    if any(m.kl_low is not None for m in shown):
        parts.append("KL and perplexity have bootstrap intervals over items.")
    if any(m.variant == "candidate" for m in shown):
        parts.append("Candidates are further points of the front.")
    parts.append(
        "Under its name stand the trial that a row's schedule comes from and who decides: the static router, or the "
        "one that was trained in that stage."
    )
    return " ".join(parts)


def _items(shown: Sequence[Measurement]) -> str:
    items, choices = {m.n_items for m in shown}, {m.n_choice_items for m in shown}
    said = " or ".join(str(count) for count in sorted(items))
    if len(items) == len(choices) == 1 and 0 < min(choices) < min(items):
        return f"{said} of them, {min(choices)} with choices (n is those)"
    return f"{said} of them"
