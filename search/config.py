"""What a run is asked to do, checked before any work starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftp_core.schedule import MAX_SPARSITY
from search.errors import ConfigError

DEFAULT_STORAGE = "sqlite:///ftp-studies.db"
CONFIG_VERSION = 1
OBJECTIVES = ("kl", "latency_ms")
DEFAULT_TRIALS = 300
DEFAULT_ROUTER_STEPS = 80
DEFAULT_TEST_ITEMS = 200


class RunConfig(BaseModel):
    """Everything that a study needs to be run, stopped and resumed anywhere.

    Attributes:
        version: Of these fields and their meaning.
        model: `demo`, a local directory, or a Hugging Face id.
        data: `demo` or the path of a JSONL file.
        trials: Schedules to evaluate.
        workers: Ray actors.
        seed: Of proposals, data splits and router training.
        target_sparsity: Overall sparsity that every schedule must have; None searches the whole space.
        calibration_items: Examples that a router is distilled on.
        search_items: How many of them make the search set, on which every trial is evaluated.
        validation_items: Examples that the best router is chosen on.
        test_items: Examples that reported figures are computed on.
        latency_batch: Rows of the timed prefill.
        measured_points: Most points of the front that are measured.
        repeats: How often each of them is timed.
        router_steps: Steps of the distillation.
        deterministic: Whether the trials must not depend on the number of workers, on timing, or on interruptions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = CONFIG_VERSION
    model: str = "demo"
    data: str = "demo"
    trials: int = Field(DEFAULT_TRIALS, ge=1)
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    target_sparsity: float | None = Field(None, ge=0.0, le=MAX_SPARSITY)
    calibration_items: int = Field(256, ge=1)
    search_items: int = Field(32, ge=1)
    validation_items: int = Field(128, ge=1)
    test_items: int = Field(DEFAULT_TEST_ITEMS, ge=1)
    latency_batch: int = Field(8, ge=1)
    measured_points: int = Field(8, ge=1)
    repeats: int = Field(9, ge=2)
    router_steps: int = Field(DEFAULT_ROUTER_STEPS, ge=1)
    deterministic: bool = False

    @classmethod
    def checked(cls, **values: Any) -> RunConfig:
        """Build a configuration; anything outside its range is one clear line.

        Raises:
            ConfigError: With the option, what it was, and what was expected.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            expected = first["msg"].replace("Input should be", "expected a number")
            raise ConfigError(f"{option} is {first['input']!r}: {expected}.") from error

    @classmethod
    def stored(cls, values: Mapping[str, Any], **changes: Any) -> RunConfig:
        """Build a configuration from what a study keeps, with changes to it.

        Raises:
            ConfigError: A newer program wrote it, or a change is out of range.
        """
        version = values.get("version", CONFIG_VERSION)
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"The study's configuration has version {version}, and this program reads {CONFIG_VERSION}: use the "
                "program that began it."
            )
        return cls.checked(**{**values, **changes})

    @property
    def sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {
            "calibration": self.calibration_items,
            "validation": self.validation_items,
            "test": self.test_items,
        }
