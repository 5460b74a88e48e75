"""What trackers are told, in the form that all of them take: flat parameters, and figures by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def parameters(config: Mapping[str, Any]) -> dict[str, Parameter]:
    """A configuration without levels: names of what is inside others have dots, lists are text, long text is cut."""
    flat: dict[str, Parameter] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": one for inner, one in parameters(value).items()}
        elif isinstance(value, int | float) or value is None:
            flat[name] = value
        else:
            items = value if isinstance(value, list | tuple) else [value]
            text = ",".join(map(str, items))
            flat[name] = text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
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
