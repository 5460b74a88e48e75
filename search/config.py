"""What a run is asked to do, checked before any work starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ftp_core.schedule import MAX_SPARSITY
from search.errors import ConfigError
from search.fidelities import part_ends
from search.proposers.catalogue import proposer_names
from studies.objectives import DEFAULT_COST, CostName

DEFAULT_STORAGE = "sqlite:///ftp-studies.db"
CONFIG_VERSION = 2
# Who proposed in studies of version 1.
_FIRST_SAMPLERS = "deap,tpe"
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
        workers: Ray actors on one core each.
        seed: Of proposals, data splits and router training.
        target_sparsity: Overall sparsity that every schedule must have; None searches the whole space.
        cost: What is traded against KL: predicted latency, or counted operations or KV bytes of the same prefill.
        sampler: Who proposes: names of `search.proposers.catalogue`, separated by commas.
        seconds: How long to begin new trials; None for ever.
        plateau: How many trials may end in a row without the front growing; None for any.
        max_latency_ms: Predicted latency that every schedule must keep; None for any.
        min_accuracy: Accuracy on the search set that points of the front must have; None for any.
        dense_blocks: Blocks that skip nothing; negative numbers count from the end.
        fidelities: Shares of the search set after which it is decided whether a trial goes on; the last is 1.
        pruner: Who decides that.
        warm_start: A study of the same model and data whose results this one starts from.
        trial_timeout: Seconds after which the worker of an evaluation is killed; None for no limit.
        gpu_workers: Ray actors on GPUs, beside the others.
        gpu_share: Share of a GPU that each of these takes.
        ray_address: Cluster to work on; None for one of this machine alone.
        prefix_mb: Memory of each worker for hidden states that other schedules can go on from, in MiB; 0 for none, None
            for the workers' shares of an eighth of this machine's.
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
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)
    target_sparsity: float | None = Field(None, ge=0.0, le=MAX_SPARSITY)
    cost: CostName = DEFAULT_COST
    sampler: str = "portfolio"
    seconds: float | None = Field(None, gt=0.0)
    plateau: int | None = Field(None, ge=1)
    max_latency_ms: float | None = Field(None, gt=0.0)
    min_accuracy: float | None = Field(None, gt=0.0, le=1.0)
    dense_blocks: tuple[int, ...] = ()
    fidelities: tuple[float, ...] = (1.0,)
    pruner: Literal["halving", "asha", "hyperband", "median", "percentile"] = "halving"
    warm_start: str | None = None
    trial_timeout: float | None = Field(None, gt=0.0)
    gpu_workers: int = Field(0, ge=0)
    gpu_share: float = Field(1.0, gt=0.0, le=1.0)
    ray_address: str | None = None
    prefix_mb: int | None = Field(None, ge=0)
    calibration_items: int = Field(256, ge=1)
    search_items: int = Field(32, ge=1)
    validation_items: int = Field(128, ge=1)
    test_items: int = Field(DEFAULT_TEST_ITEMS, ge=1)
    latency_batch: int = Field(8, ge=1)
    measured_points: int = Field(8, ge=1)
    repeats: int = Field(9, ge=2)
    router_steps: int = Field(DEFAULT_ROUTER_STEPS, ge=1)
    deterministic: bool = False

    @field_validator("sampler")
    @classmethod
    def _known_samplers(cls, value: str) -> str:
        proposer_names(value)
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> RunConfig:
        if self.deterministic and self.pruner != "halving":
            raise ConfigError(
                f"--pruner {self.pruner} decides by what has ended so far, which --deterministic rules out: use "
                "halving."
            )
        part_ends(self.search_items, self.fidelities)
        if self.workers + self.gpu_workers == 0:
            raise ConfigError("--workers and --gpu-workers are both 0: expected at least one worker.")
        return self

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
            if not first["loc"]:
                # Options that do not go together: the message names them.
                raise ConfigError(first["msg"].removeprefix("Value error, ")) from error
            option = "--" + str(first["loc"][0]).replace("_", "-")
            kind = "one of" if first["type"] == "literal_error" else "a number"
            expected = first["msg"].replace("Input should be", f"expected {kind}").removeprefix("Value error, ")
            raise ConfigError(f"{option} is {first['input']!r}: {expected}.") from error

    @classmethod
    def stored(cls, values: Mapping[str, Any], **changes: Any) -> RunConfig:
        """Build a configuration from what a study keeps, with changes to it.

        Raises:
            ConfigError: A newer program wrote it, or a change is out of range.
        """
        version = values.get("version", CONFIG_VERSION)
        if version == 1:
            values = {"sampler": _FIRST_SAMPLERS, "prefix_mb": 0, **values, "version": CONFIG_VERSION}
        elif version != CONFIG_VERSION:
            raise ConfigError(
                f"The study's configuration has version {version}, and this program reads {CONFIG_VERSION}: use the "
                "program that began it."
            )
        return cls.checked(**{**values, **changes})

    @property
    def predicts_latency(self) -> bool:
        """Whether the search cannot do without a latency profile."""
        return self.cost == "latency_ms" or self.max_latency_ms is not None

    @property
    def prefix_bytes(self) -> int:
        """Memory of each worker for hidden states that other schedules can go on from."""
        if self.prefix_mb is not None:
            return self.prefix_mb * 2**20
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return whole // 8 // max(1, self.workers + self.gpu_workers)

    @property
    def sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {
            "calibration": self.calibration_items,
            "validation": self.validation_items,
            "test": self.test_items,
        }
