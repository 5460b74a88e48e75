"""Explains the selection of a point, and how its figures were kept apart from those that selected it."""

from __future__ import annotations

from collections.abc import Mapping

from dashboards.analysis.records import ReportData
from dashboards.analysis.tables import counted, kl_text
from studies import Measurement
from studies.analysis.retention import chance_level, retention_of

_RULES = {
    "target_sparsity": "the target of overall sparsity",
    "target_flops_saved": "the target of FLOPs saved",
    "target_speedup": "the target of predicted speed-up",
    "max_latency_ms": "the limit on latency",
    "min_retention": "the share of the dense model's quality that must be retained",
    "knee": "the knee of the front",
}


def why_selected(data: ReportData) -> list[str]:
    """Explains the selection, in sentences: the only place of a report where figures of validation items stand."""
    found = data.selection
    if found is None:
        return []
    sentences = [found.reason]
    # Whoever asks for a new router has chosen the schedule before.
    if found.rule in _RULES:
        sentences.append(f"The rule was {_RULES[found.rule]}, applied to figures of the validation items alone.")
    seen = _validated(data, found.trial, found.router)
    tested = data.selected
    if seen is None:
        return sentences
    if tested is None:
        return [*sentences, "The point has not been measured on the test items yet."]
    # What is picked for being good looks better where it was picked than it is.
    now, then = [f"KL {kl_text(tested.kl)}"], [f"KL {kl_text(seen.kl)}"]
    before = retention_of(seen, _validated_dense(data), chance=chance_level(data.study.facts, "validation"))
    for said, kept in ((now, data.retention(tested)), (then, before)):
        if kept is not None:
            said.append(f"a retention of {kept.share:.1%}")
    sentences.append(
        f"There it had {' and '.join(then)} ({counted(seen.n_items, 'item')}); on the test items, which nothing was "
        f"chosen on, it has {' and '.join(now)} ({counted(tested.n_items, 'item')})."
    )
    worse = tested.kl_low is not None and seen.kl_high is not None and tested.kl_low > seen.kl_high
    if worse:
        sentences.append("The KL intervals do not overlap: the selection was too optimistic.")
    return sentences


def held_out(data: ReportData) -> list[str]:
    """Describes the splits of the data, what was left out of them, and the seed."""
    facts, config = data.study.facts, data.study.config
    sizes = facts.split_sizes or {
        split: config[f"{split}_items"] for split in ("calibration", "validation", "test") if f"{split}_items" in config
    }
    sentences = []
    if len(facts.sources) > 1:
        mixed = "; ".join(f"{one.name} {sum(one.sizes.values())}" for one in facts.sources)
        sentences.append(f"The data is mixed: examples of {mixed}.")
    if sizes:
        named = ", ".join(f"{split} {size}" for split, size in sizes.items())
        sentences.append(
            f"Items: {named}. The splits are disjoint by the content of prompts, under seed "
            f"{config.get('seed', 'unknown')}: the search and the training of routers see calibration items, "
            "stopping early, hyperparameters and the selection rest on validation items, and test items are for this "
            "report alone."
        )
    sentences += [facts.fewer_items] if facts.fewer_items else []
    sentences += _left_out(facts.left_out)
    if facts.keep_first:
        sentences.append(
            f"The first {counted(facts.keep_first, 'token')} of every prompt are protected: blocks keep them before "
            "any other, whatever the router."
        )
    if facts.shared_boundaries:
        sentences.append(
            f"In {counted(facts.shared_boundaries, 'item')} one token spans the end of the prompt and the beginning of "
            "what follows: it counts as what follows, with the piece of the prompt's text in it."
        )
    long = facts.long_completions
    if long is not None and long.examples:
        sentences.append(
            f"Of completions the first {long.tokens} tokens count: {counted(long.examples, 'item')} reached that."
        )
    return sentences


def _left_out(left_out: Mapping[str, int] | None) -> list[str]:
    """Counts the examples that were left out, by the reason."""
    if left_out is None:
        return []
    if not left_out:
        return ["No example of the data was left out."]
    return [f"Left out: {'; '.join(f'{n} {reason}' for reason, n in left_out.items())}."]


def _validated(data: ReportData, trial: int, router: int | None) -> Measurement | None:
    seen = (m for m in data.measurements if m.split == "validation")
    return next((m for m in seen if (m.trial, m.router) == (trial, router)), None)


def _validated_dense(data: ReportData) -> Measurement | None:
    return next((m for m in data.measurements if m.split == "validation" and m.variant == "dense"), None)
