"""Tables of other methods beside a study's own schedules, each row judged on the same items as ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from dashboards.analysis.other_methods import MethodPoint, method_points, target_title
from dashboards.analysis.tables import (
    UNKNOWN,
    Cell,
    Column,
    Row,
    Table,
    Tone,
    bracketed,
    counted,
    duration,
    kl_text,
    perplexity_text,
)
from studies.analysis.paired import paired_accuracy, paired_kl
from studies.records.compared import OURS, Compared, ComparedModel, ShapeSpeed, latest

_COLUMNS = (
    Column("method"),
    Column("speed-up", "95% interval"),
    Column("FLOPs saved"),
    Column("KL, nats per token", "95% interval"),
    Column("KL to ours"),
    Column("accuracy", "95% interval"),
    Column("accuracy to ours"),
    Column("perplexity"),
    Column("tokens/s"),
    Column("parameters"),
    Column("keys and values"),
    Column("removed"),
    Column("preparation"),
)
_READING = (
    "Every row ran the same test items on the same clock as the study's own schedule, in turns with the dense model. "
    "“Better”, “worse” and “not told apart” are of the row against ours on these items: by the paired bootstrap for "
    "KL, and by McNemar's exact test for accuracy, at 5 %. Of several seeds, KL, "
    "perplexity and accuracy are means, whose intervals reach over those of all, and the rest is of the first one."
)

_READING_SHAPES = (
    "Rows × tokens of a prefill. Every model is the one of the table above, in turns with the dense model at each "
    "shape; of several seeds, the first one's."
)


def methods_tables(rows: Sequence[Compared]) -> list[tuple[str, Table]]:
    """Titles and tables of each target, ours first and the others by KL; empty where nothing was compared.

    Behind the table of a target there is one of the speed at other prefills, if any were timed.
    """
    ordered = sorted(latest(rows), key=lambda one: (one.match, one.target))
    tables = []
    for _, group in groupby(ordered, key=lambda one: (one.match, one.target)):
        own = list(group)
        made = sorted(method_points(own), key=lambda one: (one.method != OURS, one.kl))
        ours = next((one.first for one in made if one.method == OURS), None)
        names = {one.method for one in made}
        refused = {one.method: one.refused for one in own if one.method not in names}
        shown = [_row(one, ours) for one in made]
        shown += [Row((Cell(name, why), *(UNKNOWN,) * (len(_COLUMNS) - 1))) for name, why in refused.items()]
        title = target_title(own[0].match, own[0].target)
        tables.append((title, Table(_COLUMNS, tuple(shown), _READING)))
        if timed := [one for one in made if one.first.shapes]:
            tables.append((f"{title}, speed-up at others", _shapes_table(timed)))
    return tables


def _shapes_table(timed: Sequence[MethodPoint]) -> Table:
    """Speed-ups of methods at all prefills at which any was timed."""
    shapes = sorted({(speed.batch, speed.length) for one in timed for speed in one.first.shapes})
    columns = [Column("method"), *(Column(f"{batch} × {length:,}", "95% interval") for batch, length in shapes)]
    rows = []
    for one in timed:
        known = {(speed.batch, speed.length): speed for speed in one.first.shapes}
        cells = [_speed_cell(known[shape]) if shape in known else UNKNOWN for shape in shapes]
        rows.append(Row((Cell(one.method), *cells), marked=one.method == OURS))
    return Table(tuple(columns), tuple(rows), _READING_SHAPES)


def _speed_cell(one: ComparedModel | ShapeSpeed) -> Cell:
    interval = None if one.speedup_low is None or one.speedup_high is None else (one.speedup_low, one.speedup_high)
    return Cell(f"{one.speedup:.2f}×", bracketed(interval, ".2f"), _tone(one))


def _row(one: MethodPoint, ours: ComparedModel | None) -> Row:
    """A row of one method's models with all its seeds."""
    first, name = one.first, one.method
    item_kl = np.mean([model.item_kl for model in one.models], 0).tolist()
    against_kl = against_accuracy = UNKNOWN
    if ours is not None and name != OURS:
        judged = paired_kl(item_kl, ours.item_kl, ours.item_tokens)
        against_kl = Cell(judged.judgement, f"{judged.difference:+.4f} [{judged.low:+.4f}, {judged.high:+.4f}]")
        # Seeds are other models: each answers by itself, and the first one stands for them.
        right = paired_accuracy(first.item_right, ours.item_right)
        if right is not None:
            counts = f"{right.first_only} won, {right.second_only} lost, p = {right.p_value:.2g}"
            against_accuracy = Cell(right.judgement, counts)
    answered = bracketed(one.accuracy_interval, ".1%")
    trained = f"{first.trained_parameters:,} parameters trained, " if first.trained_parameters else ""
    # While a study runs, tokens are not counted.
    effort = "tokens not counted" if name == OURS else f"{trained}{first.tokens:,} tokens"
    return Row(
        (
            Cell(name, "" if len(one.models) == 1 else counted(len(one.models), "seed")),
            _speed_cell(first),
            Cell(f"{first.flops_saved:.1%}"),
            Cell(kl_text(one.kl), bracketed(one.kl_interval, ".4f")),
            against_kl,
            UNKNOWN if one.accuracy is None else Cell(f"{one.accuracy:.1%}", answered),
            against_accuracy,
            Cell(perplexity_text(one.perplexity)),
            UNKNOWN if first.tokens_per_second is None else Cell(f"{first.tokens_per_second:.1f}"),
            Cell(f"{first.n_parameters / 1e6:.1f} M"),
            Cell(f"{first.kv_bytes / 2**20:.2f} MiB"),
            Cell(first.sparsity),
            Cell(duration(first.seconds), effort),
        ),
        marked=name == OURS,
    )


def _tone(one: ComparedModel | ShapeSpeed) -> Tone:
    """How a speed-up is set: bad where it is slower than the dense model, muted where that is not told."""
    if one.speedup_high is not None and one.speedup_high < 1:
        return "bad"
    return "unclear" if one.speedup_low is None or one.speedup_low <= 1 else ""
