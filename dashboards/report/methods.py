"""Tables of other methods beside a study's own schedules, each row judged on the same items as ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

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
from studies.records.compared import OURS, Compared, ComparedModel, latest

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


def methods_tables(rows: Sequence[Compared]) -> list[tuple[str, Table]]:
    """A title and a table for each target, ours first and the others by KL; empty where nothing was compared."""
    ordered = sorted(latest(rows), key=lambda one: (one.match, one.target))
    tables = []
    for (match, target), group in groupby(ordered, key=lambda one: (one.match, one.target)):
        by_method: dict[str, list[Compared]] = {}
        for one in group:
            by_method.setdefault(one.method, []).append(one)
        ours = [one.model for one in by_method.get(OURS, []) if one.model is not None]
        made = {name: models for name, own in by_method.items() if (models := [m.model for m in own if m.model])}
        names = sorted(made, key=lambda name: (name != OURS, float(np.mean([model.kl for model in made[name]]))))
        shown = [_row(name, made[name], ours[0] if ours else None) for name in names]
        refused = [
            Row((Cell(name, own[0].refused), *(UNKNOWN,) * (len(_COLUMNS) - 1)))
            for name, own in by_method.items()
            if name not in made
        ]
        saved = "time" if match == "latency" else "operations"
        tables.append((f"{target:.0%} less {saved} for a prefill", Table(_COLUMNS, (*shown, *refused), _READING)))
    return tables


def _row(name: str, models: Sequence[ComparedModel], ours: ComparedModel | None) -> Row:
    """A row of one method's models with all its seeds."""
    first = models[0]
    item_kl = np.mean([one.item_kl for one in models], 0).tolist()
    kl = float(np.mean([one.kl for one in models]))
    accuracies = [one.accuracy for one in models if one.accuracy is not None]
    against_kl = against_accuracy = UNKNOWN
    if ours is not None and name != OURS:
        judged = paired_kl(item_kl, ours.item_kl, ours.item_tokens)
        against_kl = Cell(judged.judgement, f"{judged.difference:+.4f} [{judged.low:+.4f}, {judged.high:+.4f}]")
        # Seeds are other models: each answers by itself, and the first one stands for them.
        right = paired_accuracy(first.item_right, ours.item_right)
        if right is not None:
            counts = f"{right.first_only} won, {right.second_only} lost, p = {right.p_value:.2g}"
            against_accuracy = Cell(right.judgement, counts)
    speed = _ends(first.speedup_low, first.speedup_high)
    ends = [_ends(one.accuracy_low, one.accuracy_high) for one in models]
    known = [one for one in ends if one is not None]
    answered = bracketed((min(low for low, _ in known), max(high for _, high in known)) if known else None, ".1%")
    trained = f"{first.trained_parameters:,} parameters trained, " if first.trained_parameters else ""
    return Row(
        (
            Cell(name, "" if len(models) == 1 else counted(len(models), "seed")),
            Cell(f"{first.speedup:.2f}×", bracketed(speed, ".2f"), _tone(first)),
            Cell(f"{first.flops_saved:.1%}"),
            Cell(kl_text(kl), bracketed((min(m.kl_low for m in models), max(m.kl_high for m in models)), ".4f")),
            against_kl,
            UNKNOWN if not accuracies else Cell(f"{np.mean(accuracies):.1%}", answered),
            against_accuracy,
            Cell(perplexity_text(float(np.mean([one.perplexity for one in models])))),
            UNKNOWN if first.tokens_per_second is None else Cell(f"{first.tokens_per_second:.1f}"),
            Cell(f"{first.n_parameters / 1e6:.1f} M"),
            Cell(f"{first.kv_bytes / 2**20:.2f} MiB"),
            Cell(first.sparsity),
            Cell(duration(first.seconds), f"{trained}{first.tokens:,} tokens"),
        ),
        marked=name == OURS,
    )


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _tone(one: ComparedModel) -> Tone:
    """How a speed-up is set: bad where it is slower than the dense model, muted where that is not told."""
    if one.speedup_high is not None and one.speedup_high < 1:
        return "bad"
    return "unclear" if one.speedup_low is None or one.speedup_low <= 1 else ""
