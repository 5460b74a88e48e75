"""What a run is asked to do, checked before any work starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ftp_core.schedule import MAX_SPARSITY
from search.errors import ConfigError
from search.problem.fidelities import part_ends
from search.proposers.catalogue import proposer_names
from studies.records.objectives import DEFAULT_COST, CostName

DEFAULT_STORAGE = "sqlite:///ftp-studies.db"
# Names the database where no option does; a password is best given here, since no list of processes shows it.
STORAGE_VARIABLE = "FTP_SEARCH_STORAGE"
DEFAULT_PROFILE_SECONDS = 60.0
DEFAULT_OUT = Path("ftp-out")
CONFIG_VERSION = 3
# What may change of a study that has begun.
RESUMABLE = (
    *("trials", "rounds", "refine_trials", "seconds", "plateau", "workers", "export", "out"),
    *("latency_length", "new_tokens", "model", "data"),
)
# Settings of what `rounds` says the number of.
_OF_ROUNDS = ("refine_trials", "router", "router_steps", "router_schedules")
# Who proposed in studies of version 1.
_FIRST_SAMPLERS = "deap,tpe"
# Most tokens that can be protected, more than any model reads.
_MOST_KEPT = 10_000_000
# What pydantic calls values of the wrong type, and what people call the right one.
_EXPECTED_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
}


KeepFirst = int | Literal["system"]
"""Tokens at the beginning of every prompt that are protected, or the system turn of chats."""


def option(field: str) -> str:
    """The command line's name of a field."""
    return "--" + field.replace("_", "-")


class RunConfig(BaseModel):
    """Everything that a study needs to be run, stopped and resumed anywhere.

    What is said below of each field is also what a configuration file and the command line's help say of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: int = CONFIG_VERSION
    """Of these settings and their meaning."""

    model: str = "demo"
    """'demo', a local directory, or a Hugging Face id."""

    data: str = "demo"
    """'demo', or a JSONL file (README.md says what its lines are)."""

    keep_first: KeepFirst = 0
    """Tokens at the beginning of every prompt that blocks keep before any other, whatever the router; system for the
    system turn that all prompts begin with, as the model's chat template writes it."""

    trials: int = Field(300, ge=1)
    """Schedules to evaluate in the first search."""

    seconds: float | None = Field(None, gt=0.0)
    """How long a search may begin new schedules; for ever if not given."""

    plateau: int | None = Field(None, ge=1)
    """End a search after so many schedules in a row that added nothing to the front; never if not given."""

    sampler: str = "portfolio"
    """Who proposes schedules: portfolio, or some of deap, evopress, additive, tpe, gp, nsga2, nsga3, cmaes, qmc, random
    and grid, separated by commas."""

    warm_start: str | None = None
    """A study of the same model and data whose results the first search starts from."""

    fidelities: tuple[float, ...] = (1.0,)
    """Shares of the search set after which bad schedules are stopped, such as 0.25, 1; the last is 1."""

    pruner: Literal["halving", "asha", "hyperband", "median", "percentile"] = "halving"
    """Who decides which schedules are bad: halving, or a pruner of Optuna's."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Of proposals, data splits and router training."""

    deterministic: bool = False
    """The same trials whatever the workers, the timing, the interruptions."""

    cost: CostName = DEFAULT_COST
    """What is traded against KL: predicted latency, or counted operations or KV bytes, of one prefill."""

    target_sparsity: float | None = Field(None, ge=0.0, le=MAX_SPARSITY)
    """Overall sparsity that every schedule must have; if not given, the whole space is searched."""

    max_latency_ms: float | None = Field(None, gt=0.0)
    """Latency that every schedule must keep, predicted in a search and measured where one is selected; any if not
    given."""

    min_accuracy: float | None = Field(None, gt=0.0, le=1.0)
    """Accuracy on the search set that points of the front must have; any if not given."""

    min_retention: float | None = Field(None, gt=0.0, le=1.0)
    """Share of the dense model's accuracy on validation items that the selected point must keep, the cheapest such
    point being selected; if not given, the point that the target or the knee says."""

    dense_blocks: tuple[int, ...] = ()
    """Blocks that skip nothing, such as 0, 1, -1; negative numbers count from the end."""

    rounds: int = Field(2, ge=0)
    """Most times that a router is distilled and schedules are searched again with it; fewer, once the front grows by no
    more than a hundredth or no router beats the static one. 0: the first search alone."""

    refine_trials: int = Field(150, ge=1)
    """Schedules to evaluate in each of those searches."""

    router: Literal["best", "dynamic", "hidden"] = "best"
    """Which router is distilled: the dynamic one of the paper (position, attention, its rank, sparsity), one that reads
    hidden states, or both, of which the better on validation items goes on."""

    router_trials: int = Field(4, ge=0)
    """Hyperparameters of the dynamic router's training that Ray Tune tries before the first distillation; none with
    --router hidden. 0: the defaults."""

    router_steps: int = Field(80, ge=1)
    """Steps of the router's training."""

    router_schedules: int = Field(4, ge=1)
    """Schedules of the front that a router is distilled on at once, the chosen one among them."""

    calibration_items: int = Field(256, ge=1)
    """Examples that a router is distilled on."""

    search_items: int = Field(32, ge=1)
    """How many of them make the search set, on which every schedule is evaluated."""

    validation_items: int = Field(128, ge=1)
    """Examples that routers, their hyperparameters and the point to export are selected on."""

    test_items: int = Field(200, ge=1)
    """Examples that reported figures rest on; nothing is selected on them."""

    latency_batch: int = Field(8, ge=1)
    """Rows of the prefill that costs are of."""

    latency_length: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Tokens of the timed prompts, such as 512, 2048: costs are of the first length, the selected point is timed at
    all of them; as long as the 90th percentile of calibration prompts, rounded up, if not given."""

    new_tokens: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of new tokens that the selected point is timed with end to end, such as 16, 64; 0 for the prefill alone;
    16, 64, as far as they fit into the model's context, if not given."""

    profile_seconds: float = Field(DEFAULT_PROFILE_SECONDS, gt=0.0, allow_inf_nan=False)
    """Most seconds in which latency is profiled before a search that predicts it; less where times vary little, and
    more for a model that takes longer to run a dozen times."""

    measured_points: int = Field(8, ge=1)
    """Most points of the front that are measured."""

    timed_runs: int = Field(9, ge=2)
    """How often each of them is timed at least; up to four times as often where speed-ups are not known to 2.5 %."""

    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=0)
    """Ray workers on one core each; as many as there are cores if not given."""

    gpu_workers: int = Field(0, ge=0)
    """Ray workers on GPUs, beside the others."""

    gpu_share: float = Field(1.0, gt=0.0, le=1.0)
    """Share of a GPU that each of these takes."""

    ray_address: str | None = None
    """Ray cluster to work on; one of this machine alone if not given."""

    trial_timeout: float | None = Field(None, gt=0.0)
    """Seconds after which the worker of an evaluation is killed; never if not given."""

    prefix_mb: int | None = Field(None, ge=0)
    """MiB of each worker for results that other schedules share, 0 for none; an eighth of the memory for all of them if
    not given."""

    export: Literal["reference", "full", "none"] = "reference"
    """What is written of the pruned model: a reference to the dense weights ("reference") or a copy of them ("full")
    beside what was found, or nothing ("none")."""

    out: str | None = None
    """Folder of the report and the pruned model; ftp-out/NAME if not given."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # For Python true is 1, and for YAML a bare no, off or on is a truth value.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected a number or text (put words such as no and off into quotes)")
        return value

    @field_validator("keep_first", mode="before")
    @classmethod
    def _tokens_or_system(cls, value: Any) -> Any:
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        if number != "system" and (type(number) is not int or not 0 <= number <= _MOST_KEPT):
            raise ValueError("expected a whole number from 0, the tokens to keep, or system")
        return number

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
    def checked(cls, called: Callable[[str], str] = option, /, **values: Any) -> RunConfig:
        """Build a configuration; anything outside its range is one clear line.

        Args:
            called: What whoever gave the values calls a field, with the place where it stands.
            values: The fields that are given.

        Raises:
            ConfigError: With the field, what it was, and what was expected.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            # A misspelled name first: it may be why another is missing.
            first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
            if not first["loc"]:
                # Options that do not go together: the message names them.
                raise ConfigError(first["msg"].removeprefix("Value error, ")) from error
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                raise ConfigError(f"{called(name)} is unknown: {suggestion(name, cls.model_fields)}") from error
            raise ConfigError(f"{called(name)} is {first['input']!r}: {_expected(first)}.") from error

    @classmethod
    def stored(cls, values: Mapping[str, Any], **changes: Any) -> RunConfig:
        """Build a configuration from what a study keeps, with changes to it.

        Raises:
            ConfigError: A newer program wrote it, or a change is out of range.
        """
        version = values.get("version", CONFIG_VERSION)
        if version == 1:
            values = {"sampler": _FIRST_SAMPLERS, "prefix_mb": 0, **values}
        if version in (1, 2):
            # Before there were whole runs to repeat.
            renamed = {"timed_runs" if key == "repeats" else key: value for key, value in values.items()}
            values = {**renamed, "version": CONFIG_VERSION}
        elif version != CONFIG_VERSION:
            raise ConfigError(
                f"The study's configuration has version {version}, and this program reads {CONFIG_VERSION}: use the "
                "program that began it."
            )
        return cls.checked(**{**values, **changes})

    @classmethod
    def value_range(cls, field: str) -> str:
        """The range of a field that is a number, such as `x>=1` or `0<x<=1`; empty where it has none."""
        low = high = above = ""
        for constraint in cls.model_fields[field].metadata:
            match constraint:
                case Ge(ge=limit):
                    low, above = f"{limit:g}<=", f">={limit:g}"
                case Gt(gt=limit):
                    low, above = f"{limit:g}<", f">{limit:g}"
                case Le(le=limit):
                    high = f"<={limit:g}"
                case Lt(lt=limit):
                    high = f"<{limit}"
        return f"{low}x{high}" if high else f"x{above}" if above else ""

    @classmethod
    def description(cls, field: str) -> str:
        """What a field means, as one line."""
        return " ".join((cls.model_fields[field].description or "").split())

    @property
    def without_effect(self) -> list[str]:
        """A sentence for each setting that was given, other than its default, and that another one makes useless."""
        tunes = ("router_trials",) if self.router_trials else ()
        useless = {
            "no router is distilled with --rounds 0": () if self.rounds else _OF_ROUNDS + tunes,
            "they are hyperparameters of the dynamic router": tunes if self.router == "hidden" else (),
            "no schedule is stopped early without --fidelities": ("pruner",) if len(self.fidelities) == 1 else (),
            "there is no worker on a GPU without --gpu-workers": () if self.gpu_workers else ("gpu_share",),
            "the search predicts no latency": () if self.predicts_latency else ("profile_seconds",),
        }
        said = {
            field: reason
            for reason, fields in useless.items()
            for field in fields
            if field in self.model_fields_set and getattr(self, field) != type(self).model_fields[field].default
        }
        return [f"{option(field)} has no effect: {reason}." for field, reason in said.items()]

    @property
    def predicts_latency(self) -> bool:
        """Whether the search cannot do without a latency profile."""
        return self.cost == "latency_ms" or self.max_latency_ms is not None

    @property
    def tunes_router(self) -> bool:
        """Whether hyperparameters of the router's training are tried; they are those of the dynamic one."""
        return self.router_trials > 0 and self.router != "hidden"

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

    def folder(self, name: str) -> Path:
        """Where the report and the pruned model of a study go.

        Args:
            name: The study's name.
        """
        return DEFAULT_OUT / name if self.out is None else Path(self.out)


def suggestion(name: str, known: Collection[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, or one of them all."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}."


def _expected(error: ErrorDetails) -> str:
    """What should have been given, in words that need no knowledge of pydantic."""
    kind = error["type"].partition("_")[0]
    if error["type"].endswith(("_type", "_parsing", "_from_float")) and kind in _EXPECTED_TYPES:
        return f"expected {_EXPECTED_TYPES[kind]}"
    of = "one of" if error["type"] == "literal_error" else "a number"
    return error["msg"].replace("Input should be", f"expected {of}").removeprefix("Value error, ")
