"""Facts of a study beside its trials: a versioned record, one field a fact."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field

from studies.errors import StorageError
from studies.records.generation_speed import GenerationSpeed

# Facts that are shown beside a study; the others are fingerprints, counters and what predicts latency.
SHOWN_FACTS = (
    *("n_blocks", "split_sizes", "timed_input", "keep_first", "unprotected_beginning", "left_out", "shared_boundaries"),
    *("chance", "fewer_items", "estimate", "ablations", "rounds", "rounds_ended", "tuning", "selection"),
    "confirmations",
    *("peak_process_bytes", "peak_worker_bytes", "generation_speeds", "sources", "test_sources"),
)
# Version of the stored form, raised when a fact changes its meaning or its shape.
VERSION = 1


@dataclass(frozen=True)
class Origin:
    """The study that files come from: a name may be used again, but not at the same moment."""

    name: str
    created_at: str  # ISO 8601

    def __str__(self) -> str:
        return f"study {self.name!r} of {self.created_at}"


@dataclass(frozen=True)
class TimedInput:
    """Rows and tokens of the prefill that costs are of."""

    batch: int
    length: int


@dataclass(frozen=True)
class DataSource:
    """A source of examples."""

    name: str  # as it was given, with its weight where that is not 1
    version: str  # mark that tells it from a changed one beside its examples; empty without
    fingerprint: str  # hash of its examples, in order
    sizes: Mapping[str, int]  # its examples in each split


@dataclass(frozen=True)
class LongCompletions:
    """Tokens of completions that count, and the number of examples that reach them."""

    tokens: int
    examples: int


class ProfiledShape(BaseModel):
    """One batch and length of a latency profile; what else the profile says of it is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    uncertainty: float | None = None  # half a 95 % interval around predictions, as a share of them; None if unknown


class ProfileRecord(BaseModel):
    """A latency profile as far as it is shown; the times that it predicts from are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    batch: int  # rows that predictions are for
    length: int  # tokens in each row
    shapes: tuple[ProfiledShape, ...] = ()  # batches and lengths that were measured
    doubts: tuple[str, ...] = ()  # reasons not to rely on it, one phrase each
    dense_ms: float | None = None  # latency that it predicts for the dense model; None if unknown

    @property
    def uncertainty(self) -> float | None:
        """The largest uncertainty of its shapes; None if unknown."""
        return max((one.uncertainty for one in self.shapes if one.uncertainty is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """The whole profile as it was given."""
        return self.model_dump(mode="json", exclude_unset=True)


class Memory(BaseModel):
    """Expected memory of the processes."""

    model_config = ConfigDict(frozen=True)

    worker_bytes: int  # most memory of a worker, beside the weights where all of them share these
    process_bytes: int  # memory of the process itself while there are workers, and of the weights that all share
    available_bytes: int | None = None  # memory that the machine, or the GPU, has for all; None if unknown
    alone_bytes: int = 0  # most memory of the process while there are no workers
    sharing: int | None = None  # workers on the GPU that this is about; None if it is the machine's memory


class Estimate(BaseModel):
    """Expected time and memory of a run."""

    model_config = ConfigDict(frozen=True)

    seconds: Mapping[str, float]  # time of each stage that is to come, in order, the latency profile's among them
    evaluation_s: float  # time of a schedule on the search set, on one worker
    workers: int  # workers that evaluate at once
    memory: Memory  # memory of all processes
    left_out: tuple[str, ...] = ()  # work that the budget leaves out, a sentence each
    examples: int = 0  # examples evaluated for the estimate

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_s(self) -> float:
        """Time of all stages together."""
        return sum(self.seconds.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_bytes(self) -> int:
        """Most memory of all processes together."""
        with_workers = self.memory.process_bytes + self.workers_together * self.memory.worker_bytes
        return max(with_workers, self.memory.alone_bytes)

    @property
    def workers_together(self) -> int:
        """Workers that share the memory."""
        return self.workers if self.memory.sharing is None else self.memory.sharing

    @property
    def fits(self) -> bool:
        """True unless the machine is known to have too little memory."""
        available = self.memory.available_bytes
        return available is None or self.total_bytes <= available


@dataclass(frozen=True)
class Ablations:
    """The ablations that a search begins with."""

    schedules: int  # schedules evaluated for them
    blocks: int  # blocks that may skip and that a proposer asks for
    trials: int  # trials of the search
    trials_for_each: int  # number of trials from which on each block is ablated by itself
    left_out: str  # sentence on the ablations left out; empty if there are none
    evaluations: float = 0.0  # whole evaluations that they count as; 0 in older studies, where each counts as one
    fidelity: float = 1.0  # share of the search set that they are evaluated on


@dataclass(frozen=True)
class TunedTrial:
    """One choice of hyperparameters of router training."""

    config: Mapping[str, Any]  # tuned fields of `DistillationConfig`, by name
    held_out_kl: float  # lowest held-out KL of its training; the mean over the schedules
    steps: int  # steps done, fewer than configured if it was stopped
    seconds: float = field(compare=False)  # on its workers


@dataclass(frozen=True)
class Tuning:
    """Outcome of the tuning of the router."""

    trials: tuple[TunedTrial, ...]  # in the order in which they began; the first has the study's own configuration
    best: Mapping[str, Any]  # changes of the best one to the study's own configuration
    seconds: float  # on their workers


@dataclass(frozen=True)
class Round:
    """One refinement: a distillation, and a search with the distilled router."""

    round: int  # from 1
    router_run: int  # number of the router that was distilled for it
    router: int | None  # router of its trials; None if the distilled one was no better than the static one: no search
    first_trial: int | None = None  # number of its first trial; None until its search begins
    trials: int = 0  # trials that ended in it
    hypervolume_before: float = 0.0  # hypervolume of the front as the search began, see `studies.pareto.front_volume`
    hypervolume_after: float | None = None  # hypervolume as it ended; None until then
    growth: float | None = None  # share by which hypervolume grew; None before the end, and where it began at nothing


@dataclass(frozen=True)
class Confirmation:
    """A race of the best trials of a search on fresh items: those of the calibration set that it did not see."""

    round: int  # the search: 0 is the first one, n the n-th refinement
    searched: int  # trials of it that had ended
    said: str = ""  # a sentence on why no trial was confirmed; empty if some were
    trials: int = 0  # trials that were confirmed
    items: int = 0  # fresh items that those were evaluated on that led to the end
    evaluated: int = 0  # items evaluated, those of all trials added up
    told_apart: int = 0  # trials that are told apart from a better one
    optimism: float | None = None  # share by which their KL is higher on fresh items than on those of the search
    best: int | None = None  # the best trial at the target by all items; None without a target
    best_before: int | None = None  # the best of these trials by the items of the search; None without a target


@dataclass(frozen=True)
class SelectionRecord:
    """The trial that was selected, and why."""

    trial: int  # number of the trial
    router: int | None  # number of the router that decides; None for the static one
    rule: str  # name of the rule that chose it
    reason: str  # the reason in words
    retention: float | None = None  # see `Measurement.retention`, on validation items; None if unknown
    cost: str | None = None  # cost that KL was traded against; None where the rule trades nothing
    latency: str | None = None  # "measured" or "predicted" latencies decided; None for neither


class StudyFacts(BaseModel):
    """Facts of a study beside its trials; unknown ones have their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replaces: tuple[Origin, ...] = ()  # studies whose files it may write over, beside its own
    model_fingerprint: str | None = None  # hash of the model's configuration and weights; None before the study begins
    data_fingerprint: str | None = None  # hash of the examples of the splits, in order; None before the study begins
    sources: tuple[DataSource, ...] = ()  # sources of the examples of the splits
    test_sources: tuple[DataSource, ...] = ()  # sources of other data that results are tested on, too
    keep_first: int = 0  # tokens of every prompt that are protected
    n_blocks: int | None = None  # blocks of the model
    unprotected_beginning: str | None = None  # warning that prompts begin alike, unprotected
    left_out: Mapping[str, int] | None = None  # number of examples that were left out, by the reason
    shared_boundaries: int | None = None  # examples with a token across the end of the prompt
    long_completions: LongCompletions | None = None  # limit on the tokens of completions that count
    split_sizes: Mapping[str, int] | None = None  # examples of each split
    chance: Mapping[str, float] | None = None  # accuracy of guessing on each split that has choices
    fewer_items: str | None = None  # sentence on splits with fewer items than asked for; empty if none
    estimate: Estimate | None = None  # expected time and memory of the run
    ablations: Ablations | None = None  # the ablations that the search begins with
    timed_input: TimedInput | None = None  # the prefill that costs are of
    dense_costs: Mapping[str, float] = {}  # costs of the dense model, by name
    latency_profile: ProfileRecord | None = None  # the profile that predicts latency
    revaluations: int = 0  # times that the trials got other objective values
    blocks_run: int = 0  # block computations of the search
    blocks_reused: int = 0  # block computations taken over from other schedules
    first_round: int = 1  # number of the first round since the first search last ended
    rounds: tuple[Round, ...] = ()  # the refinements, in order
    rounds_ended: str | None = None  # why fewer rounds were made than wanted; empty while they may go on
    confirmations: tuple[Confirmation, ...] = ()  # races on fresh items, by search
    tuning: Tuning | None = None  # result of the router's tuning
    selection: SelectionRecord | None = None  # the trial that was selected
    peak_process_bytes: int | None = None  # peak memory of the process, of its GPU where the model is on one
    peak_worker_bytes: int | None = None  # the most of a search's workers, beside what they share with others
    exported: str | None = None  # folder of the pruned model
    generation_speeds: tuple[GenerationSpeed, ...] = ()  # in the order in which they were timed

    def updated(self, changes: StudyFacts) -> StudyFacts:
        """These facts, replaced by those that another record sets, be it to their defaults."""
        return self.model_copy(update={name: getattr(changes, name) for name in changes.model_fields_set})

    def round_of(self, number: int) -> Round | None:
        """The refinement of a number; None before it began."""
        return next((one for one in self.rounds if one.round == number), None)

    def with_round(self, one: Round) -> tuple[Round, ...]:
        """The refinements with one of them added or replaced."""
        others = (other for other in self.rounds if other.round != one.round)
        return tuple(sorted((*others, one), key=lambda round_: round_.round))

    def confirmation_of(self, number: int) -> Confirmation | None:
        """The race of a search's best trials on fresh items; None before it."""
        return next((one for one in self.confirmations if one.round == number), None)

    def with_confirmation(self, one: Confirmation) -> tuple[Confirmation, ...]:
        """The races on fresh items with one of them added or replaced."""
        others = (other for other in self.confirmations if other.round != one.round)
        return tuple(sorted((*others, one), key=lambda race: race.round))

    def to_json(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The facts that were set, as JSON has them.

        Args:
            names: Names of the facts to give; None for all.
        """
        return self.model_dump(mode="json", exclude_unset=True, include=None if names is None else set(names))

    def with_defaults(self, names: Collection[str]) -> dict[str, Any]:
        """Facts by their names, as JSON has them, those that were not set with their defaults."""
        return self.model_dump(mode="json", include=set(names))

    def stored(self) -> dict[str, Any]:
        """The facts as the database keeps them."""
        return {"version": VERSION, **self.to_json()}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> StudyFacts:
        """Read what `stored` gave.

        Raises:
            StorageError: A newer program wrote it.
        """
        version = stored.get("version", VERSION)
        if version > VERSION:
            raise StorageError(
                f"What is known of the study has version {version}, which a newer program wrote, and this one reads "
                f"{VERSION}: use the program that wrote it."
            )
        return cls.model_validate({name: value for name, value in stored.items() if name in cls.model_fields})
