"""Several studies side by side: each seed's figures, and their means over seeds with intervals."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dashboards.analysis.intervals import (
    accuracy_interval,
    kl_interval,
    latency_quartiles,
    mean_interval,
    speedup_interval,
)
from dashboards.analysis.records import NAMED_VARIANTS
from dashboards.analysis.tables import UNKNOWN, Cell, Column, Row, Table, bracketed, counted, kl_text
from dashboards.figures.appearance import VARIANT_COLOURS
from dashboards.report.files import jsonable, replace_file
from dashboards.report.html import environment
from dashboards.report.markdown import bullets, table, text
from dashboards.report.plain_values import records_csv
from studies import Measurement
from studies.analysis.prefill_speed import prefill_speedup
from studies.analysis.retention import Interval, Retention, chance_level, retention_of
from studies.analysis.shortened_prompt import measured_against_shortened_prompt
from studies.analysis.verdict import selected_point, verdict_of
from studies.records.records import ReportExamples
from studies.records.study_facts import Origin
from studies.records.target import Target
from studies.store.results_folder import COMPARISON_FILES, check_comparison

SELECTED = "selected"
# What is averaged over seeds, and how it is written.
_FIGURES: Mapping[str, str] = {
    "overall_sparsity": ".1%",
    "accuracy": ".1%",
    "retention": ".1%",
    "kl": ".4f",
    "latency_ms": ".1f",
    "speed_up": ".2f",
}
_SHARES = ("overall_sparsity", "accuracy")
_TITLES = ("overall sparsity", "accuracy", "retention", "KL, nats per token", "latency, ms", "prefill speed-up")
_INSTEAD = ": below their mean, without brackets, stand the least and the greatest value."
METHOD = (
    "Every number is of test items. A mean is over seeds, each a whole run with its own search, training, selection "
    "and split of the data; its 95% interval is by Student's t over the seeds, which takes them for independent. Where "
    "there are fewer than three seeds, or they vary so much that it would reach below 0, there is none: the least and "
    "the greatest value stand in its place. Of single seeds, accuracy stands with its 95% Wilson interval, retention "
    "with one made item by item, or from two of these (MOVER), KL with its bootstrap interval over items, latency with "
    "its quartiles, the speed-up of the prefill with the interval of its median over timed turns."
)


class ComparisonPaths(NamedTuple):
    """The files of a comparison.

    Attributes:
        html: The page.
        markdown: The same as Markdown.
        csv: A line for each study and variant, and one for each mean.
        json: The same for programs.
    """

    html: Path
    markdown: Path
    csv: Path
    json: Path


@dataclass(frozen=True)
class Seed:
    """The measurement of one variant by one study."""

    study: str
    seed: int
    measurement: Measurement  # on test items
    retention: Retention | None  # share that is kept of it; None where that is not known or says nothing

    @property
    def figures(self) -> dict[str, tuple[float | None, Interval | None]]:
        """The figures that are averaged over seeds, as far as known, each with its interval or its quartiles."""
        m, kept = self.measurement, self.retention
        return {
            "overall_sparsity": (m.overall_sparsity, None),
            "accuracy": (m.accuracy, accuracy_interval(m)),
            "retention": (None, None) if kept is None else (kept.share, kept.interval),
            "kl": (m.kl, kl_interval(m)),
            "latency_ms": (m.latency_ms, latency_quartiles(m)),
            "speed_up": (prefill_speedup(m).ratio, speedup_interval(m)),
        }

    def detail(self, name: str) -> str:
        """The interval of a figure as text; of a speed-up also that it is not known."""
        if name == "speed_up":
            return prefill_speedup(self.measurement).interval
        return bracketed(self.figures[name][1], _FIGURES[name])

    @property
    def n(self) -> int:
        """Items that accuracy was counted on, or KL where there is none."""
        return self.measurement.n_choice_items or self.measurement.n_items


@dataclass(frozen=True)
class Mean:
    """A variant over the seeds of one model and target."""

    variant: str  # its name, or "selected" for whichever row each study selected
    seeds: tuple[Seed, ...]
    figures: Mapping[str, tuple[float, Interval | None]]  # mean and interval of each figure that every seed knows

    def detail(self, name: str) -> str:
        """The interval of a mean as text; the least and the greatest value where several seeds have none."""
        _, ends = self.figures[name]
        if ends is not None or len(self.seeds) < 2:
            return bracketed(ends, _FIGURES[name])
        values = [value for one in self.seeds if (value := one.figures[name][0]) is not None]
        least, greatest = f"{min(values):{_FIGURES[name]}}", f"{max(values):{_FIGURES[name]}}"
        return "the same" if least == greatest else f"{least} to {greatest}"

    @property
    def why_no_interval(self) -> str:
        """The reason why a mean has no interval; empty where all have one."""
        without = [ends is None for _, ends in self.figures.values()]
        if not any(without):
            return ""
        n = len(self.seeds)
        if all(without):
            return f"{counted(n, 'seed is', 'seeds are')} too few for an interval" + (_INSTEAD if n > 1 else ".")
        return "Some values vary too much between seeds for an interval" + _INSTEAD


@dataclass(frozen=True)
class Group:
    """The studies of one model at one target."""

    model: str
    target: Target | None  # None where the knee was selected
    means: tuple[Mean, ...]  # its variants in the order of a report's table, then what was selected
    verdicts: Mapping[str, str]  # for each study that was measured, what it came to, in a sentence

    @property
    def title(self) -> str:
        """The settings that the studies have in common, in words."""
        aim = "no target" if self.target is None else f"target {self.target}"
        return f"{self.model}, {aim}"


def write_comparison(
    rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str], left_out: Mapping[str, str] | None = None
) -> ComparisonPaths:
    """Write `comparison.html`, `comparison.md`, `comparison.csv` and `comparison.json`, each replaced as a whole.

    Args:
        rows: A study each: "study", "model", "target" (a `Target`, or None), "seed", "created_at" (ISO 8601),
            "measurements" (a sequence of `Measurement`) and "facts" (`StudyFacts`); where they are known also
            "examples" (`ReportExamples`).
        folder: Folder of the comparison; made if missing.
        left_out: Studies that were to be compared, by name, and why they are not among the rows.

    Returns:
        The files written.

    Raises:
        ForeignResultsError: The folder holds a comparison of other studies.
    """
    folder = Path(folder)
    own = [Origin(str(row["study"]), row["created_at"]) for row in rows]
    check_comparison(folder, own, {one.name for one in own}, "choose another folder")
    groups = grouped(rows)
    records = [record for group in groups for record in _records(group)]
    folder.mkdir(parents=True, exist_ok=True)
    paths = ComparisonPaths(*(folder / name for name in COMPARISON_FILES))
    shown = [group for group in groups if group.means]
    tables = [(group.title, group.verdicts, comparison_table(group), seeds_table(group)) for group in shown]
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(title=_title(rows), method=METHOD, tables=tables, missing=_missing(rows, left_out))
    )
    verdicts = {study: said for group in groups for study, said in group.verdicts.items()}
    studies = [asdict(one) for one in own]
    found = {
        **{"method": METHOD, "studies": studies, "verdicts": verdicts},
        **{"rows": records, "left_out": left_out or {}},
    }
    contents = (
        page,
        _markdown(rows, tables, left_out),
        records_csv(records),
        json.dumps(jsonable(found), indent=1, allow_nan=False) + "\n",
    )
    for path, content in zip(paths, contents, strict=True):
        replace_file(path, content)
    return paths


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Studies by model and target, in the order in which these first appear; see `write_comparison`."""
    keys = list(dict.fromkeys((row["model"], row["target"]) for row in rows))
    groups = []
    for model, target in keys:
        own = [row for row in rows if (row["model"], row["target"]) == (model, target)]
        verdicts = {row["study"]: said for row in own if (said := _verdict(row))}
        groups.append(Group(model, target, _means(own), verdicts))
    return groups


def comparison_table(group: Group) -> Table:
    """The means of a group, a row each variant."""
    rows = []
    for mean in group.means:
        cells = (
            Cell(mean.variant, counted(len(mean.seeds), "seed")),
            Cell(_items(mean.seeds)),
            *(
                Cell(f"{mean.figures[name][0]:{form}}", mean.detail(name)) if name in mean.figures else UNKNOWN
                for name, form in _FIGURES.items()
            ),
        )
        rows.append(Row(cells, VARIANT_COLOURS.get(mean.variant, ""), mean.variant == SELECTED))
    columns = (Column("variant"), Column("n"), *(Column(title, "95% over seeds") for title in _TITLES))
    return Table(columns, tuple(rows), " ".join(dict.fromkeys(filter(None, (m.why_no_interval for m in group.means)))))


def seeds_table(group: Group) -> Table:
    """Every seed of a group, a row each variant and study."""
    rows = []
    for mean in group.means:
        for one in sorted(mean.seeds, key=lambda one: one.seed):
            m = one.measurement
            known = {name: f"{value:{_FIGURES[name]}}" for name, (value, _) in one.figures.items() if value is not None}
            known["kl"] = kl_text(m.kl)
            label = f"{mean.variant}: {m.variant}" if mean.variant == SELECTED else mean.variant
            cells = [
                Cell(label, one.study),
                Cell(str(one.seed)),
                Cell(str(one.n)),
                *(Cell(known[name], one.detail(name)) if name in known else UNKNOWN for name in _FIGURES),
            ]
            rows.append(Row(tuple(cells), VARIANT_COLOURS.get(m.variant, ""), mean.variant == SELECTED))
    columns = (Column("variant"), Column("seed"), Column("n"), *(Column(title) for title in _TITLES))
    return Table(columns, tuple(rows))


def _verdict(row: Mapping[str, Any]) -> str:
    """The verdict of a study, as its report says it."""
    tested = {m.variant: m for m in row["measurements"] if m.split == "test"}
    selected = selected_point(list(tested.values()), row["facts"].selection)
    if selected is None:
        return ""
    examples: ReportExamples | None = row.get("examples")
    against = measured_against_shortened_prompt(selected, tested.get("uniform"), tested.get("dense"), examples)
    return verdict_of(row["facts"], selected, tested.get("dense"), against, examples)


def _means(rows: Sequence[Mapping[str, Any]]) -> tuple[Mean, ...]:
    found: dict[str, list[Seed]] = {variant: [] for variant in (*NAMED_VARIANTS, SELECTED)}
    for row in rows:
        tested = [m for m in row["measurements"] if m.split == "test"]
        selected, named = selected_point(tested, row["facts"].selection), {m.variant: m for m in reversed(tested)}
        chance = chance_level(row["facts"], "test")
        for variant, own in found.items():
            m = selected if variant == SELECTED else named.get(variant)
            if m is not None:
                seen = row.get("examples") if m is selected else None
                own.append(Seed(row["study"], row["seed"], m, retention_of(m, named.get("dense"), seen, chance)))
    return tuple(Mean(variant, tuple(seeds), _averages(seeds)) for variant, seeds in found.items() if seeds)


def _averages(seeds: Sequence[Seed]) -> dict[str, tuple[float, Interval | None]]:
    found = {}
    for name in _FIGURES:
        known = [value for one in seeds if (value := one.figures[name][0]) is not None]
        # A mean of some of the seeds would be of another thing than the others of its row.
        if len(known) == len(seeds):
            found[name] = mean_interval(known, 0.0, 1.0 if name in _SHARES else math.inf)
    return found


def _records(group: Group) -> list[dict[str, Any]]:
    """A record for each seed of each variant, and one for the mean; all with the same keys."""
    records: list[dict[str, Any]] = []
    kind, value = (None, None) if group.target is None else (group.target.kind, group.target.value)
    for mean in group.means:
        first = {"model": group.model, "target_kind": kind, "target": value, "variant": mean.variant}
        for one in mean.seeds:
            about = {"kind": "seed", "study": one.study, "seeds": str(one.seed)}
            counted_on = {"measured_as": one.measurement.variant, "n": one.n}
            records.append({**first, **about, **counted_on, **_numbers(one.figures)})
        about = {"kind": "mean", "study": "", "seeds": " ".join(str(one.seed) for one in mean.seeds)}
        counted_on = {"measured_as": "", "n": sum(one.n for one in mean.seeds)}
        records.append({**first, **about, **counted_on, **_numbers(mean.figures)})
    return records


def _numbers(figures: Mapping[str, tuple[float | None, Interval | None]]) -> dict[str, float | None]:
    """Value and ends of every figure under names of their own."""
    numbers: dict[str, float | None] = {}
    for name in _FIGURES:
        value, ends = figures.get(name, (None, None))
        low, high = ends or (None, None)
        numbers |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return numbers


def _items(seeds: Sequence[Seed]) -> str:
    counts = [one.n for one in seeds]
    return f"{len(counts)} × {counts[0]}" if len(set(counts)) == 1 else " + ".join(str(count) for count in counts)


def _title(rows: Sequence[Mapping[str, Any]]) -> str:
    n = len({row["study"] for row in rows})
    return f"Comparison of {counted(n, 'study', 'studies')}"


def _missing(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str] | None) -> list[str]:
    """The studies that are not in the means, so that no failure goes unseen."""
    untested = [row["study"] for row in rows if not any(m.split == "test" for m in row["measurements"])]
    said = [f"Without test measurements, and so in no mean: {', '.join(untested)}."] if untested else []
    return [*said, *(f"In no mean: {name}, which {reason.rstrip('.')}." for name, reason in (left_out or {}).items())]


def _markdown(
    rows: Sequence[Mapping[str, Any]],
    tables: Sequence[tuple[str, Mapping[str, str], Table, Table]],
    left_out: Mapping[str, str] | None,
) -> str:
    parts = [f"# {text(_title(rows))}", text(METHOD), *(text(words) for words in _missing(rows, left_out))]
    for title, verdicts, means, seeds in tables:
        said = bullets(f"{study}: {verdict}" for study, verdict in verdicts.items())
        parts += [f"## {text(title)}", said, table(means), text(means.reading), "### Each seed", table(seeds)]
    return "\n\n".join(part for part in parts if part) + "\n"
