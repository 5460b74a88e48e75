"""Measured figures of an exported model, for its card."""

from __future__ import annotations

from collections.abc import Sequence

from studies import Measurement


def card_figures(measurements: Sequence[Measurement], trial: int) -> list[str]:
    """Markdown lines of a trial's figures on the test examples, beside the dense model's; none if it has none."""
    tested = [one for one in measurements if one.split == "test"]
    dense = next((one for one in tested if one.variant == "dense"), None)
    # The last is the one whose router the model has.
    pruned = next((one for one in reversed(tested) if one.trial == trial), None)
    if pruned is None:
        return []
    rows = [("dense", dense), ("pruned", pruned)]
    lines = [
        f"On {pruned.n_items} examples that nothing was chosen by, with 95 % intervals; latency is that of one prefill "
        f"of {pruned.batch} x {pruned.length} tokens on the machine of the search, with quartiles.",
        "",
        "| | KL, nats per token | perplexity | accuracy | FLOPs saved | ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows:
        if row is not None:
            saved = "" if dense is None else f"{1 - row.flops / dense.flops:.1%}"
            kl = _with_ends(row.kl, row.kl_low, row.kl_high, ".4f")
            perplexity = _with_ends(row.perplexity, row.perplexity_low, row.perplexity_high, ".3f")
            accuracy = _with_ends(row.accuracy, row.accuracy_low, row.accuracy_high, ".1%")
            latency = _with_ends(row.latency_ms, row.latency_low_ms, row.latency_high_ms, ".1f")
            lines.append(f"| {name} | {kl} | {perplexity} | {accuracy} | {saved} | {latency} |")
    return lines


def _with_ends(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + ("" if low is None or high is None else f" [{low:{form}}, {high:{form}}]")
