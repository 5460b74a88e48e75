"""What is found out about a study beside its trials: a versioned record, one field a fact."""

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
    *("peak_process_bytes", "generation_speeds"),
)
# Of what is stored; raised when a fact changes its meaning or its shape.
VERSION = 1


@dataclass(frozen=True)
class ReplacedStudy:
    """A study of the same name whose files a study may write over.

    Attributes:
        name: Its name.
        created_at: When it was created, ISO 8601; None if that is not known.
    """

    name: str
    created_at: str | None


@dataclass(frozen=True)
class TimedInput:
    """Rows and tokens of the prefill that costs are of."""

    batch: int
    length: int


@dataclass(frozen=True)
class LongCompletions:
    """Tokens of completions that count, and the number of examples that reach them."""

    tokens: int
    examples: int


class ProfiledShape(BaseModel):
    """One batch and length of a latency profile as far as it is shown; what else the profile says of it is kept.

    Attributes:
        uncertainty: Half a 95 % interval around predictions, as a share of them; None if unknown.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    uncertainty: float | None = None


class ProfileRecord(BaseModel):
    """A latency profile as far as it is shown; what it predicts from is kept as it is.

    Attributes:
        batch: Rows that predictions are for.
        length: Tokens in each row.
        shapes: Batches and lengths that were measured.
        doubts: Reasons not to rely on it, one phrase each.
        dense_ms: Latency that it predicts for the dense model; None if unknown.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    batch: int
    length: int
    shapes: tuple[ProfiledShape, ...] = ()
    doubts: tuple[str, ...] = ()
    dense_ms: float | None = None

    @property
    def uncertainty(self) -> float | None:
        """The largest uncertainty of its shapes; None if unknown."""
        return max((one.uncertainty for one in self.shapes if one.uncertainty is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """The whole profile as it was given."""
        return self.model_dump(mode="json", exclude_unset=True)


class Memory(BaseModel):
    """What processes are expected to hold.

    Attributes:
        worker_bytes: Most memory of a worker, beside the weights, which all of them share.
        process_bytes: Most memory of the process itself, and of the weights in their shared place.
        available_bytes: Memory that the machine has left for both; None if unknown.
    """

    model_config = ConfigDict(frozen=True)

    worker_bytes: int
    process_bytes: int
    available_bytes: int | None = None


class Estimate(BaseModel):
    """What a run is expected to take.

    Attributes:
        seconds: Time of each stage that is to come, in order, the latency profile's among them.
        evaluation_s: Time of a schedule on the search set, on one worker.
        workers: Workers that evaluate at once.
        memory: Memory that they take.
        left_out: What the budget leaves out, a sentence each.
        examples: Examples that the estimate is made of.
    """

    model_config = ConfigDict(frozen=True)

    seconds: Mapping[str, float]
    evaluation_s: float
    workers: int
    memory: Memory
    left_out: tuple[str, ...] = ()
    examples: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_s(self) -> float:
        """Time of all stages together."""
        return sum(self.seconds.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_bytes(self) -> int:
        """Memory of all processes together."""
        return self.memory.process_bytes + self.workers * self.memory.worker_bytes

    @property
    def fits(self) -> bool:
        """Whether the machine has the memory, as far as that is known."""
        available = self.memory.available_bytes
        return available is None or self.total_bytes <= available


@dataclass(frozen=True)
class Ablations:
    """The ablations that a search begins with.

    Attributes:
        schedules: Schedules that are evaluated for them.
        blocks: Blocks of the model that may skip and that a proposer wants to know of.
        trials: Trials of the search.
        trials_for_each: Number of trials from which on each block is ablated by itself.
        left_out: A sentence on what the search leaves out; empty if nothing.
    """

    schedules: int
    blocks: int
    trials: int
    trials_for_each: int
    left_out: str


@dataclass(frozen=True)
class TunedTrial:
    """One choice of hyperparameters of router training.

    Attributes:
        config: The tuned ones of `DistillationConfig`, by name.
        held_out_kl: Lowest held-out KL of its training; the mean over the schedules.
        steps: Steps done; fewer than its configuration's if it was stopped.
        seconds: Time that it took on its workers.
    """

    config: Mapping[str, Any]
    held_out_kl: float
    steps: int
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Tuning:
    """What the tuning of the router found.

    Attributes:
        trials: The choices that were tried, in the order in which they began; the first one is the study's own.
        best: What the best one changes of the study's own configuration.
        seconds: Time that they took on their workers.
    """

    trials: tuple[TunedTrial, ...]
    best: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Round:
    """One refinement: a distillation, and a search with the router that came of it.

    Attributes:
        round: Its number, from 1.
        router_run: Number of the router that was distilled for it.
        router: Number of the router that decides in its trials; None because the distilled one was no better than the
            static one on the validation examples, so that there was nothing to search again with.
        first_trial: Number of its first trial; None until its search begins.
        trials: Trials that ended in it.
        hypervolume_before: Hypervolume of the front as the search began, see `studies.pareto.front_volume`.
        hypervolume_after: Hypervolume as it ended; None until then.
        growth: Share by which hypervolume grew; None before the end, and where it began at nothing.
    """

    round: int
    router_run: int
    router: int | None
    first_trial: int | None = None
    trials: int = 0
    hypervolume_before: float = 0.0
    hypervolume_after: float | None = None
    growth: float | None = None


@dataclass(frozen=True)
class SelectionRecord:
    """The trial that was selected, and why.

    Attributes:
        trial: Number of the trial.
        router: Number of the router that decides; None for the static one.
        rule: Name of the rule that chose it.
        reason: The reason in words.
        retention: What it keeps of the dense model on validation items, see `Measurement.retention`; None if unknown.
        cost: What KL was traded against; None where the rule trades nothing.
        latency: Whether latencies were "measured" or "predicted"; None where they decided nothing.
    """

    trial: int
    router: int | None
    rule: str
    reason: str
    retention: float | None = None
    cost: str | None = None
    latency: str | None = None


class StudyFacts(BaseModel):
    """What is found out about a study beside its trials. What is not known has the field's default.

    Attributes:
        replaces: Studies whose files it may write over, beside its own.
        model_fingerprint: Hash of the model's configuration and weights; None before the study begins.
        data_fingerprint: Hash of the examples of the splits, in order; None before the study begins.
        keep_first: Tokens of every prompt that are protected.
        n_blocks: Blocks of the model.
        unprotected_beginning: A warning that most prompts begin alike, and that this is not protected.
        left_out: Number of examples that were left out, by the reason.
        shared_boundaries: Examples in which one token spans the end of the prompt and the beginning of what follows.
        long_completions: Completions of which not all tokens count.
        split_sizes: Examples of each split.
        chance: Accuracy of guessing on each split that has choices.
        fewer_items: A sentence on splits that have fewer items than were asked for; empty if none has.
        estimate: What the run was expected to take.
        ablations: The ablations that the search begins with.
        timed_input: The prefill that costs are of.
        dense_costs: Costs of the dense model, by name.
        latency_profile: The profile that predicts latency.
        revaluations: Number of times that the trials were given other objective values.
        blocks_run: Block computations of the search.
        blocks_reused: Block computations that were known from other schedules.
        first_round: Number of the first round since the first search last ended.
        rounds: The refinements, in order.
        rounds_ended: Why fewer rounds were made than wanted; empty while they may go on.
        tuning: What the tuning of the router found.
        selection: The trial that was selected.
        peak_process_bytes: Peak memory of the process.
        exported: Folder of the pruned model.
        generation_speeds: What generation took end to end, in the order in which it was timed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    replaces: tuple[ReplacedStudy, ...] = ()
    model_fingerprint: str | None = None
    data_fingerprint: str | None = None
    keep_first: int = 0
    n_blocks: int | None = None
    unprotected_beginning: str | None = None
    left_out: Mapping[str, int] | None = None
    shared_boundaries: int | None = None
    long_completions: LongCompletions | None = None
    split_sizes: Mapping[str, int] | None = None
    chance: Mapping[str, float] | None = None
    fewer_items: str | None = None
    estimate: Estimate | None = None
    ablations: Ablations | None = None
    timed_input: TimedInput | None = None
    dense_costs: Mapping[str, float] = {}
    latency_profile: ProfileRecord | None = None
    revaluations: int = 0
    blocks_run: int = 0
    blocks_reused: int = 0
    first_round: int = 1
    rounds: tuple[Round, ...] = ()
    rounds_ended: str | None = None
    tuning: Tuning | None = None
    selection: SelectionRecord | None = None
    peak_process_bytes: int | None = None
    exported: str | None = None
    generation_speeds: tuple[GenerationSpeed, ...] = ()

    def updated(self, changes: StudyFacts) -> StudyFacts:
        """These facts with those in place that another record sets, be it to their defaults."""
        return self.model_copy(update={name: getattr(changes, name) for name in changes.model_fields_set})

    def round_of(self, number: int) -> Round | None:
        """The refinement of a number; None before it began."""
        return next((one for one in self.rounds if one.round == number), None)

    def with_round(self, one: Round) -> tuple[Round, ...]:
        """The refinements with one of them added or replaced."""
        others = (other for other in self.rounds if other.round != one.round)
        return tuple(sorted((*others, one), key=lambda round_: round_.round))

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
