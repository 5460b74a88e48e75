"""The settings of a run, in groups: each field is described here, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from ftp_core.errors import DataError
from ftp_core.loading.reference import ModelReference
from ftp_core.memory_limits import limit_bytes
from ftp_core.schedule import MAX_SPARSITY
from ftp_core.sources.columns import Columns
from ftp_core.sources.source import SEPARATOR, Form, parse_sources
from search.config.machine import default_workers
from search.config.setting import About
from search.problem.genes import Granularity, Kv
from search.proposers.catalogue import proposer_names
from studies.records.objectives import DEFAULT_COST, CostName
from studies.records.target import TARGETS, Target

CONFIG_VERSION = 1
DEFAULT_OUT = Path("ftp-out")
DEFAULT_PROFILE_SECONDS = 60.0
# Of what stands in for skipped halves: 64 spares SmolLM2-135M a seventh of the KL more (benchmarks/substitutes.py).
DEFAULT_RANK = 32
# Most tokens that can be protected, more than any model reads.
_MOST_KEPT = 10_000_000

KeepFirst = int | Literal["system"]
"""Tokens at the beginning of every prompt that are protected, or the system turn of chats."""


class Group(BaseModel):
    """Settings that belong together.

    The docstring of a field is its help on the command line, in configuration files, in forms and over HTTP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    heading: ClassVar[str] = ""

    version: int = CONFIG_VERSION
    """Version of these settings and their meaning."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # For Python true is 1, and for YAML a bare no, off or on is a truth value.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected a number or text (put words such as no and off into quotes)")
        return value


class DataSettings(Group):
    """The model, and the examples that everything rests on."""

    heading = "Model and data"

    model: Annotated[str, About(longest=4096, is_path=True, is_common=True, can_change=True)] = "demo"
    """'demo', 'smollm2' (SmolLM2-135M-Instruct, of the extra smollm2), a local directory, a GGUF file, or a Hugging
    Face id."""

    revision: Annotated[str | None, About("REVISION", longest=200, can_change=True)] = None
    """Branch, tag or commit of a model on the Hugging Face Hub; the main one if not given."""

    adapter: Annotated[str | None, About("DIR", longest=4096, is_path=True, can_change=True)] = None
    """Directory of a LoRA adapter (written by peft) that is merged into the model's weights; none if not given."""

    data: Annotated[
        str, About("SOURCE", longest=4096, is_path=True, is_sources=True, is_common=True, can_change=True)
    ] = "demo"
    """Where examples come from: 'demo', a file or folder (JSON Lines, Parquet, CSV, JSON, plain text),
    hf:DATASET[:CONFIG][:SPLIT], task:NAME of lm-evaluation-harness, or self, text that the model writes; several as
    'SOURCE + SOURCE', each perhaps with its weight, as 2:SOURCE (docs/data.md has all of it)."""

    columns: Annotated[str, About("PART=COLUMN,...", longest=1000)] = ""
    """Columns of tables and keys of JSON Lines that make an example, such as prompt=question,completion=answer, or
    prompt=question,choices=options,label=answer; recognised if not given."""

    test_data: Annotated[str, About("SOURCE", longest=4096, is_path=True, is_sources=True, can_change=True)] = ""
    """Data of other kinds than the study's own, as in --data, that results are tested on, too; each source is a set of
    its own."""

    chat: bool = False
    """Write prompts as users' messages with the chat template of the model's tokenizer."""

    fewshot: Annotated[int | None, Ge(0), About(most=100)] = None
    """Solved examples before each prompt of a task; as many as the task itself says if not given."""

    keep_first: KeepFirst = 0
    """Tokens at the beginning of every prompt that blocks keep before any other, whatever the router; system for the
    system turn that all prompts begin with, as the model's chat template writes it."""

    calibration_items: Annotated[int, Ge(1), About(most=1_000_000)] = 256
    """Examples that a router is distilled on; calibration, validation and test share none."""

    search_items: Annotated[int, Ge(1), About(most=1_000_000)] = 32
    """Calibration examples that make the search set, on which every schedule is evaluated."""

    validation_items: Annotated[int, Ge(1), About(most=1_000_000)] = 128
    """Examples that routers, their hyperparameters and the point to export are selected on."""

    test_items: Annotated[int, Ge(1), About(most=1_000_000)] = 200
    """Examples that reported figures rest on; nothing is selected on them."""

    @field_validator("data", "test_data", mode="before")
    @classmethod
    def _known_sources(cls, value: Any, info: ValidationInfo) -> Any:
        named = SEPARATOR.join(map(str, value)) if isinstance(value, (list, tuple)) else value
        if isinstance(named, str) and (named or info.field_name == "data"):
            try:
                parse_sources(named)
            except DataError as error:
                raise ValueError(str(error)) from error
        return named

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: str) -> str:
        try:
            Columns.parsed(value)
        except DataError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("keep_first", mode="before")
    @classmethod
    def _tokens_or_system(cls, value: Any) -> Any:
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        if number != "system" and (type(number) is not int or not 0 <= number <= _MOST_KEPT):
            raise ValueError("expected a whole number from 0, the tokens to keep, or system")
        return number

    @property
    def form(self) -> Form:
        """Form in which rows of the data become examples."""
        return Form(self.columns, self.fewshot, self.chat)

    @property
    def reference(self) -> ModelReference:
        """The model, with its revision and adapter."""
        return ModelReference(self.model, self.revision, self.adapter)

    @property
    def sizes(self) -> dict[str, int]:
        """Examples in each split."""
        return {
            "calibration": self.calibration_items,
            "validation": self.validation_items,
            "test": self.test_items,
        }


class SearchSettings(Group):
    """The first search: its length, its proposers, what it trades, and what it must keep."""

    heading = "The search"

    trials: Annotated[int, Ge(1), About(most=1_000_000, is_common=True, can_change=True)] = 300
    """Schedules to evaluate in the first search; ablations on a part of the search set count for that part."""

    seconds: Annotated[float | None, Gt(0.0), About("S", most=1e9, can_change=True)] = None
    """Seconds in which a search may begin new schedules; no limit if not given."""

    plateau: Annotated[int | None, Ge(1), About(most=1_000_000, can_change=True)] = None
    """Schedules in a row without a gain of the front after which a search ends; no limit if not given."""

    sampler: Annotated[str, About("NAMES", longest=200)] = "portfolio"
    """Proposers of schedules, separated by commas: portfolio, or some of deap, evopress, additive, tpe, gp, nsga2,
    nsga3, cmaes, qmc, random, grid, and (not over HTTP) any sampler for Optuna as module:Class(argument=value)."""

    warm_start: Annotated[str | None, About("STUDY", longest=200)] = None
    """A study of the same model and data whose results the first search starts from."""

    fidelities: Annotated[tuple[float, ...], About(example="0.25,1", longest=1000)] = (1.0,)
    """Shares of the search set after which bad schedules are stopped, such as 0.25, 1; the last is 1."""

    pruner: Literal["halving", "asha", "hyperband", "median", "percentile"] = "halving"
    """Rule by which bad schedules are stopped: halving, or a pruner of Optuna's."""

    confirm: Annotated[int, Ge(0), About(most=10_000, can_change=True)] = 8
    """Most trials that are confirmed after each search: they race on calibration items that it did not see, for at most
    15 % of what it took, and the point that goes on is chosen by both. 0: none."""

    seed: Annotated[int, Ge(0), Lt(2**32), About(is_common=True)] = 0
    """Seed of proposals, data splits and router training."""

    deterministic: bool = False
    """Evaluate the same trials whatever the workers, the timing and the interruptions."""

    cost: Annotated[CostName, About(is_common=True)] = DEFAULT_COST
    """Cost that is traded against KL: predicted latency, counted operations or KV bytes of one prefill."""

    target_sparsity: Annotated[float | None, Ge(0.0), Le(MAX_SPARSITY), About(is_common=True)] = None
    """Overall sparsity that every schedule must have; the whole space is searched if no target is given."""

    target_flops_saved: Annotated[float | None, Gt(0.0), Lt(1.0), About(is_common=True)] = None
    """Share of the dense prefill's FLOPs, logits included, that every schedule must save."""

    target_speedup: Annotated[float | None, Gt(1.0), About(most=1000, is_common=True)] = None
    """Speed-up of a prefill that every schedule must be predicted to have."""

    max_latency_ms: Annotated[float | None, Gt(0.0), About("MS", most=1e9, is_common=True)] = None
    """Latency that no schedule may exceed, predicted in a search and measured where one is selected; no limit if not
    given."""

    min_accuracy: Annotated[float | None, Gt(0.0), Le(1.0)] = None
    """Accuracy on the search set that points of the front must have; no limit if not given."""

    min_retention: Annotated[float | None, Gt(0.0), Le(1.0)] = None
    """Share of the dense model's accuracy on validation items that the selected point must keep, the cheapest such
    point being selected; the point at the target or at the knee if not given."""

    granularity: Granularity | Literal["auto"] = "auto"
    """Unit that skips as one: each block as a whole, or its halves, attention and MLP, apart; halves if a target of
    FLOPs or of speed is given and this is not."""

    kv: Kv | Literal["auto"] = "auto"
    """Keys and values of tokens that skip a block's attention: drop them, or keep them, so that others attend to these
    tokens there all the same; keep if a target of FLOPs or of speed is given and this is not."""

    keys: Literal["own", "fitted"] = "own"
    """Keys and values that tokens keep which skip a block's attention: own, as the block makes them of what they bring,
    or fitted to what the dense model has there, for each schedule anew on calibration items."""

    substitute: Annotated[int, Ge(0), Le(4096)] | Literal["auto"] = "auto"
    """Rank of the low-rank maps that stand in for halves of blocks that tokens skip, fitted to the dense model on
    calibration items; 32 where halves skip or keys are kept, if not given. 0: nothing stands in."""

    dense_blocks: Annotated[tuple[int, ...], About(example="0,1,-1", longest=1000)] = ()
    """Blocks that skip nothing, such as 0, 1, -1; negative numbers count from the end."""

    @model_validator(mode="before")
    @classmethod
    def _best_kind(cls, values: Any) -> Any:
        # At equal FLOPs and at equal latency, halves with kept keys lose less. An overall sparsity is the paper's, of
        # whole blocks that drop them.
        if not isinstance(values, Mapping):
            return values
        is_cost = any(values.get(kind) is not None for kind in TARGETS if kind != "target_sparsity")
        best: dict[str, Any] = (
            {"granularity": "half", "kv": "keep"} if is_cost else {"granularity": "block", "kv": "drop"}
        )
        decided = {**best, **{field: value for field, value in values.items() if value != "auto" or field not in best}}
        if decided.get("substitute", "auto") == "auto":
            # Whole blocks that drop keys have none: their tokens are gone.
            is_whole = (decided["granularity"], decided["kv"]) == ("block", "drop")
            decided["substitute"] = 0 if is_whole else DEFAULT_RANK
        return decided

    @field_validator("sampler")
    @classmethod
    def _known_samplers(cls, value: str) -> str:
        proposer_names(value)
        return value

    @property
    def target(self) -> Target | None:
        """Target that all schedules of the search meet, if any."""
        return Target.of({kind: getattr(self, kind) for kind in TARGETS})

    @property
    def predicts_latency(self) -> bool:
        """True if the search needs a latency profile."""
        limits = (self.max_latency_ms, self.target_speedup)
        return self.cost == "latency_ms" or any(limit is not None for limit in limits)


class RouterSettings(Group):
    """Training of routers, and the searches with them."""

    heading = "Routers, and searching again with them"

    rounds: Annotated[int, Ge(0), About(most=100, is_common=True, can_change=True)] = 2
    """Most times that a router is distilled and schedules are searched again with it; fewer, once the front grows by no
    more than a hundredth or no router beats the static one. 0: the first search alone."""

    refine_trials: Annotated[int, Ge(1), About(most=1_000_000, can_change=True)] = 150
    """Schedules to evaluate in each of those searches."""

    router: Literal["best", "dynamic", "hidden", "one-pass"] = "best"
    """Router to distill: the dynamic one of the paper (position, attention, its rank, sparsity); one that reads hidden
    states before each block; one that reads them once, for all blocks; or the better of the first two on validation
    items."""

    router_trials: Annotated[int, Ge(0), About(most=10_000)] = 4
    """Hyperparameters of the dynamic router's training that Ray Tune tries before the first distillation; none with
    --router hidden or one-pass. 0: the defaults."""

    router_steps: Annotated[int, Ge(1), About(most=1_000_000)] = 80
    """Steps of the router's training."""

    router_schedules: Annotated[int, Ge(1), About(most=10_000)] = 4
    """Schedules of the front that a router is distilled on at once, the chosen one among them."""

    @property
    def tunes_router(self) -> bool:
        """True if hyperparameters of the dynamic router's training are tuned."""
        return self.router_trials > 0 and self.distils_dynamic

    @property
    def distils_dynamic(self) -> bool:
        """True if a dynamic router is among those that are distilled."""
        return self.router in ("best", "dynamic")


class EvaluationSettings(Group):
    """Profiling, measuring and timing."""

    heading = "Measuring"

    latency_batch: Annotated[int, Ge(1), About(most=1024)] = 8
    """Rows of the prefill whose cost is predicted and measured."""

    latency_length: Annotated[
        tuple[Annotated[int, Ge(1)], ...], About(example="512,2048", longest=100, can_change=True)
    ] = ()
    """Tokens of the timed prompts, such as 512, 2048: costs are of the first length, the selected point is timed at
    all of them; as long as the 90th percentile of calibration prompts, rounded up, if not given."""

    new_tokens: Annotated[
        tuple[Annotated[int, Ge(0)], ...] | None, About(example="16,64", longest=100, can_change=True)
    ] = None
    """Numbers of new tokens that the selected point is timed with end to end, such as 16, 64; 0 for the prefill alone;
    16, 64, as far as they fit into the model's context, if not given."""

    profile_seconds: Annotated[FiniteFloat, Gt(0.0), About("S")] = DEFAULT_PROFILE_SECONDS
    """Most seconds in which latency is profiled before a search that predicts it; less where times vary little, and
    more for a model that takes longer to run a dozen times."""

    measured_points: Annotated[int, Ge(1), About(most=10_000)] = 8
    """Most points of the front that are measured."""

    also_measure: Annotated[
        tuple[Annotated[int, Ge(0)], ...], About(example="12,57", longest=1000, can_change=True, of_trials=True)
    ] = ()
    """Numbers of trials to measure beside these points, such as 12, 57, wherever they lie."""

    select_trial: Annotated[Annotated[int, Ge(0)] | Literal["auto"], About(can_change=True, of_trials=True)] = "auto"
    """Number of the trial to select, which is measured, too; auto for one that the rules select."""

    timed_runs: Annotated[int, Ge(2), About(most=10_000)] = 9
    """Least number of timed runs of each of these points; up to four times as many where speed-ups are not known to
    2.5 %."""


class RunSettings(Group):
    """The machine that a study runs on, and the files that it writes."""

    heading = "Where it runs, and what is written"

    device: Annotated[str, About("auto|cpu|cuda|cuda:N|mps", longest=20, can_change=True)] = "auto"
    """Device of everything that computes: auto is the GPU if there is one, and else the CPU."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the model: auto is the one that its weights were published in where the device computes it natively,
    and else float32."""

    device_map: Annotated[Literal["auto"] | None, About(can_change=True)] = None
    """Spread the model over all GPUs that a process sees, and over memory and disk where these do not suffice: auto;
    workers load it over the GPUs of --gpu-share, each its own. On --device alone if not given."""

    workers: Annotated[int, Ge(0), About(most=1024, can_change=True)] = Field(
        default_factory=lambda given: default_workers(given.get("device", "auto"))
    )
    """Ray workers on the device, those on CPUs with one core each; as many as there are GPUs, or cores without one, if
    not given."""

    gpu_workers: Annotated[int, Ge(0), About(most=1024)] = 0
    """Ray workers on GPUs of a cluster, beside the others."""

    gpu_share: Annotated[float, Gt(0.0), About(most=64)] = 1.0
    """GPUs that each worker on GPUs takes: a share of one, or a whole number of them."""

    ray_address: Annotated[str | None, About("HOST:PORT", in_requests=False)] = None
    """Ray cluster to work on; one of this machine alone if not given."""

    trial_timeout: Annotated[float | None, Gt(0.0), About("S", most=1e9)] = None
    """Seconds after which the worker of an evaluation is killed; no limit if not given."""

    prefix_mb: Annotated[int | None, Ge(0), About(most=2**24)] = None
    """MiB of each worker for results that other schedules share, 0 for none; an eightieth of the memory for all of them
    if not given."""

    export: Annotated[Literal["reference", "full", "none"], About(can_change=True)] = "reference"
    """Pruned model to write: a reference to the dense weights ("reference") or a copy of them ("full") beside what was
    found, or nothing ("none"). Weights that an adapter was merged into are always copied."""

    out: Annotated[str | None, About("DIR", longest=4096, is_path=True, can_change=True)] = None
    """Folder of the report and the pruned model; ftp-out/NAME if not given."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
            raise ValueError("expected auto, cpu, cuda, cuda:N such as cuda:1, or mps")
        return value

    @field_validator("gpu_share")
    @classmethod
    def _whole_gpus(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("expected a share of one GPU, or a whole number of them")
        return value

    @property
    def prefix_bytes(self) -> int:
        """Memory of each worker for hidden states that other schedules can go on from."""
        if self.prefix_mb is not None:
            return self.prefix_mb * 2**20
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(machine, limit_bytes() or machine) // 80 // max(1, self.workers + self.gpu_workers)

    @property
    def held_out_prefix_bytes(self) -> int:
        """The same where a router is trained, which takes memory itself, and whose decisions few schedules share."""
        return self.prefix_bytes // 4

    def folder(self, name: str) -> Path:
        """The folder of the report and the pruned model of a study.

        Args:
            name: Name of the study.
        """
        return DEFAULT_OUT / name if self.out is None else Path(self.out)
