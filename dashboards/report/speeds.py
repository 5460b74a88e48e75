"""The table of speeds: prefill and generation of the selected point, by prompt length and new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from dashboards.analysis.records import ReportData
from dashboards.analysis.speed_tones import generation_tone
from dashboards.analysis.tables import UNKNOWN, Cell, Column, Row, Table, bracketed
from studies.records.generation_speed import GenerationSpeed

# Whatever else was timed is the selected point.
_OTHERS = ("dense", "uniform")
_COLUMNS = (
    Column("prompts"),
    Column("new tokens"),
    Column("dense, ms", "quartiles"),
    Column("selected, ms", "quartiles"),
    Column("speed-up", "95% interval"),
    Column("shortened prompt, ms", "quartiles"),
    Column("its speed-up", "95% interval"),
)


def speeds_table(data: ReportData) -> Table:
    """Times of generation, a row for each prompt length and number of new tokens; empty before it was timed."""
    rows = tuple(
        Row(tuple(_cells(shape, new_tokens, list(group))))
        for (shape, new_tokens), group in groupby(data.speeds, lambda one: (one.shape, one.new_tokens))
    )
    return Table(_COLUMNS, rows, _reading(data.speeds) if rows else "")


def _cells(shape: tuple[int, int], new_tokens: int, timed: Sequence[GenerationSpeed]) -> list[Cell]:
    batch, length = shape
    dense, uniform = (next((one for one in timed if one.variant == name), None) for name in _OTHERS)
    selected = next((one for one in timed if one.variant not in _OTHERS), None)
    return [
        Cell(f"{batch} × {length}"),
        Cell("1", "prefill alone") if new_tokens == 1 else Cell(str(new_tokens)),
        _ms(dense),
        _ms(selected),
        _speedup(selected),
        _ms(uniform),
        _speedup(uniform),
    ]


def _ms(one: GenerationSpeed | None) -> Cell:
    if one is None:
        return UNKNOWN
    return Cell(f"{one.latency_ms:.1f}", bracketed((one.latency_low_ms, one.latency_high_ms), ".1f"))


def _speedup(one: GenerationSpeed | None) -> Cell:
    if one is None or one.speedup is None:
        return UNKNOWN
    return Cell(f"{one.speedup:.2f}×", one.interval, generation_tone(one))


def _reading(speeds: Sequence[GenerationSpeed]) -> str:
    turns = " or ".join(str(count) for count in sorted({one.repeats for one in speeds}))
    reading = (
        "Milliseconds until so many new tokens of each row are known: a prefill, whose end gives the first one, then a "
        "pass of the model for each further one, greedily and with a cache. Only prompts skip tokens, so the more is "
        "generated, the less of the prefill's speed-up is left. Dense is the model as it is. All took turns, "
        f"{turns} times, apart from the turns of other tables; a speed-up is the median of the ratios within turns."
    )
    selected = next((one for one in speeds if one.variant not in _OTHERS), None)
    if selected is not None:
        decides = "the static router" if selected.router is None else f"router {selected.router}"
        reading += f" Selected is trial {selected.trial} with {decides}."
    if any(one.variant == "uniform" for one in speeds):
        reading += " The shortened prompt is the row uniform."
    return reading
