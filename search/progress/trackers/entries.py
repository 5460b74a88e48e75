"""Parameters and figures in the form that all trackers take: flat, with paths as names."""

from __future__ import annotations

from collections.abc import Sequence

from search.config.run_config import RunConfig
from studies import Measurement

Parameter = str | int | float | bool | None

# What MLflow kept of a value before its version 2.
_LONGEST_VALUE = 250
_MEASURED = (
    "overall_sparsity",
    "kl",
    "kl_low",
    "kl_high",
    "perplexity",
    "perplexity_low",
    "perplexity_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "n_items",
    "n_choice_items",
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "speedup",
    "speedup_low",
    "speedup_high",
    "flops",
    "kv_bytes",
    "peak_bytes",
)


def parameters(name: str, config: RunConfig) -> dict[str, Parameter]:
    """A study's name and configuration: lists are text, and long text is cut."""
    flat: dict[str, Parameter] = {"study": name}
    for field, value in config:
        if isinstance(value, int | float) or value is None:
            flat[field] = value
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            flat[field] = text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
    return flat


def measured_figures(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Measurements as figures such as `test/refined/accuracy`; where a variant has several, each with its trial."""
    variants = [one.variant for one in measurements]
    figures = {}
    for one in measurements:
        variant = one.variant if variants.count(one.variant) == 1 else f"{one.variant}-{one.trial}"
        for name in _MEASURED:
            value = getattr(one, name)
            if value is not None:
                figures[f"{one.split}/{variant}/{name}"] = float(value)
    return figures
