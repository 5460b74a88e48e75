"""Results on other data than the study's own: what was searched on one kind, tested on another."""

from __future__ import annotations

from dashboards.analysis.intervals import accuracy_interval, kl_interval, perplexity_interval
from dashboards.analysis.records import ReportData
from dashboards.analysis.tables import UNKNOWN, Cell, Column, Row, Table, bracketed, kl_text, perplexity_text
from dashboards.figures.appearance import VARIANT_COLOURS
from studies import Measurement
from studies.analysis.retention import chance_level, retention_of

_BEFORE = "test: "
_COLUMNS = (
    Column("data"),
    Column("variant"),
    Column("overall sparsity"),
    Column("accuracy", "95% interval"),
    Column("n"),
    Column("retention", "95% interval"),
    Column("KL, nats per token", "95% interval"),
    Column("perplexity", "95% interval"),
)


def elsewhere_table(data: ReportData) -> Table:
    """The results on other data, a row for each set of it and each variant; none where there is no other data."""
    found = [m for m in data.measurements if m.split.startswith(_BEFORE)]
    if not found:
        return Table(_COLUMNS, ())
    dense = {m.split: m for m in found if m.variant == "dense"}
    selected = data.selected
    chosen = None if selected is None else (selected.variant, selected.trial, selected.router)
    rows = tuple(
        Row(
            tuple(_cells(data, m, dense.get(m.split))),
            VARIANT_COLOURS.get(m.variant, VARIANT_COLOURS["candidate"]),
            (m.variant, m.trial, m.router) == chosen,
        )
        for m in found
    )
    return Table(
        _COLUMNS,
        rows,
        "Quality on other data than the study's own (out of domain): nothing was searched, trained or selected on it.",
    )


def _cells(data: ReportData, m: Measurement, dense: Measurement | None) -> list[Cell]:
    ends = perplexity_interval(m)
    kept = retention_of(m, dense, None, chance_level(data.study.facts, m.split))
    return [
        Cell(m.split.removeprefix(_BEFORE).rstrip("/").rsplit("/", 1)[-1]),
        Cell(m.variant),
        Cell(f"{m.overall_sparsity:.1%}"),
        UNKNOWN if m.accuracy is None else Cell(f"{m.accuracy:.1%}", bracketed(accuracy_interval(m), ".1%")),
        Cell(str(m.n_choice_items or m.n_items)),
        UNKNOWN if kept is None else Cell(f"{kept.share:.1%}", kept.interval_text),
        Cell(kl_text(m.kl), bracketed(kl_interval(m), ".4f" if m.kl < 0.05 else ".3f")),
        Cell(perplexity_text(m.perplexity), f"[{', '.join(map(perplexity_text, ends))}]" if ends else ""),
    ]
