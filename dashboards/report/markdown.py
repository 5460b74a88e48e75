"""The report as Markdown: what the page says, in text and tables that GitHub shows."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from dashboards.analysis.records import NAMED_VARIANTS, ReportData
from dashboards.analysis.selection import held_out, why_selected
from dashboards.analysis.tables import Column, Table, bracketed, kl_text, row
from dashboards.report.effort import effort_table, rounds_table, routers_table, tuning_table
from dashboards.report.elsewhere import elsewhere_table
from dashboards.report.limits import disagreements, limits
from dashboards.report.methods import methods_tables
from dashboards.report.prompts import as_text, judged, said
from dashboards.report.results import results_table
from dashboards.report.speeds import speeds_table
from dashboards.report.summary import key_figures, summary_sentences
from studies.records.halves import halves
from studies.sql.times import local_text

# Whatever Markdown or HTML could take for more than a character of text; `~` strikes out, `$` begins mathematics.
_SPECIAL = re.compile(r"[\\`*_\[<>|~$&]")
# At the start of a line these begin lists, headings and quotations.
_STARTS = re.compile(r"^(\d*)(?=[#+=-]|[.)](?:\s|$))")
_MOST_SCHEDULES = 30


def text(words: str) -> str:
    """Text that stays text: nothing in it is markup, a table's border, or a new line."""
    escaped = _SPECIAL.sub(lambda found: f"\\{found.group()}", " ".join(words.split()))
    return _STARTS.sub(r"\1\\", escaped)


def fenced(content: str) -> str:
    """A block of literal text; its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{content}\n{fence}"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {text(line)}" for line in lines)


def table(shown: Table) -> str:
    """A table; the marked rows are bold."""
    headings = [text(f"{one.title} [{one.unit}]" if one.unit else one.title) for one in shown.columns]
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' + ' ---: |' * (len(headings) - 1)}"]
    for one in shown.rows:
        cells = []
        for cell in one.cells:
            value = text(cell.text)
            detail = (
                f" {text(cell.detail if cell.detail.startswith('[') else f'({cell.detail})')}" if cell.detail else ""
            )
            cells.append(f"**{value}**{detail}" if one.marked and value else value + detail)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_markdown(data: ReportData) -> str:
    """The report as text: the same findings, tables and examples as the page, without its figures."""
    study = data.study
    parts = [
        f"# {text(data.title)}",
        f"**{text(data.verdict)}**" if data.verdict else "",
        fenced("\n".join(f"{step.words}: {step.command}" for step in data.next_steps)) if data.next_steps else "",
        bullets(f"{one.label}: {one.value}{f' ({one.detail})' if one.detail else ''}" for one in key_figures(data)),
        text(
            f"Model {study.config.get('model', '?')}, data {study.config.get('data', '?')}; "
            f"begun {local_text(study.created_at)}, {data.state}."
        ),
        *(text(line) for line in data.labels),
        *(text(sentence) for sentence in summary_sentences(data)),
        *_titled("Results", _with_reading(results_table(data))),
        *_titled("On other data", _with_reading(elsewhere_table(data))),
        *(
            part
            for title, compared in methods_tables(data.compared)
            for part in _titled(f"Beside other methods: {title}", _with_reading(compared))
        ),
        *_titled("Speed by prompt length and new tokens", _with_reading(speeds_table(data))),
        *_titled("Why this point", [text(sentence) for sentence in why_selected(data)]),
        *_titled("How the figures were kept honest", [text(sentence) for sentence in held_out(data)]),
        *_titled("Which tokens are skipped", _prompts(data)),
        *_titled("Where accuracy is lost", _groups(data)),
        *_titled("Limits and failures", _limits(data)),
        *_titled("Which blocks can do without", _schedules(data)),
        *_titled("Rounds", _with_reading(rounds_table(data))),
        *_titled("Tuning of the router's training", _with_reading(tuning_table(data))),
        *_titled("Routers", _with_reading(routers_table(data))),
        *_titled("What it cost to get there", _with_reading(effort_table(data))),
        *_titled("Configuration", [fenced(json.dumps(dict(study.config), indent=2, default=str))]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _titled(title: str, parts: Sequence[str]) -> list[str]:
    """A section; nothing where it has nothing to say."""
    shown = [part for part in parts if part]
    return [f"## {title}", *shown] if shown else []


def _with_reading(shown: Table) -> list[str]:
    return [text(shown.reading), table(shown) if shown.rows else ""]


def _prompts(data: ReportData) -> list[str]:
    if data.examples is None or not data.examples.prompts:
        return []
    parts = [
        "Prompts of the test set; before each stretch of tokens, how many blocks these run.",
        judged(data.examples),
    ]
    for one in data.examples.prompts:
        parts += [
            fenced(as_text(one)),
            text(said(one)),
            bullets(
                [
                    f"expected: {one.expected}",
                    f"dense: {one.dense}{' (wrong)' if one.dense_right is False else ''}",
                    f"selected: {one.pruned}{' (wrong)' if one.pruned_right is False else ''}",
                ]
            ),
        ]
    return parts


def _groups(data: ReportData) -> list[str]:
    groups = data.examples.groups if data.examples else ()
    variants = [variant for variant in NAMED_VARIANTS if any(variant in one.accuracy for one in groups)]
    rows = []
    for one in groups:
        cells = [
            f"{one.accuracy[variant]:.1%} {bracketed(one.interval.get(variant), '.1%')}"
            if variant in one.accuracy
            else "–"
            for variant in variants
        ]
        rows.append(row([one.group, str(one.n_items), *cells]))
    if not rows:
        return []
    columns = tuple(Column(title) for title in ("group", "n", *variants))
    return _with_reading(Table(columns, tuple(rows), "Accuracy on test items, with 95% Wilson intervals."))


def _limits(data: ReportData) -> list[str]:
    parts = [bullets(limits(data)), text(disagreements(data))]
    for one in data.examples.disagreements if data.examples else ():
        group = f", {one.group}" if one.group else ""
        answers = f"expected {one.expected}; dense {one.dense}; selected {one.pruned}; KL {kl_text(one.kl)}{group}"
        # Inside an element Markdown's escapes do not count.
        summary = html.escape(" ".join(answers.split()))
        parts.append(f"<details><summary>{summary}</summary>\n\n{fenced(one.prompt)}\n\n</details>")
    return parts


def _percentages(schedule: Sequence[float]) -> Iterator[str]:
    """Percentages of tokens that skip each block; its attention and its MLP, where these differ."""
    attention, mlp, _ = halves(schedule)
    for a, m in zip(attention, mlp, strict=True):
        yield f"{100 * a:.0f}" if a == m else f"{100 * a:.0f}/{100 * m:.0f}"


def _schedules(data: ReportData) -> list[str]:
    points = data.shown_schedules
    stride = -(-len(points) // _MOST_SCHEDULES) or 1
    shown = [t for place, t in enumerate(points) if place % stride == 0 or t.number == data.chosen_trial]
    rows = tuple(
        row(
            [str(t.number), f"{t.overall_sparsity:.1%}", " ".join(_percentages(t.schedule))],
            marked=t.number == data.chosen_trial,
        )
        for t in sorted(shown, key=lambda t: (t.overall_sparsity, t.number))
    )
    if not rows:
        return []
    reading = "Schedules of the front and the selected one, which is bold."
    if len(shown) < len(points):
        reading += f" Shown are {len(shown)} of {len(points)}, evenly spread."
    columns = (Column("trial"), Column("overall sparsity"), Column("% of tokens that skip each block"))
    return _with_reading(Table(columns, rows, reading))
