"""Tuned hyperparameters of a router's training, and their ranges."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ftp_core.training.distillation_config import DistillationConfig

TUNED = ("w_guide", "w_sparsity", "w_distill", "guide_share", "temperature", "lr", "steps", "window", "start")


def search_space(base: DistillationConfig) -> dict[str, BaseDistribution]:
    """Ranges of the tuned hyperparameters, which include the base configuration's values."""

    def among(name: str, *choices: Any) -> CategoricalDistribution:
        own = getattr(base, name)
        return CategoricalDistribution(choices if own in choices else (*choices, own))

    def between(name: str, low: float, high: float) -> FloatDistribution:
        own = getattr(base, name)
        return FloatDistribution(min(low, own), max(high, own), log=min(low, own) > 0)

    # Weights of 0 switch a loss off, and have no logarithm: hence steps.
    return {
        "w_guide": among("w_guide", 0.0, 0.03, 0.1, 0.3, 1.0),
        "w_sparsity": among("w_sparsity", 0.0, 0.1, 0.3, 1.0, 3.0, 10.0),
        "w_distill": among("w_distill", 0.1, 0.3, 1.0, 3.0, 10.0),
        "guide_share": FloatDistribution(0.0, 1.0),
        "temperature": between("temperature", 0.5, 4.0),
        "lr": between("lr", 0.001, 0.1),
        "steps": IntDistribution(max(1, base.steps // 2), 2 * base.steps, log=True),
        "window": among("window", 8, 16, 32, 64),
        "start": among("start", "static", "random"),
    }


def drawn_configs(base: DistillationConfig, n: int, seed: int) -> list[dict[str, Any]]:
    """The base configuration and random ones, that depend on the seed alone: more of them begin like fewer.

    Args:
        base: Base configuration.
        n: Number of configurations, the base included.
        seed: Seed of the random ones.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = search_space(base)
    return [{name: getattr(base, name) for name in TUNED}, *(study.ask(space).params for _ in range(n - 1))]
